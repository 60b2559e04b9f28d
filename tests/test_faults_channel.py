"""A driver against runtimes that are none: silent, garbled, cut off, lying about sizes."""

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from workflows.errors import NodeLost, WorkflowsError
from workflows.fleets.channel import Channel
from workflows.node.senders import Senders
from workflows.node.server import Runtime, Session
from workflows.node.slots import Slots
from workflows.node.storage import Storage
from workflows.node.wire import Wire
from workflows.node.workplace import Workplaces

LISTING = {"op": "list", "steps": ["Step"]}


class FakeNode:
    """A node whose runtime is the test."""

    slot, slots, name, root, silence_s = 0, 1, "node 0", "/nonexistent", 0.4
    is_here, peer = True, ""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()

    def start(self) -> None:
        pass

    def connect(self) -> Wire:
        return Wire(self.ours)

    def revive(self, runtime: str = "", *, wait: bool = True) -> None:
        pass

    def let_go(self) -> None:
        pass

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def node() -> Iterator[FakeNode]:
    node = FakeNode()
    started = time.monotonic()
    yield node
    node.close()
    assert time.monotonic() - started < 3  # the driver is done with it, whatever it does


# -- it goes away ----------------------------------------------------------------------------------


def test_a_runtime_that_hangs_up_is_lost(node: FakeNode) -> None:
    channel = Channel(node)

    node.theirs.close()

    with pytest.raises(NodeLost, match=r"^node 0 is lost: (it hung up|.*[Bb]roken pipe)"):
        channel.one(LISTING, "listing")


@pytest.mark.parametrize("said", [b"", b'{"event": "lis', b'{"event": "listing", "steps": {}}'])
def test_a_runtime_that_hangs_up_in_the_middle_of_a_message_is_lost(
    node: FakeNode, said: bytes
) -> None:
    channel = Channel(node)
    node.theirs.sendall(said)
    node.theirs.shutdown(socket.SHUT_WR)

    with pytest.raises(NodeLost, match=r"^node 0 is lost: it hung up$"):
        channel.one(LISTING, "listing")


@pytest.mark.parametrize("said", [b"", b'{"event": "lis', b'{"event": "listing", "steps": {}}'])
def test_a_runtime_that_falls_silent_is_lost_within_its_time(node: FakeNode, said: bytes) -> None:
    channel = Channel(node)
    node.theirs.sendall(said)
    started = time.monotonic()

    with pytest.raises(NodeLost, match=r"^node 0 is lost: nothing was heard of it for 0\.4 s$"):
        channel.one(LISTING, "listing")
    took_s = time.monotonic() - started

    assert 0.3 < took_s < 2
    asked = node.theirs.recv(1 << 16).splitlines()
    assert asked[1:] == [b'{"op":"ping","n":0}'] * 3


def test_a_runtime_that_answers_when_asked_is_not_lost_however_long_it_works(
    node: FakeNode,
) -> None:
    channel = Channel(node)
    wire = Wire(node.theirs)

    def work() -> None:
        pongs = 0
        while pongs < 8:  # twice as long as it may be silent
            message = wire.recv(5)
            if message is not None and message["op"] == "ping":
                wire.send({"event": "pong", "n": 0})
                pongs += 1
        wire.send({"event": "ran"})

    runtime = threading.Thread(target=work)
    runtime.start()
    events = list(channel.ask({"op": "run"}, "ran"))
    runtime.join()

    assert events == [{"event": "ran"}]


# -- it reads nothing ------------------------------------------------------------------------------


def test_a_runtime_that_reads_nothing_is_lost_even_while_it_is_sent_much(node: FakeNode) -> None:
    channel = Channel(node)

    with pytest.raises(NodeLost, match=r"^node 0 is lost: "):
        channel.one({"op": "run", "keys": ["k" * 1000] * 5000}, "ran")


def test_a_runtime_that_takes_no_shipped_file_is_lost(node: FakeNode) -> None:
    channel = Channel(node)
    node.theirs.sendall(b'{"event": "lacks", "digests": ["d"]}\n')

    with pytest.raises(NodeLost, match=r"^node 0 is lost: "):
        list(channel.run({"op": "run"}, {"d": bytes(5_000_000)}))


def test_a_runtime_that_keeps_no_shipped_file_is_lost(node: FakeNode) -> None:
    channel = Channel(node)
    node.theirs.sendall(b'{"event": "lacks", "digests": ["d"]}\n' * 10)

    with pytest.raises(NodeLost, match=r"^node 0 is lost: it does not keep the files"):
        list(channel.run({"op": "run"}, {"d": b"x"}))


# -- protocol errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        b"Last login: Mon\n",
        b"a flood without an end of the line " * 100,
        b"\xff\xfe\0\n",
        b"[1]\n",
        b"7\n",
        b"\n",
        b"{}\n",
        b'{"event": 3}\n',
        b"[" * 100_000 + b"\n",
        b'{"a":' * 20_000 + b"\n",
        b'{"event": "lis\n',
        b'{"event": "listing\xff"}\n',
    ],
    ids=range(12),
)
def test_a_runtime_that_talks_nonsense_is_lost_and_quoted(node: FakeNode, said: bytes) -> None:
    channel = Channel(node)

    node.theirs.sendall(said)

    with pytest.raises(NodeLost, match=r"^node 0 is lost: protocol error: unexpected ") as caught:
        channel.one(LISTING, "listing")
    assert len(str(caught.value)) < 300


def test_a_runtime_that_cannot_make_sense_of_what_it_is_told_is_no_lost_node(
    node: FakeNode,
) -> None:
    channel = Channel(node)

    node.theirs.sendall(b'{"event": "error", "why": "ValueError: unknown operation"}\n')

    with pytest.raises(WorkflowsError, match=r"^node 0: ValueError: unknown operation$") as caught:
        channel.one(LISTING, "listing")
    assert not isinstance(caught.value, NodeLost)


@pytest.mark.parametrize(
    "said",
    [
        {"event": "lacks"},
        {"event": "lacks", "digests": 3},
        {"event": "lacks", "digests": ["another"]},
        {"event": "lacks", "digests": [["d"]]},
    ],
    ids=str,
)
def test_a_runtime_that_lacks_what_it_was_not_offered_is_lost(
    node: FakeNode, said: dict[str, Any]
) -> None:
    channel = Channel(node)

    Wire(node.theirs).send(said)

    with pytest.raises(NodeLost, match=r"^node 0 is lost: protocol error: unexpected reply: "):
        list(channel.run({"op": "run"}, {"d": b"x"}))


@pytest.mark.parametrize("size", [None, "1", -1, 1.5, True, 1 << 60], ids=str)
def test_a_runtime_that_states_a_wrong_size_is_lost(node: FakeNode, size: object) -> None:
    channel = Channel(node)

    Wire(node.theirs).send({"event": "data", "size": size})

    with pytest.raises(NodeLost, match=r"^node 0 is lost: protocol error: unexpected reply: "):
        list(channel.read("Step", "id", "key"))


@pytest.mark.parametrize("goes", ["away", "silent"])
def test_a_runtime_that_stops_in_the_middle_of_an_output_is_lost(node: FakeNode, goes: str) -> None:
    channel = Channel(node)
    node.theirs.sendall(b'{"event": "data", "size": 1000}\n' + b"x" * 10)
    if goes == "away":
        node.theirs.shutdown(socket.SHUT_WR)
    why = "it hung up" if goes == "away" else r"nothing was heard of it for 0\.4 s"

    with pytest.raises(NodeLost, match=rf"^node 0 is lost: {why}$"):
        list(channel.read("Step", "id", "key"))


# -- the other way round: a runtime whose driver is cut off ----------------------------------------


@pytest.fixture
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[socket.socket, Storage]]:
    """Return the driver's end of a session, and what the session works on."""
    storage = Storage(str(tmp_path_factory.mktemp("node")))
    runtime = Runtime(storage, Slots(1), {}, Senders(storage), Workplaces(storage))
    ours, theirs = socket.socketpair()
    serving = threading.Thread(target=Session(runtime, Wire(theirs)).serve)
    serving.start()
    yield ours, storage
    ours.close()
    serving.join(10)
    storage.close()
    assert not serving.is_alive()


@pytest.mark.parametrize(
    "said",
    [b"hello\n", b"\xff\n", b"[]\n", b'{"op": "li', b'{"op":"file","digest":"d","size":9}\nx'],
)
def test_a_session_with_a_driver_that_talks_nonsense_or_is_cut_off_ends_and_keeps_nothing(
    session: tuple[socket.socket, Storage], said: bytes
) -> None:
    ours, storage = session

    ours.sendall(said)
    ours.shutdown(socket.SHUT_WR)

    assert ours.recv(1) == b""
    assert storage.steps() == []


@pytest.mark.parametrize(
    "said",
    [
        {"op": "nonesuch"},
        {"op": "serve"},
        {"no": "op"},
        {"op": "list"},
        {"op": "list", "steps": [7]},
        {"op": "read", "step": "S", "id": "i", "key": "k"},
        {"op": "run", "work": {}, "keys": []},
    ],
    ids=str,
)
def test_a_session_answers_what_makes_no_sense_with_an_error_and_goes_on(
    session: tuple[socket.socket, Storage], said: dict[str, Any]
) -> None:
    ours, _ = session
    wire = Wire(ours)

    wire.send(said)
    wire.send({"op": "ping", "n": 1})
    answers = [wire.recv(10), wire.recv(10)]

    assert answers[0] is not None
    assert answers[0]["event"] == "error"
    assert answers[1] == {"event": "pong", "n": 1}
