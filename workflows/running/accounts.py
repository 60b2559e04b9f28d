"""The counts of a step's keys, gathered from the nodes, and the laws over their sums."""

from collections.abc import Iterable
from typing import Any

from workflows.errors import LawBroken, WorkflowsError
from workflows.model import Key
from workflows.node import laws
from workflows.planning import context
from workflows.planning.plan import Plan

Event = dict[str, Any]
_NAMED = 3


def records_of(step: Plan, keys: list[Key]) -> dict[str, Event]:
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
            f"{len(gone)} outputs of {step.name} disappeared during the run, the first is"
            f" {gone[0]}; rerun"
        )
    return records


def summed(many: Iterable[dict[str, int]]) -> dict[str, int]:
    """Return the sum of many counts, name by name."""
    totals: dict[str, int] = {}
    for one in many:
        for name, value in one.items():
            totals[name] = totals.get(name, 0) + value
    return totals


def check_totals(step: Plan, totals: dict[str, int]) -> None:
    """Check the laws of the whole step; `totals` holds ``Step.metric`` of all steps so far."""
    own = {
        name.partition(".")[2]: n for name, n in totals.items() if name.startswith(step.name + ".")
    }
    for law in step.total_laws:
        sentence = laws.broken(law, {**totals, **own})
        if sentence is not None:
            names = ", ".join(key.name for key in (step.keys() or [])[:3])
            raise LawBroken(
                f"{step.name} ({names}) as a whole: {sentence}; nothing was checkpointed."
                f" To look at it: workflows plan {step.name}"
            )


def warn_of_nothing(step: Plan, records: dict[str, Event]) -> list[str]:
    """Warn of a step that made nothing, or empty outputs of inputs that were not; return the words.

    A step that states `allow_empty` is let be.
    """
    if step.allow_empty:
        return []
    why = _made_nothing(step, records)
    if not why:
        return []
    sentence = f"{step.name} {why}"
    if not step.by_name:  # a typed map states nothing
        sentence += f". If that is intended, write allow_empty = True in {step.name}"
    context.log().add(what="warned", step=step.name, why=sentence)
    context.logger.warning("%s", sentence)
    return [sentence]


def _made_nothing(step: Plan, records: dict[str, Event]) -> str:
    keys = [key for key in step.keys() or [] if key.identity in records]
    if step.mode == "to_n":
        is_nothing = not any(record["pieces"] for record in records.values())
        was_given = any(_bytes_in(record) for record in records.values())
        return (
            f"made no file of any of its {_counted(len(keys))}" if is_nothing and was_given else ""
        )
    if not keys:
        return "made nothing: it had no keys"
    empty = [
        key.name
        for key in keys
        if not records[key.identity]["bytes"] and _bytes_in(records[key.identity])
    ]
    if empty:
        shown = ", ".join(sorted(empty)[:_NAMED]) + (", ..." if empty[_NAMED:] else "")
        made = _counted(len(keys), "output")
        return f"made {len(empty)} of {made} empty, of inputs that are not: {shown}"
    is_nothing = not any(record["bytes"] for record in records.values())
    if is_nothing and any(key.size != 0 for key in step.listed.keys):
        return f"made nothing: {_counted(len(keys), 'empty output')} of a source that is not empty"
    return ""


def _bytes_in(record: Event) -> int:
    return int(record.get("metrics", {}).get("bytes_in", 0))


def _counted(count: int, what: str = "key") -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
