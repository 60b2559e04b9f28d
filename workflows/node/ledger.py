"""A node's record of the keys of a step that are done: append-only JSON lines, one file a step.

The last line of an identity counts. A line with ``gone`` takes the key out again. Several runs may
append at once: every append holds the file's lock, and a line torn by a crash is skipped.
"""

import contextlib
import fcntl
import json
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple, Optional

Record = dict[str, Any]
# Why a key is gone: a person removed it.
REMOVED = "rm"


class Entry(NamedTuple):
    """The part of a record kept in memory: enough to list it and to find it again."""

    key: str
    size: int
    offset: int


class Ledger:
    """One step's ledger file, read as far as it has grown."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._entries: dict[str, Entry] = {}
        self._proofs: dict[str, str] = {}
        # Of the pieces that were delivered: identity -> [maker, proof], and how many of each.
        self._made: dict[str, tuple[str, str]] = {}
        self._counts: dict[str, dict[str, int]] = {}
        self._names: Optional[dict[str, list[str]]] = None  # made when first asked for
        self._read_to = 0
        self._inode = 0
        self._mutex = threading.RLock()

    @contextlib.contextmanager
    def locked(self) -> Iterator[int]:
        """Hold the ledger against every other thread and process; the body sees all its records."""
        with self._mutex:
            fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                self._refresh()
                yield fd
            finally:
                os.close(fd)

    def append(self, fd: int, record: Record) -> None:
        """Add `record`; the caller holds the lock whose descriptor is `fd`.

        Raises:
            OSError: the disk is full; the ledger is as it was before.
        """
        size = os.fstat(fd).st_size
        torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        line = json.dumps(record, separators=(",", ":")).encode("ascii") + b"\n"
        data = (b"\n" if torn else b"") + line
        try:
            written = os.write(fd, data)
            while written < len(data):
                written += os.write(fd, data[written:])
        except OSError:
            os.ftruncate(fd, size)
            raise
        if self._read_to == size:  # all before it is known: no need to read back what was written
            self._take(record, size)
            self._read_to += len(line)
        else:
            self._refresh()

    def entries(self) -> dict[str, Entry]:
        """Return identity -> entry of every key that is recorded as done."""
        with self._mutex:
            self._refresh()
            return dict(self._entries)

    def find(self, identity: str) -> Optional[Entry]:
        """Return the entry of one identity, as of the last time the file was read."""
        with self._mutex:
            return self._entries.get(identity)

    def named(self, key: str) -> "list[str]":
        """Return the identities that are recorded under a key's name, the newest last."""
        with self._mutex:
            self._refresh()
            if self._names is None:
                self._names = {}
                for identity, entry in sorted(self._entries.items(), key=lambda e: e[1].offset):
                    self._names.setdefault(entry.key, []).append(identity)
            return list(self._names.get(key, ()))

    def proof(self, identity: str) -> Optional[str]:
        """Return what the pieces of a 1:n key digested to the first time, even if they are gone."""
        with self._mutex:
            return self._proofs.get(identity)

    def has_other(self, maker: str, proof: str) -> bool:
        """Tell whether files of a 1:n key are here that `proof` does not stand for."""
        with self._mutex:
            return any(other != proof for other in self._counts.get(maker, ()))

    def record(self, identity: str) -> Optional[Record]:
        """Return the whole record of one identity."""
        with self._mutex:
            self._refresh()
            entry = self._entries.get(identity)
        if entry is None:
            return None
        with open(self.path, "rb") as file:
            file.seek(entry.offset)
            record: Record = json.loads(file.readline())
            return record

    def history(self) -> list[Record]:
        """Return every readable line there ever was, oldest first."""
        try:
            with open(self.path, "rb") as file:
                return [record for record in map(_parse, file) if record is not None]
        except FileNotFoundError:
            return []

    def _refresh(self) -> None:
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            self._entries, self._names, self._read_to = {}, None, 0
            self._made, self._counts = {}, {}
            return
        if status.st_ino != self._inode or status.st_size < self._read_to:
            self._entries, self._names = {}, None
            self._made, self._counts = {}, {}
            self._read_to, self._inode = 0, status.st_ino
        if status.st_size == self._read_to:
            return
        with open(self.path, "rb") as file:
            file.seek(self._read_to)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # another process is writing it, or died doing so
                self._take(_parse(line), self._read_to)
                self._read_to += len(line)

    def _take(self, record: Optional[Record], offset: int) -> None:
        if record is None:
            return
        identity, key = record["id"], record["key"]
        held = None if self._names is None else self._names.setdefault(key, [])
        if held is not None and identity in held:
            held.remove(identity)
        self._count(identity, -1)
        if record.get("gone"):
            self._entries.pop(identity, None)
            if record["gone"] == REMOVED:
                self._proofs.pop(identity, None)  # made again by will, it may be another
        else:
            if held is not None:
                held.append(identity)
            self._entries[record["id"]] = Entry(record["key"], record["bytes"], offset)
            if "proof" in record:
                self._proofs.setdefault(record["id"], record["proof"])
            if "maker" in record:
                maker, proof = record["maker"]
                self._made[identity] = sys.intern(maker), sys.intern(proof)
                self._count(identity, 1)

    def _count(self, identity: str, by: int) -> None:
        """Count a piece in, or out again."""
        if identity not in self._made:
            return
        maker, proof = self._made[identity] if by > 0 else self._made.pop(identity)
        counts = self._counts.setdefault(maker, {})
        counts[proof] = counts.get(proof, 0) + by
        if not counts[proof]:
            del counts[proof]
            if not counts:
                del self._counts[maker]


def _parse(line: bytes) -> Optional[Record]:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict):
        return None
    kinds = (("id", str), ("key", str), ("bytes", int))
    return record if all(isinstance(record.get(name), kind) for name, kind in kinds) else None


def carried(inputs: list[Record]) -> "tuple[dict[str, int], dict[str, int]]":
    """Sum what a key's inputs counted: as `input.`'s numbers, and as each earlier step's."""
    previous: dict[str, int] = {}
    totals: dict[str, int] = {}
    for record in inputs:
        for name, value in record.get("metrics", {}).items():
            previous[name] = previous.get(name, 0) + value
        for name, value in record.get("totals", {}).items():
            totals[name] = totals.get(name, 0) + value
    return previous, totals
