"""What the tasks of one process share: fleets, stores, datasets and the run's log.

Tasks are threads of one process. Connections they do not share: a channel belongs to the task that
opened it.
"""

import atexit
import contextlib
import functools
import logging
import os
import resource
import sys
from typing import Any

import luigi
from luigi.cmdline_parser import CmdlineParser
from luigi.interface import core
from luigi.retcodes import retcode
from luigi.task_register import Register

from workflows.config import settings
from workflows.errors import UsageError, WorkflowsError
from workflows.fleets.channel import is_in_task
from workflows.fleets.fleet import Fleet, gone_fleet
from workflows.luigi_seam import console
from workflows.planning import tolerance
from workflows.planning.dataset import Dataset, load
from workflows.planning.opening import end_begun, open_any, open_to_look
from workflows.reporting.deadline import Deadline
from workflows.reporting.progress import Progress
from workflows.reporting.runlog import RunLog, Totals, read_lines
from workflows.storage.s3 import SCHEME
from workflows.storage.s3store import S3Store
from workflows.storage.store import Store, open_store
from workflows.targets import Listings

# A child of Luigi's logger, so that its handler prints it; with a level of its own, so that a run
# says a line a step while Luigi itself is quiet.
logger = logging.getLogger("luigi-interface.workflows")
logger.addFilter(console.clear_line)

_fleets: list[Fleet] = []
_OPEN_FILES = 65_536
_driver, _exit_code = [0], [0]
_looks_only, _gone = [False], [0]
_root = [""]
_read_on: set[str] = set()
_asked: set[str] = set()
_dead: set[str] = set()
_unfinished: list[str] = []


@functools.cache
def fleet(spec: str) -> Fleet:
    """Return the fleet of this run, with its runtimes starting."""
    opened = _opened(spec)
    _fleets.append(opened)
    opened.start()
    begin()
    return opened


def look_only(gone: int = 0) -> None:
    """Let this process start and write nothing: for verbs that only look. Called before all else.

    With `gone`, a fleet that cannot be opened is stood for by so many nodes that are lost.
    """
    _looks_only[0], _gone[0] = True, gone


def _to_look(spec: str) -> Fleet:
    try:
        return open_to_look(spec)
    except (WorkflowsError, OSError) as error:
        if not _gone[0]:
            raise
        return gone_fleet(spec, _gone[0], str(error))


def _opened(spec: str) -> Fleet:
    if _looks_only[0]:
        return _to_look(spec)
    opened = open_any(spec, os.path.abspath(log().path))
    if spec.startswith("ec2:"):
        log().add(what="fleet", spec=spec, nodes=len(opened))
    return opened


@functools.cache
def listings(spec: str) -> Listings:
    """Return what the nodes of a fleet said is done."""
    return Listings(fleet(spec))


@functools.cache
def store(url: str) -> Store:
    """Return the store at `url`."""
    opened = S3Store(url) if url.startswith(SCHEME) else open_store(url)
    if not _looks_only[0]:
        opened.sweep()
    return opened


@functools.cache
def dataset(source: str, pattern: str, slots: int, checkpoint: str) -> Dataset:
    """Return the dataset of a source, listed once in this run."""
    found = load(source, pattern, slots, store(checkpoint), keep=not _looks_only[0])
    for note in found.notes:
        logger.warning("%s", note)
    size = sum(key.size or 0 for key in found.keys)
    for opened in _fleets:
        for sentence in _far(opened.spec, source, size, checkpoint):
            if _is_strict():
                raise UsageError(f"{sentence}; refused, since --strict is given")
            logger.warning("%s", sentence)
    if uneven := found.warning():
        logger.warning("%s", uneven)
    return found


def _far(spec: str, source: str, size: int, checkpoint: str) -> list[str]:
    """Return what is to be said of buckets in another region than an EC2 fleet."""
    urls = (source, checkpoint)
    in_s3 = any(url.startswith(SCHEME) for url in urls) and not settings().s3_endpoint_url
    if not spec.startswith("ec2:") or not in_s3:
        return []
    from workflows.ec2 import regions
    from workflows.ec2_fleet import Ec2Fleet

    aws = Ec2Fleet.load(spec.removeprefix("ec2:")).aws
    return regions.far(aws, source, size, checkpoint)


def _is_strict() -> bool:
    parser = CmdlineParser.get_instance()
    return bool(getattr(parser.get_task_obj(), "strict", False) if parser else settings().strict)


@functools.lru_cache(maxsize=1)
def log() -> RunLog:
    """Return this run's log."""
    return RunLog(settings().state)


@functools.lru_cache(maxsize=1)
def begin() -> None:
    """Prepare this process to use nodes, for a run or for a verb; called once."""
    logger.setLevel(logging.INFO)
    _raise_open_files()
    path = os.environ.get("WORKFLOWS_LOG")
    if path:
        handler = logging.FileHandler(path)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger("luigi-interface").addHandler(handler)
    atexit.register(_close_fleets, os.getpid())


def _raise_open_files() -> None:
    """Let this process open as many files as it may: each task in flight has two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@functools.lru_cache(maxsize=1)
def watch(root: luigi.Task) -> None:
    """Show a person how a run goes; called once, by the process that schedules."""
    begin()
    _driver[0], _root[0] = os.getpid(), root.task_id
    console.explain_interrupts()
    progress, deadline = Progress(log()), Deadline(log(), settings().deadline_s)
    progress.start()
    deadline.start()
    # Asked now: what the command line said is not known any longer at exit.
    atexit.register(_end, progress, deadline, root, os.getpid(), _luigid())
    _advise(root)


def _luigid() -> str:
    """Return the URL of luigid, or nothing if this run has a scheduler of its own."""
    if core().local_scheduler:
        return ""
    return core().scheduler_url or f"http://{core().scheduler_host}:{core().scheduler_port}"


def _advise(root: luigi.Task) -> None:
    """Say so if there are fewer tasks in flight than nodes that could work."""
    spec = getattr(root, "fleet", "")
    if spec and CmdlineParser.get_instance() is not None:
        workers, nodes = core().workers, len(fleet(spec))
        if workers < nodes:
            logger.warning(
                "%d workers cannot keep %d nodes busy; add --workers %d, or write it in luigi.cfg",
                workers,
                nodes,
                2 * nodes,
            )


def fail(error: WorkflowsError) -> None:
    """Say what is wrong and let Luigi's command fail, from where Luigi swallows every error."""
    logger.error("%s", error)
    if CmdlineParser.get_instance() is not None:
        _exit_code[0] = retcode().task_failed or 1


def _leave() -> None:
    if _exit_code[0]:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_exit_code[0])


atexit.register(_leave)  # before all others of this module, so that it comes after them


def is_watched() -> bool:
    """Tell whether Luigi schedules, or has scheduled, a run that has to do with steps."""
    return bool(_driver[0])


def note_unfinished(reasons: list[str]) -> None:
    """Keep for the end of the run why Luigi did not do all of it."""
    _unfinished.extend(reasons)


def is_driver() -> bool:
    """Tell whether it is what schedules that asks, not a task."""
    return os.getpid() == _driver[0] and not is_in_task()


@luigi.Task.event_handler(luigi.Event.DEPENDENCY_DISCOVERED)  # type: ignore[untyped-decorator]
def _schedules(task: luigi.Task, dependency: luigi.Task) -> None:
    """Know that Luigi schedules a run; what the run is for is asked for its dependencies first."""
    if not _driver[0]:
        watch(task)
    if hasattr(task, "shard"):  # a step, not a task that only names several results
        _read_on.add(dependency.task_id)
        note_asked(task)


def is_result(task: luigi.Task) -> bool:
    """Tell whether no step of this run reads what a task makes: it is what the run is for."""
    return task.task_id not in _read_on


def note_asked(step: Any) -> None:
    """Write down, once, a pipeline that this run is for: `workflows gc` keeps what it refers to."""
    if not step.shard and is_result(step) and step.task_id not in _asked:
        _asked.add(step.task_id)
        about = {"module": step.__module__, "task": step.task_family}
        order = [before.name for before in step.lineage]
        nodes = len(step.nodes)
        log().add(what="asked", **about, params=step.to_str_params(), order=order, nodes=nodes)


@luigi.Task.event_handler(luigi.Event.SUCCESS)  # type: ignore[untyped-decorator]
def _finished(task: luigi.Task) -> None:
    """Let the driver know that all is done; its own answers may be seconds old by then."""
    if task.task_id == _root[0]:
        log().add(what="finished", task=task.task_family)


@luigi.Task.event_handler(luigi.Event.FAILURE)  # type: ignore[untyped-decorator]
def _note_failure(task: luigi.Task, error: BaseException) -> None:
    """Note what a task raised that is no step, and so has no report: its process knows it alone."""
    if _driver[0] and not hasattr(task, "shard"):
        why = f"{type(error).__name__}: {error}".partition("\n")[0][:500]
        log().add(what="failed", step=task.task_family, task=task.task_id, why=why)


@luigi.Task.event_handler(luigi.Event.TIMEOUT)  # type: ignore[untyped-decorator]
def _say_timeout(task: luigi.Task, _message: str) -> None:
    """Say what Luigi does not: a task took longer than its settings let it."""
    shard = getattr(task, "shard", "")
    why = "ended by [worker] timeout in luigi.cfg; what is done is kept"
    log().add(what="failed", step=task.task_family, task=task.task_id, why=why)
    logger.error("%s %s: %s", task.task_family, shard, why)


@luigi.Task.event_handler(luigi.Event.PROCESS_FAILURE)  # type: ignore[untyped-decorator]
def _say_death(task: luigi.Task, message: str) -> None:
    """Say what Luigi only notes, again and again: the process of a task, no step, was killed."""
    if task.task_id in _dead:
        return
    _dead.add(task.task_id)
    log().add(what="failed", step=task.task_family, task=task.task_id, why=message)
    logger.error("%s; what is done is kept", message)


def lost_nodes() -> list[str]:
    """Return the nodes that were lost more often in this run than is retried."""
    return [line["node"] for _, line in read_lines(log().path) if line["what"] == "lost"]


def close() -> None:
    """End this process's fleets and forget all; for programs that make several runs."""
    log().tell_plan()
    console.tell_held()
    while _fleets:
        _fleets.pop().close()
    end_begun()
    for cached in (fleet, listings, store, dataset, log, begin, watch):
        cached.cache_clear()
    Register.clear_instance_cache()  # tasks remember their keys and shards
    _driver[0], _root[0] = 0, ""
    _looks_only[0], _gone[0] = False, 0
    _read_on.clear()
    _asked.clear()
    _dead.clear()
    _unfinished.clear()
    tolerance.forget()


def _close_fleets(opener: int) -> None:
    if os.getpid() == opener:
        for opened in _fleets:
            opened.close()


def _end(
    progress: Progress, deadline: Deadline, root: luigi.Task, driver: int, luigid: str
) -> None:
    if os.getpid() != driver:
        return
    console.end_interrupts()
    late = deadline.stop()
    log().tell_plan()
    progress.stop()
    totals = Totals()
    totals.update(log().path)
    if totals.steps:
        print(totals.table(), file=sys.stderr)
        if luigid:
            print(f"luigid shows it: {luigid}", file=sys.stderr)
    for line in [*totals.refills(), *totals.left_out()]:
        print(line, file=sys.stderr)
    if late:
        print(late, file=sys.stderr)
    is_well = totals.noted["finished"] and totals.noted["left_out"]
    last_words = "" if is_well else _last_words(totals, root)
    if last_words:
        print(last_words, file=sys.stderr)


def _last_words(totals: Totals, root: luigi.Task) -> str:
    """Return what a run that did not reach its end leaves its reader with."""
    if failed := sum(step["failed"] for step in totals.steps.values()):
        keys = "1 key" if failed == 1 else f"{failed} keys"
        return f"{keys} failed, what is done is kept: mend the cause, then run the same again"
    if _unfinished:
        return "\n".join([*_unfinished, "not finished; what is done is kept: run the same again"])
    if totals.noted["failed"] or console.has_complained():
        return ""
    if totals.noted["finished"]:
        return ""
    with contextlib.suppress(WorkflowsError):
        if root.complete():
            return ""
    return (
        "not finished, though nothing failed: the scheduler had no more work for this run\n"
        "(luigid was restarted or paused, or another run does the same);"
        " what is done is kept: run it again"
    )
