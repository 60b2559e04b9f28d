"""Nodes reached by ssh, as the tasks of a run see them: through the run's hub.

The hub is a process of its own (hub.py). The process that schedules starts it; should it die, the
next task that needs it has another started. Nothing here loads paramiko.
"""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Sequence
from typing import IO, Any

from workflows.errors import NodeLost, NodeRefused
from workflows.hosts import Host, to_json
from workflows.node.connections import is_readable
from workflows.node.wire import Wire

_START_S = 20.0
_ANSWER_S = 60.0
_END_S = 20.0
_USUAL_SLOTS = 4


class Hub:
    """The process that holds the connections of one fleet; constructing it does nothing."""

    def __init__(
        self, hosts: Sequence[Host], program: tuple[str, ...] = ("workflows.transports.hub",)
    ) -> None:
        self._hosts, self._program = hosts, program
        self._name = ""
        self._given: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._driver, self._listened = 0, False
        self._mutex = threading.Lock()
        self._life = self._hold = (
            0  # as in LocalNode: the hub lives while the driver holds the pipe
        )
        _hubs.add(self)

    def start(self) -> None:
        """Start the hub, without waiting for it."""
        if self._name:
            return
        self._name = f"workflows-{secrets.token_hex(12)}"
        # Not in its arguments, which are too short for many hosts. It has no name, and no secrets.
        self._given = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as hubs may start
        self._given.write(json.dumps([to_json(host) for host in self._hosts]).encode("ascii"))
        self._given.flush()
        self._life, self._hold = os.pipe()
        self._driver = os.getpid()
        self._launch()

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
        if not self._name or self._driver != os.getpid():
            return
        os.close(self._hold)
        os.close(self._life)
        self._name = ""
        if self._given is not None:
            self._given.close()
        if self._process is not None:
            try:
                self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None

    def forget(self) -> None:
        """In a forked child: let go of what keeps the hub alive; it ends with the driver."""
        self._mutex = threading.Lock()  # no thread that could hold the other one came along
        if self._hold > 0:
            os.close(self._hold)
            self._hold = -1

    def _connected(self) -> socket.socket:
        self.start()
        if self._driver not in (os.getpid(), os.getppid()):
            raise ConnectionResetError("the run that it worked for is gone")
        with self._mutex:
            stream = self._knock()
            for _ in range(2):  # after the first it is known to have listened, if it is to end now
                if stream is None:
                    if self._has_ended():
                        self._launch()
                    self._await_hub()
                    stream = self._knock()
        if stream is None:
            raise ConnectionRefusedError("the run's ssh hub is gone")
        return stream

    def _knock(self) -> socket.socket | None:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            stream.connect("\0" + self._name)
        except OSError:
            stream.close()
            return None
        return stream

    def _launch(self) -> None:
        given = self._given.fileno() if self._given is not None else -1
        module, *more = self._program
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-m", module, str(given), self._name, *more],
            stdin=self._life,
            stdout=subprocess.PIPE,
            pass_fds=(given,),
            # All that `site` would find is there already; that saves its time.
            env=dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))),
            start_new_session=True,
        )
        self._listened = False

    def _has_ended(self) -> bool:
        """Tell whether the hub is gone that this process started; it may have yet to listen."""
        if self._process is None:
            return True
        if self._listened:  # and does no longer: it is about to end
            try:
                self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        return self._process.poll() is not None

    def _await_hub(self) -> None:
        """Wait until a hub that this process started listens, or has ended."""
        if self._process is not None and self._process.stdout is not None:
            with contextlib.suppress(OSError, ValueError):
                self._listened = bool(
                    is_readable(self._process.stdout, _START_S) and self._process.stdout.readline()
                )


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
        """Return what makes nodes trust each other for this run: see transports/credential.py.

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
