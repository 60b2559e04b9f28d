"""The documents: complete, without dead links, and true where they show what commands print."""

import argparse
import configparser
import doctest
import importlib
import inspect
import pathlib
import pkgutil
import re
import subprocess
import urllib.parse
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

import workflows
from workflows import errors
from workflows.cli import VERBS
from workflows.config import Settings
from workflows.planning.definition import Definition
from workflows.planning.from_n import PlanFromN
from workflows.planning.plan import Plan
from workflows.planning.to_n import PlanToN

if TYPE_CHECKING:
    from conftest import Place

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("samples/**/*.md")])
REFERENCE = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
PIPELINES = (ROOT / "docs/pipelines.md").read_text(encoding="utf-8")
BY_HAND = (ROOT / "docs/verbs.md").read_text(encoding="utf-8")


def name_of(page: pathlib.Path) -> str:
    return str(page.relative_to(ROOT))


def section(text: str, heading: str) -> str:
    """Return what is below a heading, up to the next one of its level or above."""
    level = heading.split(" ", maxsplit=1)[0]
    found = re.search(
        rf"^{re.escape(heading)}(?: [^\n]*)?\n(.*?)(?=^#{{1,{len(level)}}} |\Z)", text, re.M | re.S
    )
    assert found is not None, f"no heading {heading!r}"
    return found[1]


# -- complete --------------------------------------------------------------------------------------


def options_of(verb: str) -> set[str]:
    parser = argparse.ArgumentParser(add_help=False)
    importlib.import_module(f"workflows.verbs.{verb.replace('-', '_')}").add(parser)
    return {option for action in parser._actions for option in action.option_strings}


COMMANDS = re.findall(r"^### (.*)$", section(REFERENCE, "## Commands"), re.M)


@pytest.mark.parametrize("heading", COMMANDS)
def test_every_option_of_a_verb_is_described_below_its_heading(heading: str) -> None:
    verbs = [word.split()[0] for word in heading.split(", ")]

    described = set(re.findall(r"`(--?[a-z-]+)", section(REFERENCE, f"### {heading}")))

    # Most verbs have --fleet, which one place explains for all.
    options = {option for verb in verbs for option in options_of(verb)} - {"--fleet"}
    assert described - {"--fleet"} == options


def test_every_verb_has_a_heading_and_is_in_the_table_of_commands() -> None:
    described = [part.split()[0] for heading in COMMANDS for part in heading.split(", ")]
    rows = "\n".join(re.findall(r"^\| .*", section(BY_HAND, "## All commands"), re.M))

    assert sorted(described) == sorted(VERBS)
    assert [verb for verb in VERBS if not re.search(rf"`(workflows )?{verb}\b", rows)] == []


def test_the_readme_is_short_enough_to_read_at_once() -> None:
    assert len(README.splitlines()) < 200


def test_every_setting_is_described_with_its_variable() -> None:
    rows = dict(re.findall(r"^\| `(\[\w+\] \w+)` \| `(WORKFLOWS_\w+)` \|", REFERENCE, re.M))

    missing = {
        f"[{part}] {key}": f"WORKFLOWS_{field.name.upper()}"
        for (part, key), field in Settings.names().items()
        if rows.get(f"[{part}] {key}") != f"WORKFLOWS_{field.name.upper()}"
    }

    assert missing == {}


def test_every_setting_is_in_luigi_cfg_with_a_value() -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "luigi.cfg", encoding="utf-8")

    assert [name for name in Settings.names() if not parser.has_option(*name)] == []


def test_every_error_is_described() -> None:
    classes = [
        name
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.WorkflowsError)
    ]

    described = re.findall(r"^\| `(\w+)` \|", section(REFERENCE, "## Errors"), re.M)

    assert sorted(described) == sorted(classes)


def test_every_exit_code_of_luigi_cfg_is_described() -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "luigi.cfg", encoding="utf-8")

    described = re.findall(r"^\| (\d+) \|", section(REFERENCE, "## Exit codes"), re.M)

    assert set(parser["retcode"].values()) <= set(described)


def test_everything_that_a_step_may_state_is_described() -> None:
    kinds = (Definition, Plan, PlanFromN, PlanToN)
    stated = {name for kind in kinds for name in inspect.get_annotations(kind)}
    stated = {name for name in stated if not name.startswith("_")}
    stated -= {"mode", "by_name"}  # what the kinds of steps differ in, and what typed ones have
    stated |= {"command", "pip", "timeout_s"}  # properties, which a step may state as attributes

    described = re.findall(r"^\| `(\w+)` \| ", section(PIPELINES, "## Attributes of a step"), re.M)

    assert set(described) == stated


def test_every_variable_that_a_command_gets_is_described() -> None:
    code = "".join(
        path.read_text(encoding="utf-8")
        for path in [
            ROOT / "workflows/running/execution.py",
            *(ROOT / "workflows/node").glob("*.py"),
        ]
    )
    given = set(re.findall(r"\bWORKFLOWS_[A-Z]+\b", code)) - {"WORKFLOWS_RUNTIME"}

    described = section(REFERENCE, "## What a command finds")

    assert given - set(re.findall(r"\$(\w+)", described)) == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_speaks_of_a_verb_that_is_not_there(page: pathlib.Path) -> None:
    text = page.read_text(encoding="utf-8")

    spoken = re.findall(r"(?:`|\$ |: |^ {4})workflows ([a-z]+)\b", text, re.M)

    assert set(spoken) <= set(VERBS)


# -- without dead links ----------------------------------------------------------------------------


def links(page: pathlib.Path) -> Iterator[tuple[pathlib.Path, str]]:
    """Yield (file, anchor) of every link of a page that stays in the project."""
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not urllib.parse.urlsplit(target).scheme:
            path, _, anchor = target.partition("#")
            yield (page.parent / path if path else page).resolve(), anchor


def anchors(page: pathlib.Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: pathlib.Path) -> None:
    gone = [str(path.relative_to(ROOT)) for path, _ in links(page) if not path.exists()]
    assert gone == [], "these are missing (python -m benchmarks makes docs/benchmarks.md)"

    lost = [(path.name, name) for path, name in links(page) if name and name not in anchors(path)]
    assert lost == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen: set[pathlib.Path] = set()
    ways = [ROOT / "README.md"]
    while ways:
        page = ways.pop()
        if page not in seen:
            seen.add(page)
            ways += [path for path, _ in links(page) if path.suffix == ".md" and path.exists()]
            ways += [path / "README.md" for path, _ in links(page) if path.is_dir()]

    assert [name_of(page) for page in PAGES if page not in seen] == []


# -- true ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module",
    [
        found.name
        for found in pkgutil.walk_packages(workflows.__path__, "workflows.")
        if not found.name.endswith("__main__")
    ]
    + ["benchmarks.table"],
)
def test_the_examples_in_docstrings_are_true(module: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(module))

    assert failed == 0


def sessions(text: str) -> list[tuple[str, list[str]]]:
    """Return (command, lines printed) for each ``$ command`` in the indented blocks of a page."""
    found: list[tuple[str, list[str]]] = []
    inside = 0
    for line in text.splitlines():
        start = re.match(r"( {4,})\$ (.+)", line)
        if start:
            inside = len(start[1])
            found.append((start[2], []))
        elif inside and line.startswith(" " * inside):
            found[-1][1].append(line[inside:])
        else:
            inside = 0
    return found


def settled(line: str, here: str) -> str:
    """Return a line without what differs between runs: places, identities, seconds and rates."""
    line = re.sub(rf"({re.escape(here)}|/home/ann/workflows)/", "", line)
    line = re.sub(r"\b[0-9a-f]{12,20}\b", "<id>", line)
    table = re.fullmatch(r"(\w+ +\d+ +\d+) +[\d.]+ +[\d.]+( +[\d.]+ +[\d.]+) +[\d-]+", line)
    return f"{table[1]}{table[2]}" if table else line


@pytest.mark.parametrize("page", ["README.md", "docs/reference.md"])
def test_the_sessions_print_what_the_page_shows(page: str, place: "Place") -> None:
    (place.path / "samples").symlink_to(ROOT / "samples")
    shown = sessions((ROOT / page).read_text(encoding="utf-8"))
    # The script would make an environment first; otherwise it prints what luigi prints.
    programs = {
        "./run_pipeline.sh": [
            *place.command("luigi", "--module", "workflows.tasks", "MergeCounts")
        ],
        "luigi": place.command("luigi"),
        "workflows": place.command("workflows"),
    }

    printed = []
    for command, _ in shown:
        program, _, rest = command.partition(" ")
        done = subprocess.run(
            ["bash", "-c", f'"$@" {rest}', "bash", *programs[program]],
            cwd=place.path,
            env=place.environ,
            capture_output=True,
            text=True,
        )
        # Apart, and one behind the other: two pipes have no common order.
        printed.append((command, (done.stdout + done.stderr).splitlines()))

    assert shown != []
    here = str(place.path)
    assert [(command, [settled(line, here) for line in lines]) for command, lines in printed] == [
        (command, [settled(line, here) for line in lines]) for command, lines in shown
    ]


def test_the_failure_of_the_readme_is_what_such_a_key_says(place: "Place") -> None:
    place.key("2018-07.csv", b"vendor,fare\n1,2\n")
    block = section(README, "### When a key fails").split("\n\n")[1]

    run = place.luigi("MergeCounts", module="workflows.tasks")

    expected = [line.removeprefix("    ") for line in block.splitlines()]
    assert run.err.splitlines()[: len(expected)] == expected


def test_the_pipeline_of_the_readme_runs(place: "Place") -> None:
    code = re.search(r"```python\n(.*?)```", README, re.S)
    command = re.search(r"^    luigi --module mine (.+)$", README, re.M)
    assert code is not None
    assert command is not None
    place.module(code[1])
    (place.path / "texts").mkdir()
    (place.path / "texts" / "a.txt").write_text("to be or\n")
    (place.path / "texts" / "b.txt").write_text("not to be\n")

    run = place.run("luigi", "--module", "mine", *command[1].replace("'", "").split())

    assert run.code == 0, run
    assert place.outputs("Total") == {"words": b"2 to\n2 be\n1 or\n1 not\n"}
