"""The pieces of a 1:n key: the files whose names its command printed."""

import os
import shutil
import stat
from collections.abc import Collection, Iterator

from workflows.node.files import checksum

Piece = tuple[str, int, str]  # its name, bytes and checksum
_NAMED = 5
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISLNK, "a link"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class NoPiece(Exception):
    """The printed lines are not the names of the files that the command made."""


def taken(names: str, made: str, target: str, shipped: Collection[str]) -> "list[Piece]":
    """Move the files that are named in the file `names` out of the directory `made` to `target`.

    Beside printed names, other files are scratch.

    Raises:
        NoPiece: one of them is none, or is one of the files that were `shipped`; or none was named
            although there are files.
    """
    printed = _printed(names)
    if not printed:
        _refuse_unnamed(made, shipped)
    return [_taken(name, made, target, shipped) for name in printed]


def _refuse_unnamed(made: str, shipped: Collection[str]) -> None:
    """Check that a command that printed no name left no file: what is in it would be lost."""
    left = sorted(_left(made, shipped))
    if left:
        more = f" and {len(left) - _NAMED} more" if left[_NAMED:] else ""
        raise NoPiece(
            f"it printed no name, but left {', '.join(map(repr, left[:_NAMED]))}{more}: it must"
            f" print the names of the files that it makes, one a line, and remove what else it left"
        )


def _left(made: str, shipped: Collection[str]) -> Iterator[str]:
    """Yield what is below `made` but directories, shipped files, and what Python caches there."""
    for folder, folders, names in os.walk(made):
        folders[:] = [name for name in folders if name != "__pycache__"]
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in [*names, *links]:
            relative = os.path.relpath(os.path.join(folder, name), made)
            if relative not in shipped:
                yield relative


def _printed(path: str) -> "list[str]":
    with open(path, "rb") as file:
        names = [os.fsdecode(line) for line in file.read().split(b"\n") if line]
    seen: set[str] = set()
    for name in names:
        if "/" in name or name in (".", "..") or "\0" in name:
            raise _refused(name, "is not a plain file name in the working directory")
        if name in seen:
            raise _refused(name, "was printed twice")
        seen.add(name)
    return names


def _taken(name: str, made: str, folder: str, shipped: Collection[str]) -> Piece:
    path = os.path.join(made, name)
    if name in shipped:
        raise _refused(name, "was printed, but it is a file that the step ships")
    try:
        status = os.lstat(path)
    except OSError as error:
        raise _refused(name, "was printed, but there is no such file") from error
    for is_it, kind in _KINDS:
        if is_it(status.st_mode):
            raise _refused(name, f"was printed, but it is {kind}, not a file")
    target = os.path.join(folder, name)
    if status.st_nlink > 1:  # by another name of it, what is published could be changed
        shutil.copyfile(path, target)
        os.unlink(path)
    else:
        os.rename(path, target)
    os.chmod(target, 0o444)
    return name, os.path.getsize(target), checksum(target)


def _refused(name: str, why: str) -> NoPiece:
    return NoPiece(f"the piece {name!r} {why}")
