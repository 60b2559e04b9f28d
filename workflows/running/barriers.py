"""The barrier after a 1:n step: record the pieces of all keys, then deliver them."""

import json
import posixpath
from collections.abc import Sequence
from typing import Any

from workflows.errors import KeysFailed, WorkflowsError
from workflows.model import Piece
from workflows.planning import context, tolerance
from workflows.planning.lineage import pieces_of, proof_of
from workflows.planning.to_n import PlanToN
from workflows.running import shuffle
from workflows.running.accounts import check_totals, records_of, summed, warn_of_nothing
from workflows.running.taskreport import tell

Event = dict[str, Any]


def deliver(step: PlanToN) -> None:
    """Write down what all keys of a 1:n step made, then bring each piece to the node that owns it.

    Raises:
        KeysFailed: a piece could not be brought, or is not what its maker said.
        WorkflowsError: a key was made again, and made something else.
        LawBroken: the pieces do not add up.
        NodeLost: a node was lost meanwhile; what is delivered stays delivered.
        NodeRefused: a node cannot reach another, which is there.
    """
    manifest = step.manifest()
    if manifest is not None:
        _compare(step, manifest)
    else:
        manifest = _describe(step)
        _compare(step, manifest)
        text = json.dumps(manifest, separators=(",", ":")).encode("ascii")
        context.store(step.checkpoint).create(step.manifest_name, [text])
        manifest = step.manifest() or manifest
    # Not the manifest's slots: it may be of a fleet of another size, or of nodes long gone.
    made_on = {key.identity: key.slot for key in step.keys() or []}
    by_slot: dict[int, list[Piece]] = {}
    pieces = pieces_of(manifest, step.name, len(step.nodes), balanced=step.balanced)
    for piece in pieces:
        by_slot.setdefault(piece.key.slot, []).append(piece)

    outcomes = shuffle.move(step, by_slot, made_on)
    context.listings(step.fleet).forget()
    made = {piece.key.identity: piece for piece in pieces}
    for slot, events in outcomes.items():
        failed = [_of_maker(e, made[e["id"]]) for e in events if e["event"] == "failed"]
        if failed:
            for event in failed:
                if event.get("differs"):
                    raise _not_deterministic(step, event["key"])
            _blame(step, manifest, {event["id"] for event in failed}, made_on)
            raise KeysFailed(step.nodes.nodes[slot].name, len(events) - len(failed), failed)
    count = sum(map(len, by_slot.values()))
    sizes = [sum(piece.size for piece in by_slot.get(node.slot, ())) for node in step.nodes.nodes]
    log = {"pieces": count, "bytes": sum(sizes), "skew": round(skew(sizes), 3)}
    context.log().add(what="delivered", step=step.name, **log)
    tell(step, f"{count} pieces delivered to the nodes that own their names")


def _compare(step: PlanToN, manifest: dict[str, Any]) -> None:
    """Ask every node whether it has other files of the keys whose files are to be delivered.

    Files that a key makes the second time may belong to other nodes than those it made first.

    Raises:
        WorkflowsError: one has: a key was made again, and made something else.
    """
    proofs = {identity: proof_of(parts) for _, identity, _, parts in manifest["keys"]}

    def ask(slot: int) -> list[str]:
        message = {"op": "others", "step": step.ledger, "proofs": proofs}
        makers: list[str] = step.nodes.channel(slot).one(message, "others")["makers"]
        return makers

    others = step.nodes.each(range(len(step.nodes)), ask)
    differing = {identity for makers in others.values() for identity in makers}
    for name, identity, *_ in manifest["keys"]:
        if identity in differing:
            raise _not_deterministic(step, name)


def _of_maker(event: Event, piece: Piece) -> Event:
    """Return the event that a piece could not be brought, as one of the key that made it."""
    maker, part = piece.maker, posixpath.basename(piece.key.name)
    why = f"its file {part}: {event['why']}"
    return {**event, "step": maker.step, "key": maker.name, "id": maker.identity, "why": why}


def _blame(
    step: PlanToN, manifest: dict[str, Any], makers: set[str], made_on: dict[str, int]
) -> None:
    """Find out whether what some keys made is still there, and still what was written down.

    Raises:
        KeysFailed: it is missing or damaged: those keys are forgotten, so that they are made again.
        WorkflowsError: it was made again, and is something else.
    """
    by_slot: dict[int, list[str]] = {}
    for identity in sorted(makers):
        by_slot.setdefault(made_on[identity], []).append(identity)

    def check(slot: int) -> list[Event]:
        message = {"op": "check", "steps": [step.name], "ids": by_slot[slot]}
        return [e for e in step.nodes.channel(slot).ask(message, "checked") if e["event"] == "bad"]

    for slot, bad in step.nodes.each(by_slot, check).items():
        if bad:
            raise KeysFailed(step.nodes.nodes[slot].name, len(by_slot[slot]) - len(bad), bad)
    keys = [key for key in step.keys() or [] if key.identity in makers]
    records = records_of(step, keys)
    written = {identity: pieces for _, identity, _, pieces in manifest["keys"]}
    for key in keys:
        if sorted(records[key.identity]["pieces"]) != sorted(written[key.identity]):
            raise _not_deterministic(step, key.name)


def _not_deterministic(step: PlanToN, key: str) -> WorkflowsError:
    path = step.manifest_path
    return WorkflowsError(
        f"{step.name} of {key} is not deterministic: the files that it made are not those that were"
        f" delivered before, or written down in {path}, and some of those may be merged already; a"
        f" 1:n command must not use randomness or the clock. To remake all of it: remove that"
        f" file, if it is there, then workflows rm -r {step.name}"
    )


def skew(sizes: Sequence[int]) -> float:
    """Return the bytes of the fullest slot, of the mean: 1 is even.

    >>> skew([30, 10, 20])
    1.5
    """
    return max(sizes) * len(sizes) / sum(sizes) if any(sizes) else 1.0


def _describe(step: PlanToN) -> dict[str, Any]:
    """Gather from the nodes what every key made; check what must hold of the whole step."""
    keys = step.without_failed(step.keys() or [])
    records = records_of(step, keys)
    totals = summed(record.get("totals", {}) for record in records.values())
    manifest: dict[str, Any] = {
        "step": step.name,
        "identity": step.identity,
        "totals": totals,
        "keys": [
            [key.name, key.identity, key.slot, records[key.identity]["pieces"]] for key in keys
        ],
    }
    if left_out := tolerance.left_out([one.whole.task_id for one in step.lineage]):
        manifest["left_out"] = left_out
    check_totals(step, totals)
    if not step.by_name:  # a typed one's keys are taken once by their names, whatever is in them
        manifest["v"] = 2
    manifest["warnings"] = warn_of_nothing(step, records)
    return manifest
