"""The runtime: sessions in JSON lines, and the slots that run commands.

A session is one connection: the runtime's own stdin and stdout, or one to its private socket. When
a session ends, its commands are killed; when the runtime's stdin ends, so does the runtime. The
operations of a session are answered in order; the events of a `run` come as its keys end.

=========  ==============================================  =========================================
operation  fields                                          answered by
=========  ==============================================  =========================================
ping       n                                               pong: n
list       steps                                           listing: steps -> {identity: bytes}
history    step                                            history: records, oldest first
records    step, ids                                       records: those that are done
need       digests                                         needed: digests that are not here yet
file       digest, size, then raw bytes                    (nothing)
run        work, keys                                      done / failed per key, then ran
bring      step, items                                     brought / failed per item, then ran
read       step, id, key                                   data: size, raw bytes; ...; end: crc
check      steps                                           bad per damaged key, then checked
drain      --                                              (nothing)
drop       step, ids, why                                  dropped: count
steps      --                                              steps: names, orphans, bytes
=========  ==============================================  =========================================

Anything that cannot be answered comes back as ``error`` with a ``why``; the session goes on.
"""

import contextlib
import functools
import os
import queue
import sys
import threading
from typing import Any, Callable, NamedTuple, Optional

from workflows.node import bring
from workflows.node.processes import Groups
from workflows.node.storage import Storage, checksum, tree_size
from workflows.node.watchdog import MARK
from workflows.node.wire import Wire
from workflows.node.work import KeyFailed, KeyRun, Stage, Work

_READ = 1 << 20
Message = dict[str, Any]


class Slots:
    """S threads that take what is to be run from one queue, whatever session it came from."""

    def __init__(self, count: int) -> None:
        self._go = threading.Event()
        self._go.set()
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        for _ in range(count):
            threading.Thread(target=self._serve, daemon=True).start()

    def put(self, job: Callable[[], None]) -> None:
        """Run `job` when a slot is free."""
        self._queue.put(job)

    def _serve(self) -> None:
        while True:
            job = self._queue.get()
            self._go.wait()
            job()

    def drain(self) -> None:
        """Start nothing more; what runs is finished."""
        self._go.clear()


class Runtime(NamedTuple):
    """What all sessions of a runtime share."""

    storage: Storage
    slots: Slots
    env: dict[str, str]

    def check(self) -> None:
        """End at once if the disk was taken away: the node is lost then, and no command failed."""
        if not os.path.isdir(self.storage.tmp):
            os._exit(1)  # the watchdog sees to the commands


class Session:
    """One connection, served to its end."""

    def __init__(self, runtime: Runtime, wire: Wire) -> None:
        self.runtime, self.wire = runtime, wire
        self.groups = Groups()

    def serve(self, lease_s: Optional[float] = None) -> None:
        """Answer operations until the other side goes away; then kill what it had started.

        A side that says nothing for `lease_s` seconds has gone away too.
        """
        try:
            while True:
                message = self.wire.recv(lease_s)
                if message is None:
                    return
                self._answer(message)
        except (OSError, ValueError):
            return  # the other side is gone, or is no driver: nobody is left to tell
        finally:
            self.groups.cancel()
            with contextlib.suppress(OSError):
                self.wire.close()

    def _answer(self, message: Message) -> None:
        operation = getattr(self, "op_" + str(message.get("op")), None)
        try:
            if operation is None:
                raise ValueError(f"unknown operation {message.get('op')!r}")
            operation(message)
        except (ValueError, KeyError, TypeError) as error:
            self.wire.send({"event": "error", "why": f"{type(error).__name__}: {error}"})
        except OSError as error:
            if error.filename is None and error.errno in (32, 104, None):
                raise  # the connection broke
            self.runtime.check()
            self.wire.send({"event": "error", "why": str(error)})

    # -- looking -------------------------------------------------------------------------------

    def op_ping(self, message: Message) -> None:
        """Answer at once: the driver takes a silent node for lost."""
        self.wire.send({"event": "pong", "n": message["n"]})

    def op_list(self, message: Message) -> None:
        """Say which keys are done."""
        steps = {step: self.runtime.storage.listing(step) for step in message["steps"]}
        self.wire.send({"event": "listing", "steps": steps})

    def op_history(self, message: Message) -> None:
        """Send every ledger line of a step."""
        records = self.runtime.storage.ledger(message["step"]).history()
        self.wire.send({"event": "history", "records": records})

    def op_records(self, message: Message) -> None:
        """Send the ledger records of some keys."""
        ledger = self.runtime.storage.ledger(message["step"])
        records = [ledger.record(identity) for identity in message["ids"]]
        self.wire.send({"event": "records", "records": [r for r in records if r is not None]})

    def op_steps(self, message: Message) -> None:
        """Say what is kept here: for each step its keys, their bytes, and what nobody refers to."""
        storage = self.runtime.storage
        steps = {}
        for step in storage.steps():
            entries = storage.ledger(step).entries()
            orphans = {}
            for name in storage.orphans(step):
                orphans[name] = tree_size(os.path.join(storage.root, "data", step, name)) or 0
            kept = {identity: [entry.key, entry.size] for identity, entry in entries.items()}
            steps[step] = {"keys": kept, "orphans": orphans}
        self.wire.send({"event": "steps", "steps": steps})

    def op_read(self, message: Message) -> None:
        """Send one output as raw bytes."""
        storage = self.runtime.storage
        path = storage.path(message["step"], message["id"], message["key"])
        with open(path, "rb") as file:
            while True:
                data = file.read(_READ)
                if not data:
                    break
                self.wire.send_bytes({"event": "data"}, data)
        self.wire.send({"event": "end", "crc": checksum(path)})

    def op_check(self, message: Message) -> None:
        """Read every output again and report those that no longer are what the ledger says."""
        # Beside the session's own thread: it takes long, and pings must be answered meanwhile.
        threading.Thread(target=self._check, args=(message["steps"],), daemon=True).start()

    def _check(self, steps: list[str]) -> None:
        checked = 0
        with contextlib.suppress(OSError):
            for step in steps or self.runtime.storage.steps():
                checked += len(self.runtime.storage.ledger(step).entries())
                for bad in bring.damaged(self.runtime.storage, step):
                    self.wire.send(dict(bad, event="bad", step=step))
            self.wire.send({"event": "checked", "keys": checked})

    # -- changing ------------------------------------------------------------------------------

    def op_need(self, message: Message) -> None:
        """Say which shipped files are not here yet."""
        missing = [
            digest for digest in message["digests"] if not os.path.exists(self._file(digest))
        ]
        self.wire.send({"event": "needed", "digests": missing})

    def op_file(self, message: Message) -> None:
        """Take one shipped file; its name is its digest, so that a second ship sends nothing."""
        data = self.wire.recv_bytes(message["size"])
        if len(data) < message["size"]:
            raise ConnectionResetError("cut off within a shipped file")
        tmp = os.path.join(self.runtime.storage.scratch(), "file")
        with open(tmp, "wb") as file:
            file.write(data)
        os.chmod(tmp, 0o555)  # noqa: S103 - scripts must be runnable
        os.rename(tmp, self._file(message["digest"]))

    def op_drain(self, _: Message) -> None:
        """Start no more keys: the node is about to be taken away."""
        self.runtime.slots.drain()

    def op_drop(self, message: Message) -> None:
        """Take keys out."""
        storage = self.runtime.storage
        count = storage.drop(message["step"], message["ids"], message["why"])
        self.wire.send({"event": "dropped", "count": count})

    def op_run(self, message: Message) -> None:
        """Run a command over keys; those that are done already are only reported."""
        asked = message["work"]
        env = dict(self.runtime.env, **asked["env"])
        stages = [Stage(**stage) for stage in asked["stages"]]
        work = Work(asked["step"], asked["mode"], asked["spec"], stages, env)

        def run(item: Message) -> Message:
            return KeyRun(self.runtime.storage, work, item, self.groups)()

        self._each(work.step, message["keys"], run, "done")

    def op_bring(self, message: Message) -> None:
        """Bring files from elsewhere and publish them as keys of a step."""
        step = message["step"]

        def run(item: Message) -> Message:
            return bring.bring(self.runtime.storage, step, item)

        self._each(step, message["items"], run, "brought")

    def _each(
        self, step: str, items: list[Message], run: Callable[[Message], Message], event: str
    ) -> None:
        storage = self.runtime.storage
        storage.ledger(step).entries()  # read what others have added since
        todo = [item for item in items if not storage.is_done(step, item["id"])]
        self.wire.send({"event": "running", "had": len(items) - len(todo), "todo": len(todo)})
        left = _Countdown(len(todo), lambda: self.wire.send({"event": "ran"}))

        def job(item: Message) -> None:
            try:
                if not self.groups.cancelled:
                    self.wire.send(self._outcome(step, item, run, event))
            except OSError:
                self.groups.cancel()  # nobody listens any more
            finally:
                left.one()

        for item in todo:
            self.runtime.slots.put(functools.partial(job, item))

    def _outcome(
        self, step: str, item: Message, run: Callable[[Message], Message], event: str
    ) -> Message:
        failed = {"event": "failed", "key": item["key"], "id": item["id"], "step": step}
        try:
            record = run(item)
        except KeyFailed as failure:
            self.runtime.check()
            return dict(failed, **failure.event)
        except Exception as error:  # noqa: BLE001 - the slot must live on, and the key be named
            self.runtime.check()
            return dict(failed, why=f"{type(error).__name__}: {error}", status=0, stderr="")
        return dict(_without_pieces(record), event=event)

    def _file(self, digest: str) -> str:
        return os.path.join(self.runtime.storage.root, "files", digest)


class _Countdown:
    """Calls `then` once, when `count` things have happened."""

    def __init__(self, count: int, then: Callable[[], None]) -> None:
        self._left, self._then = count, then
        self._mutex = threading.Lock()
        if count == 0:
            then()

    def one(self) -> None:
        with self._mutex:
            self._left -= 1
            last = self._left == 0
        if last:
            with contextlib.suppress(OSError):
                self._then()


def _without_pieces(record: Message) -> Message:
    return {name: value for name, value in record.items() if name not in ("inputs", "totals")}


def environment(mark: str, slot: str, nodes: str) -> dict[str, str]:
    """Return the environment every command gets: the runtime's own, in the C locale."""
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
    return dict(
        os.environ,
        LC_ALL="C",
        PATH=path,
        WORKFLOWS_SLOT=slot,
        WORKFLOWS_NODES=nodes,
        **{MARK: mark},
    )
