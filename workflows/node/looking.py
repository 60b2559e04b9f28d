"""The read-only operations of a session: which outputs are here, and whether they are intact."""

import contextlib
import os
import threading
from typing import Any, Callable

from workflows.node.files import checksum, tree_size
from workflows.node.storage import Storage
from workflows.node.wire import Wire

_READ = 1 << 20
Message = dict[str, Any]


class LookingOperations:
    """A part of a session, which has the attributes that are named here."""

    storage: Storage
    wire: Wire
    check: Callable[[], None]  # ends at once if the disk was taken away

    def op_list(self, message: Message) -> None:
        """Say which keys are done, of all or of those asked for."""
        asked = message.get("ids")
        steps = {step: self.storage.listing(step, asked) for step in message["steps"]}
        self.wire.send({"event": "listing", "steps": steps})

    def op_history(self, message: Message) -> None:
        """Send every ledger line of a step."""
        records = self.storage.ledger(message["step"]).history()
        self.wire.send({"event": "history", "records": records})

    def op_records(self, message: Message) -> None:
        """Send the ledger records of some keys."""
        ledger = self.storage.ledger(message["step"])
        records = [ledger.record(identity) for identity in message["ids"]]
        self.wire.send({"event": "records", "records": [r for r in records if r is not None]})

    def op_ledgers(self, _: Message) -> None:
        """Say which steps have a ledger here."""
        self.wire.send({"event": "ledgers", "steps": self.storage.steps()})

    def op_others(self, message: Message) -> None:
        """Say of which 1:n keys other files were delivered here than those of the given proofs."""
        ledger = self.storage.ledger(message["step"])
        ledger.entries()  # read what others have added since
        makers = [m for m, proof in message["proofs"].items() if ledger.has_other(m, proof)]
        self.wire.send({"event": "others", "makers": makers})

    def op_steps(self, message: Message) -> None:
        """Say what is kept here: for each step its keys, their bytes, and what nobody refers to."""
        storage = self.storage
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
        storage = self.storage
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
        threading.Thread(target=self._check, args=(message,), daemon=True).start()

    def _check(self, message: Message) -> None:
        from workflows.node import bring  # which few runtimes need

        checked, steps, ids = 0, message["steps"], message.get("ids")
        try:
            for step in steps or self.storage.steps():
                checked += len(self.storage.ledger(step).entries())
                for bad in bring.damaged(self.storage, step, ids):
                    self.wire.send(dict(bad, event="bad", step=step))
            answer: Message = {"event": "checked", "keys": checked}
        except Exception as error:  # noqa: BLE001 - the driver waits for an answer
            self.check()
            answer = {"event": "error", "why": f"{type(error).__name__}: {error}"}
        with contextlib.suppress(OSError):  # nobody listens now
            self.wire.send(answer)
