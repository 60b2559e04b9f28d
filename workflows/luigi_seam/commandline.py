"""Luigi's command line, as far as this process was started by it or reads one like it."""

from collections.abc import Sequence

import luigi
from luigi.cmdline_parser import CmdlineParser
from luigi.interface import core
from luigi.retcodes import retcode
from luigi.task_register import Register


def is_used() -> bool:
    """Tell whether Luigi's command line started what runs now, not a program of the user's."""
    return CmdlineParser.get_instance() is not None


def workers() -> int:
    """Return how many tasks Luigi runs at once."""
    return int(core().workers)


def luigid() -> str:
    """Return the URL of luigid, or nothing if this run has a scheduler of its own."""
    if core().local_scheduler:
        return ""
    return core().scheduler_url or f"http://{core().scheduler_host}:{core().scheduler_port}"


def code_of_failure() -> int:
    """Return the exit code that the user wants for a failed task."""
    return retcode().task_failed or 1


def parsed(words: Sequence[str]) -> luigi.Task:
    """Return the task that words name, as `luigi` takes them.

    Raises:
        SystemExit: Luigi does not understand them; it has printed why.
    """
    with CmdlineParser.global_instance(list(words)) as parser:
        task: luigi.Task = parser.get_task_obj()
        return task


def task_class(name: str) -> type[luigi.Task]:
    """Return the task of a name among those that were imported.

    Raises:
        luigi.task_register.TaskClassException: there is none, or more than one.
    """
    found: type[luigi.Task] = Register.get_task_cls(name)
    return found


def forget_tasks() -> None:
    """Forget the tasks that this process made: they remember what they found."""
    Register.clear_instance_cache()


def is_shipped(kind: type) -> bool:
    """Tell whether a class comes with this package."""
    return kind.__module__.partition(".")[0] == "workflows"


def give_name(kind: type) -> None:
    """Let a user's step have its name, although a shipped step has the same.

    Luigi would call it ambiguous as soon as both are imported.
    """
    if is_shipped(kind):
        return
    kind._visible_in_registry = True  # type: ignore[attr-defined] # its base may be hidden
    for other in Register._reg:
        if other.__name__ == kind.__name__ and is_shipped(other):
            other._visible_in_registry = False
