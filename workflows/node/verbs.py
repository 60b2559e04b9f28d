"""Operations of a node for the verbs: keys by name, one command at once, its health.

=========  ==============================================  =========================================
operation  fields                                          answered by
=========  ==============================================  =========================================
keys       steps (or none: all), fleet                     keys: step -> rows, oldest first
find       step, key                                       found: ledger and record, or none
join       fleet, spec                                     joined
named      --                                              named: steps
put        step, key, fleet                                ready, or failed
place      path, mode                                      ready, or failed
chunk      size, then raw bytes                            (nothing)
stored     bytes, crc                                      stored, or failed
lock       name                                            locked: whether it is ours now
note       name, text                                      noted; an empty text removes it
notes      --                                              notes: texts
eval       key, inputs, command, timeout_s, env            out: fd, raw bytes; ...; ended, or failed
exec       command, timeout_s, env, stdin (whether any)    began; out: fd, raw bytes; took: count;
                                                           ...; ended: status
input      size, then raw bytes; none: the end             (nothing)
health     --                                              health
leftovers  --                                              leftovers: items
discard    names                                           discarded: count
=========  ==============================================  =========================================

A row is ``[key, bytes, mtime, identity, ledger, is_made]``; what is made is a 1:n key's directory.
"""

import contextlib
import fcntl
import hashlib
import os
import shlex
import subprocess
import sys
import threading
import time
from typing import IO, Any, Callable, Optional

from workflows.node import leftovers
from workflows.node.files import remove
from workflows.node.incoming import Arriving, NewFile, NewKey
from workflows.node.inflow import Inflow
from workflows.node.keys import PIECES, digest_of
from workflows.node.processes import Groups, kill_group
from workflows.node.storage import ReadStorage, Storage
from workflows.node.wire import Wire
from workflows.node.work import BASH, KeyFailed, KeyRun, Stage, Work
from workflows.node.workplace import Workplaces

_READ = 1 << 20
Message = dict[str, Any]


class Refusal(ValueError):
    """A refusal of the node; its text explains itself."""


class Evaluation(KeyRun):
    """A command over one key whose output goes to whoever asked, and is not kept."""

    def send_to(self, wire: Wire) -> None:
        """Run the command; send all that it printed.

        Raises:
            KeyFailed: the command failed; what it printed is sent all the same.
        """
        try:
            try:
                stdin, _, _ = self._input()
                self._run_stages(stdin)
            finally:
                for fd, path in ((1, self._output()), (2, self.place.stderr(0))):
                    if os.path.exists(path):
                        with open(path, "rb") as file:
                            while data := file.read(_READ):
                                wire.send_bytes({"event": "out", "fd": fd}, data)
        finally:
            remove(self.place.path)


class VerbOperations:
    """The part of a session that serves the verbs."""

    storage: Storage
    env: "dict[str, str]"
    slots: int
    wire: Wire
    groups: Groups
    incoming: Optional[Arriving] = None
    inflow: Optional[Inflow] = None

    def let_go(self) -> None:
        """Give up what the session holds, as it ends."""
        for fd in self.__dict__.pop("_locks", []):
            os.close(fd)
        if self.incoming is not None:
            self.incoming.abandon()

    # -- keys by name --------------------------------------------------------------------------

    def op_keys(self, message: Message) -> None:
        """List keys by their names."""
        check_fleet(self.storage, message)
        wanted = message.get("steps")
        found: dict[str, list[list[Any]]] = {}
        for ledger in self.storage.steps():
            step = ledger[: -len(PIECES)] if ledger.endswith(PIECES) else ledger
            if wanted is None or step in wanted:
                found.setdefault(step, []).extend(self.storage.rows(ledger))
        self.wire.send({"event": "keys", "steps": found})

    def op_find(self, message: Message) -> None:
        """Say what is known of one key, if it is here."""
        check_fleet(self.storage, message)
        for ledger in (message["step"], message["step"] + PIECES):
            record = self.storage.named(ledger, message["key"])
            if record is not None and "pieces" not in record:
                kept = {name: record[name] for name in ("key", "id", "bytes", "crc")}
                self.wire.send({"event": "found", "ledger": ledger, "record": kept})
                return
        self.wire.send({"event": "found", "ledger": "", "record": None})

    def op_join(self, message: Message) -> None:
        """Belong to the fleet of whoever asks, who is about to make keys by their names."""
        check_fleet(self.storage, message, join=True)
        self.wire.send({"event": "joined"})

    def op_named(self, _: Message) -> None:
        """Say which steps have keys here that verbs made."""
        self.wire.send({"event": "named", "steps": self.storage.named_steps()})

    def op_put(self, message: Message) -> None:
        """Begin to take a key in, if its name is free."""
        step, key = message["step"], message["key"]

        def begin() -> Arriving:
            check_fleet(self.storage, message, join=True)
            self.storage.refuse_taken(step, key)
            return NewKey(self.storage, step, key)

        self._take_in(key, begin)

    def op_place(self, message: Message) -> None:
        """Begin to take in a file that is no key."""
        self._take_in(message["path"], lambda: NewFile(message["path"], message["mode"]))

    def _take_in(self, name: str, begin: Callable[[], Arriving]) -> None:
        try:
            if self.incoming is not None:
                self.incoming.abandon()
                self.incoming = None
            self.incoming = begin()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            self.wire.send({"event": "failed", "key": name, "why": why})
            return
        self.wire.send({"event": "ready"})

    def op_chunk(self, message: Message) -> None:
        """Take some bytes of what is on its way in."""
        data = self.wire.recv_bytes(message["size"])
        if len(data) == message["size"] and self.incoming is not None:
            self.incoming.add(data)

    def op_stored(self, message: Message) -> None:
        """Publish what has come in."""
        incoming, self.incoming = self.incoming, None
        if incoming is None:
            raise ValueError("nothing was put")
        try:
            identity = incoming.publish(message["bytes"], message["crc"])
        except KeyFailed as failure:
            self.wire.send(dict(failure.event, event="failed", key=incoming.name))
        else:
            self.wire.send({"event": "stored", "id": identity})
        finally:
            incoming.abandon()

    def op_lock(self, message: Message) -> None:
        """Take a lock that this session holds until it ends, unless another one has it."""
        folder = os.path.join(self.storage.root, "locks")
        os.makedirs(folder, exist_ok=True)
        name = hashlib.sha256(message["name"].encode("utf-8", "surrogateescape")).hexdigest()[:20]
        fd = os.open(os.path.join(folder, name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            self.wire.send({"event": "locked", "ours": False})
            return
        self.__dict__.setdefault("_locks", []).append(fd)
        self.wire.send({"event": "locked", "ours": True})

    def op_note(self, message: Message) -> None:
        """Keep a short text under a name until it is taken away."""
        path = os.path.join(self.storage.root, "notes", message["name"])
        if message["text"]:
            scratch = self.storage.scratch()
            tmp = os.path.join(scratch, "note")
            with open(tmp, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(message["text"])
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.replace(tmp, path)
            remove(scratch)
        else:
            remove(path)
        self.wire.send({"event": "noted"})

    def op_notes(self, _: Message) -> None:
        """Send all texts that are kept."""
        texts = []
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(os.path.join(self.storage.root, "notes")):
                with open(entry.path, encoding="utf-8", errors="surrogateescape") as file:
                    texts.append(file.read())
        self.wire.send({"event": "notes", "texts": sorted(texts)})

    # -- commands ------------------------------------------------------------------------------

    def op_eval(self, message: Message) -> None:
        """Run a command over one key and send back what it prints."""
        stage = Stage("eval", message["command"], {}, [], message["timeout_s"])
        env = dict(self.env, **message.get("env", {}))
        work = Work("eval", "map", "", [stage], env, message.get("hidden", ()))
        item = {"key": message["key"], "id": "", "inputs": message["inputs"], "by_name": True}

        def run() -> Message:
            try:
                Evaluation(Workplaces(self.storage), work, item, self.groups).send_to(self.wire)
            except KeyFailed as failure:
                return dict(failure.event, event="failed", key=message["key"])
            return {"event": "ended", "status": 0}

        self._beside(run)

    def op_exec(self, message: Message) -> None:
        """Run a command on the node itself, and send what it prints as it does."""
        self.inflow = Inflow() if message.get("stdin") else None
        env = dict(self.env, **message.get("env", {}), WORKFLOWS_ROOT=self.storage.root)
        command, timeout_s, inflow = message["command"], message["timeout_s"], self.inflow
        self._beside(lambda: self._execute(command, env, timeout_s, inflow))

    def op_input(self, message: Message) -> None:
        """Take some of what the command reads."""
        data = self.wire.recv_bytes(message["size"])
        if self.inflow is not None:
            self.inflow.add(data)

    def _beside(self, run: Callable[[], Message]) -> None:
        """Run beside the session's own thread: pings must be answered meanwhile."""

        def tell() -> None:
            with contextlib.suppress(OSError):  # nobody listens now
                try:
                    event = run()
                except Exception as error:  # noqa: BLE001 - or whoever asked would wait for ever
                    event = {"event": "error", "why": f"{type(error).__name__}: {error}"}
                self.wire.send(event)

        threading.Thread(target=tell, daemon=True).start()

    def _execute(
        self, command: str, env: "dict[str, str]", timeout_s: float, inflow: "Optional[Inflow]"
    ) -> Message:
        scratch = self.storage.scratch()
        try:
            process = subprocess.Popen(
                [*BASH, command],
                stdin=subprocess.DEVNULL if inflow is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=scratch,
                env=env,
                start_new_session=True,
            )
            self.groups.add(process.pid)
            self.wire.send({"event": "began"})
            over = threading.Event()

            def end() -> None:
                over.set()
                kill_group(process.pid)

            timer = threading.Timer(timeout_s, end)
            if timeout_s:
                timer.start()
            pipes = ((1, process.stdout), (2, process.stderr))
            readers = [
                threading.Thread(target=self._forward, args=(fd, pipe), daemon=True)
                for fd, pipe in pipes
            ]
            for reader in readers:
                reader.start()
            self._feed(process, inflow)
            for reader in readers:
                reader.join()
            status = process.wait()
            timer.cancel()
            self.groups.end(process.pid)
            why = f"timeout: ran longer than {timeout_s:g} s" if over.is_set() else ""
            return {"event": "ended", "status": status, "why": why}
        finally:
            remove(scratch)

    def _feed(self, process: "subprocess.Popen[bytes]", inflow: "Optional[Inflow]") -> None:
        if inflow is None or process.stdin is None:
            return

        def taken(count: int) -> None:
            self.wire.send({"event": "took", "count": count})

        threading.Thread(target=inflow.feed, args=(process.stdin, taken), daemon=True).start()

    def _forward(self, fd: int, pipe: "Optional[IO[bytes]]") -> None:
        if pipe is None:
            return
        with contextlib.suppress(OSError), pipe:
            while data := os.read(pipe.fileno(), _READ):
                self.wire.send_bytes({"event": "out", "fd": fd}, data)

    # -- the node ------------------------------------------------------------------------------

    def op_leftovers(self, _: Message) -> None:
        """Say which shipped files and runtimes of other versions are kept here."""
        self.wire.send({"event": "leftovers", "items": leftovers.found(self.storage)})

    def op_discard(self, message: Message) -> None:
        """Remove some of them."""
        count = leftovers.discard(self.storage, message["names"])
        self.wire.send({"event": "discarded", "count": count})

    def op_health(self, message: Message) -> None:
        """Say how the node is: what a person wants to know before work is sent to it."""
        disk = os.statvfs(self.storage.root)
        scratch = self.storage.scratch()
        with open(os.path.join(scratch, "probe"), "wb") as file:  # a full disk is not healthy
            file.write(b"\0" * 4096)
        remove(scratch)
        self.wire.send(
            {
                "event": "health",
                "python": sys.version.split()[0],
                "slots": self.slots,
                "cores": len(os.sched_getaffinity(0)),
                "load": round(os.getloadavg()[0], 2),
                "free": disk.f_bavail * disk.f_frsize,
                "size": disk.f_blocks * disk.f_frsize,
                "clock": time.time(),
                "root": self.storage.root,
            }
        )


def check_fleet(storage: Storage, message: Message, *, join: bool = False) -> None:
    """Check that the keys here belong to the fleet of whoever asks; `fleet` names its nodes.

    With another number or order of nodes a key's name would lead to another node. Keys that
    no verb has made are placed otherwise, and belong to no fleet.

    Raises:
        Refusal: they belong to another.
    """
    fleet = message.get("fleet")
    if fleet is None:
        return
    mine, nodes = digest_of(fleet), os.path.dirname(storage.root)
    steps: set[str] = set()
    other = ""
    for name in sorted(os.listdir(nodes)):
        root = os.path.join(nodes, name)
        digest, _, shown = _fleet_of(root).partition(" ")
        if digest == mine and root == storage.root and not steps:
            return
        if digest not in ("", mine) and (named := ReadStorage(root).named_steps()):
            steps.update(named)
            other = shown
    if steps:
        raise Refusal(_belonging(nodes, sorted(steps), other, message))
    if join:
        tmp = os.path.join(storage.scratch(), "fleet")
        with open(tmp, "w", encoding="utf-8") as file:
            names = ", ".join(fleet[:4])
            file.write(f"{mine} {len(fleet)} nodes: {names}\n{message.get('spec', '')}\n")
        os.rename(tmp, os.path.join(storage.root, "fleet"))
        remove(os.path.dirname(tmp))


def _fleet_of(root: str) -> str:
    """Return the note of the fleet that a slot's keys belong to: its digest, names and spec."""
    try:
        with open(os.path.join(root, "fleet"), encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""


def _belonging(nodes: str, steps: "list[str]", other: str, message: Message) -> str:
    """Say that keys belong to another fleet, and how they are moved to this one."""
    fleet, spec = message["fleet"], message.get("spec") or "NEW"
    names, was = [*other.split("\n"), ""][:2]
    if not was:  # earlier versions did not write it down
        was = f"local:{names.split()[0]}" if ": node 0" in names else "OLD"
    text = (
        f"the keys in {nodes} belong to a fleet of {names}, this one is {len(fleet)} nodes:"
        f" {', '.join(fleet[:4])}; use that one, --fleet {was}, or move what verbs have made to"
        " this one:"
    )
    lines, last = [text], []
    for step in steps:
        here, there = shlex.quote(f"moved/{step}"), shlex.quote(f"fleet://{step}/")
        lines.append(f"  workflows cp -r {there} {here} --fleet {was}")
        lines.append(f"  workflows rm -r {shlex.quote(step + '/')} --fleet {was}")
        last.append(f"  workflows cp -r {here} {there} --fleet {spec}")
    return "\n".join([*lines, *last])
