"""Lists of URLs: one URL or path a line. Read and checked here; nothing is asked for.

A line is taken as it is, but for a BOM before the first, CRs at the ends and blanks around a URL.
Blank lines and those that begin with ``#`` are comments.
"""

import contextlib
import glob
import os
import posixpath
import re
import shlex
import stat
import urllib.parse
from collections.abc import Iterator
from typing import NamedTuple

from workflows.errors import SourceError, UsageError
from workflows.node.urls import scheme_of, shown, split_login
from workflows.planning.directories import absolute, kind_of
from workflows.planning.sourcekeys import plain

LARGEST = 1 << 28  # bytes of a list; more is data
HEAD = 1 << 16
_FIRST = 20  # lines that are looked at to tell a list from data
_SCHEMES = ("http", "https", "s3", "file")
_BOM = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1f]|\A(PAR1|ORC|BZh|\x28\xb5\x2f\xfd)")
_DATA_NAME = re.compile(
    r"\.(csv|tsv|json|jsonl|ndjson|xml|html?|parquet|orc|avro|arrow|feather|xlsx?|sqlite|db|tar"
    r"|zip|7z|gz|tgz|bz2|xz|zst|lz4|snappy)$",
    re.IGNORECASE,
)
_DATA_LINE = re.compile(r"\s*[{\[<\"]|.*[,;\t|]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")
_ONE_SLASH = re.compile(r"(https?|s3|file):/?(?!/)[^/]", re.IGNORECASE)
_STREAMS = re.compile(r"-|/dev/(stdin|stdout|stderr|fd/\d+)|/proc/[^/]+/fd/\d+")


class Line(NamedTuple):
    """One line of a list: where it is, the URL or absolute path, and the name of its key."""

    where: str
    url: str
    name: str


class BadLine(NamedTuple):
    """One line that names nothing that can be read, and why."""

    why: str
    name: str
    url: str = ""


# -- files ---------------------------------------------------------------------------------------


def local_path(url: str) -> str | None:
    """Return the path of a ``file:`` URL or of what is no URL; None for any other.

    Raises:
        UsageError: it is no URL of a file of this machine, or not percent-encoded.
    """
    scheme = scheme_of(url)
    if scheme != "file":
        return None if scheme else url
    host, slash, path = url[len("file://") :].partition("/")
    if host.lower() not in ("", "localhost") or not slash:
        raise UsageError(f"{plain(url)} is of another host; write file:///PATH")
    if "?" in path or "#" in path or _BAD_ESCAPE.search(path):
        raise UsageError(f"{plain(url)} is not percent-encoded: write % as %25, ? as %3F, # as %23")
    return "/" + _unquoted(path)


def read_local(path: str) -> bytes:
    """Return the bytes of a list.

    Raises:
        UsageError: it is no file, or no list.
        SourceError: it cannot be read.
    """
    if _STREAMS.fullmatch(path) or _STREAMS.fullmatch(os.path.abspath(path)):
        raise UsageError(
            f"{path} can be read only once, and a source is read again by plan, repro and verify:"
            " write the list into a file"
        )
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            kind = kind_of(status.st_mode)
            raise UsageError(
                f"{plain(path)} is {kind}; a source is a directory or a file that lists URLs"
            )
        with open(path, "rb") as file:
            head = file.read(HEAD)
            refuse_data(path, head, status.st_size)
            return head + file.read()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(
            f"there is no source {plain(path)}: give a directory or s3://BUCKET/PREFIX/, or a file"
            " that lists URLs"
        ) from error
    except OSError as error:
        raise SourceError(f"{plain(path)} cannot be read: {error.strerror}") from error


# -- is it a list? ---------------------------------------------------------------------------------


def refuse_data(base: str, head: bytes, size: int | None) -> None:
    """Refuse what begins as data does, not as a list; `head` are its first bytes.

    Raises:
        UsageError: says how to read it as data.
    """
    if head.startswith(_UTF_16) and not _DATA_NAME.search(shown(base)):
        raise UsageError(f"{shown(base)} is UTF-16; save the list as UTF-8")
    if _BINARY.search(head) or (size or 0) > LARGEST or _reads_as_data(base, head):
        raise UsageError(
            f"{plain(shown(base))} looks like data, not a list of URLs; to read it: {remedy(base)}"
        )


def remedy(base: str) -> str:
    """Return what to type if the source is no list but data."""
    if scheme_of(base) in ("http", "https"):
        return "write its URL into a file, and give that as --source"
    folder, slash, name = base.rpartition("/")
    folder = folder + "/" if scheme_of(base) else (folder or slash or ".")
    return f"--source {shlex.quote(folder)} --pattern {shlex.quote(glob.escape(name))}"


def _reads_as_data(base: str, head: bytes) -> bool:
    text = head.removeprefix(_BOM).decode("utf-8", "surrogateescape")
    lines = [line for _, line in _lines(text)][:_FIRST]
    is_local = scheme_of(base) in ("", "file")
    if any(scheme_of(line.strip()) or (is_local and _exists(base, line)) for line in lines):
        return False
    is_named = _DATA_NAME.search(shown(base)) is not None and is_local
    return bool(lines) and (is_named or any(map(_DATA_LINE.match, lines[:3])))


def _exists(base: str, line: str) -> bool:
    with contextlib.suppress(ValueError):
        return os.path.lexists(os.path.join(_folder(base), line))
    return False


# -- its lines -------------------------------------------------------------------------------------


def parse(base: str, data: bytes) -> Iterator[Line | BadLine]:
    """Yield what the lines of a list name, relative to where the list is.

    Raises:
        SourceError: there is none.
    """
    text = data.removeprefix(_BOM).decode("utf-8", "surrogateescape")
    is_empty = True
    for number, line in _lines(text):
        is_empty = False
        where = f"{plain(shown(base))}, line {number}"
        try:
            url = _resolved(base, line)
            yield Line(where, url, _name(url))
        except UsageError as error:
            yield BadLine(f"{where}: {error}", posixpath.basename(shown(line.strip())))
    if is_empty:
        raise SourceError(f"{shown(base)} lists no URLs; it must hold one URL or path a line")


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, ended in enumerate(text.split("\n"), 1):
        line = ended.rstrip("\r")
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line


def _resolved(base: str, line: str) -> str:
    """Return the URL or absolute path that a line names.

    Raises:
        UsageError: it names none, or one that a list from there may not.
    """
    home, stripped = scheme_of(base), line.strip()
    if home in ("http", "https") and not scheme_of(stripped) and not _ONE_SLASH.match(stripped):
        stripped = urllib.parse.urljoin(base, stripped)
    scheme = scheme_of(stripped)
    if not scheme and not (home in ("", "file") and _exists(base, line)):
        _refuse_slip(line)
    if home in ("http", "https", "s3") and scheme in ("", "file"):
        raise UsageError(
            f"{plain(line)} is a file of this machine, and a list from {home} may name only http,"
            " https and s3 URLs"
        )
    path = local_path(stripped if scheme else line) if scheme in ("", "file") else None
    if path is not None:
        return absolute(os.path.join(_folder(base), path))
    return checked(stripped)


def _refuse_slip(line: str) -> None:
    if _ONE_SLASH.match(line.strip()):
        raise UsageError(f"{plain(line)} is not a URL: write two slashes behind its scheme")
    if line != line.strip():
        raise UsageError(
            f"{line!r} begins or ends with a blank, and there is no such file: remove the blank"
        )


def checked(url: str) -> str:
    """Return a URL of the web or of S3, if it is one.

    Raises:
        UsageError: it cannot be one.
    """
    scheme = scheme_of(url)
    where = plain(shown(url))
    if scheme not in _SCHEMES:
        hint = "; write s3://" if scheme in ("s3a", "s3n") else ""
        raise UsageError(
            f"{where}: {scheme}:// is not supported; http, https, s3 and file are{hint}"
        )
    url = scheme + url[len(scheme) :]
    if scheme == "s3":
        return url
    if _CONTROL.search(url):
        raise UsageError(f"{where} holds a control character, which no URL may")
    try:
        parts = urllib.parse.urlsplit(url)
        is_one = bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_one = False
    if not is_one and "@" in url:  # a password may be where only a host should be: show nothing
        raise UsageError(
            "this is not a URL: its host or port is malformed; in a user or password write / as"
            " %2F,"
            " ? as %3F, # as %23, @ as %40"
        )
    if not is_one:
        raise UsageError(f"{where} is not a URL: its host or port is missing or malformed")
    return url


def _name(url: str) -> str:
    scheme = scheme_of(url)
    if scheme in ("http", "https"):
        name = _unquoted(posixpath.basename(urllib.parse.urlsplit(split_login(url)[0]).path))
    else:
        name = posixpath.basename(url)
    if not name:
        raise UsageError(f"{plain(shown(url))} has no file name: a list names files")
    return name


def _unquoted(text: str) -> str:
    raw = urllib.parse.unquote_to_bytes(text.encode("utf-8", "surrogateescape"))
    return raw.decode("utf-8", "surrogateescape")


def _folder(base: str) -> str:
    return os.path.dirname(absolute(local_path(base) or base))
