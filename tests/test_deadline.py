"""A run that will not be done by its deadline says so while it can still be helped."""

import re
from typing import TYPE_CHECKING, Any

import pytest

from workflows.reporting.deadline import forecast
from workflows.reporting.runlog import Totals, append

if TYPE_CHECKING:
    import pathlib

    from conftest import Place

SLOW = """
from workflows.steps import Map
class Slow(Map):
    command = "xargs cat; sleep 0.2"
"""


def slow(place: "Place", keys: int) -> None:
    place.module(SLOW)
    for number in range(keys):
        place.key(f"{number:03d}", b"x\n")


def test_a_run_that_looks_like_taking_too_long_says_so_once_and_while_it_runs(
    place: "Place",
) -> None:
    slow(place, 40)
    late = {"WORKFLOWS_DEADLINE_S": "2s", "WORKFLOWS_SLOTS": "1"}

    done = place.luigi("Slow", "--fleet", "local:1", **late)

    assert done.code == 0, done
    (text,) = re.findall("WARNING: the run (.*)", done.err)
    found = re.match(
        r"needs about (\d+ s|\d+ min) at this pace, its deadline is 2 s \((\d+) keys in", text
    )
    assert found is not None, text
    assert int(found[2]) < 40
    assert "its deadline was 2 s" in done.err


def test_a_run_in_time_says_nothing_of_its_deadline(place: "Place") -> None:
    slow(place, 2)

    done = place.luigi("Slow", "--fleet", "local:1", WORKFLOWS_DEADLINE_S="55m")

    assert done.code == 0
    assert "deadline" not in done.err


def totals(path: "pathlib.Path", *lines: dict[str, Any]) -> Totals:
    for line in lines:
        append(str(path), **line)
    found = Totals()
    found.update(str(path))
    return found


def keys_of(step: str, keys: int, wall: float) -> dict[str, Any]:
    numbers = dict.fromkeys(("failed", "cpu", "bytes_in", "bytes_out", "rss"), 0)
    stage = {"step": step, "keys": keys, "wall": wall, "fused": False, **numbers}
    return {"what": "keys", "stages": [stage]}


def test_what_is_left_takes_as_long_as_it_took_so_far_as_many_at_once_as_so_far(
    tmp_path: "pathlib.Path",
) -> None:
    """40 keys took 10 s each in 100 s, so four at once; 60 are left, and 100 of the next step."""
    found = totals(
        tmp_path / "log",
        {"what": "planned", "step": "Fetch", "keys": 100, "order": ["Fetch", "Count"]},
        {"what": "planned", "step": "Count", "keys": 100, "order": ["Fetch", "Count"]},
        keys_of("Fetch", 40, 400.0),
    )

    assert forecast(found, 100.0, {}) == pytest.approx(100 + 60 * 10 / 4)
    assert forecast(found, 100.0, {"Count": 2.0}) == pytest.approx(100 + (60 * 10 + 100 * 2) / 4)
    assert forecast(Totals(), 100.0, {}) == 0.0
