"""A step may tolerate bad keys: never more than it states, and never without a word."""

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from workflows.errors import UsageError
from workflows.planning.tolerance import allowed
from workflows.steps import Map

if TYPE_CHECKING:
    from conftest import Done, Place

HEAD = """
from workflows.steps import Map, MapFromN, MapToN

BAD = 'echo $filename >> "$TRIED"; [[ $filename != bad* || -e $MENDED ]] || exit 3; '
"""
FETCH = """

class Fetch(Map):
    command = 'cat "$(cat)"'
"""
CLEAN = """

class Clean(Map):
    upstream = Fetch
    command = BAD + "cat"
    max_failed = LIMIT
"""
UPPER = """

class Upper(Map):
    upstream = Clean
    command = "tr a-z A-Z"
"""
SPREAD = """

class Spread(MapToN):
    upstream = Upper
    command = "cat > all; echo all"
"""
TOTAL = """

class Total(MapFromN):
    upstream = Spread
    command = "xargs cat | sort"
    durable = True
"""
FIRST = """

class Clean(Map):
    command = BAD + 'cat "$(cat)"'
    max_failed = LIMIT
"""
PARTS = """

class Parts(MapToN):
    upstream = Fetch
    command = 'cat > "$filename"; echo "$filename"'
"""
TOLERANT_SPREAD = """

class Spread(MapToN):
    upstream = Upper
    command = BAD + "cat > all; echo all"
    max_failed = LIMIT
"""
PIPELINE = HEAD + FETCH + CLEAN + UPPER + SPREAD + TOTAL
ROWS = {"bad1": "b1", "bad2": "b2", "good1": "g1", "good2": "g2"}


class Bad:
    """A place whose source has two keys that a step cannot read, until they are mended."""

    def __init__(self, place: "Place") -> None:
        self.place = place
        self.tried = place.path / "tried"
        self.mended = place.path / "mended"
        place.more.update(TRIED=str(self.tried), MENDED=str(self.mended))
        for name, row in ROWS.items():
            place.key(name, f"{row}\n".encode())

    def run(self, limit: Any, *words: str, text: str = PIPELINE, **env: str) -> "Done":
        self.place.module(text.replace("LIMIT", repr(limit)))
        self.tried.unlink(missing_ok=True)
        return self.place.luigi("Total", *words, **env)

    def rows(self, run: "Done") -> list[str]:
        return run.out.splitlines()[1:]

    def names(self) -> list[str]:
        """Return the keys that the last run tried, in order of their names."""
        return sorted(self.tried.read_text().split()) if self.tried.exists() else []

    def manifests(self) -> list[dict[str, Any]]:
        """Return those of the committed results, the newest last."""
        found = [
            json.loads(path.read_text()) for path in self.place.checkpoint.glob("Total/*/_SUCCESS")
        ]
        return sorted(found, key=lambda one: one["created"])


@pytest.fixture
def bad(place: "Place") -> Bad:
    return Bad(place)


def test_a_run_that_tolerates_bad_keys_ends_well_and_says_which_it_left_out(bad: Bad) -> None:
    run = bad.run(2)
    shown = bad.place.run("workflows", "results", "Total")

    assert run.code == 0, run
    assert bad.rows(run) == ["G1", "G2"]
    last = run.err.splitlines()[-1]
    assert last == (
        "left out of the result: 2 keys (bad1: exited 3, bad2: exited 3) of Clean;"
        " max_failed = 2 of Clean is 2 of 4 keys"
    )
    assert "Clean of bad1 on node " in run.err
    (manifest,) = bad.manifests()
    left = [(one["step"], one["key"], one["why"]) for one in manifest["left_out"]]
    assert sorted(left) == [("Clean", "bad1", "exited 3"), ("Clean", "bad2", "exited 3")]
    assert shown.code == 0
    assert "made without 2 keys (Clean of bad" in shown.err
    assert "the next run of Total retries them" in shown.err


@pytest.mark.parametrize("limit", [0, None, 1, "49.9%"])
def test_more_bad_keys_than_are_tolerated_fail_the_run_as_without(bad: Bad, limit: Any) -> None:
    run = bad.run(limit)

    assert run.code == 30, run
    assert run.out == ""
    assert bad.manifests() == []
    assert "Clean of bad" in run.err
    assert run.err.splitlines()[-1].endswith("fix the cause, then run the same again")
    assert ("more bad keys than are tolerated" in run.err) == bool(limit)


def test_the_next_run_tries_the_bad_keys_again_and_completes_the_result_once_they_are_well(
    bad: Bad,
) -> None:
    bad.run("50%")
    again = bad.run("50%")
    tried_again = bad.names()
    bad.mended.touch()
    mended = bad.run("50%")
    tried_then = bad.names()
    shown = bad.place.run("workflows", "results", "Total")
    last = bad.run("50%")

    assert (again.code, bad.rows(again)) == (0, ["G1", "G2"]), again
    assert "left out of the result: 2 keys" in again.err
    assert tried_again == tried_then == ["bad1", "bad2"]
    assert (mended.code, bad.rows(mended)) == (0, ["B1", "B2", "G1", "G2"]), mended
    assert "left out" not in mended.err
    first, whole = bad.manifests()
    assert first["identity"] != whole["identity"]
    assert ("left_out" in first, "left_out" in whole) == (True, False)
    assert shown.err == ""
    assert (last.code, bad.rows(last), bad.names()) == (0, ["B1", "B2", "G1", "G2"], [])


def test_a_run_that_tolerates_nothing_never_takes_a_result_without_some_keys_for_its_own(
    bad: Bad,
) -> None:
    bad.run(2)

    strict = bad.run(0)

    assert strict.code == 30, strict
    assert strict.out == ""


def test_one_bad_key_less_makes_another_result(bad: Bad) -> None:
    bad.run(2)
    bad.place.key("bad1", b"c1\n")
    (bad.place.source / "bad1").rename(bad.place.source / "good3")

    run = bad.run(2)

    assert bad.rows(run) == ["C1", "G1", "G2"], run
    assert "left out of the result: 1 key (bad2: exited 3)" in run.err


VARIANTS = {
    "the first step": HEAD + FIRST + UPPER + SPREAD + TOTAL,
    "a 1:n step": HEAD + FETCH + UPPER.replace("= Clean", "= Fetch") + TOLERANT_SPREAD + TOTAL,
    "a step behind a 1:n step": HEAD
    + FETCH
    + PARTS
    + CLEAN.replace("= Fetch", "= Parts")
    + UPPER
    + SPREAD
    + TOTAL,
    "a durable step": HEAD
    + FETCH
    + CLEAN.replace("max_failed", "durable = True\n    max_failed")
    + UPPER
    + SPREAD
    + TOTAL,
}


@pytest.mark.parametrize(
    ("which", "words"),
    [
        *((which, ()) for which in VARIANTS),
        ("the first step", ("--fuse", "true")),
        ("a step behind a 1:n step", ("--fuse", "true")),
    ],
)
def test_any_step_may_tolerate_bad_keys(bad: Bad, which: str, words: tuple[str, ...]) -> None:
    text = VARIANTS[which]

    refused = bad.run(1, *words, text=text)
    run = bad.run(2, *words, text=text)
    bad.mended.touch()
    mended = bad.run(2, *words, text=text)

    assert refused.code == 30, refused
    assert (run.code, bad.rows(run)) == (0, ["G1", "G2"]), run
    assert "left out of the result: 2 keys" in run.err
    assert (mended.code, bad.rows(mended)) == (0, ["B1", "B2", "G1", "G2"]), mended
    assert "left_out" not in bad.manifests()[-1]


def test_keys_that_share_a_task_are_tolerated_one_by_one(bad: Bad) -> None:
    for number in range(8):
        bad.place.key(f"good{number}", f"g{number}\n".encode())

    run = bad.run(2, WORKFLOWS_KEY_TASKS="0", WORKFLOWS_SHARDS="3")

    assert (run.code, bad.rows(run)) == (0, [f"G{n}" for n in range(8)]), run
    assert "left out of the result: 2 keys" in run.err


def test_what_fails_in_an_earlier_step_of_the_same_pipe_is_not_tolerated(bad: Bad) -> None:
    text = PIPELINE.replace('cat "$(cat)"', '[[ $filename != bad1 ]] || exit 4; cat "$(cat)"')

    run = bad.run(4, "--fuse", "true", text=text)

    assert run.code == 30, run
    assert "Fetch of bad1 on node " in run.err
    assert "max_failed of Clean does not cover Fetch, which failed in the same pipe" in run.err
    assert "more bad keys than are tolerated" not in run.err


def test_a_durable_step_that_left_keys_out_is_read_again_when_its_nodes_are_gone(bad: Bad) -> None:
    text = VARIANTS["a durable step"]
    assert bad.run(2, text=text).code == 0
    shutil.rmtree(bad.place.state / "nodes")
    for path in bad.place.checkpoint.glob("Total/*/_SUCCESS"):
        path.unlink()

    run = bad.run(2, text=text)

    assert (run.code, bad.rows(run)) == (0, ["G1", "G2"]), run


def test_gc_keeps_what_the_next_run_needs_and_why_names_what_was_left_out(bad: Bad) -> None:
    bad.run(2)
    made = len(bad.place.ledger("Upper"))

    swept = bad.place.run("workflows", "gc", "--yes")
    again = bad.run(2)
    why = bad.place.run("workflows", "why", again.out.splitlines()[0])

    assert swept.code == 0, swept
    assert (again.code, bad.names()) == (0, ["bad1", "bad2"]), again
    assert len(bad.place.ledger("Upper")) == made == 2
    assert "left out   Clean of bad1: exited 3\n" in why.out


def test_all_keys_may_fail_where_all_are_tolerated(bad: Bad) -> None:
    for name in ("good1", "good2"):
        (bad.place.source / name).unlink()

    run = bad.run("100%")

    assert run.code == 0, run
    assert "left out of the result: 2 keys" in run.err


@pytest.mark.parametrize("limit", [-1, True, 0.5, "5", "101%", "x%", [1]])
def test_a_limit_that_means_nothing_is_refused_when_the_class_is_made(limit: Any) -> None:
    with pytest.raises(UsageError, match=r"max_failed of \S+Clean must be "):
        type("Clean", (Map,), {"command": "cat", "max_failed": limit})


def test_a_number_never_tolerates_that_every_key_fails(bad: Bad) -> None:
    for name in ("good1", "good2"):
        (bad.place.source / name).unlink()

    run = bad.run(5)

    assert run.code == 30, run
    assert bad.manifests() == []


@pytest.mark.parametrize(
    ("limit", "keys", "may"),
    [
        (0, 9, 0),
        (3, 2, 1),
        (1, 1, 0),
        ("0%", 9, 0),
        ("5%", 16, 0),
        ("5%", 20, 1),
        ("100%", 7, 7),
        ("29%", 100, 29),
    ],
)
def test_a_part_of_the_keys_is_rounded_down_and_a_number_leaves_one_key(
    limit: Any, keys: int, may: int
) -> None:
    assert allowed(limit, keys) == may
