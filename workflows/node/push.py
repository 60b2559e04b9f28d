"""Outputs that go to S3: pack them if asked, say their MD5, send them with signed URLs."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

from workflows.node.curl import Curl, Transfer
from workflows.node.files import checksum, digests, remove
from workflows.node.packers import PACKERS
from workflows.node.parts import Sender, crc_of
from workflows.node.storage import Storage
from workflows.node.work import KeyFailed

Message = dict[str, Any]
BATCH_KEYS, BATCH_BYTES = 1000, 256 << 20
_DAMAGED = "is damaged; run: workflows fsck"


def batches(items: Sequence[Message], most_bytes: int = BATCH_BYTES) -> "Iterator[list[Message]]":
    """Cut items into batches that one connection takes: many small ones, or a single big one."""
    batch: list[Message] = []
    size = 0
    for item in items:
        if batch and (len(batch) >= BATCH_KEYS or size + item["bytes"] > most_bytes):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += item["bytes"]
    if batch:
        yield batch


def push(storage: Storage, step: str, items: Sequence[Message], curl: Curl) -> Iterator[Message]:
    """Send outputs of `step`; yield for each how many bytes arrived, and their MD5s."""
    scratch = storage.scratch()
    try:
        whole: list[tuple[Message, Transfer]] = []
        for number, item in enumerate(items):
            try:
                path = _packed(storage, step, item, os.path.join(scratch, f"{number}.packed"))
                if "parts" in item:
                    yield _in_parts(item, path, scratch, curl)
                    continue
                size, md5, crc = digests(path)
                if not item["compress"] and crc != item["crc"]:
                    raise KeyFailed(_DAMAGED, step)
                whole.append((item, Transfer(item["url"], path, size, md5)))
            except KeyFailed as failure:
                yield _failed(item, failure.event)
            except OSError as error:
                yield _failed(item, {"why": f"could not be sent: {error}", "code": ""})
        outcomes = curl.run([transfer for _, transfer in whole], scratch) if whole else []
        for (item, sent), trouble in zip(whole, outcomes):
            yield (
                _failed(item, trouble._asdict()) if trouble else _sent(item, sent.size, [sent.md5])
            )
    finally:
        remove(scratch)


def _packed(storage: Storage, step: str, item: Message, packed: str) -> str:
    """Return the path of what is to be sent; an output that is packed is what it was."""
    path = storage.path(step, item["id"], item["key"])
    if not item["compress"]:
        return path  # compared while it is read to be sent
    if checksum(path) != item["crc"]:
        raise KeyFailed(_DAMAGED, step)
    run_tool(PACKERS[item["compress"]], path, packed, step)
    return packed


def run_tool(argv: "list[str]", path: str, out: str, step: str) -> None:
    """Write what a packer makes of a file to another.

    Raises:
        KeyFailed: this node does not have it, or it failed.
    """
    try:
        with open(path, "rb") as source, open(out, "wb") as file:
            subprocess.run(argv, stdin=source, stdout=file, stderr=subprocess.PIPE, check=True)
    except FileNotFoundError as error:
        raise KeyFailed(f"this node has no {argv[0]}: install it", step) from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode("utf-8", "replace").strip()
        why = f"{argv[0]} exited {error.returncode}: {said}"
        raise KeyFailed(why, step, error.returncode) from error


def _in_parts(item: Message, path: str, scratch: str, curl: Curl) -> Message:
    """Send one big file in parts, and compare what was read with its checksum while it was."""
    trouble, sent = Sender(path, item["part_bytes"], curl, scratch)(item["parts"])
    if trouble is not None:
        return _failed(item, trouble._asdict())
    if not item["compress"] and crc_of(sent) != item["crc"]:
        return _failed(item, {"why": _DAMAGED, "code": ""})
    return _sent(item, sum(part.size for part in sent), [part.md5 for part in sent])


def _sent(item: Message, size: int, md5s: "list[str]") -> Message:
    return {"event": "pushed", "key": item["key"], "id": item["id"], "stored": size, "md5s": md5s}


def _failed(item: Message, about: Message) -> Message:
    return dict(about, event="failed", key=item["key"], id=item["id"])
