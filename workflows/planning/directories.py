"""A directory as a source: every regular file below it once, and nothing silently left out.

A path that is a regular file, or a link to one, is a key. Links to directories are not followed, so
no file is found by two ways unless it is linked by name. Hidden names (``.x``) are left out, and
named where they might be wanted: directories, and what matches the pattern.
"""

import os
import stat
import time
from collections.abc import Sequence
from typing import NamedTuple

from workflows.errors import SourceError
from workflows.model import SourceKey
from workflows.planning.sourcekeys import Listing, plain

_WALKS = 5
_REMEDY = "remove it, or choose others with --pattern"
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class Own(NamedTuple):
    """A directory that this program writes to, and what it is for."""

    path: str
    what: str


class _Changed(Exception):
    """Something was removed or renamed while the directories were read."""


def kind_of(mode: int) -> str:
    """Return what a file of this mode is, if it is no regular file; else nothing."""
    return next((kind for is_one, kind in _KINDS if is_one(mode)), "")


def etag_of(status: os.stat_result) -> str:
    """Return what changes when the bytes of a local file do."""
    return f"{status.st_mtime_ns:x}-{status.st_ino:x}"


def absolute(path: str) -> str:
    """Return the absolute path of a file, without ``..`` where that leads to the same file."""
    short = os.path.abspath(path)
    return short if ".." not in path.split("/") or is_same(short, path) else os.path.realpath(path)


def is_same(one: str, other: str) -> bool:
    """Tell whether two paths are one directory, however it is reached."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


def list_directory(path: str, pattern: str, own: Sequence[Own]) -> Listing:
    """Return the content of a directory. Whatever changes meanwhile is read again.

    Files that are added meanwhile do no harm. One that is renamed could be missed under both names:
    so a listing counts only if no directory changed, or nothing of the one before is missing.

    Raises:
        SourceError: files are removed or renamed time and again while it is listed.
    """
    before: set[str] | None = None
    changed = path
    for attempt in range(_WALKS):
        if attempt:
            time.sleep(0.05 * 2**attempt)
        walk = _Walk(absolute(path), Listing(path, pattern), own)
        try:
            walk.run()
        except _Changed as error:
            changed = str(error)
            continue
        names = {key.name for key in walk.into.keys}
        changed = walk.changed()
        if not changed or (before is not None and before <= names):
            return walk.into
        before = names
    raise SourceError(
        f"{plain(changed)} changes while it is listed: files are renamed or removed there; run the"
        " same again afterwards"
    )


class _Walk:
    """Reads a tree of directories once."""

    def __init__(self, top: str, into: Listing, own: Sequence[Own]) -> None:
        self.top, self.into = top, into
        self._prefix = os.path.join(top, "")
        self._own: dict[tuple[int, int], str] = {}
        for path, what in own:
            try:
                status = os.stat(path)
            except OSError:
                continue  # nothing was written there yet
            self._own[status.st_dev, status.st_ino] = what
        self._read: list[tuple[str, int]] = []
        self._links: list[str] = []
        self._hidden: list[str] = []

    def run(self) -> None:
        """Read all of it.

        Raises:
            _Changed: something is gone that was there a moment ago.
        """
        left = [self.top]
        while left:
            left.extend(self._folder(left.pop()))
        count = len(self._links)
        what = "1 link to a directory" if count == 1 else f"{count} links to directories"
        self.into.leave_out(f"{what}, not followed", self._links)
        count = len(self._hidden)
        what = "1 hidden name" if count == 1 else f"{count} hidden names"
        self.into.leave_out(what, self._hidden)

    def changed(self) -> str:
        """Return a directory that was changed since it was read, if there is one."""
        for folder, was in self._read:
            try:
                if os.stat(folder).st_mtime_ns != was:
                    return folder
            except OSError:
                return folder
        return ""

    def _folder(self, folder: str) -> list[str]:
        """Take in what is directly in a directory; return the directories in it."""
        try:
            was = os.stat(folder).st_mtime_ns
            with os.scandir(folder) as entries:
                found = [entry for entry in entries if not self._is_hidden(entry)]
        except FileNotFoundError:
            raise _Changed(folder) from None
        except OSError as error:
            self.into.refuse(
                f"{plain(folder)} cannot be read: {error.strerror}; make it readable, or give"
                " a source without it"
            )
            return []
        self._read.append((folder, was))
        return [entry.path for entry in found if self._entry(entry)]

    def _is_hidden(self, entry: "os.DirEntry[str]") -> bool:
        if not entry.name.startswith("."):
            return False
        name = self._name(entry)
        if entry.is_dir(follow_symlinks=False):
            if not self._is_own(entry, is_said=False):
                self._hidden.append(f"{name}/")
        elif self.into.matches(name):
            self._hidden.append(name)
        return True

    def _entry(self, entry: "os.DirEntry[str]") -> bool:
        """Take in one name; tell whether it is a directory to be read."""
        if entry.is_dir(follow_symlinks=False):
            return not self._is_own(entry)
        if entry.is_symlink() and os.path.isdir(entry.path):
            self._links.append(self._name(entry))
            return False
        if self.into.wants(self._name(entry)):
            self._file(entry)
        return False

    def _is_own(self, entry: "os.DirEntry[str]", *, is_said: bool = True) -> bool:
        if not self._own:
            return False
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError:
            raise _Changed(entry.path) from None
        what = self._own.get((status.st_dev, status.st_ino))
        if what is not None and is_said:
            self.into.leave_out(what, [self._name(entry)])
        return what is not None

    def _file(self, entry: "os.DirEntry[str]") -> None:
        try:
            status = os.stat(entry.path)
        except OSError as error:
            is_link = entry.is_symlink() and os.path.lexists(entry.path)
            if isinstance(error, FileNotFoundError) and not is_link:
                raise _Changed(entry.path) from None
            what = "is a dangling link" if is_link else "cannot be read"
            self.into.refuse(f"{plain(entry.path)} {what}: {error.strerror}; {_REMEDY}")
            return
        kind = kind_of(status.st_mode)
        if kind:
            self.into.refuse(f"{plain(entry.path)} is {kind}, not a file; {_REMEDY}")
            return
        self.into.add(SourceKey(self._name(entry), entry.path, status.st_size, etag_of(status)))

    def _name(self, entry: "os.DirEntry[str]") -> str:
        return entry.path[len(self._prefix) :]
