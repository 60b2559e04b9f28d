"""URLs that the driver alone can sign, asked for when they are needed.

A shard may last longer than a signature: a source's URL is signed again when the key's turn has
come. An upload is signed for the MD5 of its bytes, which this node computes first.
"""

import itertools
import queue
import re
import time
from collections.abc import Sequence
from typing import Any, Callable

from workflows.node import role
from workflows.node.sources import end_of
from workflows.node.work import KeyFailed

_SIGNED_AT = re.compile(r"[?&]X-Amz-Date=(\d{8}T\d{6})Z")
_EXPIRES = re.compile(r"[?&]X-Amz-Expires=(\d+)")
_SESSION = re.compile(r"[?&]X-Amz-Security-Token=")
_SESSION_S = 600  # credentials of a session may end long before what they signed says
_PATIENCE_S, _UPLOAD_PATIENCE_S = 120, 600
Message = dict[str, Any]


def is_stale(url: str, now: float) -> bool:
    """Tell whether three quarters of the time of a signed URL are over.

    >>> url = "http://s3/k?X-Amz-Date=20250102T030405Z&X-Amz-Expires=400"
    >>> [is_stale(url, 1735787045 + age) for age in (0, 299, 301)]
    [False, False, True]
    >>> is_stale("http://s3/k", 1735787045)
    False
    """
    import calendar  # which few runtimes need

    signed, expires = _SIGNED_AT.search(url), _EXPIRES.search(url)
    if signed is None or expires is None:
        return False
    age = now - calendar.timegm(time.strptime(signed[1], "%Y%m%dT%H%M%S"))
    lasts = int(expires[1])
    return age > (min(lasts, _SESSION_S) if _SESSION.search(url) else lasts) * 3 / 4


class Unsigned(Exception):
    """The driver did not sign what it was asked to."""


class Signatures:
    """Asks the driver of one session for signatures."""

    def __init__(self, send: Callable[[Message], None]) -> None:
        self._send = send
        self._numbers = itertools.count()
        self._waiting: dict[int, queue.SimpleQueue[list[str]]] = {}

    def refreshed(self, step: str, item: Message) -> Message:
        """Return a key as it was asked for, its source's URL re-signed if needed.

        Raises:
            KeyFailed: this node cannot sign itself as it should; or another's URL has expired.
        """
        source = item.get("source")
        if source is not None and source["url"].startswith(role.PREFIX):
            try:
                return {**item, "source": {**source, "url": role.signed(source["url"], "GET")}}
            except role.NoRole as error:
                raise KeyFailed(str(error), step) from error
        if source is None:
            return item
        place = source["was"][0]
        if not place.startswith("s3://"):  # signed by somebody else, if it is
            why = end_of(source)
            if why:
                raise KeyFailed(why, step)
            return item
        if not is_stale(source["url"], time.time()):
            return item
        urls = self._asked({"event": "stale", "url": place}, _PATIENCE_S)
        return {**item, "source": {**source, "url": (urls or [source["url"]])[0]}}

    def for_uploads(self, uploads: Sequence[Message]) -> "list[str]":
        """Return a URL for each upload: `id`, `md5` in hex, and `part` if it is one of many.

        Raises:
            Unsigned: the driver is gone, or does not answer.
        """
        urls = self._asked({"event": "digested", "uploads": uploads}, _UPLOAD_PATIENCE_S)
        if len(urls) != len(uploads):
            raise Unsigned("the driver did not sign its URL; run the same again")
        return urls

    def _asked(self, message: Message, patience_s: float) -> "list[str]":
        """Ask the driver; return its answer, empty if there is none."""
        number, answer = next(self._numbers), queue.SimpleQueue()  # type: ignore[var-annotated]
        self._waiting[number] = answer
        try:
            self._send({**message, "n": number})
            urls: list[str] = answer.get(timeout=patience_s)
            return urls
        except queue.Empty:
            return []
        finally:
            del self._waiting[number]

    def take(self, message: Message) -> None:
        """Hand on an answer of the driver."""
        waiting = self._waiting.get(message["n"])
        if waiting is not None:
            waiting.put(message["urls"])

    def close(self) -> None:
        """Let nobody wait any longer: the driver is gone."""
        for waiting in list(self._waiting.values()):
            waiting.put([])
