"""Bad keys that a run tolerates: which failed, how many may, and what goes on without them.

A step that states `max_failed` is a barrier: once all its keys have ended, it is decided which are
left out, and the steps behind it are planned without those. That holds for this run alone. The next
one tries them again. What was made without a key has another identity than what is made of all.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workflows.planning.lineage import Key
    from workflows.steps import Step

Event = Mapping[str, Any]
_failed: dict[str, dict[str, Event]] = {}  # whole step -> identity of a key -> how it failed
_decided: set[str] = set()
_mark = [0]
_mutex = threading.Lock()


def allowed(max_failed: "int | str", keys: int) -> int:
    """Return how many of so many keys may fail.

    >>> allowed(3, 10), allowed("5%", 100), allowed("5%", 19), allowed("0", 9)
    (3, 5, 0, 0)
    """
    text = str(max_failed).strip()
    return int(float(text[:-1]) * keys / 100 + 1e-9) if text.endswith("%") else int(text)


def take(step: "Step", failures: Sequence[Event]) -> bool:
    """Tolerate what failed in a shard, if the step may have so many bad keys in all.

    A key that failed in an earlier step of the same pipe, or whose input is gone, is none of them.
    """
    whole = step.whole
    if not whole.is_tolerant or any(
        event["step"] != step.name or event.get("input_gone") for event in failures
    ):
        return False
    with _mutex:
        found = _failed.get(whole.task_id, {}) | {event["id"]: event for event in failures}
        if len(found) > allowed(whole.max_failed, len(whole.keys() or [])):
            return False
        _failed[whole.task_id] = found
    return True


def decide(step: "Step") -> "list[Event]":
    """Leave out from now on what failed in a step, as all of its keys have ended; return that."""
    name = step.whole.task_id
    with _mutex:
        failures = _failed.get(name, {})
        if name not in _decided:
            _decided.add(name)
            _mark[0] += bool(failures)
    return sorted(failures.values(), key=lambda event: str(event["key"]))


def is_open(step: "Step") -> bool:
    """Tell whether keys of a step failed, and it is not decided yet that they are left out."""
    name = step.whole.task_id
    return name in _failed and name not in _decided


def is_decided(step: "Step") -> bool:
    """Tell whether it is known which keys of a step are left out in this run."""
    return step.whole.task_id in _decided


def without_failed(step: "Step", keys: "Sequence[Key]") -> "list[Key]":
    """Return those of a step's keys that have not failed in a way that this run tolerates."""
    failed = _failed.get(step.whole.task_id, {})
    return [key for key in keys if key.identity not in failed]


def identities(step: "Step") -> list[str]:
    """Return what makes the result of a step without its bad keys another one; else nothing."""
    name = step.whole.task_id
    return ["without", *sorted(_failed[name])] if name in _failed and name in _decided else []


def left_out(step: "Step") -> list[dict[str, Any]]:
    """Return what a manifest says of keys that are in no output, of a step and all before it."""
    return [
        {"step": event["step"], "key": event["key"], "id": event["id"], "why": event["why"]}
        for before in step.lineage
        for event in (decide(before) if is_decided(before) else [])
    ]


def known(step: "Step") -> dict[str, Any]:
    """Return what was found of a whole step so far; forgotten when keys come to be left out."""
    found: dict[str, Any] = step.whole.__dict__.setdefault("_known", {})
    if found.get("mark") != _mark[0]:
        found = step.whole.__dict__["_known"] = {"mark": _mark[0]}
    return found


def forget() -> None:
    """Begin another run: what failed is tried again."""
    with _mutex:
        _failed.clear()
        _decided.clear()
        _mark[0] += 1
