"""A fleet: nodes by slot."""

import concurrent.futures
import contextvars
import difflib
import math
import os
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from workflows.errors import UsageError
from workflows.fleets.channel import Channel, Node, conversations
from workflows.fleets.local import LocalNode
from workflows.fleets.reading import GoneNode, ReadNode

Event = dict[str, Any]
T = TypeVar("T")


class Fleet:
    """Nodes by slot; channels are opened when first used and belong to one task.

    `credential` makes what nodes trust each other by; None if they see each other's files.
    """

    def __init__(
        self, spec: str, nodes: list[Node], credential: Callable[[], Event] | None = None
    ) -> None:
        self.spec, self.nodes, self.credential = spec, nodes, credential

    def __len__(self) -> int:
        return len(self.nodes)

    def start(self) -> None:
        """Start all nodes' runtimes, side by side."""
        for node in self.nodes:
            node.start()

    def channel(self, slot: int) -> Channel:
        """Return this task's channel to a slot.

        Raises:
            NodeLost: the node is gone.
        """
        return conversations().channel(self.nodes[slot])

    def drop(self, slot: int) -> None:
        """Close this task's channel to a slot; the next use opens another."""
        conversations().drop(self.nodes[slot])

    def revive(self, slot: int, *, wait: bool = True) -> None:
        """Put a new runtime in place of a lost one; with `wait`, wait for a node to come back.

        Raises:
            NodeLost: there is none to be had.
        """
        conversations().revive(self.nodes[slot], wait=wait)

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
        with concurrent.futures.ThreadPoolExecutor(min(len(chosen), 32)) as pool:
            futures = {
                slot: pool.submit(contextvars.copy_context().run, work, slot) for slot in chosen
            }
        return {slot: future.result() for slot, future in futures.items()}

    def close(self) -> None:
        """End every channel and runtime of this process."""
        for node in self.nodes:
            conversations().drop(node)
            node.let_go()
        for node in self.nodes:
            node.close()


def open_fleet(
    spec: str, *, state: str, slots: int, silence_s: float = 20.0, look: bool = False
) -> Fleet:
    """Return the fleet that `spec` names; nothing is started.

    ``local:3`` is three directories below `state`. `slots` is how many keys a node runs at once; 0
    is its share of this machine's cores, and one more: see docs/adr/0016. ``ssh:hosts.yaml`` is the
    hosts of that file. A node that says nothing for `silence_s` is lost.

    Raises:
        UsageError: there is no such kind of fleet, or its file is wrong.
    """
    if spec.startswith("ssh:"):
        return _ssh_fleet(spec, slots, silence_s)
    match = re.fullmatch(r"local:([1-9]\d{0,3})", spec)
    if match is None:
        kind, colon, rest = spec.partition(":")
        near = difflib.get_close_matches(kind, ("local", "ssh", "ec2"), 1)
        is_other = colon and near and near[0] != kind
        raise UsageError(
            f"no fleet {spec!r}: write local:N with N nodes on this machine, ssh:FILE, or ec2:NAME"
            + (f"; did you mean '{near[0]}:{rest}'?" if is_other else "")
        )
    count = int(match[1])
    each = slots or _share(len(os.sched_getaffinity(0)), count)
    root = os.path.join(state, "nodes")
    if look:
        return Fleet(spec, [ReadNode(slot, each, root, silence_s) for slot in range(count)])
    nodes: list[Node] = [LocalNode(slot, count, each, root, silence_s) for slot in range(count)]
    return Fleet(spec, nodes)


def gone_fleet(spec: str, nodes: int, why: str) -> Fleet:
    """Return a stand-in for a fleet that no longer exists: all of its nodes are lost."""
    return Fleet(spec, [GoneNode(slot, why) for slot in range(nodes)])


def _share(cores: int, nodes: int) -> int:
    """Return how many keys each of the nodes of one machine runs at once.

    >>> _share(8, 1), _share(8, 3), _share(2, 3), _share(2, 100), _share(1, 3)
    (8, 4, 2, 2, 1)
    """
    return min(cores, math.ceil(cores / nodes) + 1)


def _ssh_fleet(spec: str, slots: int, silence_s: float) -> Fleet:
    from workflows.fleets.hosts import read_hosts
    from workflows.fleets.sshnode import Hub, SshNode

    found = read_hosts(spec.removeprefix("ssh:"))
    hosts = [host.with_slots(slots) for host in found.hosts]
    hub = Hub(hosts)
    nodes = [SshNode(hub, slot, host, found.patience, silence_s) for slot, host in enumerate(hosts)]
    return Fleet(spec, list(nodes), nodes[0].credential)
