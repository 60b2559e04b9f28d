"""State, checkpoints and logs that an earlier version wrote are still read.

`earlier/0.1.0` is what that version left of one run of the pipeline in `mine.txt` on two nodes.
"""

import pathlib
import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Place

EARLIER = pathlib.Path(__file__).resolve().parent / "earlier" / "0.1.0"
RESULT = ["3 two", "1 three", "1 one"]


@pytest.fixture
def earlier(place: "Place") -> "Place":
    for name in ("nodes", "checkpoint", "runs"):
        shutil.copytree(EARLIER / name, place.state / name)
    place.module((EARLIER / "mine.txt").read_text())
    place.more = {"WORKFLOWS_FLEET": "local:2", "WORKFLOWS_PATTERN": "*.txt"}
    return place


def test_a_result_of_an_earlier_version_is_printed_and_explained(earlier: "Place") -> None:
    results = earlier.run("workflows", "results", "Total")
    (path,) = earlier.checkpoint.glob("Total/*/data/*/words")
    why = earlier.run("workflows", "why", str(path))
    folder = earlier.run("workflows", "why", f"{path.parent}/")

    assert results.code == 0, results
    assert [line.strip() for line in results.out.splitlines()[1:]] == RESULT
    assert why.code == 0, why
    assert folder.out == why.out, folder
    assert "a.txt" in why.out
    assert "b.txt" in why.out


def test_what_nodes_of_an_earlier_version_hold_is_listed_and_whole(earlier: "Place") -> None:
    listed = earlier.run("workflows", "ls", "-r")
    checked = earlier.run("workflows", "fsck")

    assert listed.code == 0, listed
    assert "Words/a.txt" in listed.out
    assert "Together/b.txt/words" in listed.out
    assert checked.code == 0, checked


def test_the_log_of_a_run_of_an_earlier_version_is_reported(earlier: "Place") -> None:
    report = earlier.run("workflows", "report")

    assert report.code == 0, report
    assert "Together" in report.out


def test_a_run_over_the_state_of_an_earlier_version_ends_with_the_right_result(
    earlier: "Place",
) -> None:
    earlier.key("a.txt", b"one two\ntwo\n")
    earlier.key("b.txt", b"two three\n")

    done = earlier.luigi("Total", "--source", "source", "--pattern", "*.txt")

    assert done.code == 0, done
    assert done.out.splitlines()[1:] == RESULT
