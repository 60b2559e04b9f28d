"""Any file name and any tree of directories: each regular file is a key once, or it is named."""

import fnmatch
import os
import pathlib
import shutil
import stat
import tempfile
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from workflows.errors import UsageError, WorkflowsError
from workflows.planning.source import look_at
from workflows.planning.sourcekeys import plain

_BYTES = [byte for byte in range(1, 256) if byte != ord("/")]
# Mostly what has a meaning to somebody: blanks, newlines, escapes, quotes, halves of UTF-8.
_ODD = b".a-~#%&*?[]{}()\\'\"$`;|<> \t\n\r\x1b\x7f\xc3\xa9\xed\xa0\x80\xff"
_names = st.one_of(
    st.sampled_from(["a.csv", "b.csv", "c", ".hidden", "-rf", "a b", "new\nline.csv"]),
    st.lists(st.sampled_from(_ODD), min_size=1, max_size=8).map(lambda x: os.fsdecode(bytes(x))),
    st.lists(st.sampled_from(_BYTES), min_size=1, max_size=255).map(
        lambda x: os.fsdecode(bytes(x))
    ),
    st.sampled_from(["x" * 255, "é" * 127, "\n" * 255]),
).filter(lambda name: name not in (".", ".."))
_leaves = st.sampled_from(
    ["file", "file", "empty", "link", "hard", "up", "nowhere", "loop", "fifo"]
)
_trees = st.recursive(
    st.dictionaries(_names, _leaves, max_size=5),
    lambda inner: st.dictionaries(_names, st.one_of(_leaves, inner), max_size=5),
    max_leaves=12,
)


class _Expected(NamedTuple):
    keys: list[str]
    bad: list[str]
    links: list[str]
    hidden: list[str]


def _make(top: str, tree: "dict[str, str | dict[str, object]]", target: str) -> None:
    os.mkdir(top)
    for name, what in tree.items():
        path = os.path.join(top, name)
        if isinstance(what, dict):
            _make(path, what, target)  # type: ignore[arg-type]
        elif what in ("file", "empty"):
            pathlib.Path(path).write_text("x" if what == "file" else "")
        elif what == "hard":
            os.link(target, path)
        elif what == "fifo":
            os.mkfifo(path)
        else:
            leads = {"link": target, "up": "..", "loop": name}.get(what, "/nowhere/at/all")
            os.symlink(leads, path)


def _expected(top: str, pattern: str) -> _Expected:
    """Say what must be found, by another way than the listing goes."""
    found = _Expected([], [], [], [])
    for folder, folders, files in os.walk(top):
        for name in [*folders, *files]:
            key = os.path.relpath(os.path.join(folder, name), top)
            if not any(part.startswith(".") for part in key.split("/")[:-1]):
                _expect(found, os.path.join(folder, name), key, pattern)
    return found


def _expect(found: _Expected, path: str, key: str, pattern: str) -> None:
    name, is_link = os.path.basename(path), os.path.islink(path)
    is_wanted = fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(key, pattern)
    is_folder = os.path.isdir(path) and not is_link
    if name.startswith("."):
        if is_folder or is_wanted:
            found.hidden.append(f"{key}/" if is_folder else key)
    elif os.path.isdir(path):
        if is_link:
            found.links.append(key)
    elif is_wanted:
        is_file = os.path.exists(path) and stat.S_ISREG(os.stat(path).st_mode)
        (found.keys if is_file and "\n" not in key else found.bad).append(key)


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(tree=_trees, pattern=st.sampled_from(["*", "*", "*.csv", "*a*", "[!a]*", "*/*"]))
def test_each_file_of_any_tree_is_a_key_once_or_is_named(
    tree: "dict[str, str | dict[str, object]]", pattern: str
) -> None:
    home = tempfile.mkdtemp(prefix="workflows-names-")
    try:
        target, top = os.path.join(home, "target"), os.path.join(home, "top")
        pathlib.Path(target).write_text("linked")
        _make(top, tree, target)
        expected = _expected(top, pattern)

        try:
            found = look_at(top, pattern)
        except UsageError as error:
            said = str(error)
            if not expected.bad:
                assert not expected.keys
                assert f"nothing in {top} matches" in said
                return
            assert len(expected.bad) == 1, said
            assert repr(expected.bad[0]) in said
        except WorkflowsError as error:
            said = str(error)
            assert expected.bad, said
            if len(expected.bad) > 1:
                assert said.startswith(f"{len(expected.bad)} names in {top} cannot be read:")
            named = [
                key
                for key in expected.bad
                if repr(key) in said or plain(os.path.join(top, key)) in said
            ]
            assert len(named) >= min(len(expected.bad), 5)
        else:
            assert [key.name for key in found.keys] == sorted(expected.keys)
            assert expected.bad == []
            assert all(os.path.samefile(key.url, f"{top}/{key.name}") for key in found.keys)
            links = [note for note in found.notes if "not followed" in note]
            assert len(links) == bool(expected.links)
            hidden = [note for note in found.notes if " hidden name" in note]
            assert len(hidden) == bool(expected.hidden)
            if hidden:
                assert f": {len(expected.hidden)} hidden name" in hidden[0]
                assert plain(min(expected.hidden)) in hidden[0]
            if links:
                assert f": {len(expected.links)} link" in links[0]
                assert plain(min(expected.links)) in links[0]
    finally:
        shutil.rmtree(home)


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(names=st.sets(_names, min_size=1, max_size=6))
def test_each_line_of_a_list_of_files_of_any_name_is_a_key_or_is_named(names: set[str]) -> None:
    home = tempfile.mkdtemp(prefix="workflows-names-")
    try:
        for name in names:
            pathlib.Path(home, name).write_text("x")
        listed = pathlib.Path(home, "x" * 254)
        lines = [f"{home}/{name}" for name in sorted(names)]
        listed.write_bytes(os.fsencode("\n".join(lines) + "\n"))
        plainly = [name for name in sorted(names) if "\n" not in name and name.rstrip("\r") == name]

        said, keys = "", []
        try:
            keys = look_at(str(listed), "*").keys
        except WorkflowsError as error:
            said = str(error)

        # A newline, or a CR at the end, is no part of a line; all other names are as they are.
        assert said == "" or set(plainly) != names or "looks like data" in said
        assert said or {key.name for key in keys} >= set(plainly)
        assert all(os.path.isfile(key.url) for key in keys)
    finally:
        shutil.rmtree(home)
