"""Nodes that are directories of this machine, each with a runtime of its own as a subprocess.

The runtime is the packed file that ssh nodes run, started the same way. It is started once per run,
by the process that schedules; the processes Luigi forks connect to its private socket.
"""

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import threading
import weakref

from workflows.errors import NodeLost, NodeRefused
from workflows.node.wire import Wire
from workflows.transports.pack import runtime_pack

_START_S = 20.0


class LocalNode:
    """One slot as a directory; constructing it does nothing."""

    def __init__(self, slot: int, nodes: int, slots: int, root: str) -> None:
        self.slot, self.nodes, self.slots = slot, nodes, slots
        self.root = os.path.abspath(os.path.join(root, str(slot)))
        self.name = f"node {slot}"
        self._process: subprocess.Popen[bytes] | None = None
        self._hello = False
        self._driver = 0
        self._address = ""
        self._mutex = threading.Lock()
        _nodes.add(self)

    def start(self) -> None:
        """Start the runtime, without waiting for it: several nodes start side by side."""
        if self._process is not None and self._usable():
            return
        self.close()
        os.makedirs(self.root, exist_ok=True)
        program = os.path.join(self.root, f"runtime-{runtime_pack().digest}.pyz")
        if not os.path.exists(program):
            _write_once(program, runtime_pack().data)
        self._address = f"workflows-{secrets.token_hex(12)}"
        numbers = [str(self.slot), str(self.nodes), str(self.slots)]
        with open(os.path.join(self.root, "runtime.log"), "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", program, self.root, *numbers, self._address],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self._driver, self._hello = os.getpid(), False

    def connect(self) -> Wire:
        """Return a wire to a new session of the runtime.

        Raises:
            NodeLost: the runtime is gone, or the run it belongs to is.
            NodeRefused: the runtime could not start.
        """
        with self._mutex:
            self._wait_for_hello()
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            stream.connect("\0" + self._address)
        except OSError as error:
            stream.close()
            raise NodeLost(self.name, f"its runtime is gone ({error.strerror})") from error
        return Wire(stream)

    def revive(self) -> None:
        """Start a new runtime in place of one that is lost, if the run is still on.

        Raises:
            NodeLost: this process has outlived the run that it belongs to.
        """
        if self._driver not in (0, os.getpid(), os.getppid()):
            raise NodeLost(self.name, "the run that it worked for is gone")
        with self._mutex:
            self._process = None
            self.start()

    def close(self) -> None:
        """End the runtime and wait for it: it kills its commands and sweeps its temporary files."""
        process, self._process = self._process, None
        if process is None or self._driver != os.getpid():
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_START_S)

    def forget(self) -> None:
        """In a forked child: let go of the runtime's stdin, so that it ends with the driver."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def _usable(self) -> bool:
        return self._driver != os.getpid() or self._process is None or self._process.poll() is None

    def _wait_for_hello(self) -> None:
        if self._process is None:
            self.start()
        if self._hello or self._process is None or self._driver != os.getpid():
            return
        stdout = self._process.stdout
        line = stdout.readline() if stdout is not None else b""
        if b'"hello"' not in line:
            raise NodeRefused(self.name, self._last_words(line))
        self._hello = True

    def _last_words(self, line: bytes) -> str:
        with open(os.path.join(self.root, "runtime.log"), "rb") as log:
            said = (line or log.read()[-2000:]).decode("utf-8", "replace").strip()
        return f"its runtime did not start: {said or 'it said nothing'}"


_nodes: "weakref.WeakSet[LocalNode]" = weakref.WeakSet()


def _forget_all() -> None:
    for node in _nodes:
        node.forget()


os.register_at_fork(after_in_child=_forget_all)


def _write_once(path: str, data: bytes) -> None:
    tmp = f"{path}.{secrets.token_hex(4)}"
    with open(tmp, "wb") as file:
        file.write(data)
    os.rename(tmp, path)
