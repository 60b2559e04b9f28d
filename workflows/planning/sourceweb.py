"""Queries to servers about URLs: how many bytes, and which version. And texts from them.

A version is the ETag, else Last-Modified. Where a server states neither, or an empty ETag, or a
time that stands for no change (it cannot be read, is of 1970, or so new that the next change could
have the same), the whole body is read and its SHA-256 stands for it.
"""

import base64
import datetime as dt
import email.utils
import hashlib
import http.client
import string
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from email.message import Message
from typing import IO, NamedTuple, TypeVar

from workflows.config import settings
from workflows.errors import SourceError
from workflows.node.urls import expires, is_signed, shown, split_login

CONTENT = "sha256:"  # how an ETag begins that stands for the bytes themselves
_TIMEOUT_S = 30
_TRIES = 4
_MARGIN_S = 60
_RACY_S = 2  # Last-Modified has seconds
_CLOCK_S = 86400.0  # how wrong the clock may be of a server that does not say its time
_EPOCH_S = 2 * 86400.0  # a time before that stands for none
_CHUNK = 1 << 20
# 403 is also what some hosts answer to too many requests: worth another try.
_PASSING = (403, 408, 429, 500, 502, 503, 504)
_NOT_HEAD = (400, 403, 404, 405, 406, 410, 501)  # what servers answer that know only GET
_REFUSED = " (too many requests, or no such file)"
_EXPIRED = ": has its signature expired, or is it not for GET? Sign the URLs again"
_LOGIN = (
    ": it asks for a user and a password, https://USER:PASSWORD@HOST/...; credentials of a source"
    " are not stored, so other commands need them again: WORKFLOWS_SOURCE"
)
_Read = TypeVar("_Read")


class Described(NamedTuple):
    """The bytes of a URL's body, None if that is unknown, and what changes when they do."""

    size: int | None
    etag: str


class _Answer(NamedTuple):
    status: int
    headers: Message
    body: IO[bytes]


def describe(url: str) -> Described:
    """Return size and version of what a URL is of.

    Raises:
        SourceError: the server refuses, or cannot be reached.
    """
    status, headers = _headers(url)
    etag = headers.get("ETag") or ""
    if etag.strip().removeprefix("W/") in ("", '""'):
        etag = headers["Last-Modified"] if _is_dated(headers) else ""
    return Described(_size(status, headers), etag) if etag else _read_whole(url)


def fetch_text(url: str, look: Callable[[bytes, int | None], None], head: int, most: int) -> bytes:
    """Return the body of a URL, once `look` has accepted its first bytes and its size.

    Raises:
        SourceError: it cannot be had, or is longer than `most`.
    """

    def read(answer: _Answer) -> bytes:
        start = answer.body.read(head)
        look(start, _size(answer.status, answer.headers))
        data = start + answer.body.read(most - len(start) + 1)
        if len(data) > most:
            raise SourceError(f"{shown(url)} is longer than any list of URLs")
        _check_end(answer.headers, len(data))
        return data

    return _asked(url, request(url), read)


def refuse_expired(url: str) -> None:
    """Refuse a signature that has expired, or will before a run has read the URL.

    Raises:
        SourceError: says when it ends.
    """
    ends = expires(url)
    if ends is None:
        return
    left_s, deadline_s = ends - time.time(), settings().deadline_s
    if left_s > max(_MARGIN_S, deadline_s):
        return
    at = dt.datetime.fromtimestamp(ends, dt.timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    if left_s <= 0:
        until = f"expired at {at}"
    elif deadline_s > _MARGIN_S:
        until = f"ends at {at}, in {left_s:.0f} s, before [run] deadline"
    else:
        until = f"ends at {at}, in {left_s:.0f} s, which no run can rely on"
    raise SourceError(f"the signature of {shown(url)} {until}; sign it for longer")


# -- what servers say ------------------------------------------------------------------------------


def _headers(url: str) -> tuple[int, Message]:
    """Return status and headers as of all bytes; by a GET of the first one where HEAD is no use."""
    if not is_signed(url):
        try:
            with _open(request(url, method="HEAD")) as answer:
                # Some servers count the bytes of the answer to HEAD, which are none.
                if answer.headers.get("Content-Length") != "0":
                    return answer.status, answer.headers
        except urllib.error.HTTPError as error:
            error.close()
            if error.code not in _NOT_HEAD and error.code not in _PASSING:
                raise _refused(url, error) from error
        except (OSError, http.client.HTTPException):
            pass  # asked again below, as often as it may help
    first = request(url, Range="bytes=0-0")
    return _asked(url, first, lambda answer: (answer.status, answer.headers))


def _size(status: int, headers: Message) -> int | None:
    """Return how many bytes there are in all, of which an answer may have been the first."""
    total = headers.get("Content-Range", "").rpartition("/")[2].strip()
    if status in (206, 416):
        return int(total) if _is_number(total) else 0 if status == 416 else None
    length = headers.get("Content-Length", "").strip()
    return int(length) if _is_number(length) else None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _is_dated(headers: Message) -> bool:
    """Tell whether Last-Modified is the time of a change, and the next one must have another."""
    changed = _time(headers.get("Last-Modified"))
    if changed is None or changed < _EPOCH_S:
        return False
    now = _time(headers.get("Date"))
    return time.time() - changed > _CLOCK_S if now is None else now - changed >= _RACY_S


def _time(text: str | None) -> float | None:
    """Return a time as HTTP writes it, in seconds; None for anything else."""
    if text is None or not text.strip().endswith(" GMT"):
        return None
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


def _read_whole(url: str) -> Described:
    def read(answer: _Answer) -> Described:
        digest, size = hashlib.sha256(), 0
        while data := answer.body.read(_CHUNK):
            digest.update(data)
            size += len(data)
        _check_end(answer.headers, size)
        return Described(size, CONTENT + digest.hexdigest())

    return _asked(url, request(url), read)


def _check_end(headers: Message, size: int) -> None:
    length = headers.get("Content-Length", "").strip()
    if _is_number(length) and int(length) != size:
        raise OSError(f"its answer ended after {size} of {length} bytes")


# -- asking ----------------------------------------------------------------------------------------


def request(url: str, method: str = "GET", **headers: str) -> urllib.request.Request:
    """Return a request for a URL of the web, with its user and password where they belong."""
    bare, login = split_login(url)
    # Lists of people hold spaces and umlauts.
    quoted = urllib.parse.quote(bare, safe=string.punctuation, errors="surrogateescape")
    made = urllib.request.Request(quoted, method=method, headers=headers)  # noqa: S310 - see _open
    if login:
        plain = urllib.parse.unquote_to_bytes(login.encode("utf-8", "surrogateescape"))
        coded = base64.b64encode(plain).decode("ascii")
        made.add_unredirected_header("Authorization", f"Basic {coded}")  # never to another host
    return made


def _opener() -> urllib.request.OpenerDirector:
    """Return what opens http and https, also behind redirects, and no other scheme."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def open_url(url: str) -> http.client.HTTPResponse:
    """Return the answer to a GET, to be read and closed; for http and https alone."""
    return _open(request(url))


def _open(asked: urllib.request.Request) -> http.client.HTTPResponse:
    answer: http.client.HTTPResponse = _opener().open(asked, timeout=_TIMEOUT_S)
    return answer


def _asked(url: str, asked: urllib.request.Request, read: Callable[[_Answer], _Read]) -> _Read:
    """Return what `read` makes of an answer; asked for again where that may help.

    Raises:
        SourceError: it cannot be had.
    """
    for attempt in range(_TRIES):
        is_last = attempt == _TRIES - 1
        try:
            with _open(asked) as answer:
                return read(_Answer(answer.status, answer.headers, answer))
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:
                return read(_Answer(416, error.headers, error))
            is_over = is_signed(url) and error.code in (400, 403)
            if is_over or error.code not in _PASSING or is_last:
                raise _refused(url, error) from error
            time.sleep(_wait_s(error.headers.get("Retry-After"), attempt))
        except (OSError, http.client.HTTPException) as error:
            if is_last:
                why = str(error).replace(asked.full_url, shown(url))
                raise SourceError(f"{shown(url)} cannot be reached: {why}") from error
            time.sleep(_wait_s(None, attempt))
    raise AssertionError("unreachable")


def _refused(url: str, error: urllib.error.HTTPError) -> SourceError:
    hints = {401: _LOGIN, 403: _REFUSED}
    if is_signed(url):
        hints = {400: _EXPIRED, 403: _EXPIRED}
    reason = " ".join(str(error.reason).split())
    return SourceError(f"{shown(url)} answers {error.code} {reason}{hints.get(error.code, '')}")


def _wait_s(retry_after: str | None, attempt: int) -> float:
    if retry_after and _is_number(retry_after):
        return min(float(retry_after), 30.0)
    return 0.25 * 4.0**attempt
