"""The listener of a shuffle: with the run's credential one can read outputs, without it nothing."""

import contextlib
import os
import pathlib
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from workflows.fleets.credential import make_credential
from workflows.node.bring import bring
from workflows.node.files import checksum
from workflows.node.https import BROKEN, Credential, Gone, Listener, Source, target_of
from workflows.node.senders import Senders
from workflows.node.shuffle import Shuffle
from workflows.node.storage import Storage

ADDRESS = "127.0.0.9"
DATA = os.urandom(3 << 20)


class Door:
    """A listener over a storage that holds the key `in/a b` of the step `Made`."""

    def __init__(self, root: pathlib.Path) -> None:
        self.storage = Storage(str(root / "node"))
        (root / "node" / "secret").write_text("not an output")
        self.path = root / "given"
        self.path.write_bytes(DATA)
        item = {"key": "in/a b", "id": "0a1b", "bytes": len(DATA), "crc": checksum(str(self.path))}
        self.item = item
        bring(self.storage, "Made", {**item, "path": str(self.path)})
        self.credential = Credential(**make_credential())
        self.listener = Listener(self.storage, ADDRESS, self.credential)
        self.port = self.listener.port
        self.made = ["Made", "0a1b", "in/a b"]

    def close(self) -> None:
        if not self.listener.is_closed:
            self.listener.close()
        self.storage.close()

    def source(self, **changes: str) -> Source:
        return Source(ADDRESS, self.port, self.credential._replace(key="", **changes))

    def raw(self, request: bytes) -> bytes:
        """Send bytes through TLS as somebody would who checks nothing; return all that comes."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        plain = socket.create_connection((ADDRESS, self.port), 10)
        with context.wrap_socket(plain) as line:
            line.sendall(request)
            return b"".join(iter(lambda: line.recv(1 << 16), b""))

    def ask(self, target: str, method: str = "GET", token: str | None = None) -> bytes:
        shown = self.credential.token if token is None else token
        head = f"{method} {target} HTTP/1.1\r\nAuthorization: Bearer {shown}\r\n"
        return self.raw((head + "Connection: close\r\n\r\n").encode("utf-8"))


@pytest.fixture
def door(tmp_path: pathlib.Path) -> Iterator[Door]:
    door = Door(tmp_path)
    yield door
    door.close()


@pytest.fixture
def receiver(tmp_path: pathlib.Path) -> Iterator[Storage]:
    storage = Storage(str(tmp_path / "receiver"))
    yield storage
    storage.close()


def test_one_connection_fetches_many_outputs(door: Door, tmp_path: pathlib.Path) -> None:
    source = door.source()

    lines = set()
    for number in range(3):
        crc = source.fetch(door.made, len(DATA), str(tmp_path / f"{number}"))
        lines.add(source._line.sock)
        assert crc == door.item["crc"]
        assert (tmp_path / f"{number}").read_bytes() == DATA

    assert len(lines) == 1
    source.close()


@pytest.mark.parametrize("token", ["", "x", "guess" * 9, "\u00e9"])
def test_without_the_token_nobody_learns_anything(door: Door, token: str) -> None:
    there = door.ask(target_of(door.made), token=token)
    absent = door.ask("/no/such/thing", token=token)

    assert there == absent == b"HTTP/1.1 401 \r\nContent-Length: 0\r\n\r\n"
    assert door.raw(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n") == there
    assert door.raw(f"GET {target_of(door.made)}\r\n\r\n".encode()) == there


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/Made",
        "/Made/0a1b",
        "/Made/0a1b/in%2Fa%20b/",
        "/Made/0a1b/in%2Fa%20b/piece",
        "/Made/0a1b/in/a%20b",
        "/Made/0a1b/in",
        "/Made/0a1b/..%2F..%2F..%2Fsecret",
        "/Made/0a1b/in%2Fa%20b/..",
        "/../secret",
        "/..%2F..%2Fsecret/0a1b/x",
        "/Made/..%2F..%2F..%2Fsecret/in%2Fa%20b",
        "/Made/0a1b/in%2Fa%20b/%2Fetc%2Fpasswd",
        "/Made/0a1b/in%2Fa%20b%00",
        "//etc/passwd",
        "/ledger/Made.jsonl",
        "http://127.0.0.9/Made/0a1b/in%2Fa%20b",
        "*",
    ],
)
def test_with_the_token_nothing_but_outputs_can_be_read(door: Door, target: str) -> None:
    assert door.ask(target).startswith(b"HTTP/1.1 404 \r\nContent-Length: 0\r\n")


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "HEAD", "OPTIONS", "CONNECT", "X"])
def test_nothing_can_be_done_but_reading(door: Door, method: str) -> None:
    before = sorted(path for path in pathlib.Path(door.storage.root).rglob("*"))

    answer = door.ask(target_of(door.made), method)

    assert answer == b"HTTP/1.1 405 \r\nContent-Length: 0\r\n\r\n"
    assert sorted(path for path in pathlib.Path(door.storage.root).rglob("*")) == before


def test_who_does_not_speak_tls_12_or_newer_hears_nothing(door: Door) -> None:
    with socket.create_connection((ADDRESS, door.port), 10) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        said = b""
        with contextlib.suppress(ConnectionResetError):
            said = plain.recv(1 << 16)
    assert b"HTTP" not in said
    assert door.listener.context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_it_listens_on_one_address_only(door: Door) -> None:
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", door.port), 10)


def test_a_sender_with_another_certificate_never_sees_the_token(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "ours").mkdir()
    ours = Credential(**make_credential())
    false = Door(tmp_path / "other")
    heard: list[Any] = []
    # A token that would be let in, so that only the certificate can stand in the way.
    false.listener.token = ours.token.encode()
    accept = false.listener.process_request

    def hear(*about: Any) -> None:
        heard.append(about)
        accept(*about)

    monkeypatch.setattr(false.listener, "process_request", hear)

    source = Source(ADDRESS, false.port, ours._replace(key=""))
    with pytest.raises(ssl.SSLCertVerificationError):
        source.fetch(false.made, len(DATA), str(tmp_path / "got"))

    assert heard
    assert not (tmp_path / "got").exists()
    false.close()


def test_a_wrong_token_or_size_publishes_nothing(door: Door, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConnectionRefusedError, match="does not take part"):
        door.source(token="x").fetch(door.made, len(DATA), str(tmp_path / "got"))
    with pytest.raises(Gone):
        door.source().fetch(door.made, len(DATA) - 1, str(tmp_path / "got"))

    assert not (tmp_path / "got").exists()


def test_a_closed_listener_answers_no_more(door: Door, tmp_path: pathlib.Path) -> None:
    source = door.source()
    source.fetch(door.made, len(DATA), str(tmp_path / "got"))

    door.listener.close()

    with pytest.raises(BROKEN):
        source.fetch(door.made, len(DATA), str(tmp_path / "again"))
    assert not (tmp_path / "again").exists()


def test_a_listener_lives_as_long_as_somebody_holds_it(door: Door) -> None:
    senders = Senders(door.storage)
    one, two = object(), object()

    port = senders.hold(one, ADDRESS, door.credential)
    assert senders.hold(two, ADDRESS, door.credential) == port
    senders.release(one)
    socket.create_connection((ADDRESS, port), 10).close()
    senders.release(two)

    with pytest.raises(OSError, match="refused"):
        socket.create_connection((ADDRESS, port), 10)


def test_a_sender_that_breaks_off_leaves_no_half_piece(door: Door, receiver: Storage) -> None:
    """A cable is cut behind half of the bytes, twice: the second time the sender is given up."""
    cut = Cut(door.port, len(DATA) // 2)
    item = {**door.item, "made": door.made, "sender": 3}
    message = {
        "step": "Took",
        "senders": {"3": [ADDRESS, cut.port]},
        "certificate": door.credential.certificate,
        "token": door.credential.token,
    }
    shuffle = Shuffle(receiver, message)

    events = [event for batch in shuffle.batches([item, item]) for event in shuffle.run(batch)]

    assert [event["unreachable"] for event in events] == [3, 3]
    assert cut.connections == 2
    assert receiver.listing("Took") == {}
    assert [path for path in pathlib.Path(receiver.tmp).iterdir() if path.name != "alive"] == []
    cut.close()


class Cut:
    """Passes connections on to a port, and closes each after so many bytes of the answer."""

    def __init__(self, port: int, after: int) -> None:
        self.listener = socket.create_server((ADDRESS, 0))
        self.port, self.connections = self.listener.getsockname()[1], 0
        self._to, self._after = port, after
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)  # closing alone does not end an accept
        self._thread.join()
        self.listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            far = socket.create_connection((ADDRESS, self._to))
            back = threading.Thread(target=self._copy, args=(near, far, 1 << 40), daemon=True)
            back.start()
            with near, far:
                self._copy(far, near, self._after)
                back.join()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket, left: int) -> None:
        try:
            while left > 0 and (data := source.recv(1 << 16)):
                target.sendall(data)
                left -= len(data)
        except OSError:
            pass
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def test_what_was_damaged_on_its_way_is_not_published(door: Door, receiver: Storage) -> None:
    item = {**door.item, "crc": "00000000", "made": door.made, "sender": 0}
    message = {
        "step": "Took",
        "senders": {"0": [ADDRESS, door.port]},
        "certificate": door.credential.certificate,
        "token": door.credential.token,
    }

    (event,) = Shuffle(receiver, message).run([item])

    assert event["event"] == "failed"
    assert "damaged" in event["why"]
    assert receiver.listing("Took") == {}


def test_the_key_is_on_no_disk_and_in_no_name(door: Door) -> None:
    files = [path for path in pathlib.Path(door.storage.root).rglob("*") if path.is_file()]
    links = [
        os.readlink(f"/proc/self/fd/{name}")
        for name in os.listdir("/proc/self/fd")
        if os.path.islink(f"/proc/self/fd/{name}")
    ]

    assert not any(b"PRIVATE" in path.read_bytes() for path in files)
    assert not any("credential" in link for link in links)
    line = pathlib.Path("/proc/self/cmdline").read_bytes()
    assert door.credential.token.encode() not in line


def test_a_runtime_that_shuffles_nothing_does_not_load_what_shuffles_need() -> None:
    code = "import sys, workflows.node.main; print('ssl' in sys.modules, 'http' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)

    assert done.stdout == b"False False\n"
