"""Durable copies of a step: commit them when all keys are done, bring them back to empty nodes."""

import time
from collections.abc import Iterator
from typing import Any

from workflows.errors import CheckpointError, WorkflowsError
from workflows.fleets.channel import Channel
from workflows.model import Key
from workflows.planning import context, tolerance
from workflows.planning.plan import Plan
from workflows.planning.to_n import PlanToN
from workflows.running import uploads
from workflows.running.accounts import check_totals, records_of, summed, warn_of_nothing
from workflows.running.taskreport import tell
from workflows.storage.s3store import S3Store
from workflows.storage.store import Store
from workflows.targets import stream_checked

Event = dict[str, Any]
# Bytes: S3 takes keys up to 1,024, and file systems (SeaweedFS too) names up to 255, with a suffix.
_LONGEST_NAME, _LONGEST_KEY = 240, 600


def commit(step: Plan) -> None:
    """Copy all outputs of a step to the store and commit them, if every law holds.

    Raises:
        LawBroken: the step as a whole lost or made up rows; nothing is written.
        CheckpointError: the store cannot be written.
    """
    started = time.time()
    target = step.checkpointed
    if target.exists():
        return  # another run was first: then the keys may be on none of this one's nodes
    keys = step.without_failed(step.keys() or [])
    records = records_of(step, keys)
    totals = _all_totals(step, records)
    check_totals(step, totals)
    attempt = target.attempt()
    try:
        parts = _store(step, keys, records, attempt)
    except CheckpointError:
        if target.exists():
            return  # another run was first, and swept away what this one had so far
        raise
    warnings = warn_of_nothing(step, records)
    target.commit(parts, {**_about(step, totals, attempt, started), "warnings": warnings})
    target.sweep()
    tell(step, f"committed: {target.path}")


def _store(
    step: Plan, keys: list[Key], records: dict[str, Event], attempt: str
) -> list[dict[str, Any]]:
    """Copy outputs to the store, under names of this attempt; return the manifest's parts."""
    store = step.checkpointed.store
    parts = []
    for key in keys:
        record = records[key.identity]
        parts.append(
            {
                "key": key.name,
                "id": key.identity,
                "object": f"{attempt}/{_object_name(key)}",
                "bytes": record["bytes"],
                "crc": record["crc"],
                "slot": key.slot,
                "at": record.get("at"),
                "wall": record.get("wall"),
                "cpu": record.get("cpu"),
                "metrics": record["metrics"],
                "totals": record.get("totals", {}),
                "inputs": [[given.step, given.name, given.identity] for given in key.inputs],
            }
        )
    if isinstance(store, S3Store):
        return uploads.send(step, store, keys, parts)
    for key, part in zip(keys, parts, strict=True):
        store.create(
            str(part["object"]), stream_checked(step.nodes, key, step.name, str(part["crc"]))
        )
    return parts


def _object_name(key: Key) -> str:
    """Return the name of a key's copy: its own, unless not every store could hold that."""
    try:
        plain = key.name.encode("utf-8")
    except UnicodeEncodeError:
        plain = b""
    is_short = max(map(len, plain.split(b"/"))) <= _LONGEST_NAME and len(plain) <= _LONGEST_KEY
    return key.name if plain and is_short and key.name.isprintable() else f"={key.identity}"


def _all_totals(step: Plan, records: dict[str, Event]) -> dict[str, int]:
    """Sum what the keys counted, and what was counted before the last barrier."""
    totals = summed(record.get("totals", {}) for record in records.values())
    for before in step.lineage[:-1]:
        if isinstance(before, PlanToN):
            manifest = before.manifest()
            totals.update(manifest["totals"] if manifest else {})
    return totals


def _about(step: Plan, totals: dict[str, int], attempt: str, started: float) -> dict[str, Any]:
    """Return what a checkpoint says of how it was made."""
    listed, left_out = step.listed, tolerance.left_out([one.whole.task_id for one in step.lineage])
    return {
        **({"left_out": left_out} if left_out else {}),
        "identity": step.identity,
        "attempt": attempt,
        "run": context.log().name,
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
            "keys": [[key.name, key.shown, key.size, key.etag] for key in listed.keys],
        },
    }


def parts_for(step: Plan, missing: list[Key]) -> list[Event]:
    """Return what a node needs to know to bring keys of a durable step back from its checkpoint.

    Raises:
        WorkflowsError: the checkpoint does not hold one of them.
    """
    manifest = step.checkpointed.manifest() or {"parts": []}
    parts = {part["id"]: part for part in manifest["parts"]}
    lost = [key.name for key in missing if key.identity not in parts]
    if lost:
        path = step.checkpointed.path
        raise WorkflowsError(
            f"the checkpoint {path} has no {lost[0]} made from the current inputs; to remake it,"
            f" remove {path} and run the pipeline"
        )
    return [
        {
            "key": key.name,
            "id": key.identity,
            "bytes": parts[key.identity]["bytes"],
            "crc": parts[key.identity]["crc"],
            **_counted(parts[key.identity]),
            **_source_of(step.checkpointed.store, parts[key.identity]),
        }
        for key in missing
    ]


def restored(step: Plan, missing: list[Key], channel: Channel) -> Iterator[Event]:
    """Let a node bring keys of a durable step back from its checkpoint; yield its events.

    Expired URLs are re-signed, and what came damaged is brought again, once. For
    any other refusal of S3, the event says what to do.

    Raises:
        WorkflowsError: the checkpoint does not hold one of them.
    """
    store, left = step.checkpointed.store, missing
    manifest = step.checkpointed.manifest() or {"parts": []}
    objects = {part["id"]: part["object"] for part in manifest["parts"]}
    for is_last in (False, True):
        again: set[str] = set()
        for event in channel.bring(step.name, parts_for(step, left)):
            may_pass = event.get("damaged") or event.get("code") in uploads.STALE
            if may_pass and not is_last:
                again.add(event["id"])
            elif "code" not in event or not isinstance(store, S3Store):
                yield event  # it is not about a transfer that S3 refused
            else:
                code = str(event["code"] or event["status"] or "")
                name = objects[event["id"]]
                why = store.explain("GetObject", name, code, event["why"])
                yield dict(event, why=why, was_restored=True)
        left = [key for key in left if key.identity in again]
        if not left:
            return


def _counted(part: Event) -> Event:
    """Return what the key counted when it was made: laws of later steps are about it."""
    return {name: part[name] for name in ("metrics", "totals") if name in part}


def _source_of(store: Store, part: Event) -> Event:
    """Return where a node finds one object."""
    if isinstance(store, S3Store):
        return uploads.source_of(store, part)
    return {"path": store.locate(part["object"])}
