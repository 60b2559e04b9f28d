"""A 1:n command's files are never lost without a word, and nothing made of something is told."""

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from faults import asked, runtime

from workflows.fleets.channel import Channel

if TYPE_CHECKING:
    from conftest import Done, Keys, Place

SPLIT = """
from workflows.steps import Map, MapFromN, MapToN
class Copy(Map):
    command = 'cat "$(cat)"'
class Split(MapToN):
    upstream = Copy
    command = {command!r}
    {split}
class Total(MapFromN):
    upstream = Split
    command = "xargs cat"
    durable = True
    {total}
"""
EMPTIED = """
from workflows.steps import Map
class Copy(Map):
    command = 'cat "$(cat)"'
class Kept(Map):
    upstream = Copy
    command = "grep -v x || true"
    durable = True
    {states}
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Channel]:
    """Return a session with a runtime."""
    with runtime(tmp_path_factory.mktemp("node")) as (_, channel):
        yield channel


def outcome(node: Channel, command: str) -> dict[str, Any]:
    """Run a 1:n command over a key; return the event that says what came of it."""
    message = asked([f"{abs(hash(command))}"], command)
    message["work"]["mode"] = "to_n"
    (event,) = [e for e in node.ask(message, "ran") if e["event"] in ("done", "failed")]
    return event


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("cat > rows", "'rows'"),
        ("touch empty", "'empty'"),
        ("cat > rows; echo", "'rows'"),
        ("mkdir d; cat > d/rows", "'d/rows'"),
        ("touch .hidden", "'.hidden'"),
        ("mkfifo pipe", "'pipe'"),
        ("ln -s /etc link", "'link'"),
        ("ln -s nowhere link", "'link'"),
        ("touch a b c d e f g", "'a', 'b', 'c', 'd', 'e' and 2 more"),
        ("touch 'a b'", "'a b'"),
    ],
)
def test_a_command_that_prints_no_name_but_leaves_a_file_fails_and_names_it(
    node: Channel, command: str, named: str
) -> None:
    failed = outcome(node, command)

    assert failed["event"] == "failed"
    assert f"it printed no name, but left {named}: it must print the names" in failed["why"]


@pytest.mark.parametrize(
    "command",
    [
        "cat > scratch; echo a > rows; echo rows",
        "true",
        "mkdir d",
        "cat > scratch; rm scratch",
        "mkdir __pycache__; touch __pycache__/x.pyc",
    ],
)
def test_files_beside_printed_names_are_scratch_and_nothing_may_be_made(
    node: Channel, command: str
) -> None:
    assert outcome(node, command)["event"] == "done"


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("echo none", "'none' was printed, but there is no such file"),
        ("touch a; echo a; echo a", "'a' was printed twice"),
        ("touch a; echo ./a", "'./a' is not a plain file name"),
        ("touch a; echo $PWD/a", "is not a plain file name"),
        ("mkdir d; touch d/a; echo d/a", "'d/a' is not a plain file name"),
        ("echo .", "'.' is not a plain file name"),
        ("mkdir d; echo d", "'d' was printed, but it is a directory, not a file"),
        ("touch a; ln -s a l; echo l", "'l' was printed, but it is a link, not a file"),
        ("ln -s nowhere l; echo l", "'l' was printed, but it is a link, not a file"),
        ("mkfifo p; echo p", "'p' was printed, but it is a FIFO, not a file"),
        ("touch a; printf 'a\\r\\n'", "'a\\r' was printed, but there is no such file"),
        ("touch a; printf 'a\\0\\n'", "is not a plain file name"),
    ],
)
def test_a_printed_name_that_is_no_file_of_its_own_is_named(
    node: Channel, command: str, why: str
) -> None:
    failed = outcome(node, command)

    assert failed["event"] == "failed"
    assert why in failed["why"]


def test_a_piece_that_has_another_name_too_cannot_be_changed_by_it(
    node: Channel, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other") / "name"
    other.write_text("kept\n")

    done = outcome(node, f"ln {other} a; echo a")
    other.write_text("changed\n")

    assert done["event"] == "done"
    (bad,) = [list(node.ask({"op": "check", "steps": ["Step"]}, "checked"))]
    assert [event for event in bad if event["event"] == "bad"] == []


def steps(place: "Place", command: str, split: str = "", total: str = "") -> None:
    place.module(SPLIT.format(command=command, split=split, total=total))
    for name in ("a", "b"):
        place.key(name, b"1\n2\n")


def manifest(place: "Place", step: str) -> dict[str, Any]:
    (path,) = place.checkpoint.glob(f"{step}/*/_SUCCESS")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_run_whose_rows_would_be_lost_fails_and_commits_nothing(place: "Place") -> None:
    steps(place, "cat > rows")

    done = place.luigi("Total")

    assert done.code == 30, done
    assert "Split of a on node" in done.err
    assert "it printed no name, but left 'rows'" in done.err
    assert not list(place.checkpoint.glob("Total/*/_SUCCESS"))


def test_the_verb_fails_likewise(six: "Keys") -> None:
    done = six.run("map-to-n", "in/", "out/", "cat > rows")

    assert done.code == 1
    assert re.search(r"out/00\d_f\d on node \d: it printed no name, but left 'rows'", done.err), (
        done
    )


def warnings(done: "Done") -> list[str]:
    return [line for line in done.err.splitlines() if "allow_empty" in line]


def test_steps_that_make_nothing_of_something_warn_once_each(place: "Place") -> None:
    steps(place, "cat > /dev/null")

    done = place.luigi("Total")
    again = place.luigi("Total")
    report = place.run("workflows", "report")

    assert (done.code, again.code) == (0, 0), (done, again)
    split, total = warnings(done)
    assert "Split made no file of any of its 2 keys. If that is intended, write allow" in split
    assert "Total made nothing: it had no keys. If that is intended" in total
    assert [line for line in warnings(again) if "Total made nothing" in line] == warnings(again)
    assert len(warnings(again)) == 1
    assert len(manifest(place, "Total")["warnings"]) == 1
    assert report.out.count("warning: ") == 2


def test_a_step_that_allows_it_says_nothing_of_it(place: "Place") -> None:
    steps(place, "cat > /dev/null", "allow_empty = True", "allow_empty = True")

    done = place.luigi("Total")

    assert done.code == 0, done
    assert warnings(done) == []
    assert manifest(place, "Total")["warnings"] == []


def test_empty_outputs_of_inputs_that_are_not_are_counted_and_named(place: "Place") -> None:
    place.module(EMPTIED.format(states=""))
    for name, data in {"a": b"x\n", "b": b"x\n", "c": b"y\n", "d": b""}.items():
        place.key(name, data)

    done = place.luigi("Kept")
    place.module(EMPTIED.format(states="allow_empty = True"))
    again = place.luigi("Kept")

    (warning,) = warnings(done)
    assert "Kept made 2 of 4 outputs empty, of inputs that are not: a, b." in warning
    assert manifest(place, "Kept")["warnings"] == [warning.removeprefix("WARNING: ")]
    assert (done.code, again.code, warnings(again)) == (0, 0, [])
    assert len(place.ledger("Kept")) == 4  # it is no part of what makes an output


def test_empty_outputs_of_empty_inputs_are_as_they_should_be(place: "Place") -> None:
    place.module(EMPTIED.format(states=""))
    place.key("d", b"")

    done = place.luigi("Kept")

    assert (done.code, warnings(done)) == (0, []), done
