"""Downloads from signed URLs: checkpoints that are restored with curl."""

import concurrent.futures
import os
from collections.abc import Iterator, Sequence
from typing import Any, Optional

from workflows.node import ranges
from workflows.node.bring import Damaged, published, size_and_crc
from workflows.node.curl import Curl, Transfer, Trouble
from workflows.node.files import remove
from workflows.node.packers import UNPACKERS
from workflows.node.push import run_tool
from workflows.node.storage import Storage
from workflows.node.work import KeyFailed

LARGE = 64 << 20  # bytes from which on a file has several connections of its own
_GROUP = 250  # files that one curl brings


def download(
    storage: Storage, step: str, items: Sequence[dict[str, Any]], curl: Curl
) -> Iterator[dict[str, Any]]:
    """Fetch what signed URLs lead to, and publish it; yield what came of each.

    Small files share one curl, a large one has several. Each is unpacked and compared with the
    bytes and checksum that its maker computed.
    """
    scratch = storage.scratch()
    try:
        small = [item for item in items if item["stored"] < LARGE]
        transfers = [
            Transfer(item["url"], os.path.join(scratch, str(number)), item["stored"])
            for number, item in enumerate(small)
        ]
        for one in transfers:
            if not one.size:
                open(one.path, "wb").close()  # an old curl makes no file of an empty answer
        for item, one, trouble in zip(small, transfers, _troubles(transfers, scratch, curl)):
            yield _brought(storage, step, item, one.path, trouble)
        for item in items:
            if item["stored"] >= LARGE:
                path = os.path.join(scratch, "large")
                trouble, crc = _large(item, path, curl, scratch)
                yield _brought(storage, step, item, path, trouble, crc)
                remove(path)
    finally:
        remove(scratch)


def _troubles(
    transfers: Sequence[Transfer], scratch: str, curl: Curl
) -> "Iterator[Optional[Trouble]]":
    """Yield what went wrong with each of many transfers: some are published while others come."""
    groups = [transfers[at : at + _GROUP] for at in range(0, len(transfers), _GROUP)]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for outcome in [pool.submit(curl.run, group, scratch) for group in groups]:
            yield from outcome.result()


def _large(
    item: dict[str, Any], path: str, curl: Curl, scratch: str
) -> "tuple[Optional[Trouble], int]":
    one = Transfer(item["url"], path, item["stored"], etag=item.get("etag", ""))
    try:
        return ranges.fetch(curl, one, scratch)
    except OSError as error:
        return Trouble(f"could not be brought: {error}", 0, ""), 0


def _brought(  # noqa: PLR0913 - what came, and where it belongs
    storage: Storage,
    step: str,
    item: dict[str, Any],
    path: str,
    trouble: Optional[Trouble],
    crc: Optional[int] = None,
) -> dict[str, Any]:
    """Unpack and publish what came; its CRC-32 is given if it is known. Return the event."""
    failed = {"event": "failed", "key": item["key"], "id": item["id"], "step": step}
    try:
        if trouble is not None:
            return dict(failed, stderr="", **trouble._asdict())
        if item["compress"]:
            _unpack(item["compress"], path, step)
            crc = None
        came = size_and_crc(path) if crc is None else (os.path.getsize(path), f"{crc:08x}")
        return dict(published(storage, step, item, path, came), event="brought")
    except KeyFailed as failure:
        return dict(failed, **failure.event)
    except OSError as error:
        return dict(failed, why=f"could not be brought: {error}", status=0, stderr="")


def _unpack(compress: str, path: str, step: str) -> None:
    try:
        run_tool(UNPACKERS[compress], path, path + ".out", step)
    except KeyFailed as failure:
        if failure.event["status"]:  # it ran, and could not
            raise Damaged(f"damaged: {failure}", step) from failure
        raise
    os.replace(path + ".out", path)
