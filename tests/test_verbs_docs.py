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
def test_every_verb_is_in_the_readme_and_has_help(place: "Place", verb: str) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")

    done = place.run("workflows", verb, "--help")

    assert done.code == 0
    assert re.search(rf"`(workflows )?{verb}\b", readme)


def test_the_typed_taxi_count_of_the_readme_works(keys: "Keys") -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = readme.partition("The taxi count, typed:\n")[2].partition("\nExit codes")[0]
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
