"""Files that a person sends to a node: a key, or a file of any path; whole or not at all."""

import contextlib
import os
import time
import zlib
from typing import IO, Optional

from workflows.node.files import remove
from workflows.node.keys import digest_of
from workflows.node.ledger import Record
from workflows.node.storage import Storage
from workflows.node.work import KeyFailed


class Arriving:
    """Something on its way in: a temporary file until all of it is here."""

    def __init__(self, name: str, path: str, step: str = "") -> None:
        self.name, self.path, self._step = name, path, step
        self._file: Optional[IO[bytes]] = self._opened()
        self._size = self._crc = 0
        self._why = ""

    def add(self, data: bytes) -> None:
        """Take the next bytes; after a failure they are only counted off."""
        if self._file is None:
            return
        try:
            self._file.write(data)
        except OSError as error:
            # At once: a full disk should have its space back.
            self.abandon(error.strerror or str(error))
            return
        self._size += len(data)
        self._crc = zlib.crc32(data, self._crc)

    def publish(self, size: int, crc: int) -> str:
        """Make it visible, whole; return its identity.

        Raises:
            KeyFailed: it did not arrive as it was sent, there is no space, or the name is taken.
        """
        try:
            if self._file is not None:
                self._keep(self._file)
        except OSError as error:
            self.abandon(error.strerror or str(error))
        if self._why:
            raise KeyFailed(self._why, self._step)
        if (self._size, self._crc) != (size, crc):
            raise KeyFailed("it arrived damaged; put it again", self._step)
        try:
            return self._publish(size, f"{crc:08x}")
        except OSError as error:
            raise KeyFailed(error.strerror or str(error), self._step) from error

    def _opened(self) -> IO[bytes]:
        return open(self.path, "xb")

    def _keep(self, file: IO[bytes]) -> None:
        """Close the file, which has its name then."""
        file.close()

    def _publish(self, size: int, crc: str) -> str:
        raise NotImplementedError

    def abandon(self, why: str = "") -> None:
        """Remove what has arrived so far."""
        self._why = self._why or why
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
        remove(self.path)


class NewKey(Arriving):
    """A key whose name is free."""

    def __init__(self, storage: Storage, step: str, key: str) -> None:
        self._storage, self._scratch = storage, storage.scratch()
        super().__init__(key, os.path.join(self._scratch, "file"), step)

    def _publish(self, size: int, crc: str) -> str:
        record: Record = {
            "key": self.name,
            "id": digest_of(["put", self.name, size, crc]),
            "bytes": size,
            "crc": crc,
            "spec": "put",
            "inputs": [],
            "at": round(time.time(), 3),
            "metrics": {"bytes_out": size},
        }
        return str(self._storage.publish(self._step, self.path, record, by_name=True)["id"])

    def abandon(self, why: str = "") -> None:
        """Remove what has arrived so far."""
        super().abandon(why)
        remove(self._scratch)


class NewFile(Arriving):
    """A file anywhere, in place of any that is there: who reads it sees the old one or the new."""

    def __init__(self, path: str, mode: int) -> None:
        self._target, self._mode = path, mode
        os.makedirs(os.path.dirname(path), exist_ok=True)
        super().__init__(path, f"{path}.{os.getpid()}.{time.monotonic_ns()}.tmp")

    def _opened(self) -> IO[bytes]:
        """Open a file without a name, where that can be: a runtime that is killed leaves none."""
        folder = os.path.dirname(self.path)
        with contextlib.suppress(OSError):
            return open(os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600), "wb")
        return super()._opened()

    def _keep(self, file: IO[bytes]) -> None:
        file.flush()
        if not os.fstat(file.fileno()).st_nlink:
            # With a directory given, though it is not used, Python follows the link to the file.
            unused = os.open("/", os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.link(f"/proc/self/fd/{file.fileno()}", self.path, src_dir_fd=unused)
            finally:
                os.close(unused)
        super()._keep(file)

    def _publish(self, size: int, crc: str) -> str:
        os.chmod(self.path, self._mode)
        os.replace(self.path, self._target)
        return ""
