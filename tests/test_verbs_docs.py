"""What the documents say of the verbs is so."""

import pathlib
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from workflows.cli import VERBS

if TYPE_CHECKING:
    from conftest import Keys, Place

ROOT = pathlib.Path(__file__).resolve().parent.parent


def commands(text: str) -> list[str]:
    """Return the `workflows` lines of a document's blocks, without comments."""
    lines = re.findall(r"^    (?:.*\| )?(workflows .*?)(?: {2,}#.*)?$", text, re.MULTILINE)
    assert lines
    return lines


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_in_the_table_of_commands_and_has_help(place: "Place", verb: str) -> None:
    page = (ROOT / "docs" / "verbs.md").read_text(encoding="utf-8")
    table = page.partition("\n## All commands\n")[2].partition("\n## ")[0]
    rows = "\n".join(re.findall(r"^\| .*", table, re.MULTILINE))

    done = place.run("workflows", verb, "--help")

    assert done.code == 0
    assert re.search(rf"`(workflows )?{verb}\b", rows)


def test_the_typed_taxi_count_of_the_page_works(keys: "Keys") -> None:
    page = (ROOT / "docs" / "verbs.md").read_text(encoding="utf-8")
    block = page.partition("The taxi count, typed:\n")[2].partition("\nEvery verb takes")[0]
    lines = commands(block)
    (keys.place.path / "samples").symlink_to(ROOT / "samples")
    program = " ".join(keys.place.command("workflows"))
    script = f'set -e; workflows() {{ {program} "$@"; }}\n' + "\n".join(lines)

    done = subprocess.run(
        ["bash", "-c", script], cwd=keys.place.path, env=keys.place.environ, capture_output=True
    )

    assert (done.returncode, len(lines)) == (0, 5), done
    assert done.stdout.split()[:4] == [b"5134", b"1", b"961", b"2"]


def test_every_verb_that_the_page_shows_can_be_typed_so(place: "Place") -> None:
    page = (ROOT / "docs" / "verbs.md").read_text(encoding="utf-8")

    for line in commands(page):
        verb = line.split()[1]
        assert verb in VERBS, line
        assert place.run("workflows", verb, "--help").code == 0
