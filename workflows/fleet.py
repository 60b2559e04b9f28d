"""A fleet: nodes by slot, and conversations with their runtimes."""

import concurrent.futures
import contextlib
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

from workflows.errors import NodeLost, UsageError, WorkflowsError
from workflows.node.wire import Wire
from workflows.transports.local import LocalNode

# A silent runtime is asked every PING_S seconds, and lost after LOST_S without an answer.
PING_S = 5.0
LOST_S = 20.0
Event = dict[str, Any]
T = TypeVar("T")


class Node(Protocol):
    """One slot's node, however it is reached."""

    slot: int
    slots: int
    name: str
    root: str

    def start(self) -> None:
        """Begin to make the runtime reachable, without waiting."""

    def connect(self) -> Wire:
        """Return a wire to a new session."""

    def revive(self) -> None:
        """Replace a lost runtime."""

    def close(self) -> None:
        """End the runtime."""


class Channel:
    """One session with a node's runtime. After a silence it is pinged; after a long one, lost."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._wire = node.connect()

    def ask(self, message: Event, *last: str) -> Iterator[Event]:
        """Send an operation and yield its events, up to and with the first that is named in `last`.

        Raises:
            NodeLost: the connection broke, or nothing was heard for 20 s.
            WorkflowsError: the node could not make sense of the operation.
        """
        try:
            self._wire.limit(LOST_S)
            self._wire.send(message)
            while True:
                event = self._next()
                if event["event"] == "pong":
                    continue
                if event["event"] == "error":
                    raise WorkflowsError(f"{self.node.name}: {event['why']}")
                yield event
                if event["event"] in last:
                    return
        except OSError as error:
            raise NodeLost(self.node.name, str(error) or type(error).__name__) from error

    def one(self, message: Event, answer: str) -> Event:
        """Send an operation that has one answer."""
        for event in self.ask(message, answer):
            if event["event"] == answer:
                return event
        raise NodeLost(self.node.name, "it hung up")

    def ship(self, files: Mapping[str, bytes]) -> None:
        """Make files known by their digest; what the node has already is not sent again."""
        if not files:
            return
        needed = self.one({"op": "need", "digests": sorted(files)}, "needed")["digests"]
        try:
            self._wire.limit(LOST_S)
            for digest in needed:
                self._wire.send_bytes({"op": "file", "digest": digest}, files[digest])
        except OSError as error:
            raise NodeLost(self.node.name, str(error)) from error

    def read(self, step: str, identity: str, key: str) -> Iterator[bytes]:
        """Yield the bytes of one output; the last event's checksum is the caller's to compare."""
        message = {"op": "read", "step": step, "id": identity, "key": key}
        for event in self.ask(message, "end"):
            if event["event"] == "data":
                yield self._raw(event["size"])

    def store(self, message: Event, chunks: Iterable[bytes]) -> Event:
        """Send an operation, then bytes if the node is ready for them; return its last event.

        However long `chunks` takes to give the next one, the node waits.
        """
        event = _last(self.ask(message, "ready", "failed"))
        if event["event"] == "failed":
            return event
        size = value = 0
        try:
            self._wire.limit(LOST_S)
            for chunk in chunks:
                self._wire.send_bytes({"op": "chunk"}, chunk)
                size, value = size + len(chunk), zlib.crc32(chunk, value)
        except TimeoutError:
            raise self._silent() from None
        except OSError as error:
            raise NodeLost(self.node.name, str(error) or type(error).__name__) from error
        return _last(self.ask({"op": "stored", "bytes": size, "crc": value}, "stored", "failed"))

    def stream(self, message: Event, *last: str) -> Iterator[tuple[Event, bytes]]:
        """Send an operation; yield its events, each with the raw bytes that follow it."""
        for event in self.ask(message, *last):
            yield event, self._raw(event["size"]) if "size" in event else b""

    def close(self) -> None:
        """End the session: what it had running is killed."""
        with contextlib.suppress(OSError):
            self._wire.close()

    def _next(self) -> Event:
        # Waits are counted, not the clock read: a driver that was stopped itself, or slept with its
        # machine, has heard nothing for long either, and has yet to ask.
        waited = 0.0
        while True:
            try:
                event = self._wire.recv(PING_S)
            except TimeoutError:
                waited += PING_S
                if waited > LOST_S:
                    raise self._silent() from None
                self._wire.send({"op": "ping", "n": 0})
                continue
            except (ValueError, RecursionError) as error:
                raise NodeLost(self.node.name, f"it talks nonsense: {error}") from error
            if event is None:
                raise NodeLost(self.node.name, "it hung up")
            if not isinstance(event.get("event"), str):
                raise NodeLost(self.node.name, f"it talks nonsense: {str(event)[:80]}")
            return event

    def _raw(self, size: int) -> bytes:
        try:
            self._wire.limit(LOST_S)
            data = self._wire.recv_bytes(size)
        except TimeoutError:
            raise self._silent() from None
        except OSError as error:
            raise NodeLost(self.node.name, str(error)) from error
        if len(data) < size:
            raise NodeLost(self.node.name, "it hung up")
        return data

    def _silent(self) -> NodeLost:
        return NodeLost(self.node.name, f"nothing was heard of it for {LOST_S:g} s")


def _last(events: Iterator[Event]) -> Event:
    *_, event = events
    return event


class Fleet:
    """Nodes by slot; channels are opened when first used and belong to one process."""

    def __init__(self, spec: str, nodes: list[Node]) -> None:
        self.spec, self.nodes = spec, nodes
        self._channels: dict[int, Channel] = {}
        self._owner = 0

    def __len__(self) -> int:
        return len(self.nodes)

    def start(self) -> None:
        """Start all nodes' runtimes, side by side."""
        for node in self.nodes:
            node.start()

    def channel(self, slot: int) -> Channel:
        """Return this process's channel to a slot.

        Raises:
            NodeLost: the node is gone.
        """
        if self._owner != os.getpid():
            self._owner, self._channels = os.getpid(), {}
        if slot not in self._channels:
            self._channels[slot] = Channel(self.nodes[slot])
        return self._channels[slot]

    def drop(self, slot: int) -> None:
        """Close the channel to a slot; the next use opens another."""
        channel = self._channels.pop(slot, None)
        if channel is not None:
            channel.close()

    def revive(self, slot: int) -> None:
        """Put a new runtime in place of a lost one.

        Raises:
            NodeLost: there is none to be had.
        """
        self.drop(slot)
        self.nodes[slot].revive()

    def slot_of(self, node: str) -> int:
        """Return the slot of the node with that name."""
        return next(one.slot for one in self.nodes if one.name == node)

    def each(self, slots: Iterable[int], work: Callable[[int], T]) -> dict[int, T]:
        """Do `work` for several slots at once; return slot -> result.

        Raises:
            WorkflowsError: that of the lowest slot that failed, after all have ended.
        """
        chosen = sorted(slots)
        if len(chosen) < 2:
            return {slot: work(slot) for slot in chosen}
        for slot in chosen:
            self.channel(slot)
        with concurrent.futures.ThreadPoolExecutor(min(len(chosen), 32)) as pool:
            futures = {slot: pool.submit(work, slot) for slot in chosen}
        return {slot: future.result() for slot, future in futures.items()}

    def close(self) -> None:
        """End every channel and runtime of this process."""
        for slot in list(self._channels):
            self.drop(slot)
        for node in self.nodes:
            node.close()


def open_fleet(spec: str, *, state: str, slots: int) -> Fleet:
    """Return the fleet that `spec` names; nothing is started.

    ``local:3`` is three directories below `state`. `slots` is how many keys a node runs at once; 0
    shares this machine's cores among the nodes.

    Raises:
        UsageError: there is no such kind of fleet.
    """
    match = re.fullmatch(r"local:([1-9]\d{0,3})", spec)
    if match is None:
        raise UsageError(f"no fleet {spec!r}: write local:N with N nodes on this machine")
    count = int(match[1])
    cores = len(os.sched_getaffinity(0))
    each = slots or max(1, cores // count)
    root = os.path.join(state, "nodes")
    return Fleet(spec, [LocalNode(slot, count, each, root) for slot in range(count)])
