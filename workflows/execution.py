"""What a step's `run` does: run a shard, deliver pieces, commit and restore checkpoints."""

import contextlib
import json
import os
import time
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from workflows import laws, run
from workflows.config import settings
from workflows.errors import KeysFailed, LawBroken, NodeLost, WorkflowsError, describe_failure
from workflows.fleet import Channel
from workflows.lineage import Key, Piece, Shard, pieces_of
from workflows.runlog import Tally
from workflows.targets import stream_checked

if TYPE_CHECKING:
    from workflows.steps import MapToN, Step

_STATUS_EVERY_S = 1.0
Event = dict[str, Any]
_planned: dict[str, set[str]] = {}


def plan(step: "Step", missing: Iterable[Key]) -> None:
    """Note in the run's log how many keys a step has to run, as the scheduler finds them."""
    if run.is_driver():
        names = _planned.setdefault(step.name, set())
        before = len(names)
        names.update(key.identity for key in missing)
        if len(names) > before:
            about = {"module": step.__module__, "params": step.whole.to_str_params()}
            run.log().add(what="planned", step=step.name, keys=len(names), **about)


# -- shards --------------------------------------------------------------------------------------


def run_shard(step: "Step") -> None:
    """Run the missing keys of a shard on their node; a lost node is tried again.

    Raises:
        KeysFailed: some keys failed, after all others were done.
        NodeLost: the node was lost more often than is retried.
    """
    shard = step.this_shard()
    retries = settings().retries
    with TaskReport(step, shard) as report:
        for attempt in range(retries + 1):
            try:
                _run_once(step, shard, report)
                break
            except NodeLost as lost:
                report.lost(lost, attempt, retries)
                if attempt == retries:
                    raise
                revive(step, shard.slot)
        if report.failures:
            name = step.nodes.nodes[shard.slot].name
            raise KeysFailed(name, report.tally.done, report.failures)


def revive(step: "Step", slot: int) -> None:
    """Put a new runtime in place of a lost one, and forget what it had said."""
    step.nodes.drop(slot)
    step.nodes.nodes[slot].revive()
    run.listings(step.fleet).lose(slot)


def _run_once(step: "Step", shard: Shard, report: "TaskReport") -> None:
    channel = step.nodes.channel(shard.slot)
    listings = run.listings(step.fleet)
    listings.forget()
    missing = listings.missing(shard.slot, step.name, shard.keys)
    report.failures = []
    report.total = len(missing)
    if missing and step.is_restorable:
        restore(step, channel, missing, report)
        return
    for stages, keys in _by_start(step, missing):
        channel.ship({digest: data for s in stages for digest, data in s.shipped.values()})
        message = {"op": "run", "work": _work(stages), "keys": [_item(k, s) for k, s in keys]}
        for event in channel.ask(message, "ran"):
            report.take(event)
    listings.forget()


def _by_start(
    step: "Step", missing: list[Key]
) -> "Iterator[tuple[list[Step], list[tuple[Key, Key]]]]":
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


def _ready(before: "Step", keys: list[Key]) -> set[str]:
    """Return the names of the keys whose input is done already."""
    wanted = {key.name: key for key in before.keys() or []}
    chosen = [wanted[key.name] for key in keys]
    if not chosen:
        return set()
    missing = run.listings(before.fleet).missing(chosen[0].slot, before.name, chosen)
    return {key.name for key in chosen} - {key.name for key in missing}


def _work(stages: "list[Step]") -> dict[str, Any]:
    last = stages[-1]
    return {
        "step": last.name,
        "mode": last.mode,
        "spec": last.spec,
        "env": {"WORKFLOWS_RUN": run.log().name},
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


def _item(key: Key, first: Key) -> dict[str, Any]:
    """Return what a node needs to know of one key: its name and identity, and where it starts."""
    item: dict[str, Any] = {"key": key.name, "id": key.identity, "inputs": first.inputs}
    if first.source is not None:
        source = first.source
        item["source"] = {"url": source.url, "bytes": source.size, "id": source.identity}
    return item


class TaskReport:
    """What becomes of one task: its log file, the run's log, and what the visualizer shows."""

    def __init__(self, step: "Step", shard: Shard) -> None:
        self.step, self.shard = step, shard
        self.total = 0
        self.failures: list[Event] = []
        self.tally = Tally(run.log(), step.name)
        self._path = run.log().task_log(step.name, shard.label)
        self._shown = 0.0

    def __enter__(self) -> "TaskReport":
        os.makedirs(os.path.dirname(self._path), exist_ok=True)
        self._log = open(self._path, "a", encoding="utf-8", errors="backslashreplace")
        self._say("set_tracking_url", "file://" + urllib.parse.quote(self._path))
        return self

    def __exit__(self, *_: object) -> None:
        self.tally.flush()
        self._show()
        self._log.close()
        if len(self.shard.keys) > 1:
            took = time.monotonic() - self.tally.started
            run.logger.info(
                "%s %s: %d keys, %.1f MB, %.1f s",
                *(self.step.name, self.shard.label, self.tally.done, self.tally.bytes / 1e6, took),
            )

    def take(self, event: Event) -> None:
        """Take one event of the node."""
        name = self.step.nodes.nodes[self.shard.slot].name
        if event["event"] in ("done", "brought"):
            self.tally.done_one(event)
            self.write(f"{event['key']} done: {event['bytes']} bytes, {event.get('wall', 0)} s")
        elif event["event"] == "failed":
            self.failures.append(event)
            self.tally.failed_one()
            self.write(describe_failure(name, event))
        if time.monotonic() - self._shown >= _STATUS_EVERY_S or event["event"] == "failed":
            self._show()

    def lost(self, lost: NodeLost, attempt: int, retries: int) -> None:
        """Say that the node was lost."""
        self.write(str(lost))
        next_step = "trying again" if attempt < retries else "giving up"
        run.logger.warning("%s; %s %s: %s", lost, self.step.name, self.shard.label, next_step)

    def write(self, text: str) -> None:
        """Add a line to the task's log."""
        self._log.write(time.strftime("%H:%M:%S ") + text + "\n")
        self._log.flush()

    def _show(self) -> None:
        self._shown = time.monotonic()
        failed = f", failed: {self.failures[-1]['key']}" if self.failures else ""
        done = self.tally.done + len(self.failures)
        rate = self.tally.rate_mb_s
        self._say("set_status_message", f"{done}/{self.total} keys, {rate:.0f} MB/s{failed}")
        self._say("set_progress_percentage", 100 * done // max(1, self.total))

    def _say(self, method: str, value: Any) -> None:
        """Tell Luigi's scheduler, if this runs under one and it listens: only a courtesy."""
        tell = getattr(self.step, method, None)
        if tell is not None:
            with contextlib.suppress(Exception):
                tell(value)


# -- pieces --------------------------------------------------------------------------------------


def _manifest_name(step: "MapToN") -> str:
    return f"barriers/{step.name}/{step.identity}.json"


def read_manifest(step: "MapToN") -> dict[str, Any] | None:
    """Return what all keys of a 1:n step made, or None if some have yet to."""
    whole = step.whole
    if "_manifest" not in whole.__dict__:
        text = run.store(step.checkpoint).read(_manifest_name(step))
        if text is None:
            return None
        whole.__dict__["_manifest"] = json.loads(text)
    found: dict[str, Any] = whole.__dict__["_manifest"]
    return found


def deliver(step: "MapToN") -> None:
    """Write down what all keys of a 1:n step made, then bring each piece to the node that owns it.

    Raises:
        KeysFailed: a piece could not be brought, or is not what its maker said.
        LawBroken: the pieces do not add up.
    """
    manifest = read_manifest(step)
    if manifest is None:
        manifest = _describe(step)
        text = json.dumps(manifest, separators=(",", ":")).encode("ascii")
        run.store(step.checkpoint).create(_manifest_name(step), [text])
        manifest = read_manifest(step) or manifest
    by_slot: dict[int, list[Piece]] = {}
    for piece in pieces_of(manifest, step.name, len(step.nodes)):
        by_slot.setdefault(piece.key.slot, []).append(piece)

    def bring(slot: int) -> list[Event]:
        pieces = by_slot[slot]
        items = [
            {
                "key": piece.key.name,
                "id": piece.key.identity,
                "bytes": piece.size,
                "crc": piece.crc,
                "share": True,
                "path": _piece_path(step, piece),
            }
            for piece in pieces
        ]
        message = {"op": "bring", "step": step.ledger, "items": items}
        return [event for event in step.nodes.channel(slot).ask(message, "ran") if "key" in event]

    outcomes = step.nodes.each(by_slot, bring)
    run.listings(step.fleet).forget()
    for slot, events in outcomes.items():
        failures = [event for event in events if event["event"] == "failed"]
        if failures:
            raise KeysFailed(step.nodes.nodes[slot].name, len(events) - len(failures), failures)
    run.log().add(what="delivered", step=step.name, pieces=sum(map(len, by_slot.values())))


def _piece_path(step: "MapToN", piece: Piece) -> str:
    root = step.nodes.nodes[piece.made_on].root
    name = piece.key.name.rsplit("/", 1)[1]
    return os.path.join(root, "data", step.name, piece.maker.identity, piece.maker.name, name)


def _describe(step: "MapToN") -> dict[str, Any]:
    """Gather from the nodes what every key made; check what must hold of the whole step."""
    records = _records(step, step.keys() or [])
    totals = _summed(record.get("totals", {}) for record in records.values())
    manifest = {
        "step": step.name,
        "identity": step.identity,
        "totals": totals,
        "keys": [
            [key.name, key.identity, key.slot, records[key.identity]["pieces"]]
            for key in step.keys() or []
        ],
    }
    _check_totals(step, totals)
    return manifest


def _records(step: "Step", keys: list[Key]) -> dict[str, Event]:
    """Return identity -> ledger record of keys that are all done.

    Raises:
        WorkflowsError: some are not.
    """
    by_slot: dict[int, list[str]] = {}
    for key in keys:
        by_slot.setdefault(key.slot, []).append(key.identity)

    def ask(slot: int) -> list[Event]:
        message = {"op": "records", "step": step.name, "ids": by_slot[slot]}
        records: list[Event] = step.nodes.channel(slot).one(message, "records")["records"]
        return records

    answers = step.nodes.each(by_slot, ask)
    records = {record["id"]: record for answer in answers.values() for record in answer}
    gone = [key.name for key in keys if key.identity not in records]
    if gone:
        raise WorkflowsError(
            f"{len(gone)} keys of {step.name} are gone again, the first is {gone[0]}; run it again"
        )
    return records


def _summed(many: Iterable[dict[str, int]]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for one in many:
        for name, value in one.items():
            totals[name] = totals.get(name, 0) + value
    return totals


def _check_totals(step: "Step", totals: dict[str, int]) -> None:
    """Check the laws of the whole step; `totals` holds ``Step.metric`` of all steps so far."""
    own = {name.partition(".")[2]: n for name, n in totals.items() if name.startswith(step.name + ".")}
    for law in step.total_laws:
        sentence = laws.broken(law, {**totals, **own})
        if sentence is not None:
            names = ", ".join(key.name for key in (step.keys() or [])[:3])
            raise LawBroken(
                f"{step.name} ({names}) as a whole: {sentence}; nothing was checkpointed."
                f" To look at it: workflows plan {step.name}"
            )


# -- checkpoints ---------------------------------------------------------------------------------


def commit(step: "Step") -> None:
    """Copy all outputs of a step to the store and commit them, if every law holds.

    Raises:
        LawBroken: the step as a whole lost or made up rows; nothing is written.
        CheckpointError: the store cannot be written.
    """
    started = time.time()
    target = step.checkpointed
    keys = step.keys() or []
    records = _records(step, keys)
    totals = _all_totals(step, records)
    _check_totals(step, totals)
    attempt = target.attempt()
    parts = []
    for key in keys:
        record = records[key.identity]
        name = f"{attempt}/{key.name}"
        target.store.create(name, stream_checked(step.nodes, key, step.name, record["crc"]))
        parts.append(
            {
                "key": key.name,
                "id": key.identity,
                "object": name,
                "bytes": record["bytes"],
                "crc": record["crc"],
                "slot": key.slot,
                "metrics": record["metrics"],
                "inputs": [given.identity for given in key.inputs],
            }
        )
    target.commit(parts, _about(step, totals, attempt, started))
    target.sweep()


def _all_totals(step: "Step", records: dict[str, Event]) -> dict[str, int]:
    """Sum what the keys counted, and what was counted before the last barrier."""
    totals = _summed(record.get("totals", {}) for record in records.values())
    for before in step.lineage[:-1]:
        if before.mode == "to_n":
            manifest = read_manifest(before)  # type: ignore[arg-type]
            totals.update(manifest["totals"] if manifest else {})
    return totals


def _about(
    step: "Step", totals: dict[str, int], attempt: str, started: float
) -> dict[str, Any]:
    """Return what a checkpoint says of how it was made."""
    listed = step.listed
    return {
        "identity": step.identity,
        "attempt": attempt,
        "run": run.log().name,
        "params": step.to_str_params(only_significant=True),
        "seconds": round(time.time() - started, 3),
        "totals": totals,
        "steps": [
            {
                "step": before.name,
                "command": before.command,
                "files": {name: digest for name, (digest, _) in before.shipped.items()},
                "spec": before.spec,
            }
            for before in step.lineage
        ],
        "fleet": step.nodes.spec,
        "dataset": {
            "digest": listed.digest,
            "source": listed.source,
            "pattern": listed.pattern,
            "keys": [[key.name, key.url, key.size, key.etag] for key in listed.keys],
        },
    }


def restore(step: "Step", channel: Channel, missing: list[Key], report: TaskReport) -> None:
    """Bring a durable step's outputs back to a node from its checkpoint."""
    manifest = step.checkpointed.manifest() or {"parts": []}
    parts = {part["id"]: part for part in manifest["parts"]}
    items = []
    for key in missing:
        part = parts.get(key.identity)
        if part is None:
            raise WorkflowsError(f"the checkpoint {step.checkpointed.path} has no {key.name}")
        items.append(
            {
                "key": key.name,
                "id": key.identity,
                "bytes": part["bytes"],
                "crc": part["crc"],
                "path": step.checkpointed.store.locate(part["object"]),
            }
        )
    for event in channel.ask({"op": "bring", "step": step.name, "items": items}, "ran"):
        report.take(event)
