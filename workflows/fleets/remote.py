"""One host as the hub sees it: its connections, its runtime, and whether both still answer."""

import contextlib
import json
import secrets
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

from workflows.errors import NodeLost, NodeRefused
from workflows.fleets import shell
from workflows.fleets.hosts import Host
from workflows.fleets.pack import runtime_pack
from workflows.fleets.ssh import BROKEN, Connection, Full, connect
from workflows.node.wire import Wire

# A node is asked every BEAT_S and lost after LOST_S without an answer; its runtime ends itself when
# it was not asked for LEASE_S. Its commands end within 20 s of the driver, whatever happens.
BEAT_S, LOST_S, LEASE_S = 3.0, 12.0, 15.0
_START_S = 15.0
_SHIP_S = 15.0
_END_S = 5.0
_BELIEVED_S = 5.0  # how long nobody tries again to reach a node that could not be reached
_NOISE = 1 << 20
_CHUNK = 1 << 16
LENGTH = struct.Struct("!I")  # as in node/relay.py
_LAST_WORDS = 1000
Message = dict[str, Any]


class Session:
    """One session of a runtime, through a relay that serves another one afterwards."""

    def __init__(self, channel: Any, early: bytes, generation: str, root: str) -> None:
        self.channel, self.generation, self.root = channel, generation, root
        self._buffer = early
        self.is_over = False

    def send(self, data: bytes) -> None:
        """Send bytes; none ends the session.

        Raises:
            OSError: the connection broke.
        """
        try:
            self.channel.sendall(LENGTH.pack(len(data)) + data)
        except BROKEN as error:  # some of which are no OSError
            raise ConnectionResetError(str(error) or type(error).__name__) from error

    def frames(self) -> Iterator[bytes]:
        """Yield what the runtime says until the session ends, or the connection breaks."""
        while True:
            while len(self._buffer) >= LENGTH.size:
                end = LENGTH.size + LENGTH.unpack_from(self._buffer)[0]
                if len(self._buffer) < end:
                    break
                data, self._buffer = self._buffer[LENGTH.size : end], self._buffer[end:]
                if not data:
                    self.is_over = True
                    return
                yield data
            more = self.channel.recv(_CHUNK)
            if not more:
                return
            self._buffer += more


class Remote:
    """One host; constructing it does nothing. Any thread may call its methods."""

    def __init__(self, host: Host, slot: int, nodes: int, fleet: str) -> None:
        self.host, self.slot, self.nodes = host, slot, nodes
        self.name = f"node {slot}"
        self._socket = f"{fleet}-{slot}"
        self._mutex = threading.RLock()
        self._lines: list[Connection] = []
        self._idle: list[Session] = []
        self._main: Any = None
        self._generation = ""  # of the runtime that is there; empty if none is
        self._root = ""
        self._why: tuple[float, NodeLost | NodeRefused] | None = None

    def ensure(self, *, afresh: bool = False) -> None:
        """Connect and start the runtime, unless that is done.

        Raises:
            NodeLost: the host cannot be reached.
            NodeRefused: it does not let us in, or cannot run the runtime.
        """
        with self._mutex:
            if self._generation:
                return
            if self._why and not afresh and time.monotonic() - self._why[0] < _BELIEVED_S:
                raise self._why[1]
            try:
                self._connect()
            except (NodeLost, NodeRefused) as error:
                self._down()
                self._why = (time.monotonic(), error)
                raise

    def attach(self) -> Session:
        """Open a session of the runtime.

        Raises:
            NodeLost: the host or its runtime is gone.
            NodeRefused: see `ensure`.
        """
        self.ensure()
        with contextlib.suppress(IndexError):
            return self._idle.pop()
        generation, root = self._generation, self._root
        channel = None
        try:
            channel = self._command(shell.attach(self.host, self._socket))
            event, early = _greeting(channel, ("attached",))
        except BROKEN as error:
            _shut(channel)
            raise self._broken(error) from error
        if event["event"] != "attached":
            _shut(channel)
            raise NodeLost(self.name, event["why"])
        channel.settimeout(None)
        return Session(channel, early, generation, root)

    def release(self, session: Session) -> None:
        """Keep a session's relay for the next one, if it is in order."""
        with self._mutex:
            if session.is_over and session.generation == self._generation:
                session.is_over = False
                self._idle.append(session)
                return
        session.channel.close()

    def revive(self, generation: str, patience_s: float) -> None:
        """Replace the runtime of that generation; wait up to `patience_s` for its host to be back.

        Raises:
            NodeLost: it did not come back.
            NodeRefused: it came back, but cannot work.
        """
        with self._mutex:
            if self._generation == generation:
                self._down()
        deadline = time.monotonic() + patience_s
        pause_s = 0.2
        while True:
            try:
                return self.ensure(afresh=patience_s > 0)
            except NodeLost:
                if time.monotonic() + pause_s >= deadline:
                    raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 3.0)

    def move(self, host: Host) -> None:
        """Let another host fill the slot: what runs on the old one is lost."""
        with self._mutex:
            self.host, self._why = host, None
            self._down()

    def drain(self) -> None:
        """Let the runtime start no more keys; those that run are finished."""
        main = self._main
        if main is not None:
            with contextlib.suppress(*BROKEN):
                Wire(main).send({"op": "drain"})

    def run(self, line: str, timeout_s: float) -> str:
        """Run a short command on the connection that is there; return what it printed.

        Raises:
            NodeLost: there is no connection, or it broke.
        """
        lines = self._lines
        if not lines or not self._generation:
            raise NodeLost(self.name, "it is not connected")
        try:
            return lines[0].run(line, timeout_s=timeout_s).out.decode("utf-8", "replace")
        except BROKEN as error:
            raise self._broken(error) from error

    def end(self) -> None:
        """End the runtime in good order: it kills its commands and removes its files."""
        held = self._mutex.acquire(timeout=_END_S)  # it may just be starting
        main = self._main
        if main is not None:
            with contextlib.suppress(*BROKEN):
                main.shutdown_write()
                main.settimeout(_END_S)
                while main.recv(1 << 16):
                    pass
        self._down()
        if held:
            self._mutex.release()

    # -- up and down ---------------------------------------------------------------------------

    def _connect(self) -> None:
        self._lines = [connect(self.name, self.host)]
        try:
            self._main, event = self._start()
        except BROKEN as error:
            raise self._broken(error) from error
        if event["event"] == "refused":
            raise NodeRefused(self.name, f"{self.host}: {event['why']}")
        self._root = event["root"]
        self._generation = secrets.token_hex(8)
        wire = Wire(self._main)
        watch = threading.Thread(target=self._watch, args=(wire, self._generation), daemon=True)
        watch.start()

    def _start(self) -> tuple[Any, Message]:
        line = shell.start(self.host, self.slot, self.nodes, self._socket, LEASE_S)
        for _ in range(2):
            channel = self._command(line)
            channel.settimeout(_START_S)
            event, _ = _greeting(channel, ("hello", "refused"))
            if event["event"] != shell.NOT_SHIPPED:
                return channel, event
            self._ship()
        raise NodeRefused(
            self.name, f"{self.host} does not keep the runtime in {self.host.scratch}"
        )

    def _ship(self) -> None:
        token = f"runtime-{secrets.token_hex(4)}"
        ran = self._lines[0].run(shell.ship(self.host, token), runtime_pack().data, _SHIP_S)
        if ran.status < 0:
            raise NodeLost(self.name, f"{self.host} hung up while the runtime was shipped")
        if ran.status:
            said = ran.err.decode("utf-8", "replace").strip() or "not all of it could be written"
            raise NodeRefused(self.name, f"{self.host} cannot keep the runtime: {said}")

    def _command(self, line: str) -> Any:
        """Start a command on a connection that has room; sshd allows each ten (MaxSessions)."""
        for known in list(self._lines):
            with contextlib.suppress(Full):
                return known.command(line)
        with self._mutex:
            if not self._lines:
                raise ConnectionResetError("it was lost meanwhile")
            another = connect(self.name, self.host)
            channel = another.command(line)  # first, or others could take all its room
            self._lines.append(another)
            return channel

    def _watch(self, wire: Wire, generation: str) -> None:
        """Ask the runtime whether it is there until it is not."""
        main = self._main
        silent_s = 0.0
        while silent_s <= LOST_S:
            try:
                if wire.recv(BEAT_S) is None:
                    break
                silent_s = 0.0
            except TimeoutError:
                silent_s += BEAT_S
                with contextlib.suppress(*BROKEN):
                    wire.send({"op": "ping", "n": 0})
            except ValueError:
                continue  # what a login script left behind still talks
            except BROKEN:
                break
            while main.recv_stderr_ready():
                main.recv_stderr(1 << 16)  # unread, it would fill up and block the runtime
        with self._mutex:
            if self._generation == generation:
                self._down()

    def _broken(self, error: BaseException) -> NodeLost:
        if isinstance(error, TimeoutError):
            return NodeLost(self.name, f"{self.host} accepts the login, but then sends nothing")
        return NodeLost(self.name, f"{self.host} broke off: {str(error) or type(error).__name__}")

    def _down(self) -> None:
        """Let go of all connections; what other threads wait for on them ends."""
        lines, self._lines, self._idle = self._lines, [], []
        self._main, self._generation = None, ""
        for line in lines:
            line.close()


def _greeting(channel: Any, events: tuple[str, ...]) -> tuple[Message, bytes]:
    """Return the first event of a command and what came after it; skip what login scripts print.

    A command that ends without one gives ``refused`` with what it said.
    """
    buffer = b""
    while len(buffer) < _NOISE:
        *lines, rest = buffer.split(b"\n")
        for number, line in enumerate(lines):
            if line.strip() == shell.NOT_SHIPPED.encode():
                return {"event": shell.NOT_SHIPPED}, b""
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict) and event.get("event") in events:
                    return event, b"\n".join([*lines[number + 1 :], rest])
        data = channel.recv(1 << 16)
        if not data:
            return {"event": "refused", "why": _last_words(channel, buffer)}, b""
        buffer += data
    return {"event": "refused", "why": "its login scripts print without end"}, b""


def _last_words(channel: Any, out: bytes) -> str:
    err = b""
    with contextlib.suppress(OSError):
        while data := channel.recv_stderr(1 << 16):
            err += data
    if channel.recv_exit_status() < 0:
        raise ConnectionResetError("it hung up before the runtime had started")
    said = (err or out)[-_LAST_WORDS:].decode("utf-8", "replace").strip()
    return f"its runtime did not start: {said or 'it said nothing'}"


def _shut(channel: Any) -> None:
    if channel is not None:
        channel.close()
