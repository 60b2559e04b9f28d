"""Run the commands that a page shows, and compare what they print with what the page says.

A page shows a session as a fenced block called ``console``: a line ``$ COMMAND`` (a following line
that starts with ``> `` goes on with it), then what it prints on stdout. Within the output, ``...``
stands for anything, on a line of its own for any number of lines. Blocks run in their order, in one
directory, each command by a bash of its own. A fenced block of any kind with ``name=FILE`` is
written to that file, unless a test gives another of that name. A block ``console needs=VERB`` is
run where workflows has that verb; one ``console on=ssh`` or ``on=ec2`` by the test that has such
nodes.
"""

import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

from workflows.cli import VERBS

ROOT = pathlib.Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "samples" / "taxi"
_FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """One fenced block of a page."""

    kind: str
    about: str
    text: str


class Shown(NamedTuple):
    """One command of a page, and what the page says it prints."""

    command: str
    output: str


def blocks(page: pathlib.Path) -> Iterator[Block]:
    for found in _FENCE.finditer(page.read_text(encoding="utf-8")):
        yield Block(found[1], found[2].strip(), found[3])


def commands(text: str) -> Iterator[Shown]:
    """Return the commands of one block."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        more = next((n for n, line in enumerate(lines[1:], 1) if line[:2] != "> "), len(lines))
        command = "\n".join([lines[0], *(line[2:] for line in lines[1:more])])
        yield Shown(command, "".join(line + "\n" for line in lines[more:]))


def is_run(block: Block, on: str = "") -> bool:
    """Tell whether the commands of a block can be run here, or on the nodes that are there."""
    return block.about == f"on={on}" if on else block.about.removeprefix("needs=") in ("", *VERBS)


_COLUMNS = re.compile(r"(\\ ){2,}|^(\\ )+")


def matches(shown: str, printed: str) -> bool:
    """Tell whether a command printed what the page shows.

    Blanks at the ends of lines do not count, nor how many there are between columns: that depends
    on the longest number in a column, which may be this machine's load.
    """
    pattern = "".join(
        r"(?:.*\n)*"
        if line.strip() == "..."
        else _COLUMNS.sub(" +", re.escape(line.rstrip()).replace(r"\.\.\.", ".*")) + r" *\n"
        for line in shown.rstrip("\n").splitlines()
    )
    return re.fullmatch(pattern, re.sub(r"[ \t]+$", "", printed, flags=re.MULTILINE)) is not None


class Checkout:
    """A directory that is to a reader as the checkout: samples, luigi.cfg, both commands."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.ran: list[str] = []
        self.given: dict[str, str] = {}  # files instead of those of the page
        self.replaced: dict[str, str] = {}  # what stands for what, in commands
        (path / "samples").symlink_to(ROOT / "samples")
        (path / "LICENSE").symlink_to(ROOT / "LICENSE")
        (path / "luigi.cfg").write_text((ROOT / "luigi.cfg").read_text())
        programs = path.parent / f"{path.name}-bin"
        programs.mkdir()
        for name in ("luigi", "workflows"):
            script = programs / name
            script.write_text(f'#!/bin/sh\nexec {sys.executable} -m {name} "$@"\n')
            script.chmod(0o755)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("WORKFLOWS_", "LUIGI_"))}
        self.environ = dict(
            kept,
            PATH=os.pathsep.join([str(programs), os.path.dirname(sys.executable), kept["PATH"]]),
            PYTHONPATH=os.pathsep.join([str(ROOT), str(path)]),
            PYTHONDONTWRITEBYTECODE="1",
            LC_ALL="C",
        )

    def follow(self, page: pathlib.Path, on: str = "") -> None:
        """Do all that a page says, here or on the nodes there are; assert that it comes out."""
        for block in blocks(page):
            if block.about.startswith("name="):
                name = block.about.removeprefix("name=")
                (self.path / name).write_text(self.given.get(name, block.text))
            elif block.kind == "console" and is_run(block, on):
                for shown in commands(block.text):
                    code = self.run(shown)
                    assert not on or code == 0, shown

    def run(self, shown: Shown) -> int:
        """Run one command and compare; return its exit code."""
        command = shown.command
        for old, new in self.replaced.items():
            command = command.replace(old, new)
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.path,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        self.ran.append(shown.command)
        said = (
            f"$ {shown.command}\n{done.stdout}--- stderr\n{done.stderr}--- exit {done.returncode}"
        )
        assert matches(shown.output, done.stdout), f"{said}\n--- the page shows\n{shown.output}"
        return done.returncode
