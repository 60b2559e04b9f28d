"""Placement of a dataset's keys: even, and the same again; what moves, moves for a reason."""

import pathlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflows.model import SourceKey
from workflows.node.keys import group_of, numeric_prefix
from workflows.planning.dataset import Dataset, load, place
from workflows.storage.store import DirectoryStore

SIZES = st.one_of(st.integers(0, 40), st.integers(0, 10**9))
NAMES = st.one_of(
    st.integers(0, 60).map("k{}".format),
    st.integers(0, 9).map("{:03d}_x".format),
    st.tuples(st.sampled_from("abc"), st.integers(0, 5)).map("{0[0]}/same{0[1]}".format),
)
LISTINGS = st.dictionaries(NAMES, SIZES, max_size=24)


def keys_of(sizes: dict[str, int]) -> list[SourceKey]:
    return [SourceKey(name, "", size, "e") for name, size in sorted(sizes.items())]


def placed(sizes: dict[str, int], slots: int, before: dict[str, int]) -> dict[str, int]:
    keys = keys_of(sizes)
    return dict(zip([key.name for key in keys], place(keys, slots, before), strict=True))


def skew(sizes: dict[str, int], where: dict[str, int], slots: int) -> float:
    keys = keys_of(sizes)
    return Dataset("s", "*", slots, tuple(keys), tuple(where[key.name] for key in keys)).skew


@settings(max_examples=300, deadline=None)
@given(LISTINGS, st.integers(1, 7), st.dictionaries(NAMES, st.integers(0, 8), max_size=24))
def test_to_place_once_more_what_was_placed_moves_nothing(
    sizes: dict[str, int], slots: int, before: dict[str, int]
) -> None:
    once = placed(sizes, slots, before)

    assert placed(sizes, slots, once) == once
    assert set(once.values()) <= set(range(slots))


@settings(max_examples=200, deadline=None)
@given(LISTINGS, st.integers(1, 7), st.dictionaries(NAMES, st.integers(0, 8), max_size=24))
def test_keys_of_one_group_are_placed_together_and_numbers_decide_alone(
    sizes: dict[str, int], slots: int, before: dict[str, int]
) -> None:
    once = placed(sizes, slots, before)

    by_group: dict[str, set[int]] = {}
    for name, slot in once.items():
        by_group.setdefault(group_of(name), set()).add(slot)
        number = numeric_prefix(name)
        assert number is None or slot == number % slots
    assert all(len(slots) == 1 for slots in by_group.values())


def best_skew(weights: list[int], slots: int) -> float:
    """Return the least skew there can be, by trying every placement."""
    loads = {(0,) * slots}
    for weight in weights:
        loads = {
            tuple(sorted(load + weight * (slot == at) for slot, load in enumerate(one)))
            for one in loads
            for at in range(slots)
        }
    return min(max(one) for one in loads) * slots / sum(weights)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 100), min_size=1, max_size=8),
    st.integers(1, 3),
    st.lists(st.integers(0, 2), min_size=8, max_size=8),
)
def test_no_slot_has_more_than_a_tenth_above_the_mean_where_the_keys_allow_that(
    sizes: list[int], slots: int, before: list[int]
) -> None:
    named = {f"k{n}": size for n, size in enumerate(sizes)}
    were = {f"k{n}": slot for n, slot in enumerate(before)}

    if best_skew([size + 1 for size in sizes], slots) <= 1.1:
        assert skew(named, placed(named, slots, {}), slots) <= 1.1
        assert skew(named, placed(named, slots, were), slots) <= 1.25  # they are few and coarse


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(50, 100), min_size=100, max_size=150),
    st.integers(2, 4),
    st.lists(st.integers(0, 3), min_size=150, max_size=150),
)
def test_many_keys_are_even_wherever_they_were_before(
    sizes: list[int], slots: int, before: list[int]
) -> None:
    named = {f"k{n}": size for n, size in enumerate(sizes)}
    were = {f"k{n}": slot for n, slot in enumerate(before)}

    assert skew(named, placed(named, slots, were), slots) <= 1.1


@pytest.mark.parametrize("slots", [3, 7])
@pytest.mark.parametrize("largest", [10**4, 10**9])
def test_five_bytes_more_of_one_key_move_no_other(slots: int, largest: int) -> None:
    moved = 0
    for seed in range(200):
        chance = random.Random(seed)
        sizes = {f"k{n}": chance.randint(largest // 100, largest) for n in range(16)}
        before = placed(sizes, slots, {})
        changed = {**sizes, "k7": sizes["k7"] + 5}
        moved += placed(changed, slots, before) != before

    assert moved == 0


@pytest.mark.parametrize(("slots", "count"), [(3, 40), (5, 36), (7, 200)])
def test_a_new_key_or_one_that_is_gone_moves_no_other(slots: int, count: int) -> None:
    for seed in range(50):
        chance = random.Random(seed)
        sizes = {f"k{n}": chance.randint(10**5, 3 * 10**6) for n in range(count)}
        before = placed(sizes, slots, {})
        more = placed({**sizes, "new": chance.randint(10**5, 3 * 10**6)}, slots, before)
        less = {name: size for name, size in sizes.items() if name != "k7"}

        assert {name: more[name] for name in sizes} == before
        assert placed(less, slots, before).items() <= before.items()


@pytest.mark.parametrize(("was", "now"), [(3, 4), (4, 3), (10, 11), (11, 10), (3, 5)])
def test_a_resize_moves_the_share_of_the_new_nodes_or_of_those_that_are_gone(
    tmp_path: pathlib.Path, was: int, now: int
) -> None:
    (tmp_path / "in").mkdir()
    for n in range(120):
        (tmp_path / "in" / f"k{n}").write_bytes(b"x" * (1000 + 37 * n % 500))
    store, source = DirectoryStore(str(tmp_path / "store")), str(tmp_path / "in")

    before = load(source, "*", was, store)
    after = load(source, "*", now, store)

    moved = sum(a != b for a, b in zip(before.placed, after.placed, strict=True))
    share = abs(now - was) / max(was, now)
    assert 0.4 * share <= moved / 120 <= 1.2 * share
    assert set(after.placed) == set(range(now))
    assert after.skew <= 1.1


def test_a_key_that_was_gone_for_one_run_comes_back_to_where_it_was(tmp_path: pathlib.Path) -> None:
    (tmp_path / "in").mkdir()
    for n in range(40):
        (tmp_path / "in" / f"k{n}").write_bytes(b"x" * (1000 + 10 * n))
    store, source = DirectoryStore(str(tmp_path / "store")), str(tmp_path / "in")
    first = load(source, "*", 3, store)

    for name in ("k2", "k5"):
        (tmp_path / "in" / name).rename(tmp_path / name)
    load(source, "*", 3, store)
    for name in ("k2", "k5"):
        (tmp_path / name).rename(tmp_path / "in" / name)

    assert load(source, "*", 3, store).placed == first.placed
