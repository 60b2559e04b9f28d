"""Checksums are the same, whatever library makes them."""

import ctypes
import pathlib
import sys
import zlib
from collections.abc import Iterator

import pytest

from workflows.node import crc, files


class Absent:
    """A library that is not installed."""

    def __init__(self, name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")


@pytest.fixture(params=["quick", "no library", "no ctypes"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Let checksums be made by libdeflate, or by zlib where there is no other."""
    crc.quickest.cache_clear()
    if request.param != "quick":
        if request.param == "no library":
            monkeypatch.setattr(ctypes, "CDLL", Absent)
        else:
            monkeypatch.setitem(sys.modules, "ctypes", None)
        assert crc.quickest() is zlib.crc32
    elif crc.quickest() is zlib.crc32:
        pytest.skip("libdeflate is not installed: apt-get install libdeflate0")
    yield request.param
    crc.quickest.cache_clear()


def test_a_large_file_has_the_checksum_that_zlib_makes(
    tmp_path: pathlib.Path, library: str
) -> None:
    data = bytes(range(251)) * ((files._LARGE + 12345) // 251)
    path = tmp_path / "large"
    path.write_bytes(data)
    assert len(data) > files._LARGE

    assert files.checksum(str(path)) == f"{zlib.crc32(data):08x}"
    assert files.crc_of(str(path), 7, 300_001) == zlib.crc32(data[7:300_001])


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 4095, 100_000])
def test_pieces_in_a_row_have_the_checksum_of_the_whole(library: str, size: int) -> None:
    data = bytearray(range(256)) * 1000
    update = crc.quickest()

    value = update(memoryview(data)[:size], 0)
    value = update(memoryview(data)[size:], value)

    assert value == zlib.crc32(data)


def test_a_library_that_counts_otherwise_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Library:
        def __init__(self, _: str) -> None:
            self.libdeflate_crc32 = Wrong()

    class Wrong:
        def __call__(self, _value: int, _address: int, size: int) -> int:
            asked.append(size)
            return 7

    crc.quickest.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", Library)

    assert crc.quickest() is zlib.crc32
    assert len(asked) == 1
    crc.quickest.cache_clear()
