"""Luigi's settings where the user left them unset: plain `luigi` then behaves as with luigi.cfg.

Stock Luigi exits 0 whatever fails, waits a minute for a luigid that nobody started, and logs at
DEBUG. Luigi looks for a setting on its command line, in its configuration files, and then takes the
default of the parameter. `install` changes that default, so whatever the user says wins, wherever
and whenever it is said. Luigi reads each of them after it has imported the module of `--module`.
"""

import atexit
import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import luigi
import luigi.configuration
import luigi.interface
import luigi.parameter
import luigi.retcodes
import luigi.scheduler
import luigi.worker

from workflows.config import settings
from workflows.luigi_seam import console, retries, worker
from workflows.reporting.stdio import guard

# The reasons are in luigi.cfg, which has the same values.
DEFAULTS: dict[str, dict[str, Any]] = {
    "core": {
        "log_level": "WARNING",
        "workers": 8,
    },
    "worker": {
        "check_unfulfilled_deps": False,
        "check_complete_on_run": True,
        "force_multiprocessing": True,
        "wait_interval": 0.05,
        "wait_jitter": 0.05,
        "ping_interval": 5.0,
    },
    "scheduler": {
        "retry_delay": 172_800.0,
        "remove_delay": 86_400.0,
        "worker_disconnect_delay": 180.0,
        "stable_done_cooldown_secs": 0,
    },
    "retcode": {
        "already_running": 10,
        "missing_data": 20,
        "not_run": 25,
        "task_failed": 30,
        "scheduling_error": 35,
        "unhandled_exception": 40,
    },
}
# Luigi has no parameters for these: it asks its configuration each time.
READ_LATER: dict[str, dict[str, int]] = {"core": {"rpc_retry_attempts": 10, "rpc_retry_wait": 5}}

_CONFIGS: dict[str, type[luigi.Config]] = {
    "core": luigi.interface.core,
    "worker": luigi.worker.worker,
    "scheduler": luigi.scheduler.scheduler,
    "retcode": luigi.retcodes.retcode,
}
_WHERE = ("scheduler_host", "scheduler_port", "scheduler_url")
_installed: list[bool] = []
RETRIES = [(luigi.Event.FAILURE, retries.note_failure), (luigi.Event.START, retries.note_start)]


def install(
    listeners: Mapping[str, Callable[..., None]],
    at_end: Callable[[Any], None],
    last: Callable[[], None],
) -> None:
    """Make Luigi's runs those of steps; a second call changes nothing.

    The settings of Luigi that the user left unset are filled in. Runs have a scheduler of their own
    unless the user names luigid, or sets `local_scheduler`. `listeners` are called at the events of
    tasks that they are listed under, `at_end` with a worker that has run all it could, and `last`
    after all else at the end of the process.
    """
    if _installed:
        return
    _installed.append(True)
    atexit.register(last)
    guard()
    console.speak_plainly()
    worker.use_step_workers()
    worker.at_end.append(at_end)
    for event, listener in [*RETRIES, *listeners.items()]:
        luigi.Task.event_handler(event)(listener)
    for section, values in DEFAULTS.items():
        for name, value in values.items():
            _default(section, name, value)
    _complete_core()
    config = luigi.configuration.get_config()
    for section, numbers in READ_LATER.items():
        for name, number in numbers.items():
            if not config.has_option(section, name):
                is_text = isinstance(config, luigi.configuration.LuigiConfigParser)
                config.set(section, name, str(number) if is_text else number)


def _default(section: str, name: str, value: Any) -> None:
    getattr(_CONFIGS[section], name)._default = value


def _complete_core() -> None:
    """Give a run a scheduler of its own, unless the user says where luigid is; and its pid file."""
    core: Any = luigi.interface.core
    find = core.get_param_values.__func__

    def values(cls: Any, params: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        chosen = settings()  # read before any task: a wrong one is told in its own words
        if "local_scheduler" not in kwargs and not _is_given(core, "local_scheduler"):
            is_named = any(name in kwargs or _is_given(core, name) for name in _WHERE)
            kwargs = {**kwargs, "local_scheduler": not is_named}
        if "lock_pid_dir" not in kwargs and not _is_given(core, "lock_pid_dir"):
            kwargs = {**kwargs, "lock_pid_dir": chosen.state}
        return find(cls, params, args, kwargs)

    core.get_param_values = classmethod(values)


def _is_given(config: type[luigi.Config], name: str) -> bool:
    """Tell whether the user gave a value, on the command line or in a file."""
    return any(value != luigi.parameter._no_value for value in _given(config, name))


def _given(config: type[luigi.Config], name: str) -> Iterator[Any]:
    with contextlib.suppress(ValueError):  # Luigi says so itself, when it reads the value
        found = list(getattr(config, name)._value_iterator(config.get_task_family(), name))
        yield from (value for value, _ in found[:-1])  # the last one is the default
