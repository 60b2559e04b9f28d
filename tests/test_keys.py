"""Names of keys: which are allowed, which slot owns them, what a group of them is called."""

import subprocess
import sys

import pytest

from workflows.errors import KeyNameError
from workflows.node.keys import (
    check_name,
    digest_of,
    group_name,
    group_of,
    identity_of,
    node_for,
    numeric_prefix,
)

NAMES = [
    f"yellow_tripdata_{year}-{month:02d}.csv"
    for year in range(2009, 2109)
    for month in range(1, 13)
]


@pytest.mark.parametrize(
    "name",
    [
        "a b.csv",
        "it's",
        'say "no"',
        "100%",
        "a;b",
        "$(x)",
        "back\\slash",
        "-rf",
        "é",
        "\udcff",
        "#0",
        "d/e/f",
        "...",
        "tab\tbed",
        "cr\r",
        "n" * 200,
    ],
)
def test_any_byte_may_stand_in_a_name_but_newline_and_nul(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/a", "a//b", "a/", "a/../b", "a/./b", "a\nb", "a\0b"]
)
def test_a_name_that_could_leave_its_step_or_break_a_list_is_refused_by_name(name: str) -> None:
    with pytest.raises(KeyNameError) as caught:
        check_name(name)

    assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("000_machine0", 0),
        ("001_machine1", 1),
        ("000_machine0/002_machine2", 2),
        ("shuffled/003_machine3", 3),
        ("000", 0),
        ("12_a_b", 12),
        ("012x_a", None),
        ("a_012", None),
        ("_1", None),
        ("-1_a", None),
        ("\u0661_a", None),
        ("²_a", None),
        ("", None),
    ],
)
def test_only_ascii_digits_before_the_first_underscore_are_a_numeric_prefix(
    name: str, number: int | None
) -> None:
    assert numeric_prefix(name) == number


@pytest.mark.parametrize(
    ("name", "slots", "slot"),
    [
        ("inputs/000_machine0", 12, 0),
        ("inputs/001_machine1", 12, 1),
        ("002_machine2", 12, 2),
        ("003_machine3", 2, 1),
        ("012_passengers_3", 12, 0),
        ("999999999999999999999_x", 7, 999999999999999999999 % 7),
    ],
)
def test_a_numeric_prefix_places_a_key_explicitly(name: str, slots: int, slot: int) -> None:
    assert node_for(name, slots) == slot


def test_equal_basenames_meet_on_one_slot_whatever_their_folders() -> None:
    slots = {node_for(f"{folder}/results", 12) for folder in ("a", "b/c", "000_x", "é")}

    assert len(slots) == 1


def test_one_slot_owns_everything() -> None:
    assert {node_for(name, 1) for name in NAMES} == {0}


def test_one_more_slot_moves_only_its_own_share_of_the_keys() -> None:
    for slots in (3, 12):
        moved = [n for n in NAMES if node_for(n, slots) != node_for(n, slots + 1)]

        assert {node_for(name, slots + 1) for name in moved} == {slots}
        assert 0.7 / (slots + 1) < len(moved) / len(NAMES) < 1.3 / (slots + 1)


def test_names_without_a_prefix_are_spread_over_all_slots() -> None:
    counts = [0] * 12

    for name in NAMES:
        counts[node_for(name, 12)] += 1

    assert max(counts) <= 1.35 * len(NAMES) / 12
    assert min(counts) >= 0.65 * len(NAMES) / 12


def test_another_process_places_a_name_on_the_same_slot() -> None:
    code = "import sys; from workflows.node.keys import node_for; print(node_for(sys.argv[1], 97))"
    name = "trips/\udcff é.csv"

    done = subprocess.run(
        [sys.executable, "-c", code, name], capture_output=True, check=True, text=True
    )

    assert int(done.stdout) == node_for(name, 97)


def test_keys_are_grouped_by_numeric_prefix_or_basename_never_by_both() -> None:
    assert group_of("a/000_x") == group_of("b/0_y") == group_of("c/00")
    assert group_of("a/results") == group_of("b/c/results")
    assert group_of("a/results") != group_of("a/results2")
    assert group_of("0x_1") != group_of("0_1")


@pytest.mark.parametrize(
    ("names", "merged"),
    [
        (["000_machine0/002_machine2", "001_machine1/002_machine2"], "002_machine2"),
        (["a/results", "b/results"], "results"),
        (["may/000_rides", "jun/000_fares"], "000"),
        (["only/one_of.csv"], "one_of.csv"),
    ],
)
def test_a_group_is_called_by_what_its_names_share(names: list[str], merged: str) -> None:
    assert group_name(names) == merged
    assert group_name(reversed(names)) == merged


def test_an_identity_changes_with_the_command_the_name_and_every_input() -> None:
    one = identity_of("spec", "a", ["x", "y"])

    others = [
        identity_of("spec2", "a", ["x", "y"]),
        identity_of("spec", "b", ["x", "y"]),
        identity_of("spec", "a", ["x"]),
        identity_of("spec", "a", ["y", "x"]),
    ]

    assert len({one, *others}) == 5
    assert identity_of("spec", "a", ["x", "y"]) == one


def test_names_that_are_not_utf_8_have_digests_of_their_own() -> None:
    assert digest_of("\udcff") != digest_of("\udcfe")
