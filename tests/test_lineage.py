"""Where the pieces of a 1:n step go, and how keys are cut into shards."""

from collections.abc import Iterator
from typing import Any

import pytest

from workflows.model import Key
from workflows.planning.lineage import pieces_of, shards_of, slot_shards


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


class Counted(list[Key]):
    """Keys that count how often all of them are gone through."""

    passes = 0

    def __iter__(self) -> Iterator[Key]:
        self.passes += 1
        return super().__iter__()


def test_keys_are_gone_through_once_however_many_slots_they_are_cut_for() -> None:
    keys = Counted(Key(f"k{n:03d}", f"{n:x}", n % 7) for n in range(300))

    shards = slot_shards(keys, 100)
    cut = shards_of(keys, 100, key_tasks=0, shards=12)

    assert keys.passes == 2
    assert [shard.slot for shard in shards] == list(range(100))
    for cuts in (shards, cut):
        assert all(key.slot == shard.slot for shard in cuts for key in shard.keys)
        assert sorted(key for shard in cuts for key in shard.keys) == list(keys)
