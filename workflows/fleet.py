"""A fleet: nodes by slot, and conversations with their runtimes."""

import concurrent.futures
import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

from workflows.errors import NodeLost, UsageError, WorkflowsError
from workflows.node.wire import Wire
from workflows.transports.local import LocalNode

# A silent runtime is asked every PING_S seconds, and lost after more than LOST_S without an answer:
# that is within 20 s of its last word.
PING_S = 4.0
LOST_S = 12.0
Event = dict[str, Any]
T = TypeVar("T")


class Node(Protocol):
    """One slot's node, however it is reached."""

    slot: int
    slots: int
    name: str
    root: str
    is_here: bool  # whether it sees this machine's files

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
            NodeLost: the connection broke, or nothing was heard for 20 s.
            WorkflowsError: the node could not make sense of the operation.
        """
        if not self.node.is_here and any("path" in item for item in message.get("items", ())):
            raise WorkflowsError(
                f"{self.node.name} cannot see this machine's files: on an ssh fleet, 1:n steps and"
                " checkpoints in a directory do not work yet"
            )
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


def open_fleet(spec: str, *, state: str, slots: int) -> Fleet:
    """Return the fleet that `spec` names; nothing is started.

    ``local:3`` is three directories below `state`. `slots` is how many keys a node runs at once; 0
    shares this machine's cores among the nodes. ``ssh:hosts.yaml`` is the hosts of that file.

    Raises:
        UsageError: there is no such kind of fleet, or its file is wrong.
    """
    if spec.startswith("ssh:"):
        return Fleet(spec, _ssh_nodes(spec.removeprefix("ssh:"), slots))
    match = re.fullmatch(r"local:([1-9]\d{0,3})", spec)
    if match is None:
        raise UsageError(
            f"no fleet {spec!r}: write local:N with N nodes on this machine, ssh:FILE, or ec2:NAME"
        )
    count = int(match[1])
    cores = len(os.sched_getaffinity(0))
    each = slots or max(1, cores // count)
    root = os.path.join(state, "nodes")
    return Fleet(spec, [LocalNode(slot, count, each, root) for slot in range(count)])


def _ssh_nodes(path: str, slots: int) -> list[Node]:
    from workflows.hosts import read_hosts
    from workflows.transports.sshnode import Hub, SshNode

    found = read_hosts(path)
    hosts = [dataclasses.replace(host, slots=host.slots or slots) for host in found.hosts]
    hub = Hub(hosts)
    return [SshNode(hub, slot, host, found.patience) for slot, host in enumerate(hosts)]
