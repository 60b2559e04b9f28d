"""Luigi targets: keys that are done on a node, and steps that are durable in a store."""

import json
import os
import secrets
import subprocess
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import luigi

from workflows.errors import CheckpointError, NodeLost, WorkflowsError
from workflows.fleets.channel import is_in_task
from workflows.fleets.fleet import Fleet
from workflows.model import Key
from workflows.node.packers import UNPACKERS
from workflows.storage.store import Store

_ASKED_AGAIN = 5
_BELIEVED_S = 2.0


class Listings:
    """Replies of nodes on finished outputs: positives are kept, negatives are asked again.

    Outputs are immutable, so a key once seen done stays done for this run. A key that was missing
    may be there by now: it is believed to be missing only by what schedules, which asks for a whole
    step at a time, and for two seconds. A task asks for the keys that it needs: nodes look at every
    file they are asked for.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._done: dict[tuple[int, str], tuple[object, dict[str, int]]] = {}
        self._asked: dict[tuple[int, str], float] = {}
        self._known: set[str] = set()  # steps that all nodes were asked for
        # For each slot a mark: whoever finds that a node has lost something changes it, and nobody
        # believes what was heard before.
        self._marks = [object() for _ in range(len(fleet))]

    def missing(self, slot: int, step: str, keys: Sequence[Key]) -> list[Key]:
        """Return those of `keys` that are not done; all of them if the node cannot be reached."""
        absent = self.unheard(slot, step, keys)
        if not absent:
            return []
        if is_in_task():
            return self._missing_here(slot, step, absent)
        if not self._is_fresh(slot, step):
            self._ask_all(step) if self._is_first(step) else self._ask(slot, step)
            for _ in range(_ASKED_AGAIN):
                if self._done[slot, step][0] is self._marks[slot]:
                    break
                self._ask(slot, step)  # a task found the node lost while this one asked
        return self.unheard(slot, step, keys)

    def unheard(self, slot: int, step: str, keys: Sequence[Key]) -> list[Key]:
        """Return those of `keys` that no node has said are done, without asking."""
        done = self._heard(slot, step)
        return [key for key in keys if key.identity not in done]

    def _missing_here(self, slot: int, step: str, keys: Sequence[Key]) -> list[Key]:
        """Ask, as a task does, for some keys alone."""
        identities = [key.identity for key in keys]
        found: dict[str, int] = {}
        for _ in range(1 + _ASKED_AGAIN):
            mark = self._marks[slot]
            found = self._ask(slot, step, identities)
            if mark is self._marks[slot]:
                break  # or another task found the node lost while this one asked
        return [key for key in keys if key.identity not in found]

    def mark(self, slot: int) -> object:
        """Return what changes when a node is found lost."""
        return self._marks[slot]

    def hear(self, slot: int, step: str, mark: object, done: Mapping[str, int]) -> None:
        """Take in what a node said it made, identity -> bytes, unless it was lost since `mark`."""
        if mark is self._marks[slot]:
            self._done[slot, step] = (mark, {**self._heard(slot, step), **done})

    def forget(self) -> None:
        """Believe no negative any longer: something was just made."""
        self._asked.clear()

    def lose(self, slot: int) -> None:
        """Believe nothing any longer that a lost node said."""
        self._marks[slot] = object()
        self.forget()

    def _heard(self, slot: int, step: str) -> dict[str, int]:
        mark, done = self._done.get((slot, step), (None, {}))
        return done if mark is self._marks[slot] else {}

    def _is_fresh(self, slot: int, step: str) -> bool:
        asked = self._asked.get((slot, step), -_BELIEVED_S)
        return time.monotonic() - asked < _BELIEVED_S

    def _is_first(self, step: str) -> bool:
        """Tell whether what schedules knows nothing of a step yet: it will ask all."""
        return step not in self._known

    def _ask_all(self, step: str) -> None:
        """Ask all nodes at once, or far away ones would be waited for one after the other."""
        self._known.add(step)
        self._fleet.each(range(len(self._fleet)), lambda slot: self._ask(slot, step))

    def _ask(self, slot: int, step: str, identities: list[str] | None = None) -> dict[str, int]:
        mark = self._marks[slot]
        try:
            try:
                listing = self._listing(slot, step, identities)
            except NodeLost:
                # Its runtime may have died between two tasks: what is on its disk is still done.
                self._fleet.revive(slot, wait=False)
                listing = self._listing(slot, step, identities)
        except NodeLost:
            self._fleet.drop(slot)
            listing = {}
        if identities is not None:
            self.hear(slot, step, mark, listing)
            return listing
        self._fleet.drop(slot)  # tasks will need what it holds: on ssh nodes, a process there
        self._done[slot, step] = (mark, listing)
        self._asked[slot, step] = time.monotonic()
        return listing

    def _listing(self, slot: int, step: str, identities: list[str] | None) -> dict[str, int]:
        node = self._fleet.nodes[slot]
        if node.is_here and not os.path.exists(os.path.join(node.root, "ledger", f"{step}.jsonl")):
            return {}  # known without its runtime, which may still be starting
        channel = self._fleet.channel(slot)
        message = {"op": "list", "steps": [step], "ids": identities}
        return dict(channel.one(message, "listing")["steps"][step])


class NodeTarget(luigi.Target):
    """Some keys of a step, on the node that owns them: immutable once there."""

    def __init__(self, listings: Listings, step: str, slot: int, keys: Sequence[Key]) -> None:
        self.step, self.slot, self.keys = step, slot, tuple(keys)
        self._listings = listings

    def missing(self) -> list[Key]:
        """Return the keys that are not done."""
        return self._listings.missing(self.slot, self.step, self.keys)

    def exists(self) -> bool:
        """Tell whether every key is in the node's ledger and its file agrees."""
        return not self.missing()

    def __str__(self) -> str:
        names = [f"{self.step}/{key.name}" for key in self.missing()[:3]]
        more = "..." if len(self.missing()) > len(names) else ""
        return f"node {self.slot}: {', '.join(names)}{more}"


class CheckpointTarget(luigi.Target):
    """All outputs of a step, durable. `_SUCCESS`, its manifest, is what makes it exist.

    The layout is ``<step>/<identity>/data/<attempt>/<key>`` and ``<step>/<identity>/_SUCCESS``.
    Data goes under names of this attempt alone; creating `_SUCCESS` is the only commit.
    """

    def __init__(self, store: Store, step: str, identity: str) -> None:
        self.store, self.step = store, step
        self.folder = f"{step}/{identity}"
        self._manifest: dict[str, Any] | None = None
        self._was_whole = False

    @property
    def path(self) -> str:
        """Return where the step's outputs are, for people."""
        return self.store.locate(self.folder)

    def exists(self) -> bool:
        """Tell whether the step was committed."""
        return self.manifest() is not None

    def manifest(self) -> dict[str, Any] | None:
        """Return the committed manifest, or None.

        Raises:
            CheckpointError: it is damaged.
        """
        if self._manifest is None:
            text = self.store.read(f"{self.folder}/_SUCCESS")
            try:
                self._manifest = None if text is None else json.loads(text)
            except ValueError as error:
                raise self._spoilt(f"{self.path}/_SUCCESS is damaged") from error
        return self._manifest

    def is_whole(self) -> bool:
        """Tell whether the step was committed; from one listing, all of it must be there still.

        Raises:
            CheckpointError: it was committed, but something is missing or not what it was.
        """
        if self.exists() and not self._was_whole:
            wrong = self.damaged()
            if wrong:
                more = f" (and {len(wrong) - 1} more)" if wrong[1:] else ""
                raise self._spoilt(wrong[0] + more)
            self._was_whole = True
        return self._was_whole

    def _spoilt(self, what: str) -> CheckpointError:
        return CheckpointError(f"{what}; to make it again, remove {self.path} and run the pipeline")

    def commit(self, parts: Iterable[dict[str, Any]], about: dict[str, Any]) -> dict[str, Any]:
        """Create the manifest; return the one that counts, which may be another run's."""
        manifest = {
            "v": 1,
            "step": self.step,
            "created": time.time(),
            **about,
            "parts": list(parts),
        }
        text = json.dumps(manifest, indent=1, sort_keys=True).encode("ascii")
        self.store.create(f"{self.folder}/_SUCCESS", [text])
        committed = self.manifest()
        if committed is None:
            raise CheckpointError(f"{self.path}/_SUCCESS was written, but cannot be read back")
        return committed

    def attempt(self) -> str:
        """Return a folder that no other attempt writes to."""
        return f"{self.folder}/data/{secrets.token_hex(6)}"

    def sweep(self) -> None:
        """Remove what attempts left behind that lost or died, once the step is committed.

        Only attempts older than the commit's own are known to be over: one that is still writing
        would fail at its next object, read the manifest, and use the winner's.
        """
        manifest = self.manifest() or {"parts": [], "attempt": ""}
        for folder in set(self.store.folders(f"{self.folder}/data")) - {manifest.get("attempt")}:
            self.store.remove(folder)

    def damaged(self) -> list[str]:
        """Return what is missing or not as committed, from one listing however many objects."""
        manifest = self.manifest() or {"parts": [], "attempt": ""}
        found = {item.name: item for item in self.store.list(manifest["attempt"])}
        wrong = []
        for part in manifest["parts"]:
            item, size = found.get(part["object"]), part.get("stored", part["bytes"])
            if item is None:
                wrong.append(f"{self.store.locate(part['object'])} is missing")
            elif (item.size, item.etag) != (size, part.get("etag", item.etag)):
                wrong.append(f"{self.store.locate(part['object'])} is not what was committed")
        return wrong

    def spoilt(self) -> list[str]:
        """Return what is missing or not as committed, by reading every object."""
        wrong = []
        for part in (self.manifest() or {"parts": []})["parts"]:
            try:
                self._read(part)
            except CheckpointError as error:
                wrong.append(str(error))
        return wrong

    def read(self) -> Iterator[tuple[str, bytes]]:
        """Yield the name and bytes of each output, compared with the manifest.

        Raises:
            CheckpointError: it was never committed, or an object is missing or damaged.
        """
        manifest = self.manifest()
        if manifest is None:
            raise CheckpointError(f"{self.path} was never completed")
        for part in manifest["parts"]:
            yield part["key"], self._read(part)

    def one(self, identity: str) -> bytes:
        """Return the bytes of the output that has an identity.

        Raises:
            CheckpointError: see `read`; or there is none.
        """
        for part in (self.manifest() or {"parts": []})["parts"]:
            if part["id"] == identity:
                return self._read(part)
        raise CheckpointError(f"{self.path} has no {identity}")

    def _read(self, part: Mapping[str, Any]) -> bytes:
        data = _unpacked(self.store.read(part["object"]), part.get("compress", ""))
        if data is None or f"{zlib.crc32(data):08x}" != part["crc"]:
            what = "is missing" if data is None else "is damaged"
            raise self._spoilt(f"{self.store.locate(part['object'])} {what}")
        return data


def _unpacked(data: bytes | None, compress: str) -> bytes | None:
    """Return what was packed, or None if it is not there or not whole."""
    if data is None or not compress:
        return data
    try:
        done = subprocess.run(UNPACKERS[compress], input=data, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise CheckpointError(f"cannot read it without {compress}: install {compress}") from error
    return done.stdout if done.returncode == 0 else b"\0damaged"


def stream_checked(fleet: Fleet, key: Key, step: str, crc: str) -> Iterator[bytes]:
    """Yield an output's bytes from its node; fail at the end if the ledger says otherwise."""
    value = 0
    for chunk in fleet.channel(key.slot).read(step, key.identity, key.name):
        value = zlib.crc32(chunk, value)
        yield chunk
    if f"{value:08x}" != crc:
        raise WorkflowsError(
            f"{step}/{key.name} on node {key.slot} is damaged; run: workflows fsck"
        )
