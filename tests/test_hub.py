"""The hub of an ssh fleet is begun before it is known what it is for; messages travel together."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from paramiko import SSHException

from workflows.fleets.hosts import Host, to_json
from workflows.fleets.remote import Remote, Session
from workflows.node.wire import SOON_S, Wire

if TYPE_CHECKING:
    from conftest import Place
    from sshd import Hosts

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEP = "from workflows.steps import Map\nclass First(Map):\n    command = 'xargs cat'\n"
# Begins a hub, or not; prints the hub, if there is one, once it waits for what it is told.
BEGIN = """
import sys
from workflows.fleets import hubprocess
hubprocess.begin(sys.argv[1:])
for hub in hubprocess._begun:
    print(hub.process.pid, hub.module)
"""
# What is loaded by a hub that was begun, and by one that was told; it reaches nothing.
LOADED = """
import os, sys
from workflows.fleets import hub
read = os.read
def told(fd, size):
    print("paramiko" in sys.modules, "invoke" in sys.modules, flush=True)
    return read(fd, size)
os.read = told
sys.argv[1:] = [0, "nobody", "waits"]
raise SystemExit(hub.main(print))
"""

HEALTH = "from workflows.cli import main; sys.exit(main(['health', '--fleet', sys.argv[1]]))"
# A hub that is told its hosts, while nobody reads what it says.
UNHEARD = """
import os, sys
from workflows.fleets import hub
file = os.memfd_create("hosts")
os.write(file, sys.stdin.buffer.read())
sys.argv[1:] = [str(file), sys.argv[1]]
hub.start()
"""
GONE = Host("127.0.0.1", 1, "nobody", scratch="/nowhere")


def begun(folder: pathlib.Path, *arguments: str, cfg: str = "") -> str:
    """Return what hub a command line begins; it is over when this returns."""
    (folder / "luigi.cfg").write_text(cfg)
    argv = [sys.executable, "-c", BEGIN, *arguments]
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    pid, _, module = done.stdout.partition(" ")
    assert not pid or not pathlib.Path("/proc", pid).exists()
    return module.strip()


@pytest.mark.parametrize(
    ("arguments", "cfg", "module"),
    [
        (["eval", "--fleet", "ssh:hosts.yaml"], "", "workflows.fleets.hub"),
        (["eval", "--fleet=ec2:taxi"], "", "workflows.ec2.hub"),
        (["health"], "[fleet]\nspec = ssh:hosts.yaml\n", "workflows.fleets.hub"),
        (["eval", "--fleet", "local:2"], "[fleet]\nspec = ssh:hosts.yaml\n", ""),
        (["health"], "", ""),
        (["health"], "[fleet]\nspeck = ssh:hosts.yaml\n", ""),
        (["health", "--fleet"], "", ""),
    ],
)
def test_a_hub_is_begun_for_the_fleet_that_will_be_used_and_ends_with_who_began_it(
    tmp_path: pathlib.Path, arguments: list[str], cfg: str, module: str
) -> None:
    assert begun(tmp_path, *arguments, cfg=cfg) == module


def test_a_hub_that_nobody_needs_has_loaded_paramiko_and_reaches_nothing() -> None:
    argv = [sys.executable, "-c", LOADED]
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}

    done = subprocess.run(
        argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )

    assert (done.returncode, done.stderr, done.stdout) == (0, "", "True False\n")


def test_a_hub_that_is_killed_before_it_is_told_anything_is_replaced(
    place: "Place", hosts: "Hosts"
) -> None:
    place.module(
        "import os, signal\n"
        + STEP
        + "from workflows.fleets import hubprocess\n"
        + f"hubprocess.begin(['--fleet', {hosts.spec!r}])\n"
        + "(hub,) = hubprocess._begun\n"
        + "os.kill(hub.process.pid, signal.SIGKILL)\n"
    )
    place.key("a_key", b"x\n")
    hosts.add(1)

    done = place.luigi("First", "--fleet", hosts.spec)

    assert done.code == 0, done
    assert list(hosts.outputs("First").values()) == [b"x\n"]


@pytest.mark.parametrize("stdin", ["", "<&-"])
def test_a_hub_depends_neither_on_a_stdin_nor_on_the_directory_it_is_begun_in(
    place: "Place", hosts: "Hosts", stdin: str
) -> None:
    folder = place.path / "elsewhere"
    folder.mkdir()
    for name in ("secrets", "queue", "base64"):  # paramiko imports them all
        (folder / f"{name}.py").write_text("raise SystemExit('not the one that was meant')")
    hosts.add(1)
    health = f"import sys; sys.path[:] = filter(None, sys.path); {HEALTH}"

    done = subprocess.run(
        ["bash", "-c", f'exec "$@" {stdin}', "bash", sys.executable, "-c", health, hosts.spec],
        cwd=folder,
        env=place.environ,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("healthy: node 0")


def test_a_hub_whose_driver_is_gone_when_it_listens_says_nothing() -> None:
    given = json.dumps({"hosts": [to_json(GONE)], "about": []}).encode()
    read, write = os.pipe()
    os.close(read)

    done = subprocess.run(
        [sys.executable, "-c", UNHEARD, f"workflows-{os.urandom(8).hex()}"],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        input=given,
        stdout=write,
        stderr=subprocess.PIPE,
        timeout=60,
    )
    os.close(write)

    assert (done.returncode, done.stderr) == (0, b"")


def test_a_fleet_that_luigi_is_told_otherwise_is_used_all_the_same(
    place: "Place", hosts: "Hosts"
) -> None:
    place.module(
        "import luigi\n"
        + STEP
        + "class Mine(First):\n    fleet = luigi.Parameter(default='local:1')\n"
    )
    place.key("a_key", b"x\n")
    hosts.add(1)

    done = place.luigi("Mine", WORKFLOWS_FLEET=hosts.spec)

    assert done.code == 0, done
    assert list(place.outputs("Mine").values()) == [b"x\n"]
    assert hosts.nodes[0].is_clean()


class Slow:
    """One end of a socket that notes what is sent with one call."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair()
        self.theirs = Wire(theirs)
        self.calls: list[int] = []  # messages each

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()

    def sendall(self, data: "bytes | memoryview") -> None:
        self.calls.append(bytes(data).count(b"\n"))
        self.ours.sendall(data)


@pytest.fixture
def stream() -> Iterator[Slow]:
    with contextlib.closing(Slow()) as slow:
        yield slow


def test_posted_messages_arrive_in_order_and_few_calls_send_them(stream: Slow) -> None:
    wire = Wire(stream)  # type: ignore[arg-type]

    for number in range(200):
        wire.post({"n": number})
    wire.send({"n": 200})

    assert [stream.theirs.recv(10) for _ in range(201)] == [{"n": n} for n in range(201)]
    assert len(stream.calls) < 100


def test_what_is_posted_arrives_though_nothing_follows(stream: Slow) -> None:
    wire = Wire(stream)  # type: ignore[arg-type]

    for number in range(3):
        wire.post({"n": number})

    assert [stream.theirs.recv(10) for _ in range(3)] == [{"n": n} for n in range(3)]


def test_what_is_posted_is_sent_at_once_where_there_can_be_no_more_threads(
    stream: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    wire = Wire(stream)  # type: ignore[arg-type]

    for number in range(3):
        wire.post({"n": number})

    assert [stream.theirs.recv(10) for _ in range(3)] == [{"n": n} for n in range(3)]


def test_a_message_after_a_pause_is_sent_at_once(stream: Slow) -> None:
    wire = Wire(stream)  # type: ignore[arg-type]
    wire.post({"n": 0})
    threading.Event().wait(2 * SOON_S)

    wire.post({"n": 1})

    assert stream.calls == [1, 1]


def test_who_posts_to_nobody_is_told_with_the_next_message(stream: Slow) -> None:
    wire = Wire(stream)  # type: ignore[arg-type]
    wire.post({"n": 0})
    stream.theirs.close()

    wire.post({"n": 1})
    with pytest.raises(BrokenPipeError):
        wire.send({"n": 2})


class Broken:
    """A channel of a connection that has ended, as paramiko has them: also what is no OSError."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.asked = threading.Event()

    def sendall(self, data: "bytes | memoryview") -> None:
        self.asked.set()
        raise self.error

    def recv(self, size: int) -> bytes:
        if self.asked.is_set():
            return b""
        raise TimeoutError

    def settimeout(self, timeout: float | None) -> None:
        pass

    def close(self) -> None:
        pass

    def recv_stderr_ready(self) -> bool:
        return False


@pytest.mark.parametrize(
    "error", [EOFError(), SSHException("it is over"), OSError("Socket is closed")]
)
def test_however_a_connection_breaks_a_session_is_told_and_the_watch_lets_go(
    error: Exception,
) -> None:
    channel = Broken(error)
    remote = Remote(GONE, 0, 1, "nobody")
    remote._main, remote._generation = channel, "first"

    with pytest.raises(ConnectionResetError):
        Session(channel, b"", "first", "/").send(b"x")
    channel.asked.clear()
    remote._watch(Wire(channel), "first")

    assert remote._generation == ""
