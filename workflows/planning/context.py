"""State that the steps of this process share: fleets, stores, datasets and the run's log.

Tasks are threads of one process. They do not share connections: a channel belongs to the task that
opened it.
"""

import atexit
import functools
import logging
import os
import resource

from workflows.config import settings
from workflows.errors import UsageError, WorkflowsError
from workflows.fleets.channel import Channel
from workflows.fleets.fleet import Fleet, gone_fleet
from workflows.luigi_seam import console
from workflows.planning.dataset import Dataset, load
from workflows.planning.opening import open_any, open_to_look
from workflows.reporting.runlog import RunLog
from workflows.storage import s3
from workflows.storage.place import SCHEME
from workflows.storage.s3store import S3Store
from workflows.storage.store import Store, open_store
from workflows.targets import Listings

# A child of Luigi's logger, so that its handler prints it; with a level of its own, so that a run
# prints one line a step while Luigi itself is quiet.
logger = logging.getLogger("luigi-interface.workflows")

_fleets: list[Fleet] = []
_OPEN_FILES = 65_536
_looks_only, _gone = [False], [0]
_warned: dict[str, object] = {}


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

    With `gone`, that many lost nodes stand in for a fleet that cannot be opened.
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
def dataset(
    source: str, pattern: str, slots: int, checkpoint: str, *, strict: bool = False
) -> Dataset:
    """Return the dataset of a source, listed once in this run.

    Raises:
        UsageError: `strict`, and a bucket is in another region than the EC2 fleet.
    """
    found = load(source, pattern, slots, store(checkpoint), keep=not _looks_only[0])
    for note in found.notes:
        logger.warning("%s", note)
    size = sum(key.size or 0 for key in found.keys)
    for opened in _fleets:
        for sentence in _far(opened.spec, source, size, checkpoint):
            if strict:
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


def warn_once(sentence: str) -> None:
    """Warn of something that several tasks of a run find out, each by itself."""
    mine = object()
    if _warned.setdefault(sentence, mine) is mine:
        logger.warning("%s", sentence)


@functools.lru_cache(maxsize=1)
def log() -> RunLog:
    """Return this run's log."""
    return RunLog(settings().state)


@functools.lru_cache(maxsize=1)
def begin() -> None:
    """Prepare this process to use nodes, for a run or for a verb; called once."""
    logger.addFilter(console.clear_line)
    logger.setLevel(logging.INFO)
    Channel.sign = staticmethod(s3.transit)
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


def close() -> None:
    """End the fleets of this process and forget what its steps shared."""
    log().tell_plan()
    while _fleets:
        _fleets.pop().close()
    for cached in (fleet, listings, store, dataset, log, begin):
        cached.cache_clear()
    _warned.clear()
    _looks_only[0], _gone[0] = False, 0


def _close_fleets(opener: int) -> None:
    if os.getpid() == opener:
        for opened in _fleets:
            opened.close()
