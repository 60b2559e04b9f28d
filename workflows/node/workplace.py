"""Where the commands of one key work: directories and files that the next key uses again.

A file system has to think longer about a new file when others were removed a moment ago: ext4 looks
at every inode freed in the last minute before it takes another one (`recently_deleted` in its
ialloc.c). To make and remove these for every key was the dearest thing that a runtime did.
"""

import os
import stat
import threading
from collections.abc import Container, Sequence

from workflows.node.files import place, remove
from workflows.node.storage import Storage

Shipped = Sequence[dict[str, str]]  # for each stage name -> digest of the files it finds beside it


class Workplace:
    """One key's place; empty but for the shipped files when the key begins."""

    def __init__(self, storage: Storage, shipped: Shipped) -> None:
        self.path = storage.scratch()
        self._made: list[tuple[int, dict[str, int]]] = []  # mode and inodes of each stage's
        for number, files in enumerate(shipped):
            cwd = self.cwd(number)
            os.mkdir(cwd)
            for name, digest in files.items():
                place(os.path.join(storage.root, "files", digest), os.path.join(cwd, name))
            self._made.append((os.lstat(cwd).st_mode, _inodes(cwd)))
        stages = range(len(shipped))
        self._kept = {
            os.path.basename(name(n))
            for name in (self.cwd, self.stderr, self.metrics)
            for n in stages
        }

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

    def is_tidied(self) -> bool:
        """Remove what a key left, keep what the next one needs; tell whether that is all there."""
        try:
            for number, made in enumerate(self._made):
                cwd = self.cwd(number)
                _clear(cwd, made[1])
                if (os.lstat(cwd).st_mode, _inodes(cwd)) != made:
                    return False
                _empty(self.metrics(number))
            _clear(self.path, self._kept)
        except OSError:
            return False
        return True


class Workplaces:
    """The places that are free, by what is shipped to them."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
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
        """Let others use a place in which all went well, and no process works any longer."""
        if used.is_tidied():
            with self._mutex:
                self._free.setdefault(repr(shipped), []).append(used)
        else:
            remove(used.path)


def _inodes(path: str) -> dict[str, int]:
    with os.scandir(path) as entries:
        return {entry.name: entry.inode() for entry in entries}


def _empty(path: str) -> None:
    """Let nothing be in a file that a command may have written, or may have replaced."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        remove(path)
    elif status.st_size:
        os.truncate(path, 0)


def _clear(path: str, kept: Container[str]) -> None:
    for name in _inodes(path):
        if name not in kept:
            remove(os.path.join(path, name))
