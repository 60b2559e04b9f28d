"""Files that come from elsewhere: pieces from other nodes, restored checkpoints. And: damage."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any, Optional

from workflows.node.ledger import Record
from workflows.node.storage import Storage, checksum, remove
from workflows.node.work import KeyFailed


def bring(storage: Storage, step: str, item: dict[str, Any]) -> Record:
    """Fetch one file, compare it with the checksum its maker computed, and publish it as a key.

    Raises:
        KeyFailed: it is not there, or not what it was.
    """
    scratch = storage.scratch()
    tmp = os.path.join(scratch, "file")
    try:
        _fetch(item["path"], tmp, share=item.get("share", False))
        found = (os.path.getsize(tmp), checksum(tmp))
        if found != (item["bytes"], item["crc"]):
            raise KeyFailed(f"damaged: {found} is not {(item['bytes'], item['crc'])}", step)
        record = {name: item[name] for name in ("key", "id", "bytes", "crc")}
        record.update({name: item[name] for name in item if name in ("spec", "inputs", "totals")})
        record["metrics"] = {"bytes_out": item["bytes"]}
        return storage.publish(step, tmp, record, by_name=item.get("by_name", False))
    except OSError as error:
        raise KeyFailed(f"could not be brought: {error}", step) from error
    finally:
        remove(scratch)


def _fetch(path: str, tmp: str, *, share: bool) -> None:
    if share:
        with contextlib.suppress(OSError):
            os.link(path, tmp)  # the same disk: two nodes' immutable outputs may share their bytes
            return
    shutil.copyfile(path, tmp)


def damaged(storage: Storage, step: str) -> Iterator[dict[str, Any]]:
    """Read every output of `step` again; forget those missing or different, and yield them."""
    ledger = storage.ledger(step)
    for identity, entry in ledger.entries().items():
        record = ledger.record(identity)
        why = _damage(storage, step, record) if record else None
        if why is not None:
            storage.drop(step, [identity], why)
            yield {"key": entry.key, "id": identity, "why": why}


def _damage(storage: Storage, step: str, record: Record) -> Optional[str]:
    path = storage.path(step, record["id"], record["key"])
    if "pieces" in record:
        parts = [(os.path.join(path, name), size, crc) for name, size, crc in record["pieces"]]
    else:
        parts = [(path, record["bytes"], record["crc"])]
    for part, size, crc in parts:
        try:
            found = os.path.getsize(part)
            if found != size:
                return f"has {found} bytes, had {size}"
            if checksum(part) != crc:
                return "its bytes have changed"
        except OSError as error:
            return f"cannot be read: {error.strerror}"
    return None
