"""Use nodes by hand: log in to many at once, run, stream, copy; tells lost from failed."""

import concurrent.futures
import contextlib
import dataclasses
import os
import queue
import shlex
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from workflows.ec2.api import ACCESS, HOST_KEY, Instance
from workflows.ec2.config import Spec
from workflows.errors import NodeLost, NodeRefused, UsageError, WorkflowsError
from workflows.fleets.hosts import Host
from workflows.fleets.ssh import BROKEN, Connection, connect_watched

_AT_ONCE = 32
RENEW = "touch .workflows/lease"
_RENEW_S = 60.0  # at the latest
OnLine = Callable[[str], None]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command ended on one node: its status, or why the node was lost."""

    slot: int
    status: int
    lost: str = ""


def host_of(spec: Spec, one: Instance, *keys: str) -> Host:
    """Return how to log in to an instance; it must show one of `keys`, or what its tag says.

    Raises:
        NodeLost: it has no address yet.
    """
    user, port, which = [*one.tags.get(ACCESS, "").split(), "", "", ""][:3]
    address = one.address(which or spec.access.address)
    if not address:
        raise NodeLost(name_of(one), "it has no address")
    known = keys or tuple(key for key in [one.tags.get(HOST_KEY, "")] if key)
    if not known:
        raise NodeLost(name_of(one), f"it is not set up; workflows fleet up {spec.name}")
    return Host(
        address=address,
        port=int(port or spec.access.ssh_port),
        user=user or spec.access.user,
        identity=spec.identity,
        host_key=known,
        scratch=node_scratch(spec),
        slots=spec.slots,
        slots_per_core=spec.slots_per_core,
        jump=spec.access.jump,
        # The security group lets its members reach each other, by these addresses alone.
        peer=one.private_ip,
    )


def node_scratch(spec: Spec) -> str:
    """Return the directory the runtime keeps things in; relative to the home if it begins so."""
    return spec.scratch.rstrip("/").removeprefix("~/") + "/workflows"


def name_of(one: Instance) -> str:
    """Return what messages call an instance."""
    return f"{'' if one.is_results else 'node '}{one.label} ({one.id})"


def login(spec: Spec, one: Instance) -> Connection:
    """Log in to a node that is set up.

    Raises:
        NodeLost, NodeRefused: it cannot be reached, or is not who it should be.
    """
    if not os.path.exists(spec.identity):
        raise UsageError(
            f"the login key of {spec.name} is not here: copy {spec.identity} from the machine that"
            " made the fleet"
        )
    return connect_watched(name_of(one), host_of(spec, one))


@contextlib.contextmanager
def used(spec: Spec, one: Instance) -> Iterator[Connection]:
    """Log in to a node that is set up; it does not end itself while the context lasts.

    Raises:
        NodeLost, NodeRefused: it cannot be reached, or is not who it should be.
    """
    with login(spec, one) as connection, renewing(spec, connection):
        yield connection


@contextlib.contextmanager
def renewing(spec: Spec, connection: Connection) -> Iterator[None]:
    """Renew a node's lease now and then, for as long as the context lasts."""
    over = threading.Event()
    threading.Thread(target=_renew, args=(spec, connection, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _renew(spec: Spec, connection: Connection, over: threading.Event) -> None:
    while not over.is_set():
        with contextlib.suppress(OSError):  # whoever works there notices
            connection.run(RENEW, timeout_s=_RENEW_S)
        over.wait(min(_RENEW_S, spec.ttl.idle / 4))


@contextlib.contextmanager
def used_by_others(spec: Spec, one: Instance) -> Iterator[None]:
    """Keep a node from ending itself while programs of the system use it; ask nothing of it."""
    over = threading.Event()

    def keep() -> None:
        with contextlib.suppress(WorkflowsError), used(spec, one):
            over.wait()

    threading.Thread(target=keep, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def streamed(
    connection: Connection, name: str, line: str, on_line: OnLine, stdin: bytes = b""
) -> int:
    """Run a command and hand over its output, stderr included, line by line; return its status.

    Raises:
        NodeLost: the connection broke.
    """
    try:
        channel = connection.command(line)
        channel.set_combine_stderr(True)
        channel.settimeout(None)  # the connection is watched
        if stdin:
            channel.sendall(stdin)
        channel.shutdown_write()
    except BROKEN as error:
        raise _lost(name, connection, error) from error
    rest = b""
    for data in _received(name, connection, channel):
        *lines, rest = (rest + data).split(b"\n")
        for text in lines:
            on_line(text.decode("utf-8", "replace"))
    if rest:
        on_line(rest.decode("utf-8", "replace"))
    return _status(name, connection, channel)


def _received(name: str, connection: Connection, channel: Any) -> Iterator[bytes]:
    """Yield what a command prints. A failure to pass it on here is not the node's fault."""
    try:
        while data := channel.recv(1 << 16):
            yield data
    except BROKEN as error:
        raise _lost(name, connection, error) from error


def _lost(name: str, connection: Connection, error: Exception) -> NodeLost:
    return NodeLost(name, connection.why_closed or str(error) or type(error).__name__)


def each(
    found: Iterable[Instance], work: Callable[[Instance], T]
) -> dict[int, "T | NodeLost | NodeRefused"]:
    """Do `work` for several nodes at once; return slot -> result, or how the node was lost.

    Whoever is interrupted waits for none of them.
    """

    def guarded(one: Instance) -> "T | NodeLost | NodeRefused":
        try:
            return work(one)
        except (NodeLost, NodeRefused) as error:
            return error

    futures: dict[int, concurrent.futures.Future[T | NodeLost | NodeRefused]] = {}
    todo: queue.SimpleQueue[Instance] = queue.SimpleQueue()
    for one in found:
        futures[one.slot] = concurrent.futures.Future()
        todo.put(one)

    def works() -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                one = todo.get_nowait()
                try:
                    futures[one.slot].set_result(guarded(one))
                except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
                    futures[one.slot].set_exception(error)

    for _ in range(min(len(futures), _AT_ONCE)):  # not a pool, whose threads hold Ctrl-C up
        threading.Thread(target=works, daemon=True).start()
    return {slot: future.result() for slot, future in futures.items()}


def run_everywhere(
    spec: Spec, found: Iterable[Instance], line: str, say: Callable[[str, str], None]
) -> list[Outcome]:
    """Run a command on several nodes at once; `say` gets (label, line) as lines come."""

    def one_node(one: Instance) -> int:
        with used(spec, one) as connection:
            return streamed(connection, name_of(one), line, lambda text: say(one.label, text))

    return outcomes(each(found, one_node))


def outcomes(results: Mapping[int, Any]) -> list[Outcome]:
    """Return how it ended on each node, by slot."""
    return [
        Outcome(slot, result) if isinstance(result, int) else Outcome(slot, -1, str(result))
        for slot, result in sorted(results.items())
    ]


def touch(spec: Spec, one: Instance) -> int:
    """Renew a node's lease; return the status."""
    with login(spec, one) as connection:
        return streamed(connection, name_of(one), RENEW, lambda _: None)


def put(spec: Spec, one: Instance, source: str, target: str) -> int:
    """Copy a file of this machine to a node, whole or not at all; return the status."""
    tmp = f"{target}.{os.getpid()}.part"
    line = (
        f"umask 022; cat > {shlex.quote(tmp)} &&"
        f" test $(wc -c < {shlex.quote(tmp)}) -eq {os.path.getsize(source)} &&"
        f" chmod {os.stat(source).st_mode & 0o777:o} {shlex.quote(tmp)} &&"
        f" mv -f {shlex.quote(tmp)} {shlex.quote(target)}"
    )
    with used(spec, one) as connection:
        try:
            channel = connection.command(line)
            channel.settimeout(None)  # the connection is watched
            with open(source, "rb") as file:
                while data := file.read(1 << 20):
                    channel.sendall(data)
            channel.shutdown_write()
            return _status(name_of(one), connection, channel)
        except BROKEN as error:
            raise NodeLost(name_of(one), connection.why_closed or str(error)) from error


def get(spec: Spec, one: Instance, source: str, target: str) -> int:
    """Copy a file of a node to this machine, whole or not at all; return the status."""
    tmp = f"{target}.{os.getpid()}.part"
    with used(spec, one) as connection:
        try:
            channel = connection.command(f"cat -- {shlex.quote(source)}")
            channel.settimeout(None)  # the connection is watched
        except BROKEN as error:
            raise _lost(name_of(one), connection, error) from error
        try:
            with open(tmp, "wb") as file:
                for data in _received(name_of(one), connection, channel):
                    file.write(data)
            status = _status(name_of(one), connection, channel)
            if status == 0:
                os.replace(tmp, target)
        except OSError as error:
            raise UsageError(f"cannot write {target}: {error.strerror}") from error
        finally:
            if os.path.exists(tmp):
                os.unlink(tmp)
    return status


def _status(name: str, connection: Connection, channel: Any) -> int:
    status = int(channel.recv_exit_status())
    if status < 0:
        raise NodeLost(name, connection.why_closed or "it hung up before its command had ended")
    return status
