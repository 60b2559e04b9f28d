"""Files from elsewhere: pieces of this machine's nodes, and checkpoints; and checks for damage."""

import contextlib
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Optional

from workflows.node.files import checksum, remove
from workflows.node.ledger import Record
from workflows.node.storage import Contradiction, Storage
from workflows.node.work import KeyFailed


class Damaged(KeyFailed):
    """The received bytes differ from the sent ones: a retry may help; the event says so."""

    def __init__(self, why: str, step: str) -> None:
        super().__init__(why, step)
        self.event["damaged"] = True


def bring(storage: Storage, step: str, item: dict[str, Any]) -> Record:
    """Fetch one file, compare it with the checksum its maker computed, and publish it as a key.

    Raises:
        KeyFailed: it is not there, or not what it was.
    """
    scratch = storage.scratch()
    tmp = os.path.join(scratch, "file")
    try:
        _fetch(item["path"], tmp, share=item.get("share", False))
        return published(storage, step, item, tmp, size_and_crc(tmp))
    except OSError as error:
        raise KeyFailed(f"could not be brought: {error}", step) from error
    finally:
        remove(scratch)


def size_and_crc(path: str) -> "tuple[int, str]":
    """Return a file's bytes and checksum."""
    return os.path.getsize(path), checksum(path)


def published(
    storage: Storage, step: str, item: dict[str, Any], tmp: str, found: "tuple[int, str]"
) -> Record:
    """Publish a file whose bytes and checksum were `found`, if they are what they must be.

    Raises:
        Damaged: they are not.
        KeyFailed: the name is taken, or its maker made something else before.
    """
    if found != (item["bytes"], item["crc"]):
        raise Damaged(f"damaged: {found} is not {(item['bytes'], item['crc'])}", step)
    record = {name: item[name] for name in ("key", "id", "bytes", "crc")}
    record["metrics"] = {"bytes_out": item["bytes"]}
    kept = ("spec", "inputs", "metrics", "totals", "maker")
    record.update({name: item[name] for name in kept if name in item})
    try:
        return storage.publish(step, tmp, record, by_name=item.get("by_name", False))
    except Contradiction as error:
        failure = KeyFailed("other files of its maker are here already", step)
        failure.event["differs"] = True
        raise failure from error


def take(storage: Storage, step: str, item: dict[str, Any], chunks: Iterator[bytes]) -> Record:
    """Publish what the driver sends; what cannot be kept is read nevertheless.

    Raises:
        KeyFailed: it is not what it was, or there is no room for it.
    """
    scratch = storage.scratch()
    tmp = os.path.join(scratch, "file")
    size, crc = 0, 0
    try:
        with open(tmp, "wb", buffering=0) as file:
            for chunk in chunks:
                size, crc = size + len(chunk), zlib.crc32(chunk, crc)
                view = memoryview(chunk)
                while view:
                    view = view[file.write(view) :]
        return published(storage, step, item, tmp, (size, f"{crc:08x}"))
    except ConnectionError:
        raise
    except OSError as error:
        raise KeyFailed(f"could not be kept: {error}", step) from error
    finally:
        for _ in chunks:
            pass
        remove(scratch)


def _fetch(path: str, tmp: str, *, share: bool) -> None:
    if share:
        with contextlib.suppress(OSError):
            os.link(path, tmp)  # the same disk: two nodes' immutable outputs may share their bytes
            return
    shutil.copyfile(path, tmp)


def damaged(
    storage: Storage, step: str, identities: Optional[Sequence[str]] = None
) -> Iterator[dict[str, Any]]:
    """Read outputs of `step` again, all or some; forget those missing or different, yield them."""
    ledger = storage.ledger(step)
    for identity, entry in ledger.entries().items():
        if identities is not None and identity not in identities:
            continue
        record = ledger.record(identity)
        why = _damage(storage, step, record) if record else None
        if record is not None and why is not None:
            storage.drop(step, [identity], why)
            yield {"key": entry.key, "id": identity, "why": why, "spec": record.get("spec", "")}


def _damage(storage: Storage, step: str, record: Record) -> Optional[str]:
    path = storage.path(step, record["id"], record["key"])
    if "pieces" not in record:
        return _difference(path, record["bytes"], record.get("crc"))
    for name, size, crc in record["pieces"]:
        why = _difference(os.path.join(path, name), size, crc)
        if why is not None:
            return f"in its file {name}: {why}"
    return None


def _difference(path: str, size: int, crc: Optional[str]) -> Optional[str]:
    try:
        found = os.path.getsize(path)
        if found != size:
            return f"has {found} bytes, had {size}"
        if crc is None:
            return "its ledger line has no checksum"
        return None if checksum(path) == crc else "its bytes have changed"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
