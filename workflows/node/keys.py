"""Names of keys, the slot that owns a key, and identities. Driver and nodes share it.

A key is ``step/dir/name``. It is placed by its basename alone, so equal names of different steps
and directories meet on one node: that is how n:1 steps find their inputs without moving a byte.
"""

import hashlib
import json
import posixpath
from collections.abc import Iterable
from typing import Any, Optional

from workflows.errors import KeyNameError

_MASK = (1 << 64) - 1
# Added to a 1:n step's name: the ledger of its files, once they are where their names belong.
PIECES = ".pieces"


def check_name(name: str) -> str:
    """Return `name` if it can be a key below a step: relative, without empty or dotted parts.

    Any other byte is allowed: spaces, quotes, ``%``, a leading dash, bytes that are not UTF-8.

    >>> check_name("2018/rides; rm -rf $(x).csv")
    '2018/rides; rm -rf $(x).csv'

    Raises:
        KeyNameError: it holds a newline or NUL, is absolute, or has an empty, ``.`` or ``..`` part.
    """
    if "\n" in name or "\0" in name:
        raise KeyNameError(name, "newline and NUL separate names; rename it in the source")
    if name.startswith("/"):
        raise KeyNameError(name, "it is an absolute path; a key is relative to its step")
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise KeyNameError(name, "it has an empty, '.' or '..' part")
    return name


def numeric_prefix(name: str) -> Optional[int]:
    """Return the number that begins the basename of `name`, or None.

    >>> numeric_prefix("trips/006_2019-01"), numeric_prefix("000"), numeric_prefix("6x_1")
    (6, 0, None)
    """
    token = posixpath.basename(name).split("_", 1)[0]
    return int(token) if token.isascii() and token.isdecimal() else None


def node_for(name: str, slots: int) -> int:
    """Return the slot that owns `name`: its numeric prefix modulo `slots`, else its hash.

    The hash is rendezvous hashing (Thaler and Ravishankar, 1998) of the basename: going from N to
    N+1 slots moves about 1/(N+1) of the names.

    >>> node_for("trips/006_2019-01", 4)
    2
    >>> node_for("a/results", 3) == node_for("b/c/results", 3)
    True
    """
    number = numeric_prefix(name)
    if number is not None:
        return number % slots
    # Not hash(): Python salts it per process, so driver and node would disagree.
    raw = posixpath.basename(name).encode("utf-8", "surrogateescape")
    seed = int.from_bytes(hashlib.blake2s(raw, digest_size=8).digest(), "little")
    return max(range(slots), key=lambda slot: _mixed(seed, slot))


def _mixed(seed: int, slot: int) -> int:
    """Give the weight of `slot` for a name hashed to `seed` (splitmix64's finaliser, 2015)."""
    z = (seed + (slot + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def group_of(name: str) -> str:
    """Return what an n:1 step groups `name` by: its numeric prefix, else its basename.

    >>> group_of("may/000_rides"), group_of("jun/000_fares"), group_of("a/results")
    ('/0', '/0', 'results')
    """
    number = numeric_prefix(name)
    # No basename holds a slash, so the two kinds of group cannot clash.
    return posixpath.basename(name) if number is None else f"/{number}"


def group_name(names: Iterable[str]) -> str:
    """Return the name a group of keys merges into: the common basename, else the common prefix.

    >>> group_name(["a/000_x", "b/000_x"]), group_name(["000_x", "000_y"]), group_name(["p/r"])
    ('000_x', '000', 'r')
    """
    bases = sorted({posixpath.basename(name) for name in names})
    if len(bases) == 1:
        return bases[0]
    return bases[0].split("_", 1)[0]


def digest_of(value: Any) -> str:
    """Return 20 hex digits that stand for a JSON value; equal values give equal digests.

    >>> digest_of({"b": 1, "a": [2]}) == digest_of({"a": [2], "b": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode("ascii"), digest_size=10).hexdigest()


def file_digest(data: bytes) -> str:
    """Return 20 hex digits that stand for the bytes of a shipped file.

    >>> file_digest(b"")
    'e3b0c44298fc1c149afb'
    """
    return hashlib.sha256(data).hexdigest()[:20]


def identity_of(spec: str, name: str, inputs: list[str]) -> str:
    """Return the identity of an output: what made it, not when or where.

    `spec` is the digest of the step (command and code), `inputs` the identities of what it reads.
    """
    return digest_of([spec, name, inputs])
