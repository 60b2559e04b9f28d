"""Where the commands of one key work: directories and files that the next key uses again.

A file system has to think longer about a new file when others were removed a moment ago: ext4 looks
at every inode freed in the last minute before it takes another one (`recently_deleted` in its
ialloc.c). To make and remove these for every key cost a fifth of what a runtime spends on one: 0.83
against 0.65 ms of CPU for a command that does nothing.
"""

import os
import stat
import threading
from collections.abc import Collection, Sequence
from typing import Callable

from workflows.node.files import place, remove
from workflows.node.storage import Storage

Shipped = Sequence[dict[str, str]]  # for each stage name -> digest of the files it finds beside it
_Seen = tuple[int, int, int, int]


class Tampered(Exception):
    """A command changed a file that its step ships, and that other keys have as well."""


class Workplace:
    """One key's place; empty but for the shipped files when the key begins."""

    def __init__(self, storage: Storage, shipped: Shipped) -> None:
        self.path = storage.scratch()
        self._files = os.path.join(storage.root, "files")
        self._shipped = shipped
        self._made: list[tuple[tuple[int, int], dict[str, _Seen]]] = []  # as each stage finds it
        for number, files in enumerate(shipped):
            cwd = self.cwd(number)
            os.mkdir(cwd)
            for name, digest in files.items():
                place(os.path.join(self._files, digest), os.path.join(cwd, name))
            self._made.append((_directory(cwd), {name: _seen(cwd, name) for name in files}))
        names = [name(number) for name in (self.cwd, self.stderr) for number in range(len(shipped))]
        self._kept = {os.path.basename(name) for name in names}

    def cwd(self, number: int) -> str:
        """Return the working directory of a stage."""
        return os.path.join(self.path, f"{number}.cwd")

    def stderr(self, number: int) -> str:
        """Return the file that takes what a stage complains of."""
        return os.path.join(self.path, f"{number}.err")

    def metrics(self, number: int) -> str:
        """Return the file in which a stage may count."""
        return os.path.join(self.path, f"{number}.metrics")

    def at(self, name: str) -> str:
        """Return the path of whatever else there is."""
        return os.path.join(self.path, name)

    def check(self, number: int) -> None:
        """Check that the files a stage was given are as they were; it may have removed its links.

        Raises:
            Tampered: one has changed, and is shipped again to whoever needs it next.
        """
        cwd = self.cwd(number)
        for name, seen in self._made[number][1].items():
            try:
                now = _seen(cwd, name)
            except OSError:
                continue
            if now[0] == seen[0] and now != seen:
                remove(os.path.join(self._files, self._shipped[number][name]))
                raise Tampered(
                    f"it changed {name}, which its step ships: other keys read the same file; copy"
                    f" it first"
                )

    def is_tidied(self) -> bool:
        """Remove what a key left, keep what the next one needs; tell whether that is all there."""
        try:
            for number, (directory, files) in enumerate(self._made):
                cwd = self.cwd(number)
                if _directory(cwd) != directory or not _is_plain(self.stderr(number)):
                    return False  # before anything is removed: it may be a link to elsewhere
                if not _is_cleared(cwd, files):
                    return False
                if any(_seen(cwd, name) != seen for name, seen in files.items()):
                    return False
            return _is_cleared(self.path, self._kept)
        except OSError:
            return False


class Workplaces:
    """The places that are free, by what is shipped to them.

    They are used again only while `is_alone` says that no process can be left in one.
    """

    def __init__(self, storage: Storage, is_alone: Callable[[], bool] = lambda: True) -> None:
        self.storage, self._is_alone = storage, is_alone
        self._free: dict[str, list[Workplace]] = {}
        self._mutex = threading.Lock()

    def take(self, shipped: Shipped) -> Workplace:
        """Return a place for one key."""
        with self._mutex:
            free = self._free.get(repr(shipped))
            if free:
                return free.pop()
        return Workplace(self.storage, shipped)

    def give_back(self, used: Workplace, shipped: Shipped) -> None:
        """Let others use a place in which all went well."""
        if self._is_alone() and used.is_tidied():
            with self._mutex:
                self._free.setdefault(repr(shipped), []).append(used)
        else:
            remove(used.path)


def _directory(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_ino, status.st_mode


def _seen(folder: str, name: str) -> _Seen:
    status = os.lstat(os.path.join(folder, name))
    return status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns


def _is_plain(path: str) -> bool:
    status = os.lstat(path)
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1


def _is_cleared(path: str, kept: Collection[str]) -> bool:
    """Remove all but what is kept; tell whether just that is there."""
    names = os.listdir(path)
    others = [name for name in names if name not in kept]
    for name in others:
        remove(os.path.join(path, name))
    return set(os.listdir(path) if others else names) == set(kept)
