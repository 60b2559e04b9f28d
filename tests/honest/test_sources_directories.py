"""A directory as a source: every file once, and what is left out is named."""

import contextlib
import os
import pathlib
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Place

from workflows.config import settings
from workflows.errors import KeyNameError, SourceError, UsageError
from workflows.planning.source import list_source, look_at

NOBODY = 65534


def write(folder: pathlib.Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def names_in(folder: pathlib.Path, pattern: str = "*") -> list[str]:
    return [key.name for key in list_source(str(folder), pattern)]


@pytest.fixture
def here() -> Iterator[pathlib.Path]:
    """Return a directory that anybody may enter, as that of pytest may not be."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="workflows-honest-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@contextlib.contextmanager
def without_rights() -> Iterator[None]:
    """Drop root's right to read everything for a while, if there is one."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.fixture
def own_state(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """Return the state directory, which is in the source and not hidden."""
    monkeypatch.setenv("WORKFLOWS_STATE", str(tmp_path / "in/state"))
    settings.cache_clear()
    yield tmp_path / "in/state"
    settings.cache_clear()


# -- links -----------------------------------------------------------------------------------------


def test_a_link_to_a_parent_directory_is_not_followed_and_is_named(tmp_path: pathlib.Path) -> None:
    write(tmp_path, "a.csv", "sub/b.csv")
    (tmp_path / "sub/up").symlink_to("..")
    (tmp_path / "sub/self").symlink_to(".")

    found = look_at(str(tmp_path), "*")

    assert [key.name for key in found.keys] == ["a.csv", "sub/b.csv"]
    assert found.notes == [
        f"left out of {tmp_path}: 2 links to directories, not followed: sub/self, sub/up"
    ]


def test_of_many_links_to_directories_the_number_and_the_first_are_named(
    tmp_path: pathlib.Path,
) -> None:
    write(tmp_path, "in/a.csv", "elsewhere/b.csv")
    for number in range(12):
        (tmp_path / f"in/{number:02d}").symlink_to(tmp_path / "elsewhere")

    (note,) = look_at(str(tmp_path / "in"), "*").notes

    assert note.endswith("12 links to directories, not followed: 00, 01, 02, 03, 04 and 7 more")


def test_each_path_that_is_a_file_or_leads_to_one_is_one_key(tmp_path: pathlib.Path) -> None:
    write(tmp_path, "in/a.csv", "elsewhere/b.csv")
    (tmp_path / "in/linked.csv").symlink_to("a.csv")
    (tmp_path / "in/far.csv").symlink_to(tmp_path / "elsewhere/b.csv")
    os.link(tmp_path / "in/a.csv", tmp_path / "in/hard.csv")

    found = look_at(str(tmp_path / "in"), "*")

    assert [key.name for key in found.keys] == ["a.csv", "far.csv", "hard.csv", "linked.csv"]
    assert found.notes == []


def test_the_source_itself_may_be_a_link_and_what_is_behind_its_parent_is_meant(
    tmp_path: pathlib.Path,
) -> None:
    write(tmp_path, "real/deep/a.csv", "real/b.csv", "b.txt")
    (tmp_path / "link").symlink_to("real/deep")
    (tmp_path / "list").write_text("link/../b.csv\n")

    assert names_in(tmp_path / "link") == ["a.csv"]
    assert names_in(pathlib.Path(f"{tmp_path}/link/..")) == ["b.csv", "deep/a.csv"]
    (key,) = list_source(str(tmp_path / "list"), "*")
    assert os.path.samefile(key.url, tmp_path / "real/b.csv")


# -- what is no file -------------------------------------------------------------------------------


def make(kind: str, path: pathlib.Path) -> None:
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        before = os.getcwd()
        os.chdir(path.parent)  # the name of a socket has 108 bytes
        try:
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(path.name)
        finally:
            os.chdir(before)
    else:
        path.symlink_to({"device": "/dev/null", "loop": path.name}.get(kind, "nowhere"))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("FIFO", "is a FIFO, not a file"),
        ("socket", "is a socket, not a file"),
        ("device", "is a device, not a file"),
        ("loop", "is a dangling link: Too many levels of symbolic links"),
        ("dangling", "is a dangling link: No such file or directory"),
    ],
)
def test_what_matches_and_is_no_file_is_an_error_that_names_it(
    tmp_path: pathlib.Path, kind: str, said: str
) -> None:
    write(tmp_path, "a.csv")
    make(kind, tmp_path / "b.csv")

    with pytest.raises(SourceError) as caught:
        list_source(str(tmp_path), "*.csv")

    assert str(caught.value).startswith(f"{tmp_path}/b.csv {said}; remove it, or choose")
    assert names_in(tmp_path, "a*") == ["a.csv"], "what does not match is not judged"


def test_all_that_cannot_be_read_is_counted_and_the_first_are_named(tmp_path: pathlib.Path) -> None:
    write(tmp_path, "a.csv", "new\nline.csv")
    for number in range(6):
        os.mkfifo(tmp_path / f"{number}.csv")

    with pytest.raises(SourceError) as caught:
        list_source(str(tmp_path), "*.csv")

    first, *lines = str(caught.value).splitlines()
    assert first == f"7 names in {tmp_path} cannot be read:"
    assert len(lines) == 6
    assert lines[-1] == "  ... and 2 more"


def test_an_unreadable_directory_is_an_error_that_names_it_whatever_the_pattern(
    here: pathlib.Path,
) -> None:
    write(here, "a.csv", "closed/b.csv")
    (here / "closed").chmod(0)

    with without_rights(), pytest.raises(SourceError) as caught:
        list_source(str(here), "a*")
    with without_rights(), pytest.raises(SourceError) as of_the_top:
        list_source(str(here / "closed"), "*")

    assert str(caught.value).startswith(f"{here}/closed cannot be read: Permission denied; ")
    assert str(of_the_top.value).startswith(f"{here}/closed cannot be read: Permission denied; ")


def test_files_in_a_directory_that_can_be_read_but_not_entered_are_named(
    here: pathlib.Path,
) -> None:
    write(here, "names/a.csv")
    (here / "names").chmod(0o444)

    with without_rights(), pytest.raises(SourceError, match=r"names/a\.csv cannot be read: Perm"):
        list_source(str(here), "*.csv")


def test_a_source_below_what_cannot_be_entered_is_not_said_to_be_missing(
    here: pathlib.Path,
) -> None:
    write(here, "closed/in/a.csv")
    (here / "closed").chmod(0)

    with without_rights(), pytest.raises(SourceError, match=r"closed/in cannot be read: Permiss"):
        list_source(str(here / "closed/in"), "*")


def test_a_name_that_could_be_no_key_matters_only_if_it_matches(tmp_path: pathlib.Path) -> None:
    write(tmp_path, "a.csv", "note\n.txt")

    assert names_in(tmp_path, "*.csv") == ["a.csv"]
    with pytest.raises(KeyNameError, match=r"'note\\n\.txt' cannot be a key"):
        list_source(str(tmp_path), "*")


def test_hidden_names_that_may_be_wanted_are_left_out_and_named(tmp_path: pathlib.Path) -> None:
    write(tmp_path, "in/a.csv", "in/.b.csv", "in/.c.txt", "in/.git/d.csv", "in/sub/.e.csv")
    (tmp_path / "in/.linked.csv").symlink_to("a.csv")

    found = look_at(str(tmp_path / "in"), "*.csv")

    assert [key.name for key in found.keys] == ["a.csv"]
    assert found.notes == [
        f"left out of {tmp_path}/in: 4 hidden names: .b.csv, .git/, .linked.csv, sub/.e.csv"
    ]
    with pytest.raises(UsageError, match=r"matches '\.e\*'.*1 hidden name"):
        look_at(str(tmp_path / "in/sub"), ".e*")


def test_our_own_hidden_state_and_checkpoint_are_not_worth_a_warning(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, own_state: pathlib.Path
) -> None:
    monkeypatch.setenv("WORKFLOWS_STATE", str(tmp_path / "in/.state"))
    settings.cache_clear()
    write(tmp_path, "in/a.csv", "in/.state/log.csv", "in/.kept/Last/1/data/b.csv")

    assert look_at(str(tmp_path / "in"), "*", str(tmp_path / "in/.kept")).notes == []


# -- our own files -----------------------------------------------------------------------------


def test_state_and_checkpoint_inside_the_source_are_left_out_and_named(
    tmp_path: pathlib.Path, own_state: pathlib.Path
) -> None:
    write(tmp_path, "in/a.csv", "in/state/runs/1/log.jsonl", "in/kept/Last/1/data/b.csv")
    (tmp_path / "other").symlink_to("in")

    found = look_at(str(tmp_path / "other"), "*", str(tmp_path / "in/kept"))

    assert [key.name for key in found.keys] == ["a.csv"]
    assert sorted(found.notes) == [
        f"left out of {tmp_path}/other: [run] state, this program's own files: state",
        f"left out of {tmp_path}/other: the checkpoint: kept",
    ]
    with pytest.raises(UsageError, match=r"is the source and \[run\] state"):
        list_source(str(own_state), "*")
    assert names_in(own_state / "runs") == ["1/log.jsonl"], "a part of it may be a source"


# -- what changes ------------------------------------------------------------------------------


def meanwhile(monkeypatch: pytest.MonkeyPatch, do: Any) -> None:
    """Let `do` be called with each directory just after it was read."""
    scandir = os.scandir

    @contextlib.contextmanager
    def scanned(folder: str) -> Iterator[Any]:
        with scandir(folder) as entries:
            found = list(entries)
        do(folder)
        yield found

    monkeypatch.setattr(os, "scandir", scanned)


def test_a_file_that_is_moved_while_its_directories_are_read_is_found_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "a/x.csv", "b/y.csv")
    (tmp_path / "a/old.csv").write_text("old")
    moves: list[str] = []

    def move(folder: str) -> None:
        other = {"a": "b", "b": "a"}.get(os.path.basename(folder))
        if other and not moves and (tmp_path / other / "old.csv").exists():
            os.rename(tmp_path / other / "old.csv", f"{folder}/old.csv")
            moves.append(folder)

    meanwhile(monkeypatch, move)
    found = names_in(tmp_path)

    assert len(moves) == 1
    assert found == ["a/x.csv", "b/old.csv", "b/y.csv"]


def test_a_directory_that_never_rests_is_named_and_no_part_of_it_taken(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "a.csv", "b.csv")
    monkeypatch.setattr(time, "sleep", lambda _: None)
    steps = []

    def rename(folder: str) -> None:
        steps.append(1)
        os.rename(f"{folder}/{name(len(steps) - 1)}", f"{folder}/{name(len(steps))}")

    def name(step: int) -> str:
        return f"b{step}.csv" if step else "b.csv"

    meanwhile(monkeypatch, rename)
    with pytest.raises(SourceError, match="changes while it is listed: files are renamed or rem"):
        list_source(str(tmp_path), "*")


def test_files_that_are_added_all_the_time_are_no_trouble(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "a.csv")
    added: list[str] = []

    def add(folder: str) -> None:
        added.append(f"{len(added)}.csv")
        write(pathlib.Path(folder), added[-1])

    meanwhile(monkeypatch, add)

    assert "a.csv" in names_in(tmp_path)
    assert len(added) == 2


def test_a_file_that_changes_or_goes_between_listing_and_reading_fails_its_key(
    place: Place,
) -> None:
    for name in ("edited", "gone", "stays"):
        os.utime(place.key(name, b"12345"), ns=(0, -5_000_000_000))  # before 1970
    place.module(
        "from workflows.steps import Map\n"
        "class Copy(Map):\n"
        "    command = '''read -r path; cat \"$path\"; case $filename in\n"
        '        edited) printf 54321 > "$path" ;;\n'
        "        gone) rm \"$path\" ;; esac'''\n"
    )

    done = place.luigi("Copy")

    assert done.code == 30
    assert f"edited on node 0: its source {place.source}/edited has changed" in place_free(done.err)
    assert f"its source {place.source}/gone is gone since it was listed" in done.err
    assert place.outputs("Copy") == {"stays": b"12345"}


def place_free(text: str) -> str:
    """Return a message without the number of the node."""
    return text.replace("on node 1", "on node 0").replace("on node 2", "on node 0")
