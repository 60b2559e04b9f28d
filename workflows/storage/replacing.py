"""Replace a file whole, or leave it as it was."""

import contextlib
import os
from collections.abc import Iterable

from workflows.errors import UsageError


def replace(path: str, data: bytes) -> None:
    """Let `data` be the file at `path`, as `put` does. A symbolic link is followed.

    Raises:
        UsageError: it cannot be written; what was there is there still.
    """
    target = os.path.realpath(path)
    if os.path.exists(target) and not os.path.isfile(target):
        raise UsageError(f"cannot write {path}: it is not a regular file")
    try:
        put(target, [data])
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; it is left as it was") from error


def put(target: str, chunks: Iterable[bytes]) -> None:
    """Let the chunks be the file `target`, for good, with the permissions that the umask gives.

    They are written to a new file in the same directory, under a name that nobody can foresee,
    which is renamed once it is on the disk.

    Raises:
        OSError: it cannot be written; what was there is there still.
    """
    folder, name = os.path.split(target)
    new = os.path.join(folder, f".{name[:200]}.{os.urandom(8).hex()}")
    try:
        _write(new, chunks)
        os.rename(new, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        raise
    _sync(folder)


def _write(path: str, chunks: Iterable[bytes]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    with open(descriptor, "wb") as file:
        file.writelines(chunks)
        file.flush()
        os.fsync(descriptor)


def _sync(folder: str) -> None:
    """Make the new name survive a power loss, where the file system lets one ask for it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
