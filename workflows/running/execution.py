"""Run a shard: its missing keys, on the node that owns them, from the nearest output there is."""

import os
import shlex
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from workflows.config import passed, settings
from workflows.errors import KeysFailed, NodeLost, NodeRefused, WorkflowsError
from workflows.fleets.channel import Channel, conversations
from workflows.luigi_seam import console
from workflows.model import Key, Shard
from workflows.node.urls import scheme_of
from workflows.planning import context, tolerance
from workflows.planning.plan import Plan
from workflows.running import checkpoints, lifecycle
from workflows.running.taskreport import TaskReport, failed_before, remember_failure
from workflows.storage import s3
from workflows.storage.place import SCHEME

Event = dict[str, Any]
# How programs say, in the end of a command's stderr, that they took a URL for a path.
_NO_FILE = ("No such file or directory", "File name too long")
_SHIPPED_FETCH = "fetch.sh"
_USE_FETCH = (
    "its source is a URL, not a path of the node: let the first step be the shipped one,"
    " from workflows.fetch import Fetch"
)


def plan(step: Plan, missing: Iterable[Key]) -> None:
    """Note in the run's log how many keys a step has to run, as the scheduler finds them."""

    def about() -> dict[str, Any]:
        return {
            "module": step.__module__,
            "task": type(step).__name__,
            "params": step.whole.to_str_params(),
            "order": [before.name for before in step.lineage],
            "nodes": len(step.nodes),
        }

    if lifecycle.is_driver():
        context.log().plan(step.name, (key.identity for key in missing), about)


def run_shard(step: Plan) -> list[Plan]:
    """Run the missing keys of a shard on their node; a lost node is tried again.

    Luigi tries a failed task again after a while. Commands that failed in this run would fail
    again, so they do at once, and without a word.

    Return the tasks that must run again first, because what they made is gone: then nothing is
    wrong with this shard, and it has yet to be finished.

    Raises:
        KeysFailed: some keys failed, after all others were done.
        NodeLost: the node was lost more often than is retried.
    """
    context.log().tell_plan()
    shard = step.this_shard()
    if failure := failed_before(step):
        console.mute(str(failure))
        raise failure
    with TaskReport(step, shard) as report:
        bereft: list[Event] = []
        retried(step, lambda: _run_here(step, shard, report, bereft), report.write)
        if bereft:
            report.write(bereft[0]["why"])
            context.listings(step.fleet).lose(shard.slot)
            absent = _absent(step)
            if absent:
                return absent
        failures = [*report.failures, *bereft]
        if failures:
            failures = _hinted(step, failures)
            name = step.nodes.nodes[shard.slot].name
            failure = KeysFailed(name, report.tally.done, failures)
            if _may_go_on(step, failures):
                context.logger.warning("%s\n  tolerated: %s", failure, _limit(step))
                return []
            if step.is_tolerant:
                context.logger.error("more bad keys than are tolerated: %s", _limit(step))
            remember_failure(step, failure)
            raise failure
    return []


def _may_go_on(step: Plan, failures: list[Event]) -> bool:
    """Tell whether the run goes on without the keys that failed.

    Not if a key failed in an earlier step of the same pipe, or if its input is gone.
    """
    if not step.is_tolerant or any(
        event["step"] != step.name or event.get("input_gone") for event in failures
    ):
        return False
    limit = tolerance.allowed(step.max_failed, len(step.keys() or []))
    return tolerance.take(step.whole.task_id, limit, failures)


def _limit(step: Plan) -> str:
    keys = len(step.keys() or [])
    limit = tolerance.allowed(step.max_failed, keys)
    return f"max_failed = {step.max_failed} of {step.name} is {limit} of {keys} keys"


def _leave_out(step: Plan) -> None:
    """Go on without the keys that failed, as many as may; say so at the end of the run."""
    failures = tolerance.decide(step.whole.task_id)
    if failures:
        keys = [[event["key"], event["why"]] for event in failures]
        context.log().add(what="left_out", step=step.name, keys=keys, limit=_limit(step))


def _hinted(step: Plan, failures: list[Event]) -> list[Event]:
    """Add a hint where a first step's own command took a URL for a path."""
    first = step.chain()[0]
    if first.before is not None or _SHIPPED_FETCH in first.shipped:
        return failures
    urls = {key.name for key in first.keys() or [] if key.source and "://" in key.source.url}

    def took_for_path(failure: Event) -> bool:
        said = str(failure.get("stderr", ""))
        is_its_own = failure["step"] == first.name and failure["key"] in urls
        return is_its_own and "://" in said and any(text in said for text in _NO_FILE)

    return [dict(one, hint=_USE_FETCH) if took_for_path(one) else one for one in failures]


def run_whole(step: Plan, finish: Callable[[], None]) -> list[Plan]:
    """Finish a step whose shards are all done; return those that have to run again first.

    Raises:
        WorkflowsError: see `Step.finish`.
    """
    _leave_out(step)
    try:
        retried(step, finish)
    except NodeLost:
        raise
    except WorkflowsError as error:
        for node in step.nodes.nodes:
            context.listings(step.fleet).lose(node.slot)
        absent = _absent(step)
        if not absent:
            raise
        context.logger.warning("%s: %s; making it again", step.name, error)
        return absent
    return []


def _absent(step: Plan) -> list[Plan]:
    return [required for required in step.requires() if not required.complete()]


def retried(
    step: Plan, work: Callable[[], None], note: Callable[[str], None] = lambda _: None
) -> None:
    """Do `work`; if a node is lost meanwhile, revive it and do what is left of it again.

    Raises:
        NodeLost: a node was lost more often than is retried.
    """
    retries = settings().retries
    slot = None
    for attempt in range(retries + 1):
        try:
            if slot is not None:
                step.nodes.revive(slot)
                context.listings(step.fleet).lose(slot)
            return work()
        except NodeLost as lost:
            conversations().go_on()
            note(str(lost))
            next_step = "trying again" if attempt < retries else "giving up"
            context.logger.warning("%s; %s %s: %s", lost, step.name, step.shard, next_step)
            if attempt == retries:
                context.log().add(what="lost", node=lost.node)
                raise
            slot = step.nodes.slot_of(lost.node)
    return None


def _run_here(step: Plan, shard: Shard, report: TaskReport, bereft: list[Event]) -> None:
    """Run what is missing; a runtime that died before it said a word is replaced without ado."""
    report.is_heard = False
    try:
        return _run_once(step, shard, report, bereft)
    except NodeLost:
        if report.is_heard:
            raise
    step.nodes.revive(shard.slot, wait=False)
    context.listings(step.fleet).lose(shard.slot)  # its disk may be another
    return _run_once(step, shard, report, bereft)


def _run_once(step: Plan, shard: Shard, report: TaskReport, bereft: list[Event]) -> None:
    """Run what is missing; put the events of keys whose input is gone into `bereft`."""
    bereft.clear()
    listings = context.listings(step.fleet)
    listings.forget()
    mark, done = listings.mark(shard.slot), {}
    # A node passes over what is done by itself. It is asked before only if more depends on it.
    find = listings.missing if step.is_restorable or len(step.chain()) > 1 else listings.unheard
    missing = step.without_failed(find(shard.slot, step.name, shard.keys))
    report.expect(len(missing))
    if missing and step.is_restorable:
        for event in checkpoints.restored(step, missing, step.nodes.channel(shard.slot)):
            report.take(event)
        listings.forget()
        return
    for stages, keys in _by_start(step, missing):
        channel = step.nodes.channel(shard.slot)  # now: to list what is done may revive a lost node
        _require(channel, stages)
        files = {digest: data for s in stages for digest, data in s.shipped.values()}
        message = {"op": "run", "work": _work(stages), "keys": [_item(step, k, s) for k, s in keys]}
        for event in channel.run(message, files):
            bereft.append(event) if event.get("input_gone") else report.take(event)
            if event["event"] == "done":
                done[event["id"]] = event["bytes"]
    listings.hear(shard.slot, step.name, mark, done)
    listings.forget()


def _require(channel: Channel, stages: list[Plan]) -> None:
    """Refuse a node that would miss a Python package, or what compresses, before anything runs.

    Raises:
        NodeRefused: says what to install.
    """
    wanted = {package: stage.name for stage in stages for package in stage.pip}
    is_packed = stages[-1].checkpoint.startswith(SCHEME) and settings().s3_compress != "none"
    programs = [settings().s3_compress] if is_packed else []
    if not wanted and not programs:
        return
    message = {"op": "require", "packages": sorted(wanted), "programs": programs}
    answer = channel.one(message, "required")
    for program in answer["no_program"]:
        raise NodeRefused(
            channel.node.name,
            f"[s3] compress = {program} needs {program} there: apt-get install {program}",
        )
    for package in answer["missing"]:
        raise NodeRefused(
            channel.node.name,
            f"{wanted[package]} needs the Python package {package} there; install it:"
            f" {answer['python']} -m pip install {shlex.quote(package)}",
        )


def _by_start(step: Plan, missing: list[Key]) -> Iterator[tuple[list[Plan], list[tuple[Key, Key]]]]:
    """Yield (stages to run, keys with what they start from): from the nearest output there is."""
    chain = step.chain()
    by_name = {key.name: key for key in missing}
    todo = set(by_name)
    for start in range(len(chain) - 1, -1, -1):
        first = [key for key in chain[start].keys() or [] if key.name in todo]
        if start:
            before = chain[start].before
            ready = _ready(before, first) if before is not None else set()
            first = [key for key in first if key.name in ready]
        todo -= {key.name for key in first}
        if first:
            yield chain[start:], [(by_name[key.name], key) for key in first]


def _ready(before: Plan, keys: list[Key]) -> set[str]:
    """Return the names of the keys whose input is done already."""
    wanted = {key.name: key for key in before.keys() or []}
    chosen = [wanted[key.name] for key in keys]
    if not chosen:
        return set()
    missing = context.listings(before.fleet).missing(chosen[0].slot, before.name, chosen)
    return {key.name for key in chosen} - {key.name for key in missing}


def _work(stages: list[Plan]) -> dict[str, Any]:
    last = stages[-1]
    variables, hidden = passed(settings(), os.environ)
    return {
        "step": last.name,
        "mode": last.mode,
        "spec": last.spec,
        "env": {**variables, "WORKFLOWS_RUN": context.log().name},
        **({"hidden": hidden} if hidden else {}),
        "retries": settings().retries,
        "stages": [
            {
                "step": stage.name,
                "command": stage.command,
                "files": {name: digest for name, (digest, _) in stage.shipped.items()},
                "laws": list(stage.laws),
                "timeout_s": stage.timeout_s,
            }
            for stage in stages
        ],
    }


def _item(step: Plan, key: Key, first: Key) -> dict[str, Any]:
    """Return what a node needs to know of one key: its name and identity, and where it starts."""
    item: dict[str, Any] = {"key": key.name, "id": key.identity, "inputs": first.inputs}
    if step.by_name:
        item["by_name"] = True
    if first.source is not None:
        source = first.source
        # The URL may hold secrets: it is for the command's stdin alone. The ledger gets `was`.
        url = s3.transit(source.url)
        was = [source.shown, source.size, source.etag]
        item["source"] = {"url": url, "bytes": source.size, "id": source.identity, "was": was}
        # A node on another machine may have a copy, of the same bytes and another time.
        if not scheme_of(source.url) and step.nodes.nodes[key.slot].is_here:
            item["source"]["is_here"] = True
    return item
