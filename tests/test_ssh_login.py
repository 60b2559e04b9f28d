"""Who is let in and who is refused: host keys, login keys, jump hosts, shells, bad nodes."""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from workflows.errors import NodeLost, NodeRefused
from workflows.fleets.fleet import Fleet, open_fleet

if TYPE_CHECKING:
    from conftest import Place
    from sshd import Hosts

LIST = {"op": "list", "steps": ["Any"]}


@pytest.fixture
def opened(hosts: "Hosts", tmp_path: pathlib.Path) -> "Iterator[Opened]":
    found = Opened(hosts, str(tmp_path))
    yield found
    for fleet in found.fleets:
        fleet.close()


class Opened:
    """Opens the fleet that hosts.yaml describes now."""

    def __init__(self, hosts: "Hosts", state: str) -> None:
        self.hosts, self.state = hosts, state
        self.fleets: list[Fleet] = []

    def listing(self, **changes: Any) -> Any:
        """Ask node 0 what it has, with some entries of hosts.yaml changed."""
        self.hosts.write(**changes)
        fleet = open_fleet(self.hosts.spec, state=self.state, slots=0)
        self.fleets.append(fleet)
        fleet.start()
        return fleet.channel(0).one(LIST, "listing")["steps"]

    def refusal(self, **changes: Any) -> str:
        """Return why node 0 is refused."""
        with pytest.raises(NodeRefused) as caught:
            self.listing(**changes)
        return str(caught.value)


# -- host keys -------------------------------------------------------------------------------------


def test_an_unknown_host_key_is_refused_with_its_fingerprint_and_what_to_do(
    hosts: "Hosts", opened: Opened
) -> None:
    node = hosts.add().nodes[0]
    (hosts.path / "known").write_text("")
    shown = subprocess.check_output(
        ["ssh-keygen", "-lf", node.home / "host_key.pub"], text=True
    ).split()[1]

    why = opened.refusal(host_key=[], known_hosts="known")

    assert f"node 0 ({node.address}:{node.port}) cannot work: the host key" in why
    assert "is not known" in why
    assert shown in why
    assert f"host_key: {node.public_key}" in why


def test_a_changed_host_key_is_refused_with_both_fingerprints(
    hosts: "Hosts", opened: Opened
) -> None:
    hosts.add()
    other = hosts.spare()

    why = opened.refusal(host_key=other.public_key)

    assert "HAS CHANGED" in why
    assert why.count("SHA256:") == 2


def test_nothing_is_sent_to_a_host_whose_key_is_wrong(hosts: "Hosts", opened: Opened) -> None:
    node = hosts.add(extra="LogLevel VERBOSE").nodes[0]

    opened.refusal(host_key=hosts.spare().public_key)

    log = (node.home / "sshd.log").read_text()
    assert "Connection from" in log
    assert "publickey" not in log
    assert not node.scratch.exists()


def test_a_known_hosts_file_serves_as_well(hosts: "Hosts", opened: Opened) -> None:
    node = hosts.add().nodes[0]
    (hosts.path / "known").write_text(f"[{node.address}]:{node.port} {node.public_key}\n")

    assert opened.listing(host_key=[], known_hosts="known") == {"Any": {}}


# -- logins ----------------------------------------------------------------------------------------


def test_a_key_that_is_not_authorized_is_refused_with_what_to_try(
    hosts: "Hosts", opened: Opened
) -> None:
    hosts.add()
    from sshd import make_key

    make_key(hosts.path / "wrong")

    why = opened.refusal(identity="wrong")

    assert "does not let" in why
    assert str(hosts.path / "wrong") in why
    assert "ssh -v -p" in why


def test_an_identity_that_is_not_there_is_named(hosts: "Hosts", opened: Opened) -> None:
    hosts.add()

    assert f"cannot read {hosts.path}/none: No such file" in opened.refusal(identity="none")


def test_a_key_of_the_agent_serves_an_identity_with_a_passphrase(
    hosts: "Hosts", opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts.add()
    agent = hosts.path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", agent], stdout=subprocess.DEVNULL)
    try:
        while not agent.exists():
            assert process.poll() is None
        monkeypatch.setenv("SSH_AUTH_SOCK", str(agent))
        subprocess.run(["ssh-add", "-q", hosts.path / "login_key"], check=True)
        locked = hosts.path / "locked"
        shutil.copy(hosts.path / "login_key", locked)
        subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret", "-f", locked], check=True)

        assert opened.listing(identity="locked") == {"Any": {}}
    finally:
        process.terminate()
        process.wait()


def test_a_node_is_reached_through_its_jump_host(hosts: "Hosts", opened: Opened) -> None:
    hosts.add()
    jump = hosts.spare(extra="LogLevel DEBUG1")
    entry = {name: jump.entry[name] for name in ("address", "port", "user", "identity", "host_key")}

    assert opened.listing(jump=entry) == {"Any": {}}

    assert "direct-tcpip" in (jump.home / "sshd.log").read_text()


def test_the_jump_hosts_key_is_checked_too(hosts: "Hosts", opened: Opened) -> None:
    hosts.add()
    jump = hosts.spare()
    entry = {name: jump.entry[name] for name in ("address", "port", "user", "identity")}

    why = opened.refusal(jump={**entry, "host_key": hosts.nodes[0].public_key})

    assert f"the host key of {jump.address}:{jump.port} HAS CHANGED" in why


def test_twenty_tasks_on_a_host_that_allows_three_logins_and_two_commands_each(
    place: "Place", hosts: "Hosts"
) -> None:
    hosts.add(extra="MaxStartups 3\nMaxSessions 2")
    hosts.write(slots=10)
    place.module("from workflows.steps import Map\nclass First(Map):\n    command = 'xargs cat'\n")
    for number in range(20):
        place.key(f"{number}_key", b"x\n")

    done = place.luigi("First", "--fleet", hosts.spec, "--workers", "20")

    assert done.code == 0, done
    assert len(hosts.outputs("First")) == 20
    assert "lost" not in done.err


def test_no_secret_and_no_key_is_in_any_command_line(hosts: "Hosts", opened: Opened) -> None:
    hosts.add()
    private = (hosts.path / "login_key").read_text().splitlines()[1]

    opened.listing()

    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = pathlib.Path("/proc", name, "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        assert private not in line
        assert "workflows.fleets.hub" not in line or hosts.nodes[0].address not in line


# -- shells ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "dash", "fish", "tcsh", "busybox sh"])
def test_any_login_shell_will_do(hosts: "Hosts", opened: Opened, shell: str) -> None:
    name, *words = shell.split()
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"no {shell}: apt-get install {name}")
    hosts.add(shell=" ".join([path, *words]))
    scratch = hosts.nodes[0].home / "a b" / "scratch"

    assert opened.listing(scratch=str(scratch)) == {"Any": {}}
    assert (scratch / "0" / "data").is_dir()


@pytest.mark.parametrize(
    "noise", ["echo hello; echo", "printf welcome", """echo '{"event":"nothing"}'; printf '{"'"""]
)
def test_what_a_bashrc_prints_is_skipped(hosts: "Hosts", opened: Opened, noise: str) -> None:
    if os.environ.get("SHELL", "/bin/bash") not in ("/bin/bash", "/usr/bin/bash"):
        pytest.skip("the user's login shell is not bash")
    node = hosts.add().nodes[0]
    (node.home / ".bashrc").write_text(f"{noise}\necho oops >&2\n")

    assert opened.listing() == {"Any": {}}


# -- nodes that cannot work ------------------------------------------------------------------------


def test_a_node_without_python_is_refused(hosts: "Hosts", opened: Opened) -> None:
    hosts.add()

    why = opened.refusal(python="no-python-3")

    assert "its runtime did not start" in why
    assert "no-python-3: not found" in why


def test_a_python_that_is_too_old_is_refused(hosts: "Hosts", opened: Opened) -> None:
    hosts.add()
    old = hosts.path / "old-python"
    program = "import sys; sys.version_info = (3, 8, 1); del sys.argv[:4]; exec(sys.argv[0])"
    old.write_text(f"#!/bin/sh\nexec python3 -c '{program}' \"$@\"\n")  # given -I -S -c CODE ...
    old.chmod(0o755)

    assert "its Python is 3.8; needed is 3.9 or newer" in opened.refusal(python=str(old))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount")
@pytest.mark.parametrize(
    ("options", "why"), [("ro", "Read-only file system"), ("size=8k", "No space left on device")]
)
def test_a_scratch_that_cannot_be_written_is_refused(
    hosts: "Hosts", opened: Opened, options: str, why: str
) -> None:
    mount = (
        f'mkdir -p {hosts.path}/mnt; mount -t tmpfs -o {options} none {hosts.path}/mnt; exec "$@"'
    )
    hosts.add(prefix=["unshare", "--mount", "sh", "-c", mount, "sh"])

    refused = opened.refusal(scratch=f"{hosts.path}/mnt")

    assert "cannot keep the runtime" in refused
    assert why in refused


def test_a_scratch_that_is_a_file_is_refused(hosts: "Hosts", opened: Opened) -> None:
    hosts.add()
    (hosts.path / "file").write_text("")

    assert "cannot keep the runtime" in opened.refusal(scratch=f"{hosts.path}/file/x")


def test_a_host_that_is_not_there_is_lost_not_refused(hosts: "Hosts", opened: Opened) -> None:
    hosts.add()
    hosts.nodes[0].kill()

    with pytest.raises(NodeLost, match=r"cannot connect to .* refused"):
        opened.listing()


# -- hosts that hang -------------------------------------------------------------------------------


@pytest.mark.parametrize("banner", [b"", b"SSH-2.0-hung\r\n"])
def test_a_host_that_takes_a_connection_and_then_says_no_more_is_lost(
    hosts: "Hosts", opened: Opened, banner: bytes
) -> None:
    node = hosts.add().nodes[0]
    taken: list[socket.socket] = []

    def take() -> None:
        taken.append(hung.accept()[0])
        taken[0].sendall(banner)

    with socket.create_server((node.address, 0)) as hung:
        accepting = threading.Thread(target=take)
        accepting.start()
        with pytest.raises(NodeLost, match="no handshake with"):
            opened.listing(port=hung.getsockname()[1])
        accepting.join()
    taken[0].close()


class Cutting(threading.Thread):
    """Stands before an sshd; hangs up on each login when it is to say who it is.

    Until the keys are agreed on, what is said can be read: 4 bytes of length, one of padding, the
    kind. What follows comes encrypted: the request to log in, and then the login.
    """

    NEW_KEYS = 21

    def __init__(self, address: str, port: int) -> None:
        super().__init__(daemon=True)
        self.target, self.cuts = (address, port), 0
        self.server = socket.create_server((address, 0))
        self.port = int(self.server.getsockname()[1])

    def run(self) -> None:
        with contextlib.suppress(OSError):  # closed: the test is over
            while True:
                client, _ = self.server.accept()
                with client, socket.create_connection(self.target) as sshd:
                    self.serve(client, sshd)

    def serve(self, client: socket.socket, sshd: socket.socket) -> None:
        answers = threading.Thread(target=self.pump, args=(sshd, client))
        answers.start()
        with client.makefile("rb") as said:
            sshd.sendall(said.readline())
            kind = 0
            while kind != self.NEW_KEYS:
                head = said.read(4)
                body = said.read(int.from_bytes(head, "big"))
                kind = body[1]
                sshd.sendall(head + body)
            sshd.sendall(said.read1())
            said.read1()  # the login, which never arrives
        self.cuts += 1
        for sock in (client, sshd):
            sock.shutdown(socket.SHUT_RDWR)
        answers.join()

    def close(self) -> None:
        self.server.shutdown(socket.SHUT_RDWR)
        self.join()
        self.server.close()

    @staticmethod
    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)


def test_a_host_that_cuts_each_login_in_the_middle_of_it_is_lost_and_not_refused(
    hosts: "Hosts", opened: Opened
) -> None:
    node = hosts.add().nodes[0]
    proxy = Cutting(node.address, node.port)
    proxy.start()

    with pytest.raises(NodeLost) as caught:
        opened.listing(port=proxy.port)
    proxy.close()

    assert "node 0" in str(caught.value)
    assert f"{node.address}:{proxy.port} hangs up on logins: " in str(caught.value)
    assert proxy.cuts > 1  # once may have been chance


def test_a_host_that_hangs_while_it_is_made_ready_ends_up_as_lost(
    place: "Place", hosts: "Hosts"
) -> None:
    node = hosts.add(1).nodes[0]
    started = place.path / "started"
    (hosts.file.parent / "init.sh").write_text(f"touch {started}; sleep 120\n")
    hosts.top.update(defaults={"post_init": "init.sh"}, patience=1)
    hosts.write()

    with place.start("workflows", "up", "--fleet", hosts.spec) as run:
        run.wait_for(started.exists, 60)
        node.signal(signal.SIGSTOP)
        code = run.end(90)
    node.signal(signal.SIGCONT)

    assert code == 3, run.said
