"""Inputs to measure with: taxi rides as CSV, made of the rows in samples/taxi; always the same."""

import os
import pathlib
from collections.abc import Iterator

SAMPLES = pathlib.Path(__file__).resolve().parent.parent / "samples" / "taxi"
_STRIDE = 997  # each key begins elsewhere in the rows, so that no two keys are equal


def sample_rows() -> tuple[bytes, list[bytes]]:
    """Return the header and all rows of the samples, each with its newline."""
    header, rows = b"", []
    for path in sorted(SAMPLES.glob("*.csv")):
        header, *own = path.read_bytes().splitlines(keepends=True)
        rows += own
    return header, rows


def write_keys(folder: str, count: int, size: int) -> list[str]:
    """Write `count` keys of about `size` bytes each, never more; return their paths.

    Keys that are there already are kept: they hold what would be written.
    """
    header, rows = sample_rows()
    os.makedirs(folder, exist_ok=True)
    paths = [os.path.join(folder, f"yellow_tripdata_{number:05d}.csv") for number in range(count)]
    for number, path in enumerate(paths):
        if not os.path.exists(path):
            start = number * _STRIDE % len(rows)
            _write(path, _blocks(header, rows[start:] + rows[:start], size))
    return paths


def write_tiny_keys(folder: str, count: int, rows: int = 3) -> list[str]:
    """Write `count` keys of a header and a few rows each; return their paths."""
    header, pool = sample_rows()
    longest = max(map(len, pool))
    return write_keys(folder, count, len(header) + rows * longest)


def _blocks(header: bytes, rows: list[bytes], size: int) -> Iterator[bytes]:
    """Yield the header, then the rows over and over, up to the last whole row that fits `size`."""
    left = size - len(header)
    yield header
    all_rows = b"".join(rows)
    for _ in range(left // len(all_rows)):
        yield all_rows
    left %= len(all_rows)
    yield all_rows[: all_rows.rfind(b"\n", 0, left) + 1]


def _write(path: str, blocks: Iterator[bytes]) -> None:
    tmp = path + ".tmp"
    with open(tmp, "wb") as file:
        file.writelines(blocks)
    os.rename(tmp, path)


def size(folder: str) -> int:
    """Return the bytes of all files of a folder."""
    return sum(entry.stat().st_size for entry in os.scandir(folder))


def warm(paths: list[str]) -> None:
    """Read every file once, so that it is in the page cache."""
    buffer = bytearray(1 << 20)
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
