"""Where the pieces of a 1:n step go."""

from typing import Any

import pytest

from workflows.lineage import pieces_of


def manifest(**sizes: int) -> dict[str, Any]:
    """Return what two keys made: each a file of every name, of half the name's size."""
    parts = [[name, size // 2, "0"] for name, size in sizes.items()]
    return {"keys": [["may", "id-may", 0, parts], ["june", "id-june", 1, parts]]}


def loads(made: dict[str, Any], slots: int, *, balanced: bool) -> list[int]:
    found = [0] * slots
    for piece in pieces_of(made, "Step", slots, balanced=balanced):
        found[piece.key.slot] += piece.size
    return found


@pytest.mark.parametrize("slots", [2, 3, 4, 6])
def test_balanced_pieces_are_spread_by_what_they_weigh(slots: int) -> None:
    made = manifest(
        **{f"passengers_{n}_{part:03d}": 1200 * n for n in (1, 2) for part in range(12)}
    )

    assert max(loads(made, slots, balanced=True)) * slots <= 1.1 * 12 * 3600
    assert max(loads(made, slots, balanced=False)) * slots > 1.1 * 12 * 3600


def test_balanced_pieces_of_one_name_meet_on_one_slot() -> None:
    made = manifest(a=10, b=20, c=30)

    slots: dict[str, set[int]] = {}
    for piece in pieces_of(made, "Step", 2, balanced=True):
        slots.setdefault(piece.key.name.rsplit("/", 1)[1], set()).add(piece.key.slot)

    assert slots == {"c": {0}, "b": {1}, "a": {1}}


def test_a_numeric_prefix_decides_alone_also_among_balanced_pieces() -> None:
    pieces = pieces_of(manifest(**{"001_a": 90, "003_b": 90, "c": 2}), "Step", 2, balanced=True)

    assert {piece.key.name.rsplit("/", 1)[1]: piece.key.slot for piece in pieces} == {
        "001_a": 1,
        "003_b": 1,
        "c": 0,
    }
