"""URLs that were signed for a while: noticed when their time is nearly over, and signed anew.

A shard may last longer than a signature. The driver alone can sign, so it is asked for a fresh one
when the key's turn has come.
"""

import itertools
import queue
import re
import time
from typing import Any, Callable

from workflows.node import role
from workflows.node.sources import end_of
from workflows.node.work import KeyFailed

_SIGNED_AT = re.compile(r"[?&]X-Amz-Date=(\d{8}T\d{6})Z")
_EXPIRES = re.compile(r"[?&]X-Amz-Expires=(\d+)")
_SESSION = re.compile(r"[?&]X-Amz-Security-Token=")
_SESSION_S = 600  # credentials of a session may end long before what they signed says
_PATIENCE_S = 120
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


class Signatures:
    """Asks the driver of one session for fresh signatures."""

    def __init__(self, send: Callable[[Message], None]) -> None:
        self._send = send
        self._numbers = itertools.count()
        self._waiting: dict[int, queue.SimpleQueue[str]] = {}

    def refreshed(self, step: str, item: Message) -> Message:
        """Return a key as it was asked for, its source's URL signed anew if that must be.

        Raises:
            KeyFailed: this node should sign itself, and cannot; or what others signed is over.
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
        number, answer = next(self._numbers), queue.SimpleQueue()  # type: ignore[var-annotated]
        self._waiting[number] = answer
        try:
            self._send({"event": "stale", "n": number, "url": place})
            url = answer.get(timeout=_PATIENCE_S)
        except queue.Empty:
            return item
        finally:
            del self._waiting[number]
        return {**item, "source": {**source, "url": url or source["url"]}}

    def take(self, message: Message) -> None:
        """Hand on an answer of the driver."""
        waiting = self._waiting.get(message["n"])
        if waiting is not None:
            waiting.put(message["url"])

    def close(self) -> None:
        """Let nobody wait any longer: the driver is gone."""
        for waiting in list(self._waiting.values()):
            waiting.put("")
