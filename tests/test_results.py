"""What a run leaves its reader with: the result, or why there is none."""

import pathlib
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


@pytest.mark.parametrize("fault", ["removed", "longer", "manifest"])
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
