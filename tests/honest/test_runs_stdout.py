"""What is printed reaches its reader, or the command fails and says so in one line."""

import os
import pathlib
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from workflows.errors import UsageError
from workflows.storage import replacing

if TYPE_CHECKING:
    from conftest import Place

MINE = """
import luigi
from workflows.steps import Map


class Kept(Map):
    command = 'read -r path; cat "$path"'
    durable = True
"""
FULL = "No space left on device"
# Each line of sh runs "$@", whose stdout cannot take what is printed, and ends with its exit code.
BROKEN = {
    FULL: 'exec "$@" >/dev/full',
    "stdout is closed": 'exec "$@" >&-',
    "Broken pipe": '{ "$@"; echo $? >code; } | (exec <&-); exit "$(cat code)"',
}


def ended(place: "Place", line: str, *words: str) -> tuple[int, str]:
    """Return the exit code and the stderr of a command started by a line of sh."""
    done = subprocess.run(
        ["sh", "-c", line, "sh", *place.command(*words)],
        cwd=place.path,
        env=place.environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr


LUIGI = ("luigi", "--module", "mine", "Kept", "--source", "source", "--pattern", "*")


@pytest.mark.parametrize("why", BROKEN)
def test_a_run_whose_result_cannot_be_printed_fails_and_says_so_in_one_line(
    place: "Place", why: str
) -> None:
    place.module(MINE)
    place.key("a", b"one\n")

    first = ended(place, BROKEN[why], *LUIGI)
    again = ended(place, BROKEN[why], *LUIGI)  # it only prints what is there
    readable = place.run(*LUIGI)

    said = (
        f"ERROR: the result could not be printed: {why};"
        " it is kept: workflows results Kept prints it"
    )
    assert first[0] == again[0] == 30, (first, again)
    assert [line for line in first[1].splitlines() if "ERROR" in line] == [said]
    assert again[1].splitlines() == [said]
    assert readable.code == 0
    assert readable.out.endswith("one\n")


VERBS = (
    ("results", "Kept"),
    ("eval", "Kept/a", "cat"),
    ("--help",),
    ("results", "Kept", "--to", "kept.txt"),
    ("report",),
    ("ls", "-r"),
    ("cp", "fleet://Kept/a", "-"),
    ("exec", "echo hello"),
    ("config",),
    ("status",),
    ("health",),
    ("plan", "Kept", "--module", "mine", "--source", "source", "--pattern", "*"),
    ("fsck",),
)


@pytest.mark.parametrize("why", BROKEN)
def test_a_verb_whose_output_cannot_be_printed_fails_and_says_so_unless_its_reader_left(
    place: "Place", why: str
) -> None:
    place.module(MINE)
    place.key("a", b"one\n")
    assert place.run(*LUIGI).code == 0

    for words in VERBS if why == FULL else VERBS[:3]:
        code, said = ended(place, BROKEN[why], "workflows", *words)

        if why == "Broken pipe":
            assert (code, said) == (141, ""), words  # who quits a pager need not be told
        else:
            assert (code, said) == (1, f"workflows: not all could be written: {why}\n"), words


def test_a_run_whose_stderr_is_closed_prints_nothing_but_the_result(place: "Place") -> None:
    place.module(MINE)
    place.key("a", b"one\n")
    line = 'exec "$@" >out 2>&-'

    code, _ = ended(place, line, *LUIGI)

    assert code == 0
    assert (place.path / "out").read_text().splitlines()[1:] == ["one"]


# -- workflows results --to FILE -------------------------------------------------------------------


def test_a_file_is_replaced_with_the_permissions_of_the_umask_and_leaves_nothing_beside_it(
    tmp_path: pathlib.Path,
) -> None:
    path = tmp_path / "rides.txt"
    path.write_text("old")
    (tmp_path / "link").symlink_to("rides.txt")
    mask = os.umask(0o027)
    try:
        replacing.replace(str(tmp_path / "link"), b"new")
    finally:
        os.umask(mask)

    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(found.name for found in tmp_path.iterdir()) == ["link", "rides.txt"]


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_file_that_cannot_be_replaced_is_left_as_it_was(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "rides.txt"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)

    with pytest.raises(UsageError, match=r"rides.txt: No space left on device; it is left as it"):
        replacing.replace(str(path), b"new")

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["directory", "device"])
def test_what_is_no_file_is_never_replaced(tmp_path: pathlib.Path, kind: str) -> None:
    path = tmp_path if kind == "directory" else pathlib.Path("/dev/null")

    with pytest.raises(UsageError, match="it is not a regular file"):
        replacing.replace(str(path), b"new")


def test_two_writers_do_not_share_a_temporary_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = set()
    rename = os.rename

    def noting(old: str, new: str) -> None:
        names.add(old)
        assert os.path.dirname(old) == os.path.dirname(new)
        rename(old, new)

    monkeypatch.setattr(os, "rename", noting)

    for _ in range(5):
        replacing.replace(str(tmp_path / "rides.txt"), b"new")

    assert len(names) == 5
