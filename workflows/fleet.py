"""A fleet: nodes by slot, and conversations with their runtimes."""

import concurrent.futures
import contextlib
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any, Protocol, TypeVar

from workflows.errors import CheckpointError, NodeLost, UsageError, WorkflowsError
from workflows.node.wire import Wire
from workflows.transports.local import LocalNode

_WAITS = 4  # after each but the last of so many, a silent runtime is asked for a sign of life
_BLOCK = 1 << 18
_AHEAD = 32  # files sent before the first is answered; as many answers fit into any buffer
_LARGEST = 1 << 24  # bytes of an output in one message; runtimes send less
Event = dict[str, Any]
T = TypeVar("T")


class Node(Protocol):
    """One slot's node, however it is reached."""

    slot: int
    slots: int
    name: str
    root: str
    silence_s: float  # how long it may say nothing, not even when asked, before it is lost
    is_here: bool  # whether it sees this machine's files
    peer: str  # the address by which other nodes reach it; empty if they see each other's files

    def start(self) -> None:
        """Begin to make the runtime reachable, without waiting."""

    def connect(self) -> Wire:
        """Return a wire to a new session."""

    def revive(self, *, wait: bool = True) -> None:
        """Replace a lost runtime; with `wait`, wait for a node that may come back."""

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
            NodeLost: the connection broke, or nothing was heard for too long.
            WorkflowsError: the node could not make sense of the operation.
        """
        try:
            self._wire.limit(self.node.silence_s)
            self._wire.send(message)
            yield from self._events(last)
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
        answer = self.one({"op": "need", "digests": sorted(files)}, "needed")
        needed = answer.get("digests")
        if not isinstance(needed, list) or any(digest not in [*files] for digest in needed):
            raise self._nonsense(answer)
        try:
            self._wire.limit(self.node.silence_s)
            for digest in needed:
                self._wire.send_bytes({"op": "file", "digest": digest}, files[digest])
        except OSError as error:
            raise NodeLost(self.node.name, str(error)) from error

    def read(self, step: str, identity: str, key: str) -> Iterator[bytes]:
        """Yield the bytes of one output; the last event's checksum is the caller's to compare."""
        message = {"op": "read", "step": step, "id": identity, "key": key}
        for event in self.ask(message, "end"):
            if event["event"] == "data":
                yield self._raw(event)

    def store(self, message: Event, chunks: Iterable[bytes]) -> Event:
        """Send an operation, then bytes if the node is ready for them; return its last event.

        However long `chunks` takes to give the next one, the node waits.
        """
        event = _last(self.ask(message, "ready", "failed"))
        if event["event"] == "failed":
            return event
        size = value = 0
        try:
            self._wire.limit(self.node.silence_s)
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
            yield event, self._raw(event) if "size" in event else b""

    def bring(self, step: str, items: list[Event]) -> Iterator[Event]:
        """Let the node bring files from URLs, or from this machine's paths, and publish them.

        Raises:
            CheckpointError: a file of this machine cannot be read, or is not what it was.
        """
        if self.node.is_here or not any("path" in item for item in items):
            yield from self.ask({"op": "bring", "step": step, "items": items}, "ran")
            return
        answers = ("brought", "failed")
        try:
            for number, item in enumerate(items):
                self._give(step, item)
                if number >= _AHEAD:
                    yield from self._events(answers)
            for _ in items[:_AHEAD]:
                yield from self._events(answers)
        except OSError as error:
            raise NodeLost(self.node.name, str(error) or type(error).__name__) from error

    def _give(self, step: str, item: Event) -> None:
        """Send one file of this machine; the node answers when it has published it."""
        path, size = item["path"], item["bytes"]
        about = {name: value for name, value in item.items() if name != "path"}
        with _opened(path, size) as file:
            self._wire.limit(self.node.silence_s)
            self._wire.send({"op": "take", "step": step, "item": about, "size": size})
            while size:
                data = _read(file, min(size, _BLOCK))
                if not data:
                    self.close()  # the node still waits for the rest
                    raise CheckpointError(f"{path} was cut while it was read")
                self._wire.send_raw(data)
                size -= len(data)

    def close(self) -> None:
        """End the session: what it had running is killed."""
        with contextlib.suppress(OSError):
            self._wire.close()

    def _events(self, last: tuple[str, ...]) -> Iterator[Event]:
        while True:
            event = self._next()
            if event["event"] == "pong":
                continue
            if event["event"] == "error":
                raise WorkflowsError(f"{self.node.name}: {event['why']}")
            yield event
            if event["event"] in last:
                return

    def _next(self) -> Event:
        # Waits are counted, not the clock read: a driver that was stopped itself, or slept with its
        # machine, has heard nothing for long either, and has yet to ask.
        waited, ping_s = 0.0, self.node.silence_s / _WAITS
        while True:
            try:
                event = self._wire.recv(ping_s)
            except TimeoutError:
                waited += ping_s
                if waited >= self.node.silence_s:
                    raise self._silent() from None
                self._wire.send({"op": "ping", "n": 0})
                continue
            except (ValueError, RecursionError) as error:
                raise self._nonsense(error) from error
            if event is None:
                raise NodeLost(self.node.name, "it hung up")
            if not isinstance(event.get("event"), str):
                raise self._nonsense(event)
            return event

    def _raw(self, event: Event) -> bytes:
        size = event.get("size")
        if type(size) is not int or not 0 <= size <= _LARGEST:
            raise self._nonsense(event)
        try:
            self._wire.limit(self.node.silence_s)
            data = self._wire.recv_bytes(size)
        except TimeoutError:
            raise self._silent() from None
        except OSError as error:
            raise NodeLost(self.node.name, str(error)) from error
        if len(data) < size:
            raise NodeLost(self.node.name, "it hung up")
        return data

    def _nonsense(self, what: object) -> NodeLost:
        return NodeLost(self.node.name, f"it talks nonsense: {str(what)[:120]}")

    def _silent(self) -> NodeLost:
        return NodeLost(self.node.name, f"nothing was heard of it for {self.node.silence_s:g} s")


def _last(events: Iterator[Event]) -> Event:
    *_, event = events
    return event


def _opened(path: str, size: int) -> IO[bytes]:
    try:
        file = open(path, "rb")  # noqa: SIM115 - the caller closes it
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    if os.fstat(file.fileno()).st_size != size:
        file.close()
        raise CheckpointError(f"{path} is damaged: it had {size} bytes")
    return file


def _read(file: IO[bytes], size: int) -> bytes:
    try:
        return file.read(size)
    except OSError as error:
        raise CheckpointError(f"cannot read {file.name}: {error.strerror}") from error


class Fleet:
    """Nodes by slot; channels are opened when first used and belong to one process.

    `credential` makes what nodes trust each other by; None if they see each other's files.
    """

    def __init__(
        self, spec: str, nodes: list[Node], credential: Callable[[], Event] | None = None
    ) -> None:
        self.spec, self.nodes, self.credential = spec, nodes, credential
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
        self._adopt()
        if slot not in self._channels:
            self._channels[slot] = Channel(self.nodes[slot])
        return self._channels[slot]

    def _adopt(self) -> None:
        """Forget the channels of the process that this one was forked from."""
        if self._owner != os.getpid():
            self._owner, self._channels = os.getpid(), {}

    def drop(self, slot: int) -> None:
        """Close the channel to a slot; the next use opens another."""
        channel = self._channels.pop(slot, None)
        if channel is not None:
            channel.close()

    def revive(self, slot: int, *, wait: bool = True) -> None:
        """Put a new runtime in place of a lost one; with `wait`, wait for a node to come back.

        Raises:
            NodeLost: there is none to be had.
        """
        self.drop(slot)
        self.nodes[slot].revive(wait=wait)

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
        self._adopt()
        with concurrent.futures.ThreadPoolExecutor(min(len(chosen), 32)) as pool:
            futures = {slot: pool.submit(work, slot) for slot in chosen}
        return {slot: future.result() for slot, future in futures.items()}

    def close(self) -> None:
        """End every channel and runtime of this process."""
        for slot in list(self._channels):
            self.drop(slot)
        for node in self.nodes:
            node.close()


def open_fleet(spec: str, *, state: str, slots: int, silence_s: float = 20.0) -> Fleet:
    """Return the fleet that `spec` names; nothing is started.

    ``local:3`` is three directories below `state`. `slots` is how many keys a node runs at once; 0
    shares this machine's cores among the nodes. ``ssh:hosts.yaml`` is the hosts of that file. A
    node that says nothing for `silence_s` is lost.

    Raises:
        UsageError: there is no such kind of fleet, or its file is wrong.
    """
    if spec.startswith("ssh:"):
        return _ssh_fleet(spec, slots, silence_s)
    match = re.fullmatch(r"local:([1-9]\d{0,3})", spec)
    if match is None:
        raise UsageError(
            f"no fleet {spec!r}: write local:N with N nodes on this machine, ssh:FILE, or ec2:NAME"
        )
    count = int(match[1])
    cores = len(os.sched_getaffinity(0))
    each = slots or max(1, cores // count)
    root = os.path.join(state, "nodes")
    nodes: list[Node] = [LocalNode(slot, count, each, root, silence_s) for slot in range(count)]
    return Fleet(spec, nodes)


def _ssh_fleet(spec: str, slots: int, silence_s: float) -> Fleet:
    from workflows.hosts import read_hosts
    from workflows.transports.sshnode import Hub, SshNode

    found = read_hosts(spec.removeprefix("ssh:"))
    hosts = [host.with_slots(slots) for host in found.hosts]
    hub = Hub(hosts)
    nodes = [SshNode(hub, slot, host, found.patience, silence_s) for slot, host in enumerate(hosts)]
    return Fleet(spec, list(nodes), nodes[0].credential)
