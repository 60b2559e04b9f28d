"""Transfers from nodes to S3, and back: URLs are signed here, and never stored."""

import re
from collections.abc import Sequence
from typing import Any

from workflows.config import settings
from workflows.errors import CheckpointError
from workflows.model import Key
from workflows.planning.plan import Plan
from workflows.storage.s3store import S3Store

Event = dict[str, Any]
_MB = 1 << 20  # S3 takes no part below 5 MiB but the last
_PART_BYTES, _MOST_PARTS = 64 * _MB, 9_000  # S3 takes 10,000: what is packed may grow a little
_MD5 = re.compile("[0-9a-f]{32}")
_SUFFIX = {"zstd": ".zst", "gzip": ".gz"}
# S3's replies to a node when a URL, or the credentials behind it, expired on the way.
STALE = ("ExpiredToken", "RequestExpired", "TokenRefreshRequired", "AccessDenied")


def send(
    step: Plan, store: S3Store, keys: Sequence[Key], parts: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Let each node send its own keys; return the manifest's parts with what arrived.

    Raises:
        CheckpointError: an object could not be written, or is not what its node has.
    """
    wanted = [_completed(part) for part in parts]
    slots = {key.identity: key.slot for key in keys}
    uploads: dict[str, str] = {}
    try:
        left = wanted
        for is_last in (False, True):
            left = _round(step, store, left, slots, uploads, is_last=is_last)
            if not left:
                break
    finally:
        for name, upload_id in uploads.items():
            store.abort(name, upload_id)
    _verify(store, wanted)
    return wanted


def _completed(part: dict[str, Any]) -> dict[str, Any]:
    compress = settings().s3_compress if settings().s3_compress != "none" else ""
    return {**part, "object": part["object"] + _SUFFIX.get(compress, ""), "compress": compress}


def _round(  # noqa: PLR0913 - what one round of sending needs
    step: Plan,
    store: S3Store,
    parts: list[dict[str, Any]],
    slots: dict[str, int],
    uploads: dict[str, str],
    *,
    is_last: bool,
) -> list[dict[str, Any]]:
    """Send `parts`; return those whose URL had expired, unless this was the last round."""
    by_slot: dict[int, list[dict[str, Any]]] = {}
    for part in parts:
        by_slot.setdefault(slots[part["id"]], []).append(part)

    def push(slot: int) -> list[Event]:
        return _pushed(step, store, slot, by_slot[slot], uploads)

    outcomes = step.nodes.each(by_slot, push)
    events = {event["id"]: event for answers in outcomes.values() for event in answers}
    stale = []
    for part in parts:
        event = events.get(part["id"], {"event": "failed", "why": "was not sent", "code": ""})
        if event["event"] == "pushed":
            upload_id = uploads.pop(part["object"], None)
            if upload_id is not None:
                store.finish(part["object"], upload_id, event["md5s"])
            part.update(stored=event["stored"], etag=_etag(event["md5s"], upload_id is not None))
        elif event.get("code") in STALE and not is_last:
            stale.append(part)
        else:
            code, why = str(event.get("code", "")), f"{event['why']} (from node {part['slot']})"
            raise CheckpointError(store.explain("PutObject", part["object"], code, why))
    return stale


def _pushed(
    step: Plan,
    store: S3Store,
    slot: int,
    parts: list[dict[str, Any]],
    uploads: dict[str, str],
) -> list[Event]:
    """Let one node send its keys, and sign what it asks for; return what became of each."""
    items = [_item(store, part, uploads) for part in parts]
    names = {part["id"]: part["object"] for part in parts}
    channel = step.nodes.channel(slot)
    outcomes = []
    for event in channel.ask({"op": "push", "step": step.name, "items": items}, "ran"):
        if event["event"] == "digested":
            channel.tell_signed(event, _signed(store, event["uploads"], names, uploads))
        elif "id" in event:
            outcomes.append(event)
    return outcomes


def _signed(
    store: S3Store, asked: list[Event], names: dict[str, str], uploads: dict[str, str]
) -> list[str]:
    """Return the URLs that a node asks for: of its own objects alone, each good for one MD5.

    Raises:
        CheckpointError: S3 cannot be asked, or it asks for another object.
    """
    urls = []
    for one in asked:
        name = names.get(one["id"], "")
        if not name or not _MD5.fullmatch(one["md5"]):
            raise CheckpointError(f"a node asks to write what it was not told to: {one}")
        if "part" in one:
            urls.append(store.sign_part(name, uploads[name], one["part"], one["md5"]))
        else:
            urls.append(store.sign_put(name, one["md5"]))
    return urls


def _item(store: S3Store, part: dict[str, Any], uploads: dict[str, str]) -> Event:
    """Return what a node is told to send one key, whole or in parts.

    With credentials of its own it is given URLs, which it signs; otherwise it asks for signed ones.
    """
    item = {name: part[name] for name in ("key", "id", "bytes", "crc", "compress")}
    has_role = settings().s3_nodes == "role"
    most = settings().s3_multipart_mb * _MB
    if part["bytes"] <= most:
        return {**item, **({"url": store.sign_put(part["object"])} if has_role else {})}
    part_bytes = max(min(most, _PART_BYTES), -(-part["bytes"] // _MOST_PARTS))
    if part["object"] not in uploads:
        uploads[part["object"]] = store.begin(part["object"])
    item["part_bytes"] = part_bytes
    if has_role:
        count = part["bytes"] // part_bytes + 2  # what cannot be compressed gets a little larger
        upload_id = uploads[part["object"]]
        numbers = range(1, count + 1)
        item["parts"] = [store.sign_part(part["object"], upload_id, n) for n in numbers]
    return item


def _etag(md5s: list[str], in_parts: bool) -> str:
    import hashlib

    if not in_parts:
        return md5s[0]
    digests = b"".join(map(bytes.fromhex, md5s))
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(md5s)}"


def _verify(store: S3Store, parts: list[dict[str, Any]]) -> None:
    """Compare what S3 lists, in one listing, with what the nodes sent."""
    folder = "/".join(parts[0]["object"].split("/")[:4]) if parts else ""
    found = {item.name: item for item in store.list(folder)} if parts else {}
    is_md5: bool | None = None
    for part in parts:
        item = found.get(part["object"])
        same = item is not None and (item.size, item.etag) == (part["stored"], part["etag"])
        if not same and item is not None and item.size == part["stored"]:
            if is_md5 is None:
                is_md5 = store.has_md5_etags(part["object"])
            same = not is_md5
            part["etag"] = item.etag
        if not same:
            seen = f"has {item.size} bytes, ETag {item.etag}" if item else "is not there"
            raise CheckpointError(
                f"{store.locate(part['object'])} {seen}; {part['stored']} bytes, ETag"
                f" {part['etag']} were sent. Nothing was committed: run the same again"
            )


def source_of(store: S3Store, part: dict[str, Any]) -> Event:
    """Return where a node finds an object of a checkpoint, signed just now."""
    return {
        "url": store.sign_get(part["object"]),
        "stored": part["stored"],
        "etag": part.get("etag", ""),
        "compress": part["compress"],
    }
