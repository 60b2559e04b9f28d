"""What a source holds: a directory, a prefix of a bucket, or a list of URLs."""

import concurrent.futures
import datetime as dt
import fnmatch
import http.client
import itertools
import os
import posixpath
import re
import string
import time
import urllib.error
import urllib.parse
import urllib.request
from email.message import Message
from typing import NamedTuple

from workflows import s3
from workflows.config import settings
from workflows.errors import SourceError, UsageError
from workflows.keys import check_name, digest_of

_TIMEOUT_S = 30
_PROBES = 16
_TRIES = 4
# 403 is also what some hosts answer to too many requests: worth another try.
_PASSING = (403, 429, 500, 502, 503, 504)
_REFUSED = " (too many requests, or no such file)"
_EXPIRED = ": has its signature expired, or is it not for GET? Sign the URLs again"
# In the query of a URL that is signed for a while: by S3 (new and old), CloudFront or GCS.
_SIGNED = re.compile(r"[?&-]signature=", re.IGNORECASE)
_SIGNS = re.compile(
    r"x-amz-|x-goog-|(awsaccesskeyid|googleaccessid|key-pair-id|policy|signature|expires)=",
    re.IGNORECASE,
)


class SourceKey(NamedTuple):
    """One object of a source. `size` is bytes or None if unknown; `etag` changes when bytes do."""

    name: str
    url: str
    size: int | None
    etag: str

    @property
    def identity(self) -> str:
        """Return what stands for the content of the source key."""
        return digest_of([self.unsigned, self.size, self.etag])

    @property
    def unsigned(self) -> str:
        """Return the URL as it may be kept: without what signs it, which is new every time."""
        return unsigned(self.url)


def list_source(url: str, pattern: str, but: str = "") -> list[SourceKey]:
    """Return the keys of a source whose name matches the glob `pattern`, sorted by name.

    `url` is a directory or ``s3://bucket/prefix/`` (searched below), or a file, http(s) or s3 URL
    that lists one URL a line. What is below the directory or prefix `but`, as a checkpoint may be
    that is kept beside its source, is no key.

    Raises:
        UsageError: there is no such source, or nothing in it matches.
        SourceError: it cannot be listed.
    """
    path = _local_path(url)
    if but and _is_same(url if path is None else path, but):
        raise UsageError(f"{url} is the source and the checkpoint: give each a place of its own")
    if url.startswith(s3.SCHEME) and s3.place_of(url).key[-1:] in ("", "/"):
        found = _bucket(s3.place_of(url), but)
    elif path is None:
        found = _probe(_listed(url, _fetch_text(url)))
    elif os.path.isdir(path):
        found = _directory(path, but)
    elif os.path.isfile(path):
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            found = _probe(_listed(url, file.read()))
    else:
        raise UsageError(
            f"there is no source {url}: give a directory or s3://BUCKET/PREFIX/, or a file that"
            " lists URLs"
        )
    keys = sorted(key for key in found if _matches(key.name, pattern))
    if not keys:
        raise UsageError(f"nothing in {url} matches {pattern!r} ({len(found)} names were seen)")
    _refuse_twins(keys)
    return keys


def _is_same(url: str, other: str) -> bool:
    if url.startswith(s3.SCHEME) or other.startswith(s3.SCHEME):
        return url.rstrip("/") == other.rstrip("/")
    return os.path.realpath(url) == os.path.realpath(other)


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(posixpath.basename(name), pattern) or fnmatch.fnmatchcase(
        name, pattern
    )


def _refuse_twins(keys: list[SourceKey]) -> None:
    names = {key.name for key in keys}
    for one, other in itertools.pairwise(keys):
        if one.name == other.name:
            raise SourceError(f"two keys are called {one.name!r}: {one.url} and {other.url}")
    for name in names:
        parent = posixpath.dirname(name)
        while parent:
            if parent in names:
                raise SourceError(f"{parent!r} is a key and also a folder of {name!r}")
            parent = posixpath.dirname(parent)


# -- local ---------------------------------------------------------------------------------------


def _local_path(url: str) -> str | None:
    if url.startswith("file://"):
        return os.fsdecode(urllib.parse.unquote_to_bytes(urllib.parse.urlsplit(url).path))
    return None if url.startswith(("http://", "https://", "s3://")) else url


def _directory(path: str, but: str) -> list[SourceKey]:
    top = os.path.abspath(path)
    found = []
    for folder, folders, names in os.walk(top, followlinks=True):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and not (but and _is_same(os.path.join(folder, name), but))
        )
        for name in names:
            full = os.path.join(folder, name)
            if not name.startswith(".") and os.path.isfile(full):
                status = os.stat(full)
                key = check_name(os.path.relpath(full, top))
                etag = f"{status.st_mtime_ns:x}-{status.st_ino:x}"
                found.append(SourceKey(key, full, status.st_size, etag))
    return found


# -- S3 ------------------------------------------------------------------------------------------


def _bucket(place: s3.Place, but: str) -> list[SourceKey]:
    """List a prefix once, 1,000 objects a call; the objects that stand for folders are left."""
    inside = f"{but}/".startswith(place.url) and but.startswith(s3.SCHEME)
    left_out = s3.place_of(but).key + "/" if inside else None
    return [
        SourceKey(
            check_name(item.name.removeprefix(place.key)),
            s3.Place(place.bucket, item.name).url,
            item.size,
            item.etag,
        )
        for item in s3.listing(place, SourceError)
        if not item.name.endswith("/") and not (left_out and item.name.startswith(left_out))
    ]


# -- lists of URLs -------------------------------------------------------------------------------


def _listed(base: str, text: str) -> list[str]:
    lines = [line.strip("\r") for line in text.split("\n")]
    urls = [line for line in lines if line.strip() and not line.startswith("#")]
    if "\0" in text or not urls:
        raise SourceError(f"{base} lists no URLs; it must hold one URL or path a line")
    if base.startswith(("http://", "https://")):
        return [urllib.parse.urljoin(base, url) for url in urls]
    here = os.path.dirname(os.path.abspath(_local_path(base) or base))
    return [url if "://" in url else os.path.join(here, url) for url in urls]


def _probe(urls: list[str]) -> list[SourceKey]:
    """Ask for the size and ETag of each URL, several at once."""
    with concurrent.futures.ThreadPoolExecutor(_PROBES) as pool:
        return list(pool.map(_probed, urls))


def _probed(url: str) -> SourceKey:
    path = _local_path(url)
    if path is not None:
        try:
            status = os.stat(path)
        except OSError as error:
            raise SourceError(f"{path} is listed, but {error.strerror}") from error
        etag = f"{status.st_mtime_ns:x}-{status.st_ino:x}"
        name = check_name(os.path.basename(path))
        return SourceKey(name, os.path.abspath(path), status.st_size, etag)
    if url.startswith(s3.SCHEME):
        stored = s3.status(s3.place_of(url))
        if stored is None:
            raise SourceError(f"{url} is listed, but there is no such object")
        return SourceKey(check_name(posixpath.basename(url)), url, stored.size, stored.etag)
    name = urllib.parse.unquote(posixpath.basename(urllib.parse.urlsplit(url).path))
    if not name:
        raise SourceError(f"{_shown(url)} has no file name")
    _check_signature(url)
    headers = _head(url)
    length = headers.get("Content-Length")
    etag = headers.get("ETag") or headers.get("Last-Modified") or ""
    return SourceKey(check_name(name), url, int(length) if length else None, etag)


def _check_signature(url: str) -> None:
    """Refuse a signature that is over, or would be before a run with a deadline is."""
    query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(url).query))
    try:
        signed = dt.datetime.strptime(query["X-Amz-Date"] + "+0000", "%Y%m%dT%H%M%SZ%z")
        left_s = signed.timestamp() + float(query["X-Amz-Expires"]) - time.time()
    except (KeyError, ValueError):
        return  # signed in another way, or not at all
    if left_s <= settings().deadline_s:
        until = "is over" if left_s <= 0 else f"ends in {left_s:.0f} s, before [run] deadline"
        raise SourceError(f"the signature of {_shown(url)} {until}; sign it for longer")


def _head(url: str) -> Message:
    request = urllib.request.Request(_quoted(url), method="HEAD")  # noqa: S310 - http(s), see callers
    if unsigned(url) != url:  # for GET, as a rule: its first byte comes with all that HEAD says
        request = urllib.request.Request(_quoted(url), headers={"Range": "bytes=0-0"})  # noqa: S310
    return _whole(_answer(request, most=1)[0])


def _quoted(url: str) -> str:
    """Return a URL as it must be sent: lists of people hold spaces and umlauts."""
    return urllib.parse.quote(url, safe=string.punctuation)


def _answer(request: urllib.request.Request, most: int | None = None) -> tuple[Message, bytes]:
    """Return the headers and up to `most` bytes of an answer, asked for again where that may help.

    Raises:
        SourceError: it cannot be had.
    """
    url = request.full_url
    for attempt in range(_TRIES):
        is_last = attempt == _TRIES - 1
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
                return answer.headers, answer.read(most)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:
                return error.headers, b""  # there is no first byte: it is empty
            is_refused = unsigned(url) != url and error.code in (400, 403)
            if is_refused or error.code not in _PASSING or is_last:
                hint = _EXPIRED if is_refused else _REFUSED if error.code == 403 else ""
                said = f"{_shown(url)} answers {error.code} {error.reason}{hint}"
                raise SourceError(said) from error
            time.sleep(_wait_s(error.headers.get("Retry-After"), attempt))
        except (OSError, http.client.HTTPException) as error:
            if is_last:
                why = str(error).replace(url, _shown(url))
                raise SourceError(f"{_shown(url)} cannot be reached: {why}") from error
            time.sleep(_wait_s(None, attempt))
    raise AssertionError("unreachable")


def _whole(headers: Message) -> Message:
    """Return the headers as if all bytes had been asked for, not the first."""
    total = headers.get("Content-Range", "").rpartition("/")[2]
    if total.isdecimal():
        del headers["Content-Length"]
        headers["Content-Length"] = total
    return headers


def unsigned(url: str) -> str:
    """Return a URL without the parts of its query that sign it for a while.

    >>> unsigned("https://b.s3.amazonaws.com/k.gz?versionId=7&X-Amz-Expires=60&X-Amz-Signature=ab")
    'https://b.s3.amazonaws.com/k.gz?versionId=7'
    """
    if not _SIGNED.search(url):
        return url
    place, _, query = url.partition("?")
    kept = [part for part in query.split("&") if not _SIGNS.match(part)]
    return f"{place}?{'&'.join(kept)}" if kept else place


def _fetch_text(url: str) -> str:
    if url.startswith(s3.SCHEME):
        text = s3.read(s3.place_of(url), SourceError)
        if text is None:
            raise UsageError(f"there is no object {url}; a prefix ends with a slash: {url}/")
        return text.decode("utf-8", "surrogateescape")
    _, data = _answer(urllib.request.Request(_quoted(url)))  # noqa: S310 - http(s), see callers
    return data.decode("utf-8", "surrogateescape")


def _wait_s(retry_after: str | None, attempt: int) -> float:
    if retry_after and retry_after.isdecimal():
        return min(float(retry_after), 30.0)
    return 0.25 * 4.0**attempt


def _shown(url: str) -> str:
    """Return a URL without its query: signed URLs are secrets."""
    return urllib.parse.urlsplit(url)._replace(query="", fragment="").geturl()
