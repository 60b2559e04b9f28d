"""Durable storage for checkpoints: create once, never replace. This is a directory; S3 is in s3.py.

The commit rule of a checkpoint needs one thing of a store: `create` must have exactly one winner,
whoever else tries at the same moment, and must survive a crash once it has returned.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, NamedTuple, Protocol

from workflows.errors import CheckpointError, UsageError

_TMP = ".tmp"


class Stored(NamedTuple):
    """One object of a listing; `modified` is seconds since the epoch; a directory has no ETags."""

    name: str
    size: int
    modified: float
    etag: str = ""


class Store(Protocol):
    """The storage of checkpoints, datasets and barriers."""

    url: str

    def create(self, name: str, chunks: Iterable[bytes], *, lasting: bool = True) -> bool:
        """Write a new object, durably; return False and change nothing if the name is taken.

        One that is not `lasting` may be found empty after a power loss.
        """

    def read(self, name: str) -> bytes | None:
        """Return an object's bytes, or None if there is none."""

    def list(self, prefix: str) -> Iterator[Stored]:
        """Yield all objects below the folder `prefix`."""

    def folders(self, prefix: str) -> "Sequence[str]":
        """Return the folders directly below the folder `prefix`."""

    def remove(self, prefix: str) -> None:
        """Remove all objects below the folder `prefix`."""

    def discard(self, names: "Sequence[str]") -> None:
        """Remove these objects."""

    def sweep(self) -> None:
        """Remove what writers left that died."""

    def locate(self, name: str) -> str:
        """Return the URL or path of an object, for people and for nodes to fetch it."""


def open_store(url: str) -> Store:
    """Return the store in the directory `url`.

    Raises:
        UsageError: nothing here can write to such a place.
    """
    if "://" in url and not url.startswith("file://"):
        raise UsageError(
            f"cannot keep checkpoints at {url}: give a directory or s3://BUCKET/PREFIX"
        )
    return DirectoryStore(url.removeprefix("file://"))


class DirectoryStore:
    """A directory: written to a temporary name, made durable, then linked, which never replaces."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)
        self.url = self.root

    def create(self, name: str, chunks: Iterable[bytes], *, lasting: bool = True) -> bool:
        """Write a new object; a crash at any point leaves either all of it or nothing."""
        path = self.locate(name)
        if os.path.exists(path):
            return False
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with self._temporary() as file:
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
                os.fchmod(file.fileno(), 0o444)
                if lasting:
                    os.fsync(file.fileno())
                os.link(file.name, path)
            if lasting:
                _sync_directory(os.path.dirname(path))
        except OSError as error:
            if isinstance(error, FileExistsError) and os.path.exists(path):
                return False
            raise CheckpointError(f"cannot write {path}: {error.strerror}") from error
        return True

    def sweep(self) -> None:
        """Remove what writers left that died: the lock on it is free."""
        folder = os.path.join(self.root, _TMP)
        missing = contextlib.suppress(FileNotFoundError, NotADirectoryError)
        with missing, _locked(folder, fcntl.LOCK_EX):
            for entry in os.scandir(folder):
                with contextlib.suppress(OSError), open(entry.path, "rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(entry.path)

    @contextlib.contextmanager
    def _temporary(self) -> "Iterator[IO[bytes]]":
        folder = os.path.join(self.root, _TMP)
        os.makedirs(folder, exist_ok=True)
        with _locked(folder, fcntl.LOCK_SH):  # a sweep must not meet it before it is locked
            file = tempfile.NamedTemporaryFile(dir=folder, delete=False)  # noqa: SIM115 - see below
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield file
        finally:
            os.unlink(file.name)  # by itself it would stay if the disk is full: closing fails first
            with contextlib.suppress(OSError):
                file.close()

    def read(self, name: str) -> bytes | None:
        """Return an object's bytes, or None."""
        try:
            with open(self.locate(name), "rb") as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise CheckpointError(f"cannot read {self.locate(name)}: {error.strerror}") from error

    def list(self, prefix: str) -> Iterator[Stored]:
        """Yield the objects below a folder.

        Raises:
            CheckpointError: a folder in it cannot be read.
        """
        top = self.locate(prefix) if prefix else self.root
        for folder, folders, names in os.walk(top, onerror=_refuse_unreadable):
            folders[:] = sorted(name for name in folders if name != _TMP)
            for name in sorted(names):
                path = os.path.join(folder, name)
                with contextlib.suppress(FileNotFoundError):
                    status = os.stat(path)
                    yield Stored(os.path.relpath(path, self.root), status.st_size, status.st_mtime)

    def folders(self, prefix: str) -> "Sequence[str]":
        """Return the folders directly below a folder.

        Raises:
            CheckpointError: it cannot be read.
        """
        try:
            with os.scandir(self.locate(prefix)) as entries:
                return sorted(f"{prefix}/{entry.name}" for entry in entries if entry.is_dir())
        except OSError as error:
            _refuse_unreadable(error)
            return []

    def remove(self, prefix: str) -> None:
        """Remove a folder and what is in it."""
        shutil.rmtree(self.locate(prefix), ignore_errors=True)

    def discard(self, names: "Sequence[str]") -> None:
        """Remove these objects."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.locate(name))

    def locate(self, name: str) -> str:
        """Return the path of an object."""
        return os.path.join(self.root, name)


def _refuse_unreadable(error: OSError) -> None:
    """Pass over a folder that is not there.

    Raises:
        CheckpointError: it is there, but cannot be read.
    """
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise CheckpointError(f"cannot read {error.filename}: {error.strerror}") from error


@contextlib.contextmanager
def _locked(folder: str, how: int) -> "Iterator[None]":
    """Hold a folder's lock."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, how)
        yield
    finally:
        os.close(fd)


def _sync_directory(path: str) -> None:
    """Make a new name survive a power loss, where the file system lets one ask for it."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
