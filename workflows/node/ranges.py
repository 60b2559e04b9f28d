"""One large file over several connections: each curl fetches a range and writes it at its place.

A range is a curl of its own whose stdout is the file, opened where the range begins: that works
with every curl, and how far the file was written says where to resume. An odd reply (a server that
knows no ranges, a refusal) leads to one GET of the whole file, which says why.
"""

import concurrent.futures
import errno
import functools
import os
import re
from typing import NamedTuple, Optional

from workflows.node import role
from workflows.node.curl import (
    LASTING_EXITS,
    PASSING,
    Curl,
    Transfer,
    Trouble,
    encoded,
    quoted,
    request,
    signed,
)
from workflows.node.files import combined, crc_of

AT_ONCE = 4
LEAST = 32 << 20  # bytes of a range: below that, starting a curl costs more than it gains
_NOT_STARTED = (125, 126, 127)  # by stdbuf
_ODD = Trouble("the server answered no range", 0, "")


class _Range(NamedTuple):
    """The bytes of a file from `start` to before `end`."""

    number: int
    start: int
    end: int


def fetch(curl: Curl, one: Transfer, scratch: str) -> "tuple[Optional[Trouble], int]":
    """Fetch a file in ranges at once; return what went wrong, if anything, and its CRC-32.

    Raises:
        OSError: there is no room for it.
    """
    ranges = _ranges(one.size)
    _reserve(one)
    with concurrent.futures.ThreadPoolExecutor(len(ranges)) as pool:
        ended = list(pool.map(functools.partial(_fetched, curl, one, scratch), ranges))
    troubles = [trouble for trouble, _ in ended if trouble is not None]
    if _ODD in troubles:
        os.truncate(one.path, 0)
        (trouble,) = curl.run([one], scratch)
        if trouble is not None and trouble.status == 412:
            trouble = trouble._replace(why="it was replaced after it was committed")
        return trouble, crc_of(one.path)
    crc = 0
    for piece, (_, other) in zip(ranges, ended):
        crc = combined(crc, other, piece.end - piece.start)
    return (troubles[0] if troubles else None), crc


def _ranges(size: int) -> "list[_Range]":
    """Cut a file into as many ranges as are worth a connection.

    >>> [(one.start, one.end) for one in _ranges(99_999_999)]
    [(0, 50000000), (50000000, 99999999)]
    """
    length = -(-size // max(1, min(AT_ONCE, size // LEAST)))
    starts = range(0, size, length)
    return [_Range(number, at, min(at + length, size)) for number, at in enumerate(starts)]


def _reserve(one: Transfer) -> None:
    """Take the room that a file needs at once, so that a full disk is said before bytes flow."""
    with open(one.path, "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, one.size)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            file.truncate(one.size)  # a file system that cannot


def _fetched(
    curl: Curl, one: Transfer, scratch: str, piece: _Range
) -> "tuple[Optional[Trouble], int]":
    """Fetch one range, and go on with it where it was cut off; return its CRC-32."""
    trouble: Optional[Trouble] = _ODD
    at = piece.start
    for _ in curl.attempts():
        try:
            trouble, is_passing, at = _attempt(curl, one, scratch, piece._replace(start=at))
        except role.NoRole as error:
            return Trouble(str(error), 0, "NoRole"), 0
        if trouble is None:
            return None, crc_of(one.path, piece.start, piece.end)
        if not is_passing:
            break
    return trouble, 0


def _attempt(
    curl: Curl, one: Transfer, scratch: str, left: _Range
) -> "tuple[Optional[Trouble], bool, int]":
    """Ask once for the rest of a range; return the trouble, if another try may help, and where."""
    headers = os.path.join(scratch, f"headers.{left.number}")
    open(headers, "wb").close()
    config = [
        *request(signed(one)),
        "fail",  # no error page gets into the file
        f"range = {left.start}-{left.end - 1}",
        f"max-filesize = {left.end - left.start}",  # nor a whole file in the place of a range
        f"dump-header = {quoted(headers)}",
    ]
    with open(one.path, "r+b", buffering=0) as file:
        file.seek(left.start)
        _, said, exit_code = curl.command(["--show-error"], encoded(config), scratch, file.fileno())
        at = file.tell()  # curl has moved it: the position is of the open file, which it shared
    status, answered = _answer(headers)
    found = re.findall(rb"^curl: \(\d+\) (.*)", said, re.MULTILINE)
    why = found[-1].decode("utf-8", "replace") if found else f"curl exited {exit_code}"
    if status == 206 and answered == (left.start, left.end - 1, one.size):
        if exit_code == 0 and at == left.end:
            return None, False, at
        is_passing = str(exit_code) not in LASTING_EXITS and at <= left.end
        return Trouble(why, 0, ""), is_passing, min(at, left.end)
    if status == 0 and exit_code not in _NOT_STARTED:
        return Trouble(why, 0, ""), str(exit_code) not in LASTING_EXITS, left.start
    if str(status) in PASSING:
        return Trouble(f"HTTP status {status}", status, ""), True, left.start
    return _ODD, False, left.start


def _answer(path: str) -> "tuple[int, tuple[int, ...]]":
    """Return the status of the last answer and its range: first byte, last byte, whole size."""
    with open(path, "rb") as file:
        answers = file.read().replace(b"\r\n", b"\n").strip().split(b"\n\n")
    status = re.match(rb"HTTP/\S+ (\d+)", answers[-1])
    place = re.search(rb"(?im)^content-range: *bytes (\d+)-(\d+)/(\d+)", answers[-1])
    return int(status[1]) if status else 0, tuple(map(int, place.groups())) if place else ()
