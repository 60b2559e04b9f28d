"""The process that holds an ssh fleet's connections.

One hub serves a run: it logs in to each node once, starts its runtime, and keeps asking whether it
is still there. A run's tasks reach the runtimes through the hub's private socket: one line
says which slot, one line answers, and from then on the socket is a session of that node's runtime.
So nobody else logs in or loads paramiko. The hub ends when its stdin does.

=========  ==========================  ==================================================
operation  fields                      answered by
=========  ==========================  ==================================================
attach     slot                        attached: generation, root, peer; then the session itself
revive     slot, generation, patience  revived
credential --                          credential: certificate, key, token; always the same
=========  ==========================  ==================================================

The first two may be answered by ``lost`` or ``refused`` with a ``why``.
"""

import concurrent.futures
import contextlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable

from workflows.errors import NodeLost, NodeRefused
from workflows.fleets.credential import make_credential
from workflows.fleets.hosts import from_json
from workflows.fleets.hubprocess import WAITS
from workflows.fleets.remote import Remote, Session
from workflows.fleets.ssh import BROKEN
from workflows.node.connections import accept, listen
from workflows.node.wire import Wire

_ASK_S = 10.0
_CHUNK = 1 << 16
_END_S = 10.0


Beside = Callable[..., None]


def main(beside: Beside) -> int:
    """Serve until stdin ends. The arguments: the hosts' open file, the socket's name, see `WAITS`.

    `beside` is done in a thread meanwhile, with the nodes and what else is in the file: it may move
    nodes to other hosts.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the driver decides, by closing stdin
    if WAITS in sys.argv and not os.read(0, 1):
        return 0  # nobody needs it
    with open(int(sys.argv[1]), "rb") as file:
        file.seek(0)
        told = json.load(file)
    hosts = [from_json(host) for host in told["hosts"]]
    name = sys.argv[2]
    listener = socket_of(name)
    if listener is None:
        return 0  # another process of the run was first to start one
    credential = _Credential()
    remotes = [Remote(host, slot, len(hosts), name) for slot, host in enumerate(hosts)]
    for remote in remotes:
        threading.Thread(target=_begin, args=(remote,), daemon=True).start()
    threading.Thread(
        target=accept,
        args=(listener, lambda stream: _serve(remotes, credential, stream)),
        daemon=True,
    ).start()
    threading.Thread(target=beside, args=(remotes, *told["about"]), daemon=True).start()
    with contextlib.suppress(BrokenPipeError):  # the driver is gone, which stdin says too
        os.write(1, b"listening\n")
    while os.read(0, 1):
        pass
    with concurrent.futures.ThreadPoolExecutor(len(remotes)) as pool:
        list(pool.map(Remote.end, remotes))
    return 0


def socket_of(name: str) -> "socket.socket | None":
    """Return the hub's listening socket, or None if there is a hub that listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect("\0" + name)
        except OSError:
            with contextlib.suppress(OSError):
                return listen(name)
    return None


def _begin(remote: Remote) -> None:
    with contextlib.suppress(NodeLost, NodeRefused):  # whoever needs the node is told
        remote.ensure()


class _Credential:
    """The run's credential for its nodes, made when it is first asked for, and only in memory."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._made: dict[str, str] | None = None

    def get(self) -> dict[str, str]:
        with self._mutex:
            if self._made is None:
                self._made = make_credential()
            return self._made


def _serve(remotes: list[Remote], credential: _Credential, stream: socket.socket) -> None:
    wire = Wire(stream)
    with contextlib.closing(stream), contextlib.suppress(OSError, ValueError):
        asked = wire.recv(_ASK_S)
        if asked is None:
            return
        stream.settimeout(None)
        if asked["op"] == "credential":
            wire.send(dict(credential.get(), event="credential"))
            return
        remote = remotes[asked["slot"]]
        try:
            if asked["op"] == "revive":
                remote.revive(asked["generation"], asked["patience"])
                wire.send({"event": "revived"})
                return
            session = remote.attach()
        except NodeLost as lost:
            wire.send({"event": "lost", "why": lost.why})
            return
        except NodeRefused as refused:
            wire.send({"event": "refused", "why": refused.why})
            return
        try:
            peer = remote.host.peer or remote.host.address  # another node may fill the slot by now
            about = {"generation": session.generation, "root": session.root, "peer": peer}
            wire.send(dict(about, event="attached"))
            _join(stream, session)
        finally:
            remote.release(session)


def _join(stream: socket.socket, session: Session) -> None:
    """Copy bytes between a process of the run and a session, until either ends."""

    def back() -> None:
        listener: socket.socket | None = stream
        with contextlib.suppress(*BROKEN):
            for data in session.frames():
                try:
                    if listener is not None:
                        listener.sendall(data)
                except OSError:
                    listener = None  # what is left of the session must be read all the same
        with contextlib.suppress(OSError):
            stream.shutdown(socket.SHUT_RDWR)

    copier = threading.Thread(target=back, daemon=True)
    copier.start()
    with contextlib.suppress(OSError):
        while data := stream.recv(_CHUNK):
            session.send(data)
    with contextlib.suppress(OSError):
        session.send(b"")
    copier.join(_END_S)


def start(beside: Beside = lambda _: None) -> None:
    """Be a hub, and leave at once: threads that wait for nodes must not hold it back."""
    code = main(beside)
    sys.stdout.flush()
    os._exit(code)
