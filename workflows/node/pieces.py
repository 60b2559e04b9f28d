"""What a 1:n command made: the files whose names it printed."""

import os
from collections.abc import Collection

from workflows.node.files import checksum

Piece = tuple[str, int, str]  # its name, bytes and checksum


class NoPiece(Exception):
    """A name was printed that is not the name of a file that the command made."""


def taken(names: str, made: str, target: str, shipped: Collection[str]) -> "list[Piece]":
    """Move the files that are named in the file `names` out of the directory `made` to `target`.

    Raises:
        NoPiece: one of them is none, or is one of the files that were `shipped`.
    """
    return [_taken(name, made, target, shipped) for name in _printed(names)]


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
    if not os.path.isfile(path) or os.path.islink(path):
        raise _refused(name, "was printed, but there is no such file")
    target = os.path.join(folder, name)
    os.rename(path, target)
    os.chmod(target, 0o444)
    return name, os.path.getsize(target), checksum(target)


def _refused(name: str, why: str) -> NoPiece:
    return NoPiece(f"the piece {name!r} {why}")
