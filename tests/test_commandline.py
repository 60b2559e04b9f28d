"""What a run does besides its work, at its start and at its end."""

import json
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Place

PARSERS = """
import atexit
from luigi.cmdline_parser import CmdlineParser

make, made = CmdlineParser._build_parser, []
CmdlineParser._build_parser = staticmethod(lambda *a, **k: made.append(1) or make(*a, **k))
atexit.register(lambda: print("parsers", len(made)))

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
from workflows import run

given = {"source": "source", "pattern": "*", "fleet": "local:1"}
luigi.build([mine.Waiting(**given)], local_scheduler=True)
run.close()


class Copy(mine.Map):
    command = "cat"


luigi.build([Copy(**given)], local_scheduler=True)
"""
LATER = """
import luigi
from luigi.cmdline_parser import CmdlineParser
import workflows.tasks


def value(name, *words):
    with CmdlineParser.global_instance(["MergeCounts", *words]) as parser:
        return getattr(parser.known_args, name)


assert value("pattern", "--pattern", "*a") == "*a"
assert value("pattern", "--pattern", "*b") == "*b"
assert value("pattern") is None  # what one line said is not known to the next


class Later(luigi.Task):
    said = luigi.Parameter(default="")


assert value("Later_said", "--Later-said", "it") == "it"
"""


def test_a_run_makes_few_parsers(place: "Place") -> None:
    place.key("one", b"text\n")
    place.module(PARSERS)

    done = place.luigi("Copy")

    assert done.code == 0, done
    # With one more, made before the module was there to count it. By itself Luigi makes eight.
    assert "parsers 2\n" in done.out


def test_parsers_that_are_used_again_know_each_line_and_each_task(place: "Place") -> None:
    subprocess.run([sys.executable, "-c", LATER], check=True, env=place.environ, cwd=place.path)


def test_what_a_module_has_yet_to_write_is_written_at_the_end(place: "Place") -> None:
    place.key("one", b"text\n")
    place.module(PARSERS + UNWRITTEN)

    assert place.luigi("Copy").code == 0

    assert (place.path / "said").read_text() == "hello"


def test_what_was_planned_is_known_though_nothing_ran(place: "Place") -> None:
    place.key("one", b"text\n")
    place.module(PARSERS + WAITING)

    assert place.luigi("Waiting").code != 0

    assert planned(place) == [("Copy", 1), ("Waiting", 1)]


def test_each_run_of_a_process_has_a_plan_of_its_own(place: "Place") -> None:
    place.key("one", b"text\n")
    place.module(PARSERS + WAITING)
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
    place.module(PARSERS)

    assert place.luigi("Copy").code == 0

    (log,) = (place.path / ".workflows/runs").glob("*/log.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    said = [line["what"] for line in lines]
    assert said.count("planned") == 1
    assert said.index("planned") < said.index("keys")
    assert next(line["keys"] for line in lines if line["what"] == "planned") == 20
