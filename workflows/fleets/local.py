"""Nodes that are directories of this machine, each with a runtime of its own as a subprocess.

The runtime is the packed file that ssh nodes run, started the same way. It is started once per run,
by the process that schedules; tasks connect to its private socket.
"""

import contextlib
import fcntl
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import IO

from workflows.errors import NodeLost, NodeRefused
from workflows.fleets.pack import RUN, runtime_pack
from workflows.node.connections import has_ended, is_readable, peer
from workflows.node.wire import Wire

_START_S = 20.0
_END_S = 20.0


class LocalNode:
    """One slot as a directory; constructing it does nothing."""

    is_here = True
    peer = ""

    def __init__(
        self, slot: int, nodes: int, slots: int, root: str, silence_s: float = 20.0
    ) -> None:
        self.slot, self.nodes, self.slots, self.silence_s = slot, nodes, slots, silence_s
        self.root = os.path.abspath(os.path.join(root, str(slot)))
        self.name = f"node {slot}"
        self._process: subprocess.Popen[bytes] | None = None
        self._hello = False
        self._driver = self._launcher = 0  # processes
        self._life = self._hold = 0  # the two ends of a pipe; -1 where it is let go of
        self._address = ""
        self._ends: list[IO[bytes]] = []  # each ends with a runtime and what watches over it
        self._mutex = threading.Lock()
        _nodes.add(self)

    def start(self) -> None:
        """Start the runtime, without waiting for it: several nodes start side by side."""
        if self._hold and (self._driver != os.getpid() or self._is_alive()):
            return
        self.close()
        self._make_room()
        self._address = f"workflows-{secrets.token_hex(12)}"
        # Every runtime reads this pipe; only the driver holds its other end. So all end with the
        # driver, and none with a process that Luigi forked for a task that is no step.
        self._life, self._hold = os.pipe()
        self._driver = os.getpid()
        self._launch()

    def _make_room(self) -> None:
        try:
            os.makedirs(self.root, exist_ok=True)
            if not os.path.exists(self._program()):
                _write_once(self._program(), runtime_pack().data)
            open(os.path.join(self.root, "runtime.log"), "ab").close()
        except OSError as error:
            raise NodeRefused(self.name, f"{error.strerror}: {self.root}") from error

    @contextlib.contextmanager
    def _revival(self) -> Iterator[None]:
        """Keep other tasks of the run from reviving the node; its directory may be gone."""
        self._make_room()
        try:
            lock = open(os.path.join(self.root, "revive.lock"), "wb")  # noqa: SIM115
        except OSError as error:
            raise NodeRefused(self.name, f"{error.strerror}: {self.root}") from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def connect(self) -> Wire:
        """Return a wire to a new session of the runtime.

        Raises:
            NodeLost: the runtime is gone, or the run it belongs to is.
            NodeRefused: the runtime could not start.
        """
        if not self._hold:
            self.start()
        with self._mutex:
            self._wait_for_hello()
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            stream.connect("\0" + self._address)
            runtime = str(peer(stream)[0])
        except OSError as error:
            stream.close()
            raise NodeLost(self.name, f"its runtime is gone ({error.strerror})") from error
        return Wire(stream, runtime)

    def revive(self, runtime: str = "", *, wait: bool = True) -> None:
        """Put a new runtime in place of the one that was lost, for all tasks of the run.

        Raises:
            NodeLost: this process has outlived the run that it belongs to.
            NodeRefused: the new runtime could not start.
        """
        if not self._hold:
            return self.start()
        if self._driver not in (os.getpid(), os.getppid()):
            raise NodeLost(self.name, "the run that it worked for is gone")
        with self._mutex, self._revival():
            found = self._listening()
            if found and str(found) != runtime:
                return None  # another task of this run was first
            self._end(found, 0)  # it may be stopped or hang, and must not outlive its successor
            self._launch()
            self._wait_for_hello()
        return None

    def let_go(self) -> None:
        """Let the runtime end, without waiting for it: several nodes end side by side."""
        if self._hold > 0 and self._driver == os.getpid():
            os.close(self._hold)
            os.close(self._life)
            self._hold = -1

    def close(self) -> None:
        """End the runtime and wait: it kills its commands and removes its temporary files."""
        if not self._hold or self._driver != os.getpid():
            return
        self.let_go()
        self._hold = 0
        if self._process is not None:
            self._reap(self._process)
            self._process = None
        self._end(self._listening(), self.silence_s)
        deadline = time.monotonic() + self.silence_s
        while self._ends:  # what watches over a runtime that was killed has yet to clean up
            with self._ends.pop() as end:
                has_ended(end, max(0.0, deadline - time.monotonic()))

    def forget(self) -> None:
        """In a forked child: let go of what keeps the runtimes alive; they end with the driver."""
        self._mutex = threading.Lock()  # no thread that could hold the other one came along
        self._ends = []
        if self._hold > 0:
            os.close(self._hold)
            self._hold = -1

    def _program(self) -> str:
        return os.path.join(self.root, f"runtime-{runtime_pack().digest}.pyz")

    def _launch(self) -> None:
        if self._process is not None and self._launcher == os.getpid():
            self._reap(self._process)
        program = [sys.executable, "-I", "-S", "-c", RUN, self._program()]
        numbers = [str(self.slot), str(self.nodes), str(self.slots)]
        reader, writer = os.pipe()
        for end in [end for end in self._ends if has_ended(end, 0)]:
            self._ends.remove(end)
            end.close()
        self._ends.append(open(reader, "rb", 0))  # noqa: SIM115 - closed at the end
        with open(writer, "wb", 0), open(os.path.join(self.root, "runtime.log"), "ab") as log:
            self._process = subprocess.Popen(
                [*program, self.root, *numbers, self._address],
                stdin=self._life,
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=(writer,),
                start_new_session=True,
            )
        self._launcher, self._hello = os.getpid(), False

    def _is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _listening(self) -> int:
        """Return the process that answers at the address now, or 0."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            try:
                probe.connect("\0" + self._address)
            except OSError:
                return 0
            return peer(probe)[0]

    def _end(self, pid: int, patience_s: float) -> None:
        """Wait until a runtime no longer answers, which is when it is gone; in the end kill it."""
        deadline = time.monotonic() + patience_s
        while pid and self._listening() == pid:
            if time.monotonic() >= deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)  # its watchdog cleans up its commands and files
            time.sleep(0.005)

    def _reap(self, process: "subprocess.Popen[bytes]") -> None:
        """Let go of a runtime that has ended, or that never got as far as to listen."""
        if process.stdout is not None and not process.stdout.closed:
            if not has_ended(process.stdout, self.silence_s):
                process.kill()
            process.stdout.close()
        process.wait()

    def _wait_for_hello(self) -> None:
        """Wait for the first line of a runtime that this process started."""
        if self._hello or self._process is None or self._launcher != os.getpid():
            return
        stdout = self._process.stdout
        if stdout is None or not is_readable(stdout, _START_S):
            raise NodeLost(self.name, f"its runtime did not start within {_START_S:g} s")
        line = stdout.readline()
        if not line and self._process.wait(_END_S) < 0:
            raise NodeLost(self.name, "its runtime was killed while it started")
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
    try:
        with open(tmp, "wb") as file:
            file.write(data)
        os.rename(tmp, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(tmp)
        raise
