"""Read-only access to nodes: nothing is started on them, and nothing is written.

A node that is a directory of this machine is read where it is. One that is gone says so.
"""

import contextlib
import os
import socket
import threading

from workflows.errors import NodeLost
from workflows.node.looking import LookingOperations
from workflows.node.storage import ReadStorage
from workflows.node.verbs import VerbOperations
from workflows.node.wire import Wire

_OPERATIONS = ("list", "history", "records", "steps", "ledgers", "read", "keys", "find")


class _Reader(LookingOperations, VerbOperations):
    """A session that answers from a directory, without a runtime."""

    def __init__(self, root: str, wire: Wire) -> None:
        self.storage, self.wire = ReadStorage(root), wire

    def serve(self) -> None:
        """Answer until the other side closes."""
        with contextlib.suppress(OSError), contextlib.closing(self.wire):
            while (message := self.wire.recv()) is not None:
                name = message["op"]
                try:
                    if name not in _OPERATIONS:
                        raise ValueError(f"{name} is not available to a reader")
                    getattr(self, f"op_{name}")(message)
                except (OSError, ValueError, KeyError) as error:
                    self.wire.send({"event": "error", "why": str(error)})


class ReadNode:
    """One slot of a local fleet, as it is on the disk."""

    is_here = True
    peer = ""

    def __init__(self, slot: int, slots: int, root: str, silence_s: float) -> None:
        self.slot, self.slots, self.silence_s = slot, slots, silence_s
        self.root = os.path.abspath(os.path.join(root, str(slot)))
        self.name = f"node {slot}"

    def start(self) -> None:
        """Do nothing: there is nothing to start."""

    def connect(self) -> Wire:
        """Return a wire to a session that only reads."""
        ours, theirs = socket.socketpair()
        reader = _Reader(self.root, Wire(theirs))
        threading.Thread(target=reader.serve, daemon=True).start()
        return Wire(ours)

    def revive(self, runtime: str = "", *, wait: bool = True) -> None:
        """Do nothing: the next connection reads again."""

    def let_go(self) -> None:
        """Do nothing: sessions end with their connections."""

    def close(self) -> None:
        """Do nothing: sessions end with their connections."""


class GoneNode(ReadNode):
    """One slot of a fleet that no longer exists."""

    is_here = False

    def __init__(self, slot: int, why: str) -> None:
        super().__init__(slot, 1, "", 1.0)
        self._why = why

    def connect(self) -> Wire:
        """Say that it is gone.

        Raises:
            NodeLost: always.
        """
        raise NodeLost(self.name, self._why)
