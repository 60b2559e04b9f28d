"""`workflows gc`: what any current pipeline refers to stays, the rest is shown, then goes."""

import json
import os
import pathlib
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Keys, Place
    from sshd import Hosts

MINE = """
import luigi
from workflows.steps import Map, MapFromN, MapToN


class Fetch(Map):
    command = 'cat "$(cat)"'


class Marked(Map):
    upstream = Fetch
    mark = luigi.Parameter(default="x")
    files = ("mark.sh",)

    @property
    def command(self):
        return f"bash mark.sh {self.mark}"


class Spread(MapToN):
    upstream = Marked
    mark = luigi.Parameter(default="x")
    command = 'cat > all; echo all'


class Last(MapFromN):
    upstream = Spread
    mark = luigi.Parameter(default="x")
    command = "xargs cat"
    durable = True
"""
STEPS = ("Fetch", "Marked", "Spread", "Spread.pieces", "Last")
LONG_AGO = "20200102T030405.678-a1b2c3"
SOURCE = ("--source", "source", "--pattern", "*")


@pytest.fixture
def mine(place: "Place") -> "Place":
    """Return a place with two keys and a pipeline that has a parameter."""
    place.module(MINE)
    (place.path / "mark.sh").write_text('sed "s/^/$1/"\n')
    place.key("a", b"one\n")
    place.key("b", b"two\n")
    return place


def kept(place: "Place") -> dict[str, int]:
    """Return step -> number of its outputs that are there."""
    found = {}
    for step in STEPS:
        paths = {place.output_path(step, line) for line in place.ledger(step)}
        found[step] = len([path for path in paths if path.exists()])
    return found


def ran(place: "Place") -> int:
    """Return how many keys were ever done."""
    return sum("gone" not in line for step in STEPS for line in place.ledger(step))


def gc(place: "Place", *words: str) -> str:
    done = place.run("workflows", "gc", *words)
    assert done.code == 0, done
    return done.out + done.err


def make_old(run: pathlib.Path, name: str = LONG_AGO) -> pathlib.Path:
    """Rename a run, and date its lines, as if it were of years ago."""
    lines = (run / "log.jsonl").read_text().splitlines()
    old = [json.dumps({**json.loads(line), "at": 1577934245.0}) for line in lines]
    (run / "log.jsonl").write_text("".join(line + "\n" for line in old))
    return run.rename(run.parent / name)


def test_gc_keeps_what_the_same_pipeline_with_other_parameters_refers_to(mine: "Place") -> None:
    assert mine.luigi("Last").code == 0
    assert mine.luigi("Last", "--mark", "y").code == 0
    before, all_kept = ran(mine), kept(mine)

    shown = gc(mine)
    removed = gc(mine, "--yes", "Last", "--module", "mine", *SOURCE)
    for checkpoint in mine.checkpoint.glob("Last/*/_SUCCESS"):
        checkpoint.unlink()
    runs = [mine.luigi("Last"), mine.luigi("Last", "--mark", "y")]

    assert all_kept == {"Fetch": 2, "Marked": 4, "Spread": 4, "Spread.pieces": 4, "Last": 2}
    assert "kept: everything that Last --mark y --pattern '*' --source source references" in shown
    assert "nothing to remove" in shown
    assert "nothing to remove" in removed
    assert [run.code for run in runs] == [0, 0], runs
    assert (ran(mine), kept(mine)) == (before, all_kept)


def test_gc_keeps_what_another_module_made_of_the_same_source(mine: "Place") -> None:
    other = MINE.replace("class Marked", "class Other").replace("= Marked", "= Other")
    mine.module(other, "other")
    assert mine.luigi("Last").code == 0
    assert mine.luigi("Last", module="other").code == 0
    before = ran(mine)

    removed = gc(mine, "--yes")

    assert "nothing to remove" in removed
    assert mine.luigi("Marked").code == 0
    assert mine.luigi("Other", module="other").code == 0
    assert ran(mine) == before


def test_gc_shows_then_removes_outputs_of_a_command_that_was_changed(mine: "Place") -> None:
    assert mine.luigi("Last").code == 0
    mine.module(MINE.replace("bash mark.sh", "bash mark.sh z"))
    assert mine.luigi("Last").code == 0

    shown = gc(mine)
    untouched = kept(mine)
    removed = gc(mine, "--yes")

    assert "nothing was removed" in shown
    assert [line.split()[0] for line in shown.splitlines() if line.split()[0] in STEPS] != []
    assert untouched["Marked"] == 4
    assert "removed" in removed
    assert kept(mine) == {"Fetch": 2, "Marked": 2, "Spread": 2, "Spread.pieces": 2, "Last": 1}
    assert mine.run("workflows", "results", "Last").code == 0


def test_only_keeps_what_the_named_pipeline_refers_to_and_nothing_else(mine: "Place") -> None:
    assert mine.luigi("Last").code == 0
    assert mine.luigi("Last", "--mark", "y").code == 0

    gc(mine, "--yes", "--only", "Last", "--module", "mine", *SOURCE, "--mark", "y")
    unnamed = mine.run("workflows", "gc", "--only")

    assert kept(mine) == {"Fetch": 2, "Marked": 2, "Spread": 2, "Spread.pieces": 2, "Last": 1}
    assert unnamed.code == 2
    assert "--only needs a task" in unnamed.err


def test_a_pipeline_not_run_for_long_is_forgotten_but_its_last_record_stays(mine: "Place") -> None:
    assert mine.luigi("Last").code == 0
    (first,) = (mine.state / "runs").iterdir()
    older = make_old(first)
    newest = mine.state / "runs" / LONG_AGO.replace("2020", "2021")
    newest.mkdir()
    (newest / "log.jsonl").write_bytes((older / "log.jsonl").read_bytes())
    assert mine.luigi("Last", "--mark", "y").code == 0

    shown = gc(mine)
    gc(mine, "--yes")

    assert f"records of old runs in {mine.state / 'runs'}: 1, 0.0 MB" in shown
    assert not older.exists()
    assert newest.exists()
    assert kept(mine) == {"Fetch": 2, "Marked": 2, "Spread": 2, "Spread.pieces": 2, "Last": 1}
    assert mine.run("workflows", "repro", "Fetch", "a").out == "one\n"


def test_a_run_with_nothing_to_do_keeps_its_pipeline_current(mine: "Place") -> None:
    assert mine.luigi("Last").code == 0
    assert mine.luigi("Marked").code == 0
    for number, run in enumerate(sorted((mine.state / "runs").iterdir())):
        make_old(run, f"2020010{number + 1}{LONG_AGO[8:]}")
    assert mine.luigi("Last").code == 0
    before = kept(mine)

    gc(mine, "--yes")

    assert kept(mine) == before


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda place: place.source.rename(place.path / "elsewhere"), "there is no source source"),
        (lambda place: (place.path / "mine.py").unlink(), "ModuleNotFoundError: No module named"),
        (
            lambda place: place.module(MINE.replace("return f", "return 1 / 0 or f")),
            "ZeroDivisionError: division by zero",
        ),
        (lambda place: (place.path / "mark.sh").unlink(), "Marked ships mark.sh, but No such file"),
    ],
)
def test_of_a_pipeline_that_cannot_be_asked_all_outputs_stay(
    mine: "Place", change: "Callable[[Place], object]", why: str
) -> None:
    assert mine.luigi("Last").code == 0
    change(mine)
    before = kept(mine)

    said = gc(mine, "--yes")

    assert "kept: all outputs of Fetch, Marked, Spread, Last, because" in said
    assert why in said
    assert kept(mine) == before


def test_without_any_record_gc_asks_for_the_pipeline(mine: "Place") -> None:
    done = mine.run("workflows", "gc", "--all-steps", "--yes")

    assert done.code == 2
    assert "no run is on record" in done.err


def test_keys_that_were_copied_or_mapped_by_name_stay(keys: "Keys") -> None:
    keys.give("in", a="1\n", b="2\n")
    keys.ok("map", "in/", "out/", "cat")
    keys.ok("map-to-n", "in/", "parts/", "cat > all; echo all")
    place = keys.place
    place.module(MINE)
    (place.path / "mark.sh").write_text("cat\n")
    place.key("a", b"one\n")
    assert place.luigi("Last").code == 0

    said = gc(place, "--yes")

    assert "nothing to remove" in said
    assert keys.names("in") == ["a", "b"]
    assert keys.names("out") == ["a", "b"]
    assert keys.names("parts") == ["a/all", "b/all"]


def test_shipped_files_and_runtimes_that_nothing_needs_any_more_go(mine: "Place") -> None:
    assert mine.luigi("Last").code == 0
    (mine.path / "mark.sh").write_text('sed "s/^/$1$1/"\n')
    assert mine.luigi("Last").code == 0
    nodes = sorted((mine.state / "nodes").iterdir())
    files = [path for node in nodes for path in (node / "files").iterdir()]
    programs = [path for node in nodes for path in node.glob("runtime-*.pyz")]
    other = nodes[0] / f"runtime-{'0' * 20}.pyz"
    other.write_bytes(b"another version")
    young = gc(mine, "--yes")
    for path in [*files, *programs, other]:
        os.utime(path, (0, 0))

    shown = gc(mine, "--days", "90")
    gc(mine, "--yes")
    left = [path for node in nodes for path in (node / "files").iterdir()]

    assert "shipped files" not in young
    assert "shipped files on node" in shown
    assert "runtimes of other versions on node 0: 1, 0.0 MB" in shown
    assert 0 < len(left) == len(files) / 2
    assert {path.read_text() for path in left} == {'sed "s/^/$1$1/"\n'}
    assert not other.exists()
    assert all(path.exists() for path in programs)


def test_old_listings_and_lists_of_pieces_go_but_for_the_newest(mine: "Place") -> None:
    assert mine.luigi("Last").code == 0
    mine.key("c", b"three\n")
    assert mine.luigi("Last").code == 0
    listings = sorted(mine.checkpoint.glob("datasets/*/*.json"), key=os.path.getmtime)
    pieces = sorted(mine.checkpoint.glob("barriers/*/*.json"), key=os.path.getmtime)
    young = gc(mine, "--yes")
    for age, path in enumerate([*reversed(listings), *reversed(pieces)]):
        os.utime(path, (time.time() - (100 + age) * 86400,) * 2)

    shown = gc(mine)
    gc(mine, "--yes")
    again = mine.luigi("Last")

    assert "old listings" not in young
    assert f"old listings of sources in {mine.checkpoint}: 1, 0.0 MB" in shown
    assert f"old lists of pieces in {mine.checkpoint}: 1, 0.0 MB" in shown
    assert (len(listings), len(pieces)) == (2, 2)
    assert [path.exists() for path in [*listings, *pieces]] == [False, True, False, True]
    assert again.code == 0, again
    assert "Fetch" not in again.err


def test_on_ssh_nodes_gc_removes_the_same(mine: "Place", hosts: "Hosts") -> None:
    hosts.add(2)
    mine.module(MINE.replace('cat "$(cat)"', "read -r path; echo ${#path}"))
    assert mine.luigi("Marked", "--fleet", hosts.spec).code == 0
    assert mine.luigi("Marked", "--mark", "y", "--fleet", hosts.spec).code == 0
    (mine.path / "mark.sh").write_text('sed "s/^/$1$1/"\n')
    assert mine.luigi("Marked", "--fleet", hosts.spec).code == 0
    others = [node.scratch / f"runtime-{'0' * 20}.pyz" for node in hosts.nodes]
    for node, other in zip(hosts.nodes, others, strict=True):
        other.write_bytes(b"another version")
        for path in [*node.scratch.glob("runtime-*.pyz"), *node.scratch.glob("*/files/*")]:
            os.utime(path, (0, 0))
    assert len(hosts.outputs("Marked")) == 2

    said = gc(mine, "--yes", "--fleet", hosts.spec)
    again = mine.luigi("Marked", "--mark", "y", "--fleet", hosts.spec)

    files = [line["file"] for line in hosts.ledger("Marked") if "gone" not in line]
    assert len([path for path in files if path.exists()]) == 4, said
    assert not any(other.exists() for other in others)
    assert all(len(list(node.scratch.glob("runtime-*.pyz"))) == 1 for node in hosts.nodes)
    shipped = [path.read_text() for node in hosts.nodes for path in node.scratch.glob("*/files/*")]
    assert set(shipped) == {'sed "s/^/$1$1/"\n'}
    assert again.code == 0, again
