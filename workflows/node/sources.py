"""Checks of a key's source on its node: that it is still as listed, and may be read."""

import os
import time
from typing import Any

from workflows.node.urls import expires


def change_of(source: "dict[str, Any]") -> str:
    """Say how a local file differs from the one that was listed; nothing if it does not.

    Only nodes that see the files of the machine that listed them can tell: elsewhere the same bytes
    may have another time.
    """
    if not source.get("is_here"):
        return ""
    path, size, etag = source["was"]
    try:
        status = os.stat(path)
    except OSError as error:
        return f"its source {path} is gone since it was listed: {error.strerror}"
    if (status.st_size, f"{status.st_mtime_ns:x}") != (size, etag.rpartition("-")[0]):
        return f"its source {path} has changed since it was listed: run the same again"
    return ""


def end_of(source: "dict[str, Any]") -> str:
    """Refuse a URL that somebody else signed, if its signature has expired."""
    ends = expires(source["url"])
    if ends is None or ends > time.time():
        return ""
    at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(ends))
    return (
        f"the signature of its source {source['was'][0]} ended at {at}: sign the URLs of the source"
        " for longer, then run the same again"
    )
