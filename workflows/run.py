"""What the tasks of one process share: fleets, stores, datasets and the run's log.

Luigi forks a process for each task; what is cached here is inherited. Connections are not: a
channel belongs to the process that opened it.
"""

import atexit
import functools
import logging
import os
import re
import sys
import types
from types import TracebackType

from workflows.config import settings
from workflows.dataset import Dataset, load
from workflows.errors import WorkflowsError
from workflows.fleet import Fleet, open_fleet
from workflows.progress import CLEAR, Progress
from workflows.runlog import RunLog, Totals, on_terminal, refills
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
_said: set[str] = set()
_fleets: list[Fleet] = []
_driver = [0]


@functools.cache
def fleet(spec: str) -> Fleet:
    """Return the fleet of this run, with its runtimes starting."""
    opened = _opened(spec)
    _fleets.append(opened)
    opened.start()
    begin()
    return opened


def _opened(spec: str) -> Fleet:
    chosen = settings()
    if spec.startswith("ec2:"):
        from workflows.ec2_fleet import open_ec2

        opened = open_ec2(spec, slots=chosen.slots, log=os.path.abspath(log().path))
        log().add(what="fleet", spec=spec, nodes=len(opened))
        return opened
    return open_fleet(spec, state=chosen.state, slots=chosen.slots)


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
    for line in refills(log().path):
        print(line, file=sys.stderr)
    if failed := sum(step["failed"] for step in totals.steps.values()):
        keys = "1 key" if failed == 1 else f"{failed} keys"
        print(
            f"{keys} failed, all others are done and kept: mend the cause, then run the same again",
            file=sys.stderr,
        )
    for opened in _fleets:
        opened.close()


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
