"""Bad keys that a run tolerates: which failed, how many may, and which steps run without them.

A step that states `max_failed` is a barrier: once all its keys have ended, it is decided which are
left out, and the steps behind it are planned without those. That holds for this run alone. The next
one tries them again. An output made without a key has another identity than one made of all.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from workflows.model import Key

Event = Mapping[str, Any]
_failed: dict[str, dict[str, Event]] = {}
_decided: set[str] = set()
_mark = [0]
_mutex = threading.Lock()


def allowed(max_failed: "int | str", keys: int) -> int:
    """Return how many of that many keys may fail; all of them only if ``"100%"`` says so.

    >>> allowed(3, 10), allowed("5%", 100), allowed("5%", 19), allowed("0", 9)
    (3, 5, 0, 0)
    >>> allowed(3, 3), allowed(3, 1), allowed("100%", 3)
    (2, 0, 3)
    """
    text = str(max_failed).strip()
    if text.endswith("%"):
        return int(float(text[:-1]) * keys / 100 + 1e-9)
    return min(int(text), max(0, keys - 1))


def take(step: str, limit: int, failures: Sequence[Event]) -> bool:
    """Tolerate the failed keys of a shard, if the whole step may have that many bad keys."""
    with _mutex:
        found = _failed.get(step, {}) | {event["id"]: event for event in failures}
        if len(found) > limit:
            return False
        _failed[step] = found
    return True


def decide(step: str) -> list[Event]:
    """Leave out from now on what failed in a step, as all of its keys have ended; return that."""
    with _mutex:
        failures = _failed.get(step, {})
        if step not in _decided:
            _decided.add(step)
            _mark[0] += bool(failures)
    return sorted(failures.values(), key=lambda event: str(event["key"]))


def is_open(step: str) -> bool:
    """Tell whether keys of a step failed, and it is not decided yet that they are left out."""
    return step in _failed and step not in _decided


def is_decided(step: str) -> bool:
    """Tell whether it is known which keys of a step are left out in this run."""
    return step in _decided


def without_failed(step: str, keys: Sequence[Key]) -> list[Key]:
    """Return those of a step's keys that have not failed in a way that this run tolerates."""
    failed = _failed.get(step, {})
    return [key for key in keys if key.identity not in failed]


def identities(step: str) -> list[str]:
    """Return what makes the result of a step without its bad keys another one; else nothing."""
    return ["without", *sorted(_failed[step])] if step in _failed and step in _decided else []


def left_out(steps: Iterable[str]) -> list[dict[str, Any]]:
    """Return what a manifest says of keys that are in no output, of a step and all before it."""
    return [
        {"step": event["step"], "key": event["key"], "id": event["id"], "why": event["why"]}
        for step in steps
        for event in (decide(step) if is_decided(step) else [])
    ]


def mark() -> int:
    """Return what changes whenever keys come to be left out: what was found before is void."""
    return _mark[0]


def forget() -> None:
    """Begin another run: what failed is tried again."""
    with _mutex:
        _failed.clear()
        _decided.clear()
        _mark[0] += 1
