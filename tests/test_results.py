"""What a run leaves its reader with: the result, or why there is none."""

import pathlib
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Done, Place

MODULE = "workflows.tasks"


def count(place: "Place", *words: str, task: str = "MergeCounts") -> "Done":
    return place.luigi(task, *words, module=MODULE)


@pytest.fixture
def counted(place: "Place") -> "Place":
    """Return a place whose one month was counted."""
    place.key("month.csv", b"vendor_id,passenger_count\n1,2\n1,9\n1,2\n")
    run = count(place)
    assert (run.code, run.out.count("\n")) == (0, 3), run
    return place


def result(place: "Place") -> pathlib.Path:
    """Return the file of the one committed result."""
    (path,) = place.checkpoint.glob("MergeCounts/*/data/*/results")
    path.chmod(0o644)
    return path


# -- a result that is not what it was --------------------------------------------------------------


@pytest.mark.parametrize("fault", ["removed", "longer", "flipped", "manifest"])
def test_a_result_that_is_missing_or_damaged_fails_the_run_that_would_show_it(
    counted: "Place", fault: str
) -> None:
    path = result(counted)
    manifest = path.parents[2] / "_SUCCESS"
    if fault == "removed":
        path.unlink()
    elif fault == "longer":
        path.write_bytes(path.read_bytes() + b"junk\n")
    elif fault == "flipped":
        path.write_bytes(path.read_bytes().replace(b"9", b"8"))
    else:
        manifest.chmod(0o644)
        manifest.write_bytes(manifest.read_bytes()[:-9])

    run = count(counted)

    assert run.code not in (0, 40), run
    assert run.out == ""
    assert f"to make it again, remove {manifest.parent}" in run.err
    assert "Traceback" not in run.err


def test_a_result_whose_damaged_copy_was_removed_is_made_again(counted: "Place") -> None:
    path = result(counted)
    before = path.read_bytes()
    path.write_bytes(b"junk\n")
    damaged = count(counted)
    for found in sorted(counted.checkpoint.glob("MergeCounts/*/**/*"), reverse=True):
        found.rmdir() if found.is_dir() else found.unlink()

    again = count(counted)

    assert (damaged.code, again.code) == (35, 0), (damaged, again)
    assert result(counted).read_bytes() == before


# -- what a run says at its end --------------------------------------------------------------------

MINE = """
import luigi
from workflows.steps import Map, MapFromN


class Fetch(Map):
    command = 'cat "$(cat)"'


class Kept(Map):
    upstream = Fetch
    command = "cat"
    durable = True


class Total(MapFromN):
    upstream = Kept
    command = "xargs cat"
    durable = True


class Both(luigi.WrapperTask):
    def requires(self):
        words = {"source": "source", "pattern": "*"}
        return [Total(**words)]
"""


def test_a_users_own_durable_task_prints_its_path_and_text_and_so_does_the_next_run(
    place: "Place",
) -> None:
    place.module(MINE)
    place.key("a", b"one\ntwo")

    named = place.run("luigi", "--module", "mine", "Both")
    again = place.luigi("Total")

    (path,) = place.checkpoint.glob("Total/*/data/*/a")
    for run in (named, again):
        assert run.code == 0, run
        assert run.out == f"{path}\none\ntwo\n", run


def test_results_are_those_of_the_checkpoint_that_the_environment_names(place: "Place") -> None:
    place.module(MINE)
    place.key("a", b"one")
    assert place.luigi("Total", "--checkpoint", "here").code == 0
    place.key("a", b"another")
    assert place.luigi("Total", "--checkpoint", "there").code == 0

    last = place.run("workflows", "results", "Total")
    named = place.run("workflows", "results", "Total", WORKFLOWS_CHECKPOINT="here")

    assert (last.out[-8:], named.out[-4:]) == ("another\n", "one\n")


@pytest.mark.parametrize("data", [b"\0\1", b"\xff\n", b"x" * 70_000])
def test_of_a_result_that_is_no_short_text_only_the_path_is_printed(
    place: "Place", data: bytes
) -> None:
    place.module(MINE)
    place.key("a", data)

    run = place.luigi("Kept")

    (path,) = place.checkpoint.glob("Kept/*/data/*/a")
    assert (run.code, run.out) == (0, f"{path}\n"), run


def test_a_run_that_ends_in_a_map_says_nothing_of_work_that_is_left(place: "Place") -> None:
    place.key("month.csv", b"vendor_id,passenger_count\n1,2\n")

    run = count(place, task="GroupCount")

    assert (run.code, run.out) == (0, ""), run
    assert "not finished" not in run.err


def test_fewer_workers_than_nodes_are_spoken_of_once(place: "Place") -> None:
    place.module(MINE)
    place.key("a", b"a\n")

    few = place.luigi("Fetch", "--fleet", "local:2", "--workers", "1")
    enough = place.luigi("Total", "--fleet", "local:2", "--workers", "2")

    assert (few.code, enough.code) == (0, 0), (few, enough)
    assert few.err.count("1 workers cannot keep 2 nodes busy; add --workers 4") == 1
    assert "workers" not in enough.err


# -- one file --------------------------------------------------------------------------------------


def test_a_result_is_fetched_as_one_file_with_its_checksum(counted: "Place") -> None:
    plain = counted.run("workflows", "results", "--to", "rides.csv")
    packed = counted.run("workflows", "results", "--to", "rides.tgz")
    again = counted.run("workflows", "results", "--to", "rides.tgz")

    assert (plain.code, packed.code) == (0, 0), (plain, packed)
    assert packed.out == again.out
    assert (counted.path / "rides.csv").read_bytes() == result(counted).read_bytes()
    with tarfile.open(counted.path / "rides.tgz") as archive:
        assert archive.getnames() == ["results"]
    checked = subprocess.run(
        ["sha256sum", "-c"], input=plain.out + packed.out, cwd=counted.path, text=True
    )
    assert checked.returncode == 0


def test_several_outputs_need_an_archive(place: "Place") -> None:
    place.key("a", b"one\n")
    place.key("b", b"two\n")
    place.module(
        "from workflows.steps import Map\nclass Kept(Map):\n    command = 'xargs cat'\n"
        "    durable = True\n"
    )
    assert place.luigi("Kept").code == 0

    refused = place.run("workflows", "results", "Kept", "--to", "all")
    packed = place.run("workflows", "results", "Kept", "--to", "all.tgz")

    assert refused.code == 2
    assert "Kept has 2 outputs: name a file that ends in .tgz" in refused.err
    assert packed.code == 0, packed
    with tarfile.open(place.path / "all.tgz") as archive:
        assert archive.getnames() == ["a", "b"]
