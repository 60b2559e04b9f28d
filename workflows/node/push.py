"""Outputs that go to S3: pack them if asked, say their MD5, send them with signed URLs."""

import hashlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from typing import IO, Any

from workflows.node.curl import Curl, Transfer
from workflows.node.files import checksum, remove
from workflows.node.packers import PACKERS
from workflows.node.storage import Storage
from workflows.node.work import KeyFailed

Message = dict[str, Any]
BATCH_KEYS, BATCH_BYTES = 1000, 256 << 20
# Reproducible: gzip without name and time, zstd without threads. Both are in every distribution.
_PARTS_AT_ONCE = 4
_READ = 1 << 20


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
                md5 = _md5(path)
                whole.append((item, Transfer(item["url"], path, os.path.getsize(path), md5)))
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
    """Return the path of what is to be sent, after comparing the output with its checksum."""
    path = storage.path(step, item["id"], item["key"])
    if checksum(path) != item["crc"]:
        raise KeyFailed("is damaged; run: workflows fsck", step)
    if not item["compress"]:
        return path
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
        raise KeyFailed(f"{argv[0]} exited {error.returncode}: {said}", step) from error


def _in_parts(item: Message, path: str, scratch: str, curl: Curl) -> Message:
    """Send one big file in parts; only a few of them are copied out of it at a time."""
    size = os.path.getsize(path)
    md5s: list[str] = []
    urls = item["parts"][: max(1, -(-size // item["part_bytes"]))]
    with open(path, "rb") as file:
        for start in range(0, len(urls), _PARTS_AT_ONCE):
            parts = []
            for number, url in enumerate(urls[start : start + _PARTS_AT_ONCE]):
                part = os.path.join(scratch, f"part.{number}")
                length, md5 = _copy(file, part, item["part_bytes"])
                parts.append(Transfer(url, part, length, md5))
            troubles = [one for one in curl.run(parts, scratch) if one is not None]
            if troubles:
                return _failed(item, troubles[0]._asdict())
            md5s += [part.md5 for part in parts]
    return _sent(item, size, md5s)


def _copy(source: "IO[bytes]", path: str, length: int) -> "tuple[int, str]":
    """Copy up to `length` bytes to a new file; return how many there were, and their MD5."""
    digest = hashlib.md5(usedforsecurity=False)
    left = length
    with open(path, "wb") as file:
        while left:
            data = source.read(min(_READ, left))
            if not data:
                break
            digest.update(data)
            file.write(data)
            left -= len(data)
    return length - left, digest.hexdigest()


def _md5(path: str) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    buffer = memoryview(bytearray(_READ))
    with open(path, "rb", buffering=0) as file:
        while True:
            count = file.readinto(buffer)
            if not count:
                return digest.hexdigest()
            digest.update(buffer[:count])


def _sent(item: Message, size: int, md5s: "list[str]") -> Message:
    return {"event": "pushed", "key": item["key"], "id": item["id"], "stored": size, "md5s": md5s}


def _failed(item: Message, about: Message) -> Message:
    return dict(about, event="failed", key=item["key"], id=item["id"])
