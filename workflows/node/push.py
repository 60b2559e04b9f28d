"""Outputs that go to S3: pack them if asked, have URLs signed for their MD5s, send them."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any, Callable

from workflows.node.curl import Curl, Transfer
from workflows.node.files import checksum, digests, remove
from workflows.node.packers import PACKERS
from workflows.node.parts import Part, Sender, crc_of
from workflows.node.signatures import Unsigned
from workflows.node.storage import Storage
from workflows.node.work import KeyFailed

Message = dict[str, Any]
# Asks the driver to sign uploads: `id`, `md5`, and `part` of one in many; returns their URLs.
Sign = Callable[[Sequence[Message]], "list[str]"]
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


def push(
    storage: Storage, step: str, items: Sequence[Message], curl: Curl, sign: Sign
) -> Iterator[Message]:
    """Send outputs of `step`; yield for each how many bytes arrived, and their MD5s."""
    scratch = storage.scratch()
    try:
        whole: list[tuple[Message, Transfer]] = []
        for number, item in enumerate(items):
            try:
                path = _packed(storage, step, item, os.path.join(scratch, f"{number}.packed"))
                if "part_bytes" in item:
                    yield _in_parts(item, path, scratch, curl, sign)
                    continue
                size, md5, crc = digests(path)
                if not item["compress"] and crc != item["crc"]:
                    raise KeyFailed(_DAMAGED, step)
                whole.append((item, Transfer(item.get("url", ""), path, size, md5)))
            except KeyFailed as failure:
                yield _failed(item, failure.event)
            except (OSError, Unsigned) as error:
                yield _failed(item, {"why": f"could not be sent: {error}", "code": ""})
        yield from _whole(whole, scratch, curl, sign)
    finally:
        remove(scratch)


def _whole(
    given: "Sequence[tuple[Message, Transfer]]", scratch: str, curl: Curl, sign: Sign
) -> Iterator[Message]:
    """Send files that need no parts; those without a URL get one that is signed for their MD5."""
    unsigned = [(item, one) for item, one in given if not one.url]
    try:
        asked = [{"id": item["id"], "md5": one.md5} for item, one in unsigned]
        urls = iter(sign(asked) if asked else [])
    except Unsigned as error:
        for item, _ in given:
            yield _failed(item, {"why": f"could not be sent: {error}", "code": ""})
        return
    transfers = [one if one.url else one._replace(url=next(urls)) for _, one in given]
    outcomes = curl.run(transfers, scratch) if transfers else []
    for (item, sent), trouble in zip(given, outcomes):
        yield _failed(item, trouble._asdict()) if trouble else _sent(item, sent.size, [sent.md5])


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


def _in_parts(item: Message, path: str, scratch: str, curl: Curl, sign: Sign) -> Message:
    """Send one big file in parts, and compare what was read with its checksum while it was."""

    def url_of(number: int, part: Part) -> str:
        if "parts" in item:
            url: str = item["parts"][number]  # which this node signs itself
            return url
        return sign([{"id": item["id"], "md5": part.md5, "part": number + 1}])[0]

    trouble, sent = Sender(path, item["part_bytes"], curl, scratch)(url_of)
    if trouble is not None:
        return _failed(item, trouble._asdict())
    if not item["compress"] and crc_of(sent) != item["crc"]:
        return _failed(item, {"why": _DAMAGED, "code": ""})
    return _sent(item, sum(part.size for part in sent), [part.md5 for part in sent])


def _sent(item: Message, size: int, md5s: "list[str]") -> Message:
    return {"event": "pushed", "key": item["key"], "id": item["id"], "stored": size, "md5s": md5s}


def _failed(item: Message, about: Message) -> Message:
    return dict(about, event="failed", key=item["key"], id=item["id"])
