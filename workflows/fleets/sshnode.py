"""Nodes reached by ssh, as the tasks of a run see them: through the run's hub.

The hub is a process of its own (hub.py). The process that schedules starts it; should it die, the
next task that needs it has another started. Nothing here loads paramiko.
"""

import contextlib
import json
import os
import socket
import subprocess
import threading
import weakref
from collections.abc import Sequence
from typing import Any

from workflows.errors import NodeLost, NodeRefused
from workflows.fleets.hosts import Host, to_json
from workflows.fleets.hubprocess import HUBS, HubProcess, take
from workflows.node.connections import has_ended, is_readable
from workflows.node.wire import Wire

_START_S = 20.0
_ANSWER_S = 60.0
_END_S = 20.0
_USUAL_SLOTS = 4


class Hub:
    """The holder of one fleet's connections; constructing it does nothing.

    `about` is what a hub of that `module` is told beside its hosts.
    """

    def __init__(
        self, hosts: Sequence[Host], module: str = HUBS["ssh"], about: tuple[str, ...] = ()
    ) -> None:
        self._hosts, self._module, self._about = hosts, module, about
        self._hub: HubProcess | None = None
        self._launcher = 0  # the process that started it, or another in its place
        self._listened = False
        self._mutex = threading.Lock()
        _hubs.add(self)

    def start(self) -> None:
        """Start the hub, without waiting for it."""
        if self._hub is None:
            hub = take(self._module)
            told = {"hosts": [to_json(host) for host in self._hosts], "about": self._about}
            hub.tell(json.dumps(told).encode("ascii"))
            self._hub, self._launcher = hub, os.getpid()

    def ask(self, message: dict[str, Any], answer_s: float) -> tuple[socket.socket, dict[str, Any]]:
        """Send a request; return the connection it went through and the answer.

        Raises:
            OSError: there is no hub, or it does not answer.
        """
        stream = self._connected()
        try:
            wire = Wire(stream)
            wire.send(message)
            answer = wire.recv(answer_s)
            if answer is None:
                raise ConnectionResetError("the run's ssh hub hung up")
        except BaseException:
            stream.close()
            raise
        return stream, answer

    def close(self) -> None:
        """End the hub, which ends the runtimes, and wait."""
        if self._hub is None or self._hub.driver != os.getpid():
            return
        hub, self._hub = self._hub, None
        hub.let_go()
        _reap(hub.process)

    def forget(self) -> None:
        """In a forked child: let go of what keeps the hub alive; it ends with the driver."""
        self._mutex = threading.Lock()  # no thread that could hold the other one came along
        if self._hub is not None:
            self._hub.forget()

    def _connected(self) -> socket.socket:
        self.start()
        hub = self._hub
        if hub is None or hub.driver not in (os.getpid(), os.getppid()):
            raise ConnectionResetError("the run that it worked for is gone")
        with self._mutex:
            stream = self._knock(hub)
            for _ in range(2):  # after the first it is known to have listened, if it is to end now
                if stream is None:
                    if self._has_ended(hub):
                        hub.renew()
                        self._launcher, self._listened = os.getpid(), False
                    self._await_hub(hub)
                    stream = self._knock(hub)
        if stream is None:
            raise ConnectionRefusedError("the run's ssh hub is gone")
        return stream

    def _knock(self, hub: HubProcess) -> socket.socket | None:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            stream.connect("\0" + hub.name)
        except OSError:
            stream.close()
            return None
        return stream

    def _has_ended(self, hub: HubProcess) -> bool:
        """Tell whether the hub is gone that this process started; it may have yet to listen."""
        if self._launcher != os.getpid():
            return True
        if self._listened:  # and does no longer: it is about to end
            _reap(hub.process)
        return hub.process.poll() is not None

    def _await_hub(self, hub: HubProcess) -> None:
        """Wait until a hub that this process started listens, or has ended."""
        if self._launcher == os.getpid() and hub.process.stdout is not None:
            with contextlib.suppress(OSError, ValueError):
                self._listened = bool(
                    is_readable(hub.process.stdout, _START_S) and hub.process.stdout.readline()
                )


def _reap(process: "subprocess.Popen[bytes]") -> None:
    """Wait until a hub has ended, which is to be soon."""
    if process.stdout is not None and not process.stdout.closed:
        if not has_ended(process.stdout, _END_S):
            process.kill()
        process.stdout.close()
    process.wait()


class SshNode:
    """One slot on a host that is reached by ssh."""

    is_here = False

    def __init__(
        self, hub: Hub, slot: int, host: Host, patience_s: float, silence_s: float = 20.0
    ) -> None:
        self.slot, self.patience_s, self.silence_s = slot, patience_s, silence_s
        self.slots = host.slots or _USUAL_SLOTS
        self.name = f"node {slot} ({host})"
        self.root = f"{host.scratch}/{slot}"
        self.peer = host.peer or host.address
        self._hub = hub

    def start(self) -> None:
        """Begin to connect, without waiting."""
        self._hub.start()

    def connect(self) -> Wire:
        """Return a wire to a new session of the runtime.

        Raises:
            NodeLost: the host cannot be reached, or its runtime is gone.
            NodeRefused: the host key is wrong, it does not let us in, or cannot work.
        """
        stream, answer = self._ask({"op": "attach"}, _ANSWER_S)
        self.root, self.peer = answer["root"], answer["peer"]
        return Wire(stream, answer["generation"])

    def revive(self, runtime: str = "", *, wait: bool = True) -> None:
        """Replace a lost runtime; with `wait`, wait for its host to come back.

        Raises:
            NodeLost: it did not come back.
            NodeRefused: it came back, but cannot work.
        """
        patience_s = self.patience_s if wait else 0.0
        message = {"op": "revive", "generation": runtime, "patience": patience_s}
        stream, _ = self._ask(message, _ANSWER_S + patience_s)
        stream.close()

    def credential(self) -> dict[str, str]:
        """Return what makes nodes trust each other for this run: see fleets/credential.py.

        Raises:
            NodeLost: the hub does not answer.
        """
        stream, answer = self._ask({"op": "credential"}, _ANSWER_S)
        stream.close()
        return {name: answer[name] for name in ("certificate", "key", "token")}

    def let_go(self) -> None:
        """Do nothing: the hub ends all runtimes at once."""

    def close(self) -> None:
        """End the runtime, and all others of the fleet."""
        self._hub.close()

    def _ask(self, message: dict[str, Any], answer_s: float) -> tuple[socket.socket, Any]:
        try:
            stream, answer = self._hub.ask(dict(message, slot=self.slot), answer_s)
        except (OSError, ValueError) as error:
            raise NodeLost(self.name, str(error) or type(error).__name__) from error
        if answer["event"] in ("lost", "refused"):
            stream.close()
            kind = NodeLost if answer["event"] == "lost" else NodeRefused
            raise kind(self.name, answer["why"])
        return stream, answer


_hubs: "weakref.WeakSet[Hub]" = weakref.WeakSet()


def _forget_all() -> None:
    for hub in _hubs:
        hub.forget()


os.register_at_fork(after_in_child=_forget_all)
