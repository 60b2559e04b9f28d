"""What a run does besides its work, at its start and at its end."""

import json
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Place

PARSERS = """
import atexit, gc
from luigi.cmdline_parser import CmdlineParser

make, made = CmdlineParser._build_parser, []
CmdlineParser._build_parser = staticmethod(lambda *a, **k: made.append(1) or make(*a, **k))
atexit.register(lambda: print("parsers", len(made), "frozen", gc.get_freeze_count() > 0))

from workflows.steps import Map


class Copy(Map):
    command = "read -r path; cat \\"$path\\""
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


def test_a_run_makes_few_parsers_and_looks_for_no_garbage_at_its_end(place: "Place") -> None:
    place.key("one", b"text\n")
    place.module(PARSERS)

    done = place.luigi("Copy")

    assert done.code == 0, done
    # With one more, made before the module was there to count it. By itself Luigi makes eight.
    assert "parsers 2 frozen True" in done.out


def test_parsers_that_are_used_again_know_each_line_and_each_task(place: "Place") -> None:
    subprocess.run([sys.executable, "-c", LATER], check=True, env=place.environ, cwd=place.path)


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
