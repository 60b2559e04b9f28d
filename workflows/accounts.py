"""What the keys of a step counted, gathered from the nodes, and the laws of the step as a whole."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from workflows import laws
from workflows.errors import LawBroken, WorkflowsError
from workflows.lineage import Key

if TYPE_CHECKING:
    from workflows.steps import Step

Event = dict[str, Any]


def records_of(step: "Step", keys: list[Key]) -> dict[str, Event]:
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


def summed(many: Iterable[dict[str, int]]) -> dict[str, int]:
    """Return the sum of many counts, name by name."""
    totals: dict[str, int] = {}
    for one in many:
        for name, value in one.items():
            totals[name] = totals.get(name, 0) + value
    return totals


def check_totals(step: "Step", totals: dict[str, int]) -> None:
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
