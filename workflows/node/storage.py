"""A node's files, and how an output is published.

::

    <root>/data/<step>/<identity>/<key>   the immutable output, mode 0444 (1:n: a directory)
    <root>/ledger/<step>.jsonl            what is done; a file without its line is not
    <root>/files/<digest>                 the files that steps ship
    <root>/named/<step>                   empty: the step has keys that verbs made, placed by name
    <root>/tmp/<runtime>/                 work in progress of one runtime; swept when it is dead
"""

import contextlib
import errno
import fcntl
import os
import threading
from typing import Any, Optional

from workflows.node.files import checksum, remove
from workflows.node.keys import PIECES
from workflows.node.ledger import Ledger, Record


class Contradiction(Exception):
    """A 1:n key was made again, and what it made is not what is here of it already."""


class Storage:
    """The files of one slot."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)
        self._ledgers: dict[str, Ledger] = {}
        self._mutex = threading.Lock()
        self._counter = 0
        for name in ("data", "ledger", "files", "tmp"):
            os.makedirs(os.path.join(self.root, name), exist_ok=True)
        with open(os.path.join(self.root, "tmp.lock"), "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # or a sweep could take a newborn for dead
            self._sweep_tmp()
            self.tmp, self._tmp_lock = self._own_tmp()

    def ledger(self, step: str) -> Ledger:
        """Return the ledger of `step`."""
        with self._mutex:
            if step not in self._ledgers:
                path = os.path.join(self.root, "ledger", step + ".jsonl")
                self._ledgers[step] = Ledger(path)
            return self._ledgers[step]

    def steps(self) -> list[str]:
        """Return the names of the steps that have a ledger here."""
        names = os.listdir(os.path.join(self.root, "ledger"))
        return sorted(name[: -len(".jsonl")] for name in names if name.endswith(".jsonl"))

    def path(self, step: str, identity: str, key: str) -> str:
        """Return where the output of a key is, or would be."""
        return os.path.join(self.root, "data", step, identity, key)

    def listing(self, step: str, identities: "Optional[list[str]]" = None) -> dict[str, int]:
        """Return identity -> bytes of the keys that are in the ledger and whose file agrees.

        Of all keys, or of those given.
        """
        entries = self.ledger(step).entries()
        if identities is not None:
            entries = {wanted: entries[wanted] for wanted in identities if wanted in entries}
        return {
            identity: entry.size
            for identity, entry in entries.items()
            if self._agrees(step, identity, entry.key, entry.size)
        }

    def is_done(self, step: str, identity: str) -> bool:
        """Tell whether a key is in the ledger and its file agrees."""
        entry = self.ledger(step).find(identity)
        return entry is not None and self._agrees(step, identity, entry.key, entry.size)

    def rows(self, step: str) -> "list[list[Any]]":
        """Return [key, bytes, mtime, identity, step, is a directory] of all that is done."""
        rows: list[list[Any]] = []
        for identity, entry in self.ledger(step).entries().items():
            with contextlib.suppress(OSError):
                status = os.stat(self.path(step, identity, entry.key))
                is_made = status.st_mode & 0o170000 == 0o040000
                if is_made or status.st_size == entry.size:
                    when = status.st_mtime
                    rows.append([entry.key, entry.size, when, identity, step, is_made])
        return rows

    def named(self, step: str, key: str) -> Optional[Record]:
        """Return the newest record of a key's name whose file agrees."""
        for identity in reversed(self.ledger(step).named(key)):
            if self.is_done(step, identity):
                return self.ledger(step).record(identity)
        return None

    def refuse_taken(self, step: str, key: str) -> None:
        """Check that no key of that name is here, also none that a 1:n step made.

        Raises:
            FileExistsError: there is one.
        """
        bare = _bare(step)
        for ledger in (bare, bare + PIECES):
            if self.named(ledger, key) is not None:
                why = f"the key exists already; to replace it: workflows rm {bare}/{key}"
                raise FileExistsError(errno.EEXIST, why)

    def publish(self, step: str, tmp: str, record: Record, *, by_name: bool = False) -> Record:
        """Move `tmp` to its final name and write its ledger line; return the line that counts.

        Nothing is ever replaced: if another run was first, its output stays and ours is dropped.
        With `by_name` a key's name may be taken only once, whatever made it.
        A file left by a run that died between the two moves is not in the ledger, and is replaced.

        Raises:
            OSError: the disk is full, or the name is taken; nothing is published.
            Contradiction: it is a piece of other files than those that are here of its maker.
        """
        ledger = self.ledger(step)
        identity = record["id"]
        final = self.path(step, identity, record["key"])
        if by_name:
            self._note_named(step)
        with ledger.locked() as fd:
            is_piece = "maker" in record
            if is_piece and (ledger.has_other(*record["maker"]) or self.contradicts(step, record)):
                raise Contradiction
            if by_name and (record.get("spec") == "put" or not self.is_done(step, identity)):
                self.refuse_taken(step, record["key"])
            if self.is_done(step, identity):
                remove(tmp)
                return ledger.record(identity) or record
            _make_anew(os.path.dirname(final))
            if os.path.isdir(tmp):
                os.rename(tmp, final)
            else:
                os.chmod(tmp, 0o444)
                os.link(tmp, final)  # a rename would replace; a link refuses
                os.unlink(tmp)
                record = dict(record, stat=_stat(final))
            try:
                ledger.append(fd, record)
            except OSError:
                remove(os.path.join(self.root, "data", step, identity))
                raise
        return record

    def _note_named(self, step: str) -> None:
        path = os.path.join(self.root, "named", _bare(step))
        if not os.path.exists(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            open(path, "wb").close()

    def named_steps(self) -> list[str]:
        """Return the steps that have keys here which verbs made: those are placed by name."""
        folder = os.path.join(self.root, "named")
        if os.path.isdir(folder):
            names = os.listdir(folder)
            return sorted(
                name
                for name in names
                if any(self.ledger(ledger).entries() for ledger in (name, name + PIECES))
            )
        # Earlier versions kept no note of them, but of each key that was put its record.
        return [step for step in self.steps() if self._has_put(step)]

    def _has_put(self, step: str) -> bool:
        ledger = self.ledger(step)
        held = ledger.entries()
        return any(one["id"] in held and one.get("spec") == "put" for one in ledger.history())

    def contradicts(self, step: str, piece: "dict[str, Any]") -> bool:
        """Tell whether a piece is here by the same identity, but is another one."""
        if "maker" not in piece or not self.is_done(step, piece["id"]):
            return False
        here = self.ledger(step).record(piece["id"])
        wanted = (piece["bytes"], piece["crc"])
        return here is not None and (here["bytes"], here["crc"]) != wanted

    def is_intact(self, step: str, record: Record) -> bool:
        """Tell whether an output is what was published: its bytes are read if it was touched since.

        To write to a file, or change its owner, mode or time, sets its ctime to the clock's.
        Damage by a disk, or a loss of power, is found by `fsck`.
        """
        path = self.path(step, record["id"], record["key"])
        return bool(record.get("stat") == _stat(path) or record["crc"] == checksum(path))

    def drop(self, step: str, identities: list[str], why: str) -> int:
        """Take keys out of the ledger, then remove their files; return how many there were."""
        ledger = self.ledger(step)
        dropped = 0
        with ledger.locked() as fd:
            for identity in identities:
                entry = ledger.find(identity)
                if entry is not None:
                    ledger.append(fd, {"id": identity, "key": entry.key, "bytes": 0, "gone": why})
                    dropped += 1
                remove(os.path.join(self.root, "data", step, identity))
        return dropped

    def orphans(self, step: str) -> list[str]:
        """Return the identities that have files but no ledger line: left by a run that died."""
        recorded = self.ledger(step).entries()
        try:
            present = os.listdir(os.path.join(self.root, "data", step))
        except FileNotFoundError:
            return []
        return sorted(set(present) - set(recorded))

    def scratch(self) -> str:
        """Return a new empty directory for one key; the caller removes it."""
        with self._mutex:
            self._counter += 1
            path = os.path.join(self.tmp, f"k{self._counter}")
        os.mkdir(path)
        return path

    def close(self) -> None:
        """Remove what is in progress."""
        remove(self.tmp)
        self._tmp_lock.close()

    def _agrees(self, step: str, identity: str, key: str, size: int) -> bool:
        try:
            status = os.stat(self.path(step, identity, key))
        except OSError:
            return False
        is_directory = status.st_mode & 0o170000 == 0o040000
        return is_directory or status.st_size == size

    def _own_tmp(self) -> "tuple[str, Any]":
        path = os.path.join(self.root, "tmp", os.urandom(8).hex())
        os.mkdir(path, 0o700)
        lock = open(os.path.join(path, "alive"), "wb")  # noqa: SIM115 - held for life
        fcntl.flock(lock, fcntl.LOCK_EX)
        return path, lock

    def _sweep_tmp(self) -> None:
        """Remove the work of runtimes that died: the lock in it is free, or was never made."""
        for entry in os.scandir(os.path.join(self.root, "tmp")):
            with contextlib.suppress(BlockingIOError), contextlib.ExitStack() as stack:
                with contextlib.suppress(FileNotFoundError):
                    lock = stack.enter_context(open(os.path.join(entry.path, "alive"), "rb"))
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(entry.path)


class ReadStorage(Storage):
    """The files of one slot for who only looks: nothing is made, swept or locked."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)
        self._ledgers = {}
        self._mutex = threading.Lock()

    def steps(self) -> list[str]:
        """Return the names of the steps that have a ledger here, if the slot was ever used."""
        return super().steps() if os.path.isdir(os.path.join(self.root, "ledger")) else []


def _bare(step: str) -> str:
    """Return the step that a ledger belongs to."""
    return step[: -len(PIECES)] if step.endswith(PIECES) else step


def _make_anew(path: str) -> None:
    """Make an empty directory in place of whatever is there."""
    try:
        os.mkdir(path)
    except OSError:
        remove(path)
        os.makedirs(path)


def _stat(path: str) -> "list[int]":
    """Return what changes when a file is changed or replaced: its inode and its ctime."""
    status = os.stat(path)
    return [status.st_ino, status.st_ctime_ns]
