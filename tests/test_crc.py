"""Checksums are the same, whatever library makes them."""

import pathlib
import subprocess
import sys
import zlib
from collections.abc import Iterator

import pytest

from workflows.node import crc, files

NONE = "no-such-library.so"
HERE = "libdeflate.so.0"


@pytest.fixture(params=["quick", "plain"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Let checksums be made by libdeflate, or by zlib where there is no other."""
    crc.quickest.cache_clear()
    if request.param == "plain":
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


def test_a_library_that_counts_otherwise_is_not_used(tmp_path: pathlib.Path) -> None:
    (tmp_path / "ctypes.py").write_text(
        "c_uint32 = c_void_p = c_size_t = None\n"
        "class CDLL:\n"
        "    def __init__(self, name): pass\n"
        "    def libdeflate_crc32(*_): return 7\n"
        "    libdeflate_crc32 = type('', (), {'__call__': lambda *_: 7})()\n"
        "class c_char:\n"
        "    def __class_getitem__(cls, _): return cls\n"
        "class Kind(type):\n"
        "    def __mul__(cls, _): return cls\n"
        "c_char = Kind('c_char', (), {'from_buffer': staticmethod(lambda data: data)})\n"
        "addressof = id\n"
    )
    code = "from workflows.node import crc; import zlib; assert crc.quickest() is zlib.crc32"

    subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"],
        check=True,
        cwd=pathlib.Path(files.__file__).parents[2],
    )
