"""CSV records as bytes, and what every script of a step has to say; for the scripts beside it.

    python3 -m SCRIPT ...        with this file in the working directory, too

Records are those of RFC 4180: a quoted newline does not end one. Rows pass through unchanged, which
no CSV reader and writer could promise.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from typing import NoReturn


def records(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield records, each ending in a newline; lines without anything in them are none."""
    held = b""
    for line in lines:
        if held or b'"' in line:
            held += line
            if held.count(b'"') % 2:
                continue
            line, held = held, b""  # noqa: PLW2901 - one record
        if line not in (b"\n", b"\r\n"):
            yield line if line.endswith(b"\n") else line + b"\n"
    if held:
        fail(f"a quote is never closed: {held[:80]!r}", 4)


def normal(name: bytes) -> bytes:
    """Return a column's name as names are compared: without case, blanks, quotes and BOM."""
    plain = name[3:] if name.startswith(b"\xef\xbb\xbf") else name
    return plain.strip(b' \t\r\n"').lower()


def metrics(**numbers: int) -> None:
    """Write down what was counted."""
    path = os.environ.get("WORKFLOWS_METRICS")
    if path:
        with open(path, "a", encoding="ascii") as file:
            file.writelines(f"{name}={number}\n" for name, number in numbers.items())


def fail(message: str, status: int) -> NoReturn:
    """End with a message."""
    script = os.path.splitext(os.path.basename(sys.argv[0]))[0]
    print(f"{script}: {message}", file=sys.stderr)
    sys.exit(status)
