"""The content of a source: a directory, a prefix of a bucket, or a list of URLs."""

import concurrent.futures
import os
from collections.abc import Iterator

from workflows.config import settings
from workflows.errors import SourceError, UsageError, WorkflowsError
from workflows.model import SourceKey
from workflows.node.keys import digest_of
from workflows.node.urls import normal, scheme_of, shown, split_login, unsigned
from workflows.planning import sourcelists, sourceweb
from workflows.planning.directories import Own, etag_of, is_same, kind_of, list_directory
from workflows.planning.sourcekeys import Listing, plain
from workflows.planning.sourcelists import BadLine, Line
from workflows.storage import s3
from workflows.storage.place import SCHEME, Place, place_of

__all__ = ["SourceKey", "conceal", "list_source", "look_at", "unsigned"]

_PROBES = 16
_TROUBLES = 20  # this many are enough to give up on a list
_HIDDEN = "?hidden-"
_secrets: dict[str, str] = {}


def list_source(url: str, pattern: str, but: str = "") -> list[SourceKey]:
    """Return the keys of a source whose name matches the glob `pattern`, sorted by name.

    `url` is a directory or ``s3://bucket/prefix/`` (searched below), or a file, http(s) or s3 URL
    that lists one URL a line. Names below the directory or prefix `but`, such as a
    checkpoint kept beside its source, are not keys; nor are the files of this program itself.

    Raises:
        UsageError: there is no such source, or nothing in it matches.
        SourceError: it cannot be listed.
    """
    return look_at(url, pattern, but).keys


def look_at(url: str, pattern: str, but: str = "") -> Listing:
    """Do the same; return the keys and what there is to say of what was left out.

    Raises:
        UsageError, SourceError: see `list_source`.
    """
    url = normal(_revealed(url))
    path = sourcelists.local_path(url)
    if but and _is_place(url if path is None else path, but):
        raise UsageError(f"{url} is the source and the checkpoint: give each a place of its own")
    if path is not None and os.path.isdir(path):
        found = _directory(path, pattern, but)
    elif scheme_of(url) == "s3" and place_of(url).key[-1:] in ("", "/"):
        found = _bucket(url, pattern, but)
    else:
        found = _list(url, path, pattern)
    found.check()
    return found


def _is_place(url: str, other: str) -> bool:
    if url.startswith(SCHEME) or other.startswith(SCHEME):
        return url.rstrip("/") == other.rstrip("/")
    return is_same(url, other)


# -- secrets ---------------------------------------------------------------------------------------


def conceal(url: str) -> str:
    """Return a source's URL as it may be shown and stored; `list_source` knows what it stands for.

    In another process it does so if that is told the URL again: by WORKFLOWS_SOURCE or luigi.cfg.

    Raises:
        UsageError: it is malformed, or one process has two sources that differ in user and password
            alone.
    """
    if scheme_of(url) not in ("http", "https") or _HIDDEN in url:
        return url
    url = sourcelists.checked(url)
    bare = split_login(url)[0]
    safe = shown(url)
    if safe != bare:
        safe += _HIDDEN + digest_of(unsigned(url))[:8]
    if safe != url and _secrets.setdefault(safe, url) != url:
        raise UsageError(f"{safe} is given with two users, passwords or signatures: give one")
    return safe


def _revealed(url: str) -> str:
    if url not in _secrets and scheme_of(url) in ("http", "https"):
        conceal(settings().source)
    known = _secrets.get(url, url)
    if _HIDDEN in known:
        raise UsageError(
            f"{url}: the query of the source is not kept; give all of it in WORKFLOWS_SOURCE"
        )
    return known


# -- directories and buckets -----------------------------------------------------------------------


def _directory(path: str, pattern: str, but: str) -> Listing:
    state = os.path.abspath(settings().state)
    if is_same(path, state):
        raise UsageError(f"{path} is the source and [run] state: give each a place of its own")
    own = [Own(state, "[run] state, this program's own files")]
    if but and not scheme_of(but):
        own.append(Own(but, "the checkpoint"))
    return list_directory(path, pattern, own)


def _bucket(url: str, pattern: str, but: str) -> Listing:
    """List a prefix once, 1,000 objects a call; empty objects that stand for folders are left."""
    place, found = place_of(url), Listing(url, pattern)
    inside = f"{but}/".startswith(place.url) and but.startswith(SCHEME)
    left_out = place_of(but).key + "/" if inside else None
    is_left_out = False
    for item in s3.listing(place, SourceError):
        name = item.name.removeprefix(place.key)
        if left_out and item.name.startswith(left_out):
            is_left_out = True
        elif (item.size or not item.name.endswith("/")) and found.wants(name.rstrip("/")):
            where = Place(place.bucket, item.name).url
            found.add(SourceKey(name, where, item.size, item.etag))
    if is_left_out:
        found.leave_out("the checkpoint", [but])
    return found


# -- lists of URLs -------------------------------------------------------------------------------


def _list(url: str, path: str | None, pattern: str) -> Listing:
    found = Listing(url, pattern)
    lines = list(_lines(url, path))
    if not any(scheme_of(line.url) or os.path.exists(line.url) for line in lines[:1]):
        found.hint = f"; if that is data, not a list: {sourcelists.remedy(path or url)}"
    lines = [line for line in lines if found.wants(line.name)]
    with concurrent.futures.ThreadPoolExecutor(_PROBES) as pool:
        for one in pool.map(lambda line: _probed(line, found), lines):
            if isinstance(one, SourceKey):
                found.add(one)
            elif one is not None:
                found.troubles.append(one)
            else:
                found.is_given_up = True
    by_content = [key for key in found.keys if key.etag.startswith(sourceweb.CONTENT)]
    if by_content:
        size = sum(key.size or 0 for key in by_content)
        found.notes.append(
            f"{len(by_content)} URLs, such as {by_content[0].shown}, come without an ETag or a"
            f" Last-Modified to trust: read whole to list them, {size / 1e6:.1f} MB, and compared"
            " by their content"
        )
    return found


def _lines(url: str, path: str | None) -> Iterator[Line | BadLine]:
    if path is not None:
        return sourcelists.parse(path, sourcelists.read_local(path))
    url = sourcelists.checked(url)

    def look(head: bytes, size: int | None) -> None:
        sourcelists.refuse_data(url, head, size)

    if url.startswith(SCHEME):
        text = s3.read(place_of(url), SourceError, look)
        if text is None:
            raise UsageError(f"there is no object {url}; a prefix ends with a slash: {url}/")
    else:
        sourceweb.refuse_expired(url)
        text = sourceweb.fetch_text(url, look, sourcelists.HEAD, sourcelists.LARGEST)
    return sourcelists.parse(url, text)


def _probed(line: Line | BadLine, found: Listing) -> SourceKey | WorkflowsError | None:
    """Return the key that a line names, or what is wrong with it; None if enough is wrong."""
    if isinstance(line, BadLine):
        return SourceError(line.why)
    if len(found.troubles) >= _TROUBLES:
        return None
    try:
        return _asked(line)
    except WorkflowsError as error:
        return SourceError(f"{line.where}: {error}")


def _asked(line: Line) -> SourceKey:
    scheme = scheme_of(line.url)
    if scheme == "s3":
        stored = s3.status(place_of(line.url))
        if stored is None:
            raise SourceError(f"{plain(line.url)} is listed, but there is no such object")
        return SourceKey(line.name, line.url, stored.size, stored.etag)
    if scheme:
        sourceweb.refuse_expired(line.url)
        return SourceKey(line.name, line.url, *sourceweb.describe(line.url))
    try:
        status = os.stat(line.url)
    except OSError as error:
        raise SourceError(f"{plain(line.url)} is listed, but {error.strerror}") from error
    kind = kind_of(status.st_mode)
    if kind:
        raise SourceError(f"{plain(line.url)} is {kind}, not a file")
    return SourceKey(line.name, line.url, status.st_size, etag_of(status))
