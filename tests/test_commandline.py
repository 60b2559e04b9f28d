"""What a run does besides its work, at its start and at its end."""

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Place

COPY = """
from workflows.steps import Map


class Copy(Map):
    command = "read -r path; cat \\"$path\\""
"""
UNWRITTEN = """

class Said:
    def __init__(self):
        self.file = open("said", "w")
        self.say = self.file.write
        self.itself = self


said = Said()
said.say("hello")
"""
WAITING = """
import luigi


class Missing(luigi.ExternalTask):
    def output(self):
        return luigi.LocalTarget("missing")


class Waiting(Map):
    upstream = Copy
    command = "cat"

    def requires(self):
        return [*super().requires(), Missing()]


class Copy(Copy):
    def requires(self):
        return [*super().requires(), Missing()]


Waiting.upstream = Copy
"""
TWICE = """
import luigi
import mine
from workflows.running import lifecycle

given = {"source": "source", "pattern": "*", "fleet": "local:1"}
luigi.build([mine.Waiting(**given)], local_scheduler=True)
lifecycle.close()


class Copy(mine.Map):
    command = "cat"


luigi.build([Copy(**given)], local_scheduler=True)
"""


def test_what_a_module_has_yet_to_write_is_written_at_the_end(place: "Place") -> None:
    place.key("one", b"text\n")
    place.module(COPY + UNWRITTEN)

    assert place.luigi("Copy").code == 0

    assert (place.path / "said").read_text() == "hello"


def test_what_was_planned_is_known_though_nothing_ran(place: "Place") -> None:
    place.key("one", b"text\n")
    place.module(COPY + WAITING)

    assert place.luigi("Waiting").code != 0

    assert planned(place) == [("Copy", 1), ("Waiting", 1)]


def test_each_run_of_a_process_has_a_plan_of_its_own(place: "Place") -> None:
    place.key("one", b"text\n")
    place.module(COPY + WAITING)
    (place.path / "twice.py").write_text(TWICE)

    done = place.run("python", "twice.py")
    assert done.code == 0, done.err

    assert planned(place) == [("Copy", 1), ("Waiting", 1), ("Copy", 1)]


def planned(place: "Place") -> list[tuple[str, int]]:
    """Return the step and the keys of each plan, those of the first run first."""
    logs = sorted((place.path / ".workflows/runs").glob("*/log.jsonl"))
    lines = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    found = [(line["step"], line["keys"]) for line in lines if line["what"] == "planned"]
    return [*sorted(found[:2]), *found[2:]]


def test_the_log_of_a_run_says_once_what_is_planned_before_anything_ran(place: "Place") -> None:
    for number in range(20):
        place.key(f"{number}_key", b"text\n")
    place.module(COPY)

    assert place.luigi("Copy").code == 0

    (log,) = (place.path / ".workflows/runs").glob("*/log.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    said = [line["what"] for line in lines]
    assert said.count("planned") == 1
    assert said.index("planned") < said.index("keys")
    assert next(line["keys"] for line in lines if line["what"] == "planned") == 20
