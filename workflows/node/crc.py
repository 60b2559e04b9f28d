"""CRC-32 of much data, made quicker where this machine has libdeflate."""

import functools
import zlib
from typing import Callable

Update = Callable[[memoryview, int], int]


@functools.cache
def quickest() -> Update:
    """Return a function like `zlib.crc32`, for writable memory: libdeflate's if it is here.

    https://github.com/ebiggers/libdeflate uses the processor's carry-less multiplication. Measured:
    15 GB/s in place of 6.5; of a file in the page cache, 7.3 in place of 4.5.
    """
    try:
        import ctypes  # here, as few keys are so large

        update = ctypes.CDLL("libdeflate.so.0").libdeflate_crc32
        update.restype = ctypes.c_uint32
        update.argtypes = (ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t)
    except (ImportError, OSError, AttributeError):
        return zlib.crc32

    def crc32(data: memoryview, value: int) -> int:
        held = (ctypes.c_char * len(data)).from_buffer(data)
        return int(update(value, ctypes.addressof(held), len(data)))

    sample = memoryview(bytearray(range(256)) * 17)[1:]
    is_right = crc32(sample, 7) == zlib.crc32(sample, 7)
    return crc32 if is_right else zlib.crc32
