"""``runtime.pyz ROOT SLOT NODES SLOTS [SOCKET [LEASE]]``: the runtime of one slot.

It says hello on stdout, serves its own stdin and stdout as one session (and the socket, if named,
as many more), and ends when stdin does, or has said nothing for LEASE seconds. SLOTS 0 is one for
each core, x1.5 one and a half.
"""

import os
import signal
import socket
import sys
import threading
import time

from workflows.node.connections import Pipes, accept, listen
from workflows.node.environment import environment
from workflows.node.orphans import Orphans
from workflows.node.senders import Senders
from workflows.node.server import Runtime, Session
from workflows.node.slots import Slots
from workflows.node.storage import Storage
from workflows.node.watchdog import MARK, Watchdog, kill_marked
from workflows.node.wire import Wire
from workflows.node.workplace import Workplaces

_END_S = 2.0


def main(arguments: list[str]) -> int:
    """Serve until stdin ends."""
    root, slot, nodes, slots = arguments[:4]
    lease_s = float(arguments[5]) if len(arguments) > 5 else None
    for number in (signal.SIGINT, signal.SIGHUP):
        # The driver decides, by closing stdin. Not SIG_IGN, which all commands would inherit.
        signal.signal(number, _ignore)
    mark = os.urandom(8).hex()
    wire = Wire(Pipes())
    if lease_s is not None:
        os.write(1, b"\n")  # what a login script has printed may lack the end of its line
    try:
        storage = Storage(root)
    except OSError as error:
        wire.send({"event": "refused", "why": str(error)})
        return 1
    watchdog = Watchdog(mark, storage.tmp)
    count = slots_of(slots, len(os.sched_getaffinity(0)))
    env = environment(slot, nodes, **{MARK: mark})
    places = Workplaces(storage, Orphans().are_gone)
    runtime = Runtime(storage, Slots(count), env, Senders(storage), places)
    session = Session(runtime, wire)
    try:
        if len(arguments) > 4:
            listener = listen(arguments[4])

            def serve(stream: socket.socket) -> None:
                Session(runtime, Wire(stream)).serve()

            threading.Thread(target=accept, args=(listener, serve), daemon=True).start()
        about = {"pid": os.getpid(), "python": sys.version.split()[0], "root": storage.root}
        wire.send(dict(about, event="hello"))
        # Not here: what this thread would start could not be told from orphans.
        serving = threading.Thread(target=session.serve, args=(lease_s,))
        serving.start()
        serving.join()
        return 0
    finally:
        if _end(mark, runtime):
            watchdog.dismiss()


def slots_of(text: str, cores: int) -> int:
    """Return how many slots ``4``, ``0`` or ``x1.5`` mean on that many cores.

    >>> slots_of("4", 2), slots_of("0", 2), slots_of("x1.5", 2), slots_of("x0.1", 2)
    (4, 2, 3, 1)
    """
    if text.startswith("x"):
        return max(1, round(cores * float(text[1:])))
    return int(text) or cores


def _ignore(*_: object) -> None:
    pass


def _end(mark: str, runtime: Runtime) -> bool:
    """Kill what all sessions run, then remove its files; tell whether it ended in time.

    If not, one copies a large file perhaps, the rest is left to the watchdog.
    """
    runtime.slots.close()
    deadline = time.monotonic() + _END_S
    while True:
        # In this order: what is idle before the kill starts nothing after it.
        are_idle = runtime.slots.are_idle(0)
        kill_marked(mark, runtime.storage.tmp)
        if are_idle:
            runtime.storage.close()
            return True
        if time.monotonic() >= deadline:
            return False
        runtime.slots.are_idle(0.01)


def start() -> None:
    """Run `main` and leave at once: threads that wait for commands must not hold it back."""
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)
