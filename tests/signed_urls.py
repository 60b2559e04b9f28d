"""A server of objects that are to be had only by GET with a signed URL, as those of S3 are."""

import http.server
import pathlib
import secrets
import threading
import urllib.parse
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


class SignedObjects:
    """Serves a directory on the loopback; `sign` gives URLs, `expire` ends all given so far."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.signatures: set[str] = set()
        self.asked: list[str] = []
        handler = type("Handler", (_Handler,), {"objects": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> "Self":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: "type[BaseException] | None",
        error: "BaseException | None",
        trace: "TracebackType | None",
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def sign(self, name: str) -> str:
        signature = secrets.token_hex(16)
        self.signatures.add(signature)
        place = f"http://127.0.0.1:{self._server.server_address[1]}/{urllib.parse.quote(name)}"
        return f"{place}?X-Amz-Expires=3660&X-Amz-Signature={signature}"

    def expire(self) -> None:
        self.signatures.clear()


class _Handler(http.server.BaseHTTPRequestHandler):
    objects: SignedObjects

    def do_GET(self) -> None:
        parts = urllib.parse.urlsplit(self.path)
        signature = urllib.parse.parse_qs(parts.query).get("X-Amz-Signature", [""])[0]
        self.objects.asked.append(self.path)
        if signature not in self.objects.signatures:
            self.send_error(403)
            return
        data = (self.objects.folder / urllib.parse.unquote(parts.path).lstrip("/")).read_bytes()
        part = data
        if self.headers.get("Range") == "bytes=0-0":
            self.send_response(206 if data else 416)
            part = data[:1]
            self.send_header("Content-Range", f"bytes {'0-0' if data else '*'}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("ETag", f'"{hash(data):x}"')
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def do_HEAD(self) -> None:
        self.send_error(403)  # signed for another method

    def log_message(self, *args: object) -> None:
        pass
