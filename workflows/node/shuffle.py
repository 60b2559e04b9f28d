"""A node's part in a shuffle: fetch its pieces from other nodes."""

import contextlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from workflows.node import bring, push
from workflows.node.files import remove
from workflows.node.https import BROKEN, Credential, Gone, NotKept, Source, path_of
from workflows.node.storage import Storage
from workflows.node.work import KeyFailed

Message = dict[str, Any]
_BATCH_BYTES = 64 << 20


class Shuffle:
    """The parameters of one `bring` from other nodes: owners of pieces, and the credential."""

    def __init__(self, storage: Storage, message: Message) -> None:
        self._storage, self._step = storage, message["step"]
        self._senders: Mapping[str, Sequence[Any]] = message["senders"]
        self._credential = Credential(message["certificate"], message["token"])
        self._down: dict[str, str] = {}  # sender -> why it cannot be reached

    def batches(self, items: Sequence[Message]) -> Iterator[list[Message]]:
        """Cut items into batches of one sender each, in turn; own pieces, from none, come first."""
        by_sender: dict[str, list[Message]] = {}
        for item in items:
            by_sender.setdefault(str(item.get("sender", "")), []).append(item)
        yield from push.batches(by_sender.pop("", []))
        cut = [push.batches(given, _BATCH_BYTES) for given in by_sender.values()]
        for turn in itertools.zip_longest(*cut):
            yield from filter(None, turn)

    def run(self, batch: Sequence[Message]) -> Iterator[Message]:
        """Bring one batch over one connection; yield what came of each item."""
        sender = str(batch[0].get("sender", ""))
        source = None
        if sender:
            host, port = self._senders[sender]
            source = Source(host, port, self._credential)
        with contextlib.closing(source) if source else contextlib.nullcontext():
            for item in batch:
                failed = {"event": "failed", "key": item["key"], "id": item["id"]}
                failed.update(step=self._step, status=0, stderr="")
                try:
                    record = self._fetched(item, source) if source else self._own(item)
                    yield dict(record, event="brought")
                except KeyFailed as failure:
                    yield dict(failed, **failure.event)
                except _Unreachable as error:
                    self._down[sender] = str(error)
                    yield dict(failed, why=f"{error}", unreachable=int(sender))

    def _own(self, item: Message) -> Message:
        path = path_of(self._storage, item["made"])
        if path is None:
            raise KeyFailed("is not here any longer", self._step)
        return bring.bring(self._storage, self._step, dict(item, path=path, share=True))

    def _fetched(self, item: Message, source: Any) -> Message:
        if str(item["sender"]) in self._down:
            raise _Unreachable(self._down[str(item["sender"])])
        scratch = self._storage.scratch()
        tmp = os.path.join(scratch, "file")
        try:
            crc = source.fetch(item["made"], item["bytes"], tmp)
        except Gone as gone:
            raise KeyFailed(f"could not be brought: {gone}", self._step) from gone
        except NotKept as error:
            raise KeyFailed(f"could not be kept: {error}", self._step) from error
        except BROKEN as error:
            raise _Unreachable(str(error) or type(error).__name__) from error
        else:
            return bring.published(self._storage, self._step, item, tmp, (item["bytes"], crc))
        finally:
            remove(scratch)


class _Unreachable(Exception):
    """A sender is lost, or out of reach of this node: the driver finds out which."""
