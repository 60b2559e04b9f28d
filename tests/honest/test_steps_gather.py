"""An n:1 step gathers what its rule says, or says that it gathers nothing; placement lets it."""

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflows.model import SourceKey
from workflows.node.keys import digest_of, node_for
from workflows.planning.dataset import place as placed
from workflows.planning.gather import Basename, Gather, Prefix

if TYPE_CHECKING:
    from conftest import Done, Keys, Place

DIRECT = """
from workflows.steps import Basename, Map, MapFromN, Prefix
class Copy(Map):
    command = 'cat "$(cat)"'
class Total(MapFromN):
    upstream = Copy
    command = "xargs cat"
    durable = True
    {states}
"""
MADE = """
from workflows.steps import Basename, Map, MapFromN, MapToN, Prefix
class Copy(Map):
    command = 'cat "$(cat)"'
class Split(MapToN):
    upstream = Copy
    command = {command!r}
class Again(Map):
    upstream = Split
    command = "cat"
class Total(MapFromN):
    upstream = Again
    command = "xargs cat"
    {states}
"""
MONTHS = ("2018_01.csv", "2018_02.csv", "2019_01.csv")


def direct(place: "Place", *names: str, states: str = "") -> "Done":
    """Run an n:1 step directly over keys of some names."""
    place.module(DIRECT.format(states=states))
    for name in names:
        place.key(name, f"{name}\n".encode())
    return place.luigi("Total")


def made(place: "Place", command: str, *names: str, states: str = "") -> "Done":
    """Run an n:1 step over what a 1:n step makes of some keys."""
    place.module(MADE.format(command=command, states=states))
    for name in names:
        place.key(name, f"{name}\n".encode())
    return place.luigi("Total")


@pytest.mark.parametrize(
    "names", [("jan.csv", "feb.csv"), MONTHS, ("2018/jan.csv", "2018/feb.csv")]
)
def test_a_step_that_would_make_a_total_of_each_key_is_refused_before_anything_runs(
    place: "Place", names: tuple[str, ...]
) -> None:
    done = direct(place, *names)
    plan = place.run(
        *("workflows", "plan", "--module", "mine", "Total"),
        *("--source", "source", "--pattern", "*"),
    )

    assert (done.code, plan.code) == (35, 2), (done, plan)
    for said in (done.err, plan.err):
        assert f"Total groups no keys: each of the {len(names)} keys of Copy" in said
        assert "a MapToN with command = 'cat > all; echo all'" in said
        assert "gather = Prefix()" in said
    assert place.outputs("Copy") == {}


def test_one_key_alone_is_gathered_without_a_word(place: "Place") -> None:
    done = direct(place, "2018_01.csv")

    assert (done.code, "WARNING" in done.err) == (0, False), done
    assert place.outputs("Total") == {"2018_01.csv": b"2018_01.csv\n"}


def test_equal_basenames_meet_whatever_their_directories_and_prefixes_do_not(
    place: "Place",
) -> None:
    done = direct(place, "a/2018_01.csv", "b/2018_01.csv", "b/2018_02.csv", "c/d/x", "x")

    assert done.code == 0, done
    assert place.outputs("Total") == {
        "2018_01.csv": b"a/2018_01.csv\nb/2018_01.csv\n",
        "2018_02.csv": b"b/2018_02.csv\n",
        "x": b"c/d/x\nx\n",
    }


def test_keys_of_one_numeric_prefix_meet_where_the_step_says_so(place: "Place") -> None:
    done = direct(place, *MONTHS, "other", states="gather = Prefix()")

    assert done.code == 0, done
    assert place.outputs("Total") == {
        "2018": b"2018_01.csv\n2018_02.csv\n",
        "2019_01.csv": b"2019_01.csv\n",
        "other": b"other\n",
    }


def test_a_step_that_states_the_default_wants_it(place: "Place") -> None:
    done = direct(place, *MONTHS, states="gather = Basename()")

    assert done.code == 0, done
    assert set(place.outputs("Total")) == set(MONTHS)


def test_another_rule_is_another_result(place: "Place") -> None:
    first = direct(place, *MONTHS, states="gather = Basename()")
    second = direct(place, *MONTHS, states="gather = Prefix()")

    assert (first.code, second.code) == (0, 0), (first, second)
    results = [json.loads(path.read_text()) for path in place.checkpoint.glob("Total/*/_SUCCESS")]
    assert sorted(len(result["parts"]) for result in results) == [2, 3]


def test_files_of_several_keys_none_of_which_meet_are_warned_of(place: "Place") -> None:
    done = made(place, 'cat > "$filename.x"; ls', *"abcdefgh")
    quiet = made(place, 'cat > "$filename.x"; ls', states="gather = Basename()")

    assert (done.code, quiet.code) == (0, 0), (done, quiet)
    assert done.err.count("Total groups no keys: each of the 8 keys of Again") == 1
    assert "Split decides what meets" in done.err
    assert "groups no keys" not in quiet.err


def test_the_files_of_one_key_had_nothing_to_meet(place: "Place") -> None:
    done = made(place, "echo 1 > x; echo 2 > y; ls", "a")

    assert (done.code, "WARNING" in done.err) == (0, False), done
    assert place.outputs("Total") == {"x": b"1\n", "y": b"2\n"}


def test_an_n_to_1_step_over_another_is_refused_since_its_keys_differ(place: "Place") -> None:
    more = "class Grand(MapFromN):\n    upstream = Total\n    command = 'xargs cat'\n"
    place.module(DIRECT.format(states="") + more)
    for name in ("a/x", "b/x", "a/y", "b/y"):
        place.key(name, b"1\n")

    done = place.luigi("Grand")

    assert done.code == 35, done
    assert "Grand groups no keys: each of the 2 keys of Total" in done.err


def test_the_verb_keeps_the_rule_of_s4(keys: "Keys") -> None:
    keys.give("in", **{"k2018_01.csv": "1\n", "k2018_02.csv": "2\n", "kx": "3\n"})

    keys.ok("map-from-n", "in/", "out/", "xargs cat")

    assert keys.names("out") == ["2018", "x"]
    assert keys.read("out/2018") == "1\n2\n"


def test_steps_that_state_no_rule_are_what_they_were_in_earlier_versions(place: "Place") -> None:
    done = direct(place, "a/x", "b/x")

    assert done.code == 0, done
    (success,) = place.checkpoint.glob("Total/*/_SUCCESS")
    told = json.loads(success.read_text())
    spec = digest_of(["Total", "from_n", "xargs cat", {}])
    assert told["steps"][-1]["spec"] == spec
    upstream = digest_of([told["steps"][0]["spec"], told["dataset"]["digest"]])
    assert told["identity"] == digest_of([spec, upstream])


def test_what_an_earlier_version_joined_by_prefix_is_not_taken_for_a_result(
    place: "Place",
) -> None:
    names = ("a/2018_01.csv", "b/2018_01.csv", "2018_02.csv")
    done = direct(place, *names, states="gather = Prefix()")
    (success,) = place.checkpoint.glob("Total/*/_SUCCESS")
    told = json.loads(success.read_text())
    spec = digest_of(["Total", "from_n", "xargs cat", {}])
    upstream = digest_of([told["steps"][0]["spec"], told["dataset"]["digest"]])
    success.parent.rename(success.parent.with_name(digest_of([spec, upstream])))

    again = direct(place, *names)

    assert (done.code, again.code) == (0, 0), (done, again)
    assert set(place.outputs("Total")) == {"2018", "2018_01.csv", "2018_02.csv"}


def test_joined_files_of_an_earlier_version_are_refused_with_the_remedy(place: "Place") -> None:
    command = "echo 1 > 2018_a; echo 2 > 2018_b; echo 3 > 2018_c$filename; ls"
    states = "durable = True\n    gather = Prefix()"
    first = made(place, command, "x", "y", states=states)
    (success,) = place.checkpoint.glob("Total/*/_SUCCESS")
    told = json.loads(success.read_text())
    identity = told["dataset"]["digest"]
    for step in told["steps"][:-1]:
        identity = digest_of([step["spec"], identity])
    old = digest_of([digest_of(["Total", "from_n", "xargs cat", {}]), identity])
    success.chmod(0o644)
    success.write_text(success.read_text().replace(success.parent.name, old))
    success.parent.rename(success.parent.with_name(old))

    again = made(place, command, states="durable = True")

    assert (first.code, again.code) == (0, 35), (first, again)
    assert "was made by an earlier version, which joined keys of one numeric prefix" in again.err
    assert "write gather = Prefix() in Total" in again.err


# -- placement -------------------------------------------------------------------------------------

NAMES = st.tuples(
    st.sampled_from(["", "a/", "b/c/"]),
    st.sampled_from(["1_", "01_", "7_", "7", "x_", ""]),
    st.sampled_from(["a", "b", "a_b"]),
).map("".join)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(NAMES, st.integers(0, 9)), min_size=1, unique_by=lambda one: one[0]),
    st.integers(1, 5),
    st.dictionaries(NAMES, st.integers(0, 4)),
)
@pytest.mark.parametrize("rule", [Basename(), Prefix()])
def test_all_keys_that_a_rule_puts_together_are_on_one_node(
    rule: Gather, sizes: list[tuple[str, int]], slots: int, before: dict[str, int]
) -> None:
    keys = [SourceKey(name, name, size, "") for name, size in sizes]

    for found in (placed(keys, slots, before), [node_for(key.name, slots) for key in keys]):
        homes: dict[str, set[int]] = {}
        for key, slot in zip(keys, found, strict=True):
            homes.setdefault(rule.group(key.name), set()).add(slot)
        assert all(len(slots) == 1 for slots in homes.values())


def skewed(place: "Place", fleet: str, *names: str) -> list[str]:
    for name in names:
        place.key(name, b"row\n" * 100)
    place.module(DIRECT.format(states="gather = Basename()"))
    done = place.luigi("Copy", "--fleet", fleet)
    assert done.code == 0, done
    return [line for line in done.err.splitlines() if "before the first underscore" in line]


def test_prefixes_that_leave_nodes_idle_are_warned_of_once_with_numbers_and_remedy(
    place: "Place",
) -> None:
    (warning,) = skewed(place, "local:3", *(f"2018_{month:02d}.csv" for month in range(1, 13)))

    assert "source: node 2 has 12 of 12 keys, 3.00 of the mean in bytes, where 1.00" in warning
    assert "modulo 3 nodes, decides on its node (2018_01.csv, 2018_02.csv, 2018_03.csv" in warning
    assert "such as 2018-01.csv" in warning


@pytest.mark.parametrize(
    ("fleet", "names"),
    [
        ("local:1", [f"2018_{month:02d}.csv" for month in range(1, 13)]),
        ("local:3", [f"2018_{month:02d}.csv" for month in range(1, 6)]),
        ("local:3", [f"2018-{month:02d}.csv" for month in range(1, 13)]),
        ("local:3", [f"{month:02d}_2018.csv" for month in range(1, 13)]),
        ("local:3", [f"{folder}/results" for folder in range(12)]),
    ],
)
def test_one_node_few_keys_and_names_that_are_even_are_not_warned_of(
    place: "Place", fleet: str, names: list[str]
) -> None:
    assert skewed(place, fleet, *names) == []
