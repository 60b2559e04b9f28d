"""One task's conversations with the runtimes of its nodes."""

import contextlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import IO, TYPE_CHECKING, Any, ClassVar, Protocol

from workflows.errors import CheckpointError, NodeLost, WorkflowsError
from workflows.node.wire import Wire

if TYPE_CHECKING:
    from typing_extensions import Self

_WAITS = 4  # after each but the last of these, a silent runtime is pinged
_BLOCK = 1 << 18
_AHEAD = 32  # files sent before the first is answered; as many answers fit into any buffer
_SHIPS = 3  # times a node is sent what it lacks before it is given up
_LARGEST = 1 << 24  # bytes of an output in one message; runtimes send less
Event = dict[str, Any]


class Node(Protocol):
    """One slot's node, however it is reached."""

    slot: int
    slots: int
    name: str
    root: str
    silence_s: float  # how long it may say nothing, not even when asked, before it is lost
    is_here: bool  # whether it sees this machine's files
    peer: str  # the address by which other nodes reach it; empty if they see each other's files

    def start(self) -> None:
        """Begin to make the runtime reachable, without waiting."""

    def connect(self) -> Wire:
        """Return a wire to a new session."""

    def revive(self, runtime: str = "", *, wait: bool = True) -> None:
        """Replace a lost runtime, unless another one than `runtime` is there already.

        With `wait`, wait for a node that may come back.
        """

    def let_go(self) -> None:
        """Let the runtime end, without waiting for it: several nodes end side by side."""

    def close(self) -> None:
        """End the runtime."""


class Channel:
    """One session with a node's runtime. After a silence it is pinged; after a long one, lost."""

    # Signs the URL of a source again, where its signature has expired; runs set it.
    sign: ClassVar[Callable[[str], str]] = staticmethod(str)

    def __init__(self, node: Node) -> None:
        self.node = node
        self._wire = node.connect()

    def ask(self, message: Event, *last: str) -> Iterator[Event]:
        """Send an operation and yield its events, up to and with the first that is named in `last`.

        Raises:
            NodeLost: the connection broke, or nothing was heard for too long.
            WorkflowsError: the node could not make sense of the operation.
        """
        try:
            self._wire.limit(self.node.silence_s)
            self._wire.send(message)
            yield from self._events(last)
        except OSError as error:
            raise NodeLost(self.node.name, str(error) or type(error).__name__) from error

    def one(self, message: Event, answer: str) -> Event:
        """Send an operation that has one answer."""
        for event in self.ask(message, answer):
            if event["event"] == answer:
                return event
        raise NodeLost(self.node.name, "it hung up")

    def run(self, message: Event, files: Mapping[str, bytes]) -> Iterator[Event]:
        """Let the node run keys; yield its events. Of `files`, by digest, it is sent what it lacks.

        It has them all once a task has brought them: then one message and its answers are all.

        Raises:
            NodeLost: see `ask`; or it does not keep what it is sent.
            WorkflowsError: see `ask`.
        """
        for _ in range(_SHIPS):
            lacks = None
            for event in self.ask(message, "ran", "lacks"):
                if event["event"] == "running" and type(event.get("had")) is not int:
                    raise self._unexpected(event)
                if event["event"] == "lacks":
                    lacks = event
                else:
                    yield event
            if lacks is None:
                return
            self._ship(lacks, files)
        raise NodeLost(self.node.name, "it does not keep the files that are sent to it")

    def _ship(self, lacks: Event, files: Mapping[str, bytes]) -> None:
        digests = lacks.get("digests")
        if not isinstance(digests, list) or any(digest not in [*files] for digest in digests):
            raise self._unexpected(lacks)
        try:
            self._wire.limit(self.node.silence_s)
            for digest in digests:
                self._wire.send_bytes({"op": "file", "digest": digest}, files[digest])
        except OSError as error:
            raise NodeLost(self.node.name, str(error)) from error

    def tell_signed(self, event: Event, urls: list[str]) -> None:
        """Give the node the URLs that it has asked for with an event."""
        self._wire.send({"op": "signed", "n": event["n"], "urls": urls})

    def read(self, step: str, identity: str, key: str) -> Iterator[bytes]:
        """Yield the bytes of one output; the last event's checksum is the caller's to compare."""
        message = {"op": "read", "step": step, "id": identity, "key": key}
        for event in self.ask(message, "end"):
            if event["event"] == "data":
                yield self._raw(event)

    def store(self, message: Event, chunks: Iterable[bytes]) -> Event:
        """Send an operation, then bytes if the node is ready for them; return its last event.

        However long `chunks` takes to give the next one, the node waits.
        """
        event = _last(self.ask(message, "ready", "failed"))
        if event["event"] == "failed":
            return event
        size = value = 0
        try:
            self._wire.limit(self.node.silence_s)
            for chunk in chunks:
                self._wire.send_bytes({"op": "chunk"}, chunk)
                size, value = size + len(chunk), zlib.crc32(chunk, value)
        except TimeoutError:
            raise self._silent() from None
        except OSError as error:
            raise NodeLost(self.node.name, str(error) or type(error).__name__) from error
        return _last(self.ask({"op": "stored", "bytes": size, "crc": value}, "stored", "failed"))

    def stream(self, message: Event, *last: str) -> Iterator[tuple[Event, bytes]]:
        """Send an operation; yield its events, each with the raw bytes that follow it."""
        for event in self.ask(message, *last):
            yield event, self._raw(event) if "size" in event else b""

    def feed(self, data: bytes) -> None:
        """Send bytes to the command that `stream` runs, from another thread; none are the end.

        Raises:
            OSError: the connection broke; whoever reads its events is told.
        """
        self._wire.send_bytes({"op": "input"}, data)

    def bring(self, step: str, items: list[Event]) -> Iterator[Event]:
        """Let the node bring files from URLs, or from this machine's paths, and publish them.

        Raises:
            CheckpointError: a file of this machine cannot be read, or is not what it was.
        """
        if self.node.is_here or not any("path" in item for item in items):
            yield from self.ask({"op": "bring", "step": step, "items": items}, "ran")
            return
        answers = ("brought", "failed")
        try:
            for number, item in enumerate(items):
                self._give(step, item)
                if number >= _AHEAD:
                    yield from self._events(answers)
            for _ in items[:_AHEAD]:
                yield from self._events(answers)
        except OSError as error:
            raise NodeLost(self.node.name, str(error) or type(error).__name__) from error

    def _give(self, step: str, item: Event) -> None:
        """Send one file of this machine; the node answers when it has published it."""
        path, size = item["path"], item["bytes"]
        about = {name: value for name, value in item.items() if name != "path"}
        with _opened(path, size) as file:
            self._wire.limit(self.node.silence_s)
            self._wire.send({"op": "take", "step": step, "item": about, "size": size})
            while size:
                data = _read(file, min(size, _BLOCK))
                if not data:
                    self.close()  # the node still waits for the rest
                    raise CheckpointError(f"{path} was cut while it was read")
                self._wire.send_raw(data)
                size -= len(data)

    @property
    def runtime(self) -> str:
        """Return the name of the runtime at the other end."""
        return self._wire.runtime

    def interrupt(self) -> None:
        """End the session from another thread than the one that uses it."""
        self._wire.interrupt()

    def close(self) -> None:
        """End the session: what it had running is killed."""
        with contextlib.suppress(OSError):
            self._wire.close()

    def _events(self, last: tuple[str, ...]) -> Iterator[Event]:
        while True:
            event = self._next()
            if event["event"] == "pong":
                continue
            if event["event"] == "stale":
                self.tell_signed(event, [Channel.sign(str(event["url"]))])
                continue
            if event["event"] == "error":
                raise WorkflowsError(f"{self.node.name}: {event['why']}")
            yield event
            if event["event"] in last:
                return

    def _next(self) -> Event:
        # Waits are counted, not the clock read: a driver that was stopped itself, or slept with its
        # machine, has heard nothing for long either, and has yet to ask.
        waited, ping_s = 0.0, self.node.silence_s / _WAITS
        while True:
            try:
                event = self._wire.recv(ping_s)
            except TimeoutError:
                waited += ping_s
                if waited >= self.node.silence_s:
                    raise self._silent() from None
                self._wire.send({"op": "ping", "n": 0})
                continue
            except (ValueError, RecursionError) as error:
                raise self._unexpected(error) from error
            if event is None:
                raise NodeLost(self.node.name, "it hung up")
            if not isinstance(event.get("event"), str):
                raise self._unexpected(event)
            return event

    def _raw(self, event: Event) -> bytes:
        size = event.get("size")
        if type(size) is not int or not 0 <= size <= _LARGEST:
            raise self._unexpected(event)
        try:
            self._wire.limit(self.node.silence_s)
            data = self._wire.recv_bytes(size)
        except TimeoutError:
            raise self._silent() from None
        except OSError as error:
            raise NodeLost(self.node.name, str(error)) from error
        if len(data) < size:
            raise NodeLost(self.node.name, "it hung up")
        return data

    def _unexpected(self, what: object) -> NodeLost:
        return NodeLost(self.node.name, f"protocol error: unexpected reply: {str(what)[:120]}")

    def _silent(self) -> NodeLost:
        return NodeLost(self.node.name, f"nothing was heard of it for {self.node.silence_s:g} s")


def _last(events: Iterator[Event]) -> Event:
    *_, event = events
    return event


def _opened(path: str, size: int) -> IO[bytes]:
    try:
        file = open(path, "rb")  # noqa: SIM115 - the caller closes it
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    if os.fstat(file.fileno()).st_size != size:
        file.close()
        raise CheckpointError(f"{path} is damaged: it had {size} bytes")
    return file


def _read(file: IO[bytes], size: int) -> bytes:
    try:
        return file.read(size)
    except OSError as error:
        raise CheckpointError(f"cannot read {file.name}: {error.strerror}") from error


class Conversations:
    """The channels of one task, which end with it; a context manager, entered by the task's thread.

    Whatever runs in no task, as what schedules them, has those of its process.
    """

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._channels: dict[Node, Channel] = {}
        self._runtimes: dict[Node, str] = {}  # those last spoken to, also if they are gone
        self.is_over = False

    def __enter__(self) -> "Self":
        _of_task.set(self)
        _going_on.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        _going_on.discard(self)
        for node in list(self._channels):
            self.drop(node)

    def channel(self, node: Node) -> Channel:
        """Return the channel to a node, opened when first used.

        Raises:
            NodeLost: the node is gone.
        """
        self.go_on()
        if self._owner != os.getpid():  # forked: the channels are those of the process before it
            self._owner, self._channels = os.getpid(), {}
        if node not in self._channels:
            self._channels[node] = channel = Channel(node)
            self._runtimes[node] = channel.runtime
            self.go_on()
        return self._channels[node]

    def drop(self, node: Node) -> None:
        """Close the channel to a node; the next use opens another."""
        channel = self._channels.pop(node, None)
        if channel is not None:
            channel.close()

    def revive(self, node: Node, *, wait: bool) -> None:
        """Put a new runtime in place of the one that was lost, if no other task has yet.

        Raises:
            NodeLost: there is none to be had.
        """
        self.drop(node)
        self.go_on()
        node.revive(self._runtimes.get(node, ""), wait=wait)

    def interrupt(self) -> None:
        """Let the task end with its next word to a node, or from one: called by another thread."""
        self.is_over = True
        for channel in list(self._channels.values()):
            channel.interrupt()

    def go_on(self) -> None:
        """Go no further if the task was interrupted: then it has lost no node.

        Raises:
            KeyboardInterrupt: it was.
        """
        if self.is_over:
            raise KeyboardInterrupt


_of_task: ContextVar[Conversations | None] = ContextVar("conversations", default=None)
_of_process = Conversations()
_going_on: set[Conversations] = set()


def conversations() -> Conversations:
    """Return those of the task that asks, or of the process."""
    return _of_task.get() or _of_process


def interrupt_all() -> None:
    """Let all tasks go no further, at once."""
    for one in _going_on.copy():
        one.interrupt()


def is_in_task() -> bool:
    """Tell whether a task asks, not what schedules tasks."""
    return _of_task.get() is not None
