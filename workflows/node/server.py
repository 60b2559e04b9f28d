"""The runtime: sessions in JSON lines.

A session is one connection: the runtime's own stdin and stdout, or one to its private socket. When
a session ends, its commands are killed; when the runtime's stdin ends, so does the runtime. The
operations of a session are answered in order; the events of a `run` come as its keys end.

=========  ==============================================  =========================================
operation  fields                                          answered by
=========  ==============================================  =========================================
ping       n                                               pong: n
list       steps [, ids]                                   listing: steps -> {identity: bytes}
history    step                                            history: records, oldest first
records    step, ids                                       records: those that are done
others     step, proofs: maker -> proof                    others: makers whose files here differ
file       digest, size, then raw bytes                    (nothing)
run        work, keys                                      lacks: digests of files to be sent first;
                                                           else running: had, todo, then done /
                                                           failed per key, then ran; stale: n, url,
                                                           where a signature is too old
signed     n, urls                                         (nothing)
bring      step, items; from nodes also certificate,       brought / failed per item, then ran
           token, senders: name -> host, port
take       step, item, size, then raw bytes                brought / failed
serve      address, certificate, key, token                serving: port; or refused: why
unserve    --                                              unserved
push       step, items                                     pushed / failed per item, then ran;
                                                           digested: n, uploads, where URLs are to
                                                           be signed for their MD5s
require    packages, programs                              required: missing, no_program, python
read       step, id, key                                   data: size, raw bytes; ...; end: crc
check      steps [, ids]                                   bad per damaged key, then checked
drain      --                                              (nothing)
drop       step, ids, why                                  dropped: count
steps      --                                              steps: names, orphans, bytes
ledgers    --                                              ledgers: steps
=========  ==============================================  =========================================

Read-only operations are in ``looking.py``, those of the verbs in ``verbs.py``.

Anything that cannot be answered comes back as ``error`` with a ``why``; the session goes on.
"""

import contextlib
import functools
import os
import shutil
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional

from workflows.node.files import remove
from workflows.node.keys import file_digest
from workflows.node.looking import LookingOperations
from workflows.node.processes import Groups
from workflows.node.senders import Senders
from workflows.node.signatures import Signatures
from workflows.node.slots import Countdown, Slots
from workflows.node.storage import Storage
from workflows.node.verbs import Refusal, VerbOperations
from workflows.node.wire import Wire
from workflows.node.work import KeyFailed, KeyRun, Stage, Work
from workflows.node.workplace import Workplaces

# Modules that few runtimes need are imported where used: every run waits for runtimes to start.
if TYPE_CHECKING:
    from workflows.node.curl import Curl

_READ = 1 << 20
# Of a ledger record: who needs these asks for `records`.
_LONG = ("inputs", "totals", "pieces", "stat", "maker")
Message = dict[str, Any]


class Runtime(NamedTuple):
    """State that all sessions of a runtime share."""

    storage: Storage
    slots: Slots
    env: dict[str, str]
    senders: Senders
    places: Workplaces

    def check(self) -> None:
        """End at once if the disk was taken away: the node is lost then, and no command failed."""
        if not os.path.isdir(self.storage.tmp):
            os._exit(1)  # the watchdog sees to the commands


class Session(LookingOperations, VerbOperations):
    """One connection, served to its end."""

    def __init__(self, runtime: Runtime, wire: Wire) -> None:
        self.runtime, self.wire = runtime, wire
        self.storage, self.env, self.slots = runtime.storage, runtime.env, runtime.slots.count
        self.check, self.groups = runtime.check, Groups()
        self.signatures = Signatures(wire.send)

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
            self.signatures.close()
            self.let_go()
            self.runtime.senders.release(self)
            with contextlib.suppress(OSError):
                self.wire.close()

    def _answer(self, message: Message) -> None:
        operation = getattr(self, "op_" + str(message.get("op")), None)
        try:
            if operation is None:
                raise ValueError(f"unknown operation {message.get('op')!r}")
            operation(message)
        except Refusal as refusal:
            self.wire.send({"event": "error", "why": str(refusal)})
        except (ValueError, KeyError, TypeError) as error:
            self.wire.send({"event": "error", "why": f"{type(error).__name__}: {error}"})
        except OSError as error:
            if error.filename is None and error.errno in (32, 104, None):
                raise  # the connection broke
            self.runtime.check()
            self.wire.send({"event": "error", "why": str(error)})

    def op_ping(self, message: Message) -> None:
        """Answer at once: the driver takes a silent node for lost."""
        self.wire.send({"event": "pong", "n": message["n"]})

    # -- changing ------------------------------------------------------------------------------

    def op_file(self, message: Message) -> None:
        """Take one shipped file; its name is its digest, so that a second ship sends nothing."""
        data = self.wire.recv_bytes(message["size"])
        if len(data) < message["size"]:
            raise ConnectionResetError("cut off within a shipped file")
        if file_digest(data) != message["digest"]:
            raise ValueError(f"a shipped file is not what its digest {message['digest']} says")
        scratch = self.runtime.storage.scratch()
        try:
            tmp = os.path.join(scratch, "file")
            with open(tmp, "wb") as file:
                file.write(data)
            os.chmod(tmp, 0o555)  # noqa: S103 - scripts must be runnable
            os.rename(tmp, self._file(message["digest"]))
            _digest.cache_clear()
        finally:
            remove(scratch)

    def op_drain(self, _: Message) -> None:
        """Start no more keys: the node is about to be taken away."""
        self.runtime.slots.drain()

    def op_drop(self, message: Message) -> None:
        """Take keys out."""
        storage = self.runtime.storage
        count = storage.drop(message["step"], message["ids"], message["why"])
        self.wire.send({"event": "dropped", "count": count})

    def op_run(self, message: Message) -> None:
        """Run a command over keys; those that are done already are only counted.

        Where a shipped file is lacking, that alone is said. A key whose command exits with 75
        (EX_TEMPFAIL) is run again at once, `retries` times.
        """
        asked = message["work"]
        env = dict(self.runtime.env, **asked["env"])
        stages = [Stage(**stage) for stage in asked["stages"]]
        hidden = asked.get("hidden", ())
        work = Work(asked["step"], asked["mode"], asked["spec"], stages, env, hidden)
        shipped = {digest for stage in stages for digest in stage.files.values()}
        lacks = [digest for digest in shipped if not _is_whole(self._file(digest), digest)]
        if lacks:
            self.wire.send({"event": "lacks", "digests": sorted(lacks)})
            return

        def run(item: Message) -> Message:
            for left in reversed(range(1 + asked.get("retries", 0))):
                item = self.signatures.refreshed(stages[0].step, item)
                try:
                    return KeyRun(self.runtime.places, work, item, self.groups)()
                except KeyFailed as failure:
                    failure.hide(hidden)
                    # By a convention of sysexits.h a command so asks to be run again.
                    may_pass = failure.event["status"] == os.EX_TEMPFAIL
                    if not may_pass or not left or self.groups.cancelled:
                        raise
            raise AssertionError("unreachable")

        self._each(work.step, message["keys"], run, "done")

    def op_signed(self, message: Message) -> None:
        """Take URLs that the driver has signed."""
        self.signatures.take(message)

    def op_bring(self, message: Message) -> None:
        """Bring files from elsewhere and publish them as keys of a step."""
        step, items = message["step"], message["items"]
        if any("url" in item for item in items):
            from workflows.node.download import download

            self._transfer(step, items, download)
            return
        if "senders" in message:
            storage, todo = self.runtime.storage, self._todo(step, items)
            from workflows.node.shuffle import Shuffle

            shuffle = Shuffle(storage, message)
            self._batched(step, list(shuffle.batches(todo)), shuffle.run, len(items))
            return
        from workflows.node import bring

        def run(item: Message) -> Message:
            return bring.bring(self.runtime.storage, step, item)

        self._each(step, items, run, "brought")

    def op_take(self, message: Message) -> None:
        """Take one file whose bytes follow, and publish it."""
        from workflows.node import bring

        step, item = message["step"], message["item"]

        def take(item: Message) -> Message:
            return bring.take(self.runtime.storage, step, item, self._chunks(message["size"]))

        self.wire.send(self._outcome(step, item, take, "brought"))

    def _chunks(self, size: int) -> Iterator[bytes]:
        while size:
            data = self.wire.recv_bytes(min(size, _READ))
            if not data:
                raise ConnectionResetError("cut off within a file")
            size -= len(data)
            yield data

    def op_serve(self, message: Message) -> None:
        """Let other nodes of the run fetch what is here, until the session ends or says so."""
        from workflows.node.https import Credential

        credential = Credential(message["certificate"], message["token"], message["key"])
        try:
            port = self.runtime.senders.hold(self, message["address"], credential)
        except OSError as error:
            self.wire.send({"event": "refused", "why": error.strerror or str(error)})
            return
        self.wire.send({"event": "serving", "port": port})

    def op_unserve(self, _: Message) -> None:
        """Serve other nodes no longer, unless another session wants it."""
        self.runtime.senders.release(self)
        self.wire.send({"event": "unserved"})

    def op_push(self, message: Message) -> None:
        """Send outputs of a step to S3, with URLs that the driver signs once their MD5s are known.

        With credentials of its own this node signs them itself: then the items have URLs.
        """
        from workflows.node import push

        sign = self.signatures.for_uploads
        self._transfer(message["step"], message["items"], functools.partial(push.push, sign=sign))

    def op_require(self, message: Message) -> None:
        """Say which Python packages the commands of this node cannot import, and what it lacks."""
        from workflows.node import packages

        missing = packages.missing(message["packages"], self.runtime.env)
        path = self.runtime.env.get("PATH", os.defpath)
        lacks = [name for name in message["programs"] if not shutil.which(name, path=path)]
        said = {"missing": missing, "no_program": lacks, "python": sys.executable}
        self.wire.send({"event": "required", **said})

    def _transfer(
        self,
        step: str,
        items: list[Message],
        run: Callable[[Storage, str, list[Message], "Curl"], Iterator[Message]],
    ) -> None:
        """Send or fetch `items` with curl."""
        from workflows.node.curl import Curl
        from workflows.node.push import batches

        curl = Curl(self.runtime.env, self.groups)
        self._batched(
            step,
            list(batches(items)),
            lambda batch: run(self.runtime.storage, step, batch, curl),
            len(items),
        )

    def _batched(
        self,
        step: str,
        batches: list[list[Message]],
        run: Callable[[list[Message]], Iterator[Message]],
        asked: int,
    ) -> None:
        """Transfer batches, one of them a slot at a time."""
        todo = sum(map(len, batches))
        self.wire.send({"event": "running", "had": asked - todo, "todo": todo})
        left = Countdown(len(batches), lambda: self.wire.send({"event": "ran"}))

        def job(batch: list[Message]) -> None:
            try:
                if not self.groups.cancelled:
                    for event in _outcomes(run, batch):
                        self.wire.post(dict(event, step=step))
            except OSError:
                self.groups.cancel()  # nobody listens now
            finally:
                left.one()

        for batch in batches:
            self.runtime.slots.put(functools.partial(job, batch))

    def _each(
        self, step: str, items: list[Message], run: Callable[[Message], Message], event: str
    ) -> None:
        todo = self._todo(step, items)
        self.wire.send({"event": "running", "had": len(items) - len(todo), "todo": len(todo)})
        left = Countdown(len(todo), lambda: self.wire.send({"event": "ran"}))

        def job(item: Message) -> None:
            try:
                if not self.groups.cancelled:
                    self.wire.post(self._outcome(step, item, run, event))
            except OSError:
                self.groups.cancel()  # nobody listens now
            finally:
                left.one()

        for item in todo:
            self.runtime.slots.put(functools.partial(job, item))

    def _todo(self, step: str, items: list[Message]) -> list[Message]:
        """Return what is not here yet, or is here but is another one."""
        storage = self.runtime.storage
        storage.ledger(step).entries()  # read what others have added since
        return [
            item
            for item in items
            if not storage.is_done(step, item["id"]) or storage.contradicts(step, item)
        ]

    def _outcome(
        self, step: str, item: Message, run: Callable[[Message], Message], event: str
    ) -> Message:
        failed = {"event": "failed", "key": item["key"], "id": item["id"], "step": step}
        if item.get("by_name"):
            failed["by_name"] = True
        try:
            record = run(item)
        except KeyFailed as failure:
            self.runtime.check()
            return dict(failed, **failure.event)
        except Exception as error:  # noqa: BLE001 - the slot must live on, and the key be named
            self.runtime.check()
            return dict(failed, why=f"{type(error).__name__}: {error}", status=0, stderr="")
        return dict(_summary(record), event=event)

    def _file(self, digest: str) -> str:
        return os.path.join(self.runtime.storage.root, "files", digest)


def _outcomes(
    run: Callable[[list[Message]], Iterator[Message]], batch: list[Message]
) -> Iterator[Message]:
    """Yield what comes of each item of a batch; where `run` cannot go on, that those left fail."""
    left = {item["id"]: item for item in batch}
    try:
        for event in run(batch):
            left.pop(event["id"], None)
            yield _summary(event)
        return
    except FileNotFoundError as error:
        why = f"this node has no {error.filename}: install it"
    except OSError as error:
        why = f"the node cannot: {error.strerror or error}"
    for item in left.values():
        yield {"event": "failed", "key": item["key"], "id": item["id"], "why": why, "stderr": ""}


def _summary(record: Message) -> Message:
    """Return what the driver is told of a key that ended: a record without what may be long."""
    return {name: value for name, value in record.items() if name not in _LONG}


def _is_whole(path: str, digest: str) -> bool:
    """Tell whether a shipped file is here, and is what its name says; read once in a runtime."""
    return os.path.exists(path) and _digest(path) == digest


@functools.cache
def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return file_digest(file.read())
