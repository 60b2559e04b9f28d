"""What the tasks of one process share: fleets, stores, datasets and the run's log.

Luigi forks a process for each task; what is cached here is inherited. Connections are not: a
channel belongs to the process that opened it.
"""

import atexit
import ctypes
import functools
import logging
import os
import re
import signal
import sys
import types
from types import TracebackType

from workflows.config import settings
from workflows.dataset import Dataset, load
from workflows.errors import WorkflowsError
from workflows.fleet import Fleet, open_fleet
from workflows.progress import CLEAR, Progress
from workflows.runlog import RunLog, Totals, on_terminal
from workflows.store import Store, open_store
from workflows.targets import Listings

# A child of Luigi's logger, so that its handler prints it; with a level of its own, so that a run
# says a line a step while Luigi itself is quiet.
logger = logging.getLogger("luigi-interface.workflows")

# What Luigi makes of an error in complete() or requires(): text, before a filter sees the error.
_TRACEBACK = re.compile(
    r"(Will not run .* method:\n)?Traceback \(most recent call last\):\n"
    r".*^workflows\.errors\.\w+: ",
    re.DOTALL | re.MULTILINE,
)
_PR_SET_PDEATHSIG = 1
_said: set[str] = set()
_fleets: list[Fleet] = []
_driver, _is_task = [0], [False]


@functools.cache
def fleet(spec: str) -> Fleet:
    """Return the fleet of this run, with its runtimes starting."""
    chosen = settings()
    opened = open_fleet(spec, state=chosen.state, slots=chosen.slots, silence_s=chosen.silence_s)
    _fleets.append(opened)
    opened.start()
    begin()
    return opened


@functools.cache
def listings(spec: str) -> Listings:
    """Return what the nodes of a fleet said is done."""
    return Listings(fleet(spec))


@functools.cache
def store(url: str) -> Store:
    """Return the store at `url`."""
    opened = open_store(url)
    opened.sweep()
    return opened


@functools.cache
def dataset(source: str, pattern: str, slots: int, checkpoint: str) -> Dataset:
    """Return the dataset of a source, listed once in this run."""
    return load(source, pattern, slots, store(checkpoint))


@functools.lru_cache(maxsize=1)
def log() -> RunLog:
    """Return this run's log."""
    return RunLog(settings().state)


@functools.lru_cache(maxsize=1)
def begin() -> None:
    """Set up what a person sees of a run; called once, by the process that schedules."""
    _driver[0] = os.getpid()
    logger.setLevel(logging.INFO)
    path = os.environ.get("WORKFLOWS_LOG")
    if path:
        handler = logging.FileHandler(path)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger("luigi-interface").addHandler(handler)
    _hear_interrupts()
    os.register_at_fork(after_in_child=functools.partial(_end_with, os.getpid(), ctypes.CDLL(None)))
    sys.excepthook = _say_interrupted
    progress = Progress(log())
    progress.start()
    atexit.register(_end, progress, os.getpid())


def is_driver() -> bool:
    """Tell whether this is the process that schedules, not one that it forked."""
    return os.getpid() == _driver[0]


def close() -> None:
    """End this process's fleets and forget all; for programs that make several runs."""
    while _fleets:
        _fleets.pop().close()
    for cached in (fleet, listings, store, dataset, log, begin):
        cached.cache_clear()


def _end(progress: Progress, driver: int) -> None:
    if os.getpid() != driver:
        return
    progress.stop()
    totals = Totals()
    totals.update(log().path)
    if totals.steps:
        print(totals.table(), file=sys.stderr)
    if failed := sum(step["failed"] for step in totals.steps.values()):
        keys = "1 key" if failed == 1 else f"{failed} keys"
        print(
            f"{keys} failed, all others are done and kept: mend the cause, then run the same again",
            file=sys.stderr,
        )
    for opened in _fleets:
        opened.close()


def _end_with(driver: int, libc: ctypes.CDLL) -> None:
    """Let a task that Luigi forked die with the driver, as its nodes do: it could only complain."""
    if _is_task[0]:
        return  # this is what a task has forked itself
    _is_task[0] = True
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != driver:
        os._exit(1)


def _hear_interrupts() -> None:
    """Make every Ctrl-C end the run, unless it was started with them ignored, as by nohup."""
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_ours and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL:
        for number in (signal.SIGINT, signal.SIGALRM):
            signal.signal(number, _interrupt)
        sys.unraisablehook = _interrupt_again


def _interrupt(*_: object) -> None:
    if not is_driver():
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - the driver says it, without a traceback
    raise KeyboardInterrupt


def _interrupt_again(dropped: "sys.UnraisableHookArgs") -> None:
    """Raise an interrupt once more that Python dropped, as in its callbacks around each fork."""
    if issubclass(dropped.exc_type, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, 0.01)
    else:
        sys.__unraisablehook__(dropped)


def _say_interrupted(
    kind: type[BaseException], error: BaseException, trace: "types.TracebackType | None"
) -> None:
    """Say that somebody pressed Ctrl-C, without the traceback of where Luigi was just waiting."""
    if issubclass(kind, KeyboardInterrupt):
        text = "interrupted: what is done is kept, run the same again to go on"
        print(text, file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def _brief(record: logging.LogRecord) -> bool:
    """Say an error that explains itself once, and without Luigi's traceback."""
    if record.exc_info and isinstance(record.exc_info[1], WorkflowsError):
        text = str(record.exc_info[1])
    elif isinstance(record.msg, str) and not record.args and _TRACEBACK.match(record.msg):
        text = _TRACEBACK.sub("", record.msg).rstrip()
    else:
        return True
    clear = CLEAR if on_terminal() else ""  # or it would follow the progress on its line
    record.msg, record.args, record.exc_info = "%s%s", (clear, text), None
    record.levelno, record.levelname = logging.ERROR, "ERROR"
    is_new = text not in _said
    _said.add(text)
    return is_new


def _excepthook(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Do the same for an error that comes before Luigi catches any: a bad value in luigi.cfg."""
    if isinstance(error, WorkflowsError):
        print(f"workflows: {error}", file=sys.stderr)
    else:
        _python_excepthook(kind, error, trace)


logging.getLogger("luigi-interface").addFilter(_brief)
_python_excepthook, sys.excepthook = sys.excepthook, _excepthook
