"""The environment of commands: on nodes, and where `workflows repro` runs one again."""

import os
import shutil
import sys
from collections.abc import Iterable
from typing import Optional

# Variables that would change bash or Python on this machine alone; and credentials: a command reads
# S3 by signed URLs, and the driver sends the variables that `[node] pass_env` names.
_DROPPED = {"BASH_ENV", "ENV", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP"}
_SHORTEST = 4  # characters of a secret: less would blot out half of any text
_DROPPED_PREFIXES = ("BASH_FUNC_", "AWS_")


def environment(slot: str, nodes: str, **more: str) -> "dict[str, str]":
    """Return what every command of a slot gets: this process's own, cleaned, in the C locale.

    `python3` is the one that runs the node; otherwise PATH is in the order that its user gave it.
    """
    path, own_bin = os.environ.get("PATH", os.defpath), os.path.dirname(sys.executable)
    if os.path.dirname(shutil.which("python3", path=path) or "") != own_bin:
        path = os.pathsep.join([own_bin, path])
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in _DROPPED and not name.startswith(_DROPPED_PREFIXES)
    }
    own = {"LC_ALL": "C", "PATH": path, "WORKFLOWS_SLOT": slot, "WORKFLOWS_NODES": nodes}
    return {**inherited, **own, **more}


def of_source(size: "Optional[int]", etag: str) -> "dict[str, str]":
    """Return what a command is told of the source that it reads: what the listing said of it."""
    return {"WORKFLOWS_ETAG": etag, "WORKFLOWS_SIZE": "" if size is None else str(size)}


def without_end(data: bytes, hidden: Iterable[str]) -> bytes:
    """Return what is left of a text that was cut at its beginning, and maybe within such a value.

    >>> without_end(b"cd and abcd", ["abcd"])
    b' and abcd'
    """
    values = [value.encode("utf-8", "surrogateescape") for value in hidden]
    ends = (value[start:] for value in values for start in range(1, len(value)))
    cut = max((end for end in ends if data.startswith(end)), key=len, default=b"")
    return data[len(cut) :]


def without(data: bytes, hidden: Iterable[str]) -> bytes:
    """Return what a command has said, without values that nobody may read; longest first.

    >>> without(b"key abcd!", ["abcd"])
    b'key ***!'
    """
    for value in hidden:
        if len(value) >= _SHORTEST:
            data = data.replace(value.encode("utf-8", "surrogateescape"), b"***")
    return data
