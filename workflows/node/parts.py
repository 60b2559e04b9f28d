"""One large file in parts over several connections: while some are sent, the next one is read.

A part is copied out of the file, since curl sends whole files; the copies are few, and used again.
"""

import concurrent.futures
import functools
import hashlib
import os
import queue
import threading
import zlib
from collections.abc import Sequence
from typing import Callable, NamedTuple, Optional

from workflows.node.curl import Curl, Transfer, Trouble
from workflows.node.files import combined

AT_ONCE = 4
_READ = 1 << 20


class Part(NamedTuple):
    """A sent file: its bytes, their MD5 in hex, their CRC-32."""

    size: int
    md5: str
    crc: int


class Sender:
    """Sends the parts of one file, each to a URL of its own, which is asked for with its MD5."""

    def __init__(self, path: str, part_bytes: int, curl: Curl, scratch: str) -> None:
        self._path, self._part_bytes, self._curl = path, part_bytes, curl
        self._refused = threading.Event()
        self._desks: queue.SimpleQueue[str] = queue.SimpleQueue()
        for number in range(AT_ONCE):
            desk = os.path.join(scratch, f"desk.{number}")
            os.makedirs(desk, exist_ok=True)
            self._desks.put(desk)

    def __call__(
        self, url_of: Callable[[int, Part], str]
    ) -> "tuple[Optional[Trouble], list[Part]]":
        """Send as many parts as there are; return what went wrong, if anything, and the parts.

        Raises:
            OSError: the file cannot be read, or there is no room for a copy.
            Exception: `url_of`, which is given a part and its number from 0 on, raised it.
        """
        count = max(1, -(-os.path.getsize(self._path) // self._part_bytes))
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            send = functools.partial(self._send, url_of)
            ended = list(pool.map(send, range(count)))
        troubles = [trouble for trouble, _ in ended if trouble is not None]
        return (troubles[0] if troubles else None), [part for _, part in ended]

    def _send(
        self, url_of: Callable[[int, Part], str], number: int
    ) -> "tuple[Optional[Trouble], Part]":
        desk = self._desks.get()
        try:
            if self._refused.is_set():
                return None, Part(0, "", 0)
            copy = os.path.join(desk, "part")
            part = _copied(self._path, number * self._part_bytes, self._part_bytes, copy)
            transfer = Transfer(url_of(number, part), copy, part.size, part.md5)
            (trouble,) = self._curl.run([transfer], desk)
            if trouble is not None:
                self._refused.set()  # the others would be for nothing
            return trouble, part
        except BaseException:
            self._refused.set()
            raise
        finally:
            self._desks.put(desk)


def crc_of(parts: Sequence[Part]) -> str:
    """Return the CRC-32 of all parts in a row, in hex."""
    crc = 0
    for part in parts:
        crc = combined(crc, part.crc, part.size)
    return f"{crc:08x}"


def _copied(path: str, start: int, length: int, copy: str) -> Part:
    """Copy some bytes of a file over an older copy, whose room on the disk is used again."""
    digest = hashlib.md5(usedforsecurity=False)
    crc, size = 0, 0
    buffer = memoryview(bytearray(_READ))
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
    with open(path, "rb", buffering=0) as source, open(os.open(copy, flags, 0o600), "wb") as file:
        source.seek(start)
        while size < length:
            count = source.readinto(buffer[: min(_READ, length - size)])
            if not count:
                break
            data = buffer[:count]
            digest.update(data)
            crc = zlib.crc32(data, crc)
            file.write(data)
            size += count
        file.truncate()
    return Part(size, digest.hexdigest(), crc)
