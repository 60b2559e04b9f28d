"""Real sshd processes on loopback addresses, each a node with a host key and a home of its own."""

import contextlib
import itertools
import json
import os
import pathlib
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from typing import Any

import yaml

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin:/sbin")
USER = pwd.getpwuid(os.getuid()).pw_name
_CONFIG = """\
Port {port}
ListenAddress {address}
HostKey {host_key}
PidFile none
AuthorizedKeysFile {keys}/authorized_keys
StrictModes no
UsePAM {pam}
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AllowUsers {user}
UseDNS no
PrintMotd no
SetEnv {env}
{extra}
"""
_numbers = itertools.count()
# What is put before an sshd whose users' limits are to be of its own, not of this machine.
_MOUNTS = """\
mount -t tmpfs none /etc/security/limits.d
[ ! -d /etc/systemd/system ] || mount -t tmpfs none /etc/systemd/system
exec "$@"
"""
OWN_LIMITS = ["unshare", "--mount", "sh", "-c", _MOUNTS, "sh"]


class Sshd:
    """One node: an sshd, and a home that stays when it is killed."""

    def __init__(self, hosts: "Hosts", address: str, **options: Any) -> None:
        self.hosts, self.address = hosts, address
        self.home = hosts.path / address
        self.home.mkdir()
        self.port = _free_port(address)
        self.scratch = self.home / "scratch"
        self.extra: str = options.pop("extra", "")
        self.shell: str = options.pop("shell", "")
        self.prefix: list[str] = options.pop("prefix", [])
        self.waits: bool = options.pop("waits", True)
        self.env: dict[str, Any] = options.pop("env", {})
        self.pam: bool = options.pop("pam", False)  # which alone puts limits into effect
        make_key(self.home / "host_key")
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def public_key(self) -> str:
        """Return the host key, as hosts.yaml wants it."""
        return " ".join((self.home / "host_key.pub").read_text().split()[:2])

    @property
    def entry(self) -> dict[str, Any]:
        """Return the node's entry in hosts.yaml."""
        return {
            "address": self.address,
            "port": self.port,
            "user": USER,
            "identity": str(self.hosts.path / "login_key"),
            "host_key": self.public_key,
            "scratch": str(self.scratch),
            "slots": 2,
        }

    def start(self) -> "Sshd":
        """Start the sshd and wait until it answers."""
        config = self.home / "sshd_config"
        extra = self.extra
        if self.shell:
            # sshd runs the login shell of the user's account; this stands in for another one.
            extra += f'\nForceCommand {self.shell} -c "$SSH_ORIGINAL_COMMAND"'
        config.write_text(
            sshd_config(
                (self.address, self.port),
                self.home / "host_key",
                self.hosts.path,
                {"HOME": self.home, "WORKFLOWS_TEST_NODE": self.address, **self.env},
                extra,
                pam=self.pam,
            )
        )
        with (self.home / "sshd.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, SSHD or "sshd", "-D", "-e", "-f", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if self.waits:
            self._wait()
        return self

    def _wait(self) -> None:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection((self.address, self.port), 5).close()
            except OSError:
                if time.monotonic() > deadline:
                    raise AssertionError((self.home / "sshd.log").read_text()) from None
                time.sleep(0.01)
            else:
                return

    def tree(self) -> list[int]:
        """Return the processes of this node: the sshd and all that descends from it."""
        return descendants(self.process.pid) if self.process is not None else []

    def signal(self, number: int) -> None:
        """Send a signal to every process of the node."""
        for pid in self.tree():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """Kill every process of the node at once, as when its power is cut."""
        for number in (signal.SIGSTOP, signal.SIGKILL):
            self.signal(number)
        if self.process is not None:
            self.process.wait()
            self.process = None

    def is_clean(self) -> bool:
        """Tell whether nothing runs on this node for us."""
        return not self.ours()

    def ours(self) -> dict[int, str]:
        """Return the processes that run on this node for us: everything but sshd's own."""
        found = {}
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError):
                    environ = pathlib.Path("/proc", name, "environ").read_bytes().split(b"\0")
                    if f"WORKFLOWS_TEST_NODE={self.address}".encode() in environ:
                        line = pathlib.Path("/proc", name, "cmdline").read_bytes()
                        if f"HOME={self.home}".encode() in environ and line:
                            found[int(name)] = line.replace(b"\0", b" ").decode(errors="replace")
        return found


class Hosts:
    """A fleet of sshds and the hosts.yaml that names them."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        path.mkdir(exist_ok=True)
        if os.getuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)
        make_key(path / "login_key")
        shutil.copy(path / "login_key.pub", path / "authorized_keys")
        self.nodes: list[Sshd] = []
        self._all: list[Sshd] = []
        self.top: dict[str, Any] = {"patience": 30}

    @property
    def file(self) -> pathlib.Path:
        """Return where hosts.yaml is."""
        return self.path / "hosts.yaml"

    @property
    def spec(self) -> str:
        """Return what --fleet is given."""
        return f"ssh:{self.file}"

    def add(self, count: int = 1, **options: Any) -> "Hosts":
        """Start more nodes and write them into hosts.yaml."""
        for _ in range(count):
            self.nodes.append(self.spare(**options))
        self.write()
        return self

    def spare(self, **options: Any) -> Sshd:
        """Start an sshd that is not in hosts.yaml."""
        number = next(_numbers)
        # The worker's process keeps parallel test runs on addresses of their own.
        pid = os.getpid()
        address = f"127.{1 + pid % 250}.{(pid // 250 + number // 250) % 250}.{2 + number % 250}"
        node = Sshd(self, address, **options)
        self._all.append(node)
        return node.start()

    def write(self, **changes: Any) -> None:
        """Write hosts.yaml; `changes` go into each host's entry."""
        entries = [{**node.entry, **changes} for node in self.nodes]
        self.file.write_text(yaml.safe_dump({**self.top, "hosts": entries}))

    def ledger(self, step: str) -> list[dict[str, Any]]:
        """Return every ledger line of a step on all nodes, each with the file it is about."""
        lines = []
        for slot, node in enumerate(self.nodes):
            root = node.scratch / str(slot)
            path = root / "ledger" / f"{step}.jsonl"
            for text in path.read_text().splitlines() if path.exists() else []:
                line = json.loads(text)
                file = root / "data" / step / line["id"] / line["key"]
                lines.append(dict(line, slot=slot, file=file))
        return lines

    def outputs(self, step: str) -> dict[str, bytes]:
        """Return key -> bytes of everything a step has on the nodes."""
        lines = self.ledger(step)
        return {line["key"]: line["file"].read_bytes() for line in lines if line["file"].is_file()}

    def close(self) -> None:
        """Kill all nodes."""
        for node in self._all:
            node.signal(signal.SIGCONT)
            node.kill()
            for pid in node.ours():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def sshd_config(
    at: tuple[str, int],
    host_key: pathlib.Path,
    keys: pathlib.Path,
    env: Mapping[str, object],
    extra: str = "",
    *,
    pam: bool = False,
) -> str:
    """Return the configuration of an sshd at (address, port); `keys` holds authorized_keys."""
    return _CONFIG.format(
        address=at[0],
        port=at[1],
        host_key=host_key,
        keys=keys,
        user=USER,
        env=" ".join(f"{name}={value}" for name, value in env.items()),
        extra=extra,
        pam="yes" if pam else "no",
    )


def make_key(path: pathlib.Path) -> None:
    """Make an ed25519 key pair without a passphrase."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)], check=True
    )


def descendants(pid: int) -> list[int]:
    """Return a process and all that descends from it."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                stat = pathlib.Path("/proc", name, "stat").read_text()
                children.setdefault(int(stat.rsplit(")", 1)[1].split()[1]), []).append(int(name))
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        todo += children.get(one, [])
    return found


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
