"""hosts.yaml: which hosts an ssh fleet is made of. Reading and checking it only; no connections.

::

    defaults: {user: ann, identity: ~/.ssh/id_ed25519, scratch: /scratch/workflows}
    hosts:
      - {address: 10.0.0.1, host_key: ssh-ed25519 AAAAC3...}
      - {address: 10.0.0.2, host_key: ssh-ed25519 AAAAC3..., slots: 8}
"""

import base64
import binascii
import dataclasses
import difflib
import getpass
import os
import re
from typing import Any

from workflows.errors import ConfigError, UsageError

PATIENCE_S = 60.0
_DEFAULT_SCRATCH = ".workflows-node"
# Characters that every login shell (csh and fish too) leaves alone within single quotes.
_QUOTABLE = re.compile(r"[A-Za-z0-9_@%+=:,./~ -]+")
_TOP = ("defaults", "hosts", "patience")
_NUMBERS = {
    "port": (1, 65535),
    "slots": (0, 4096),
    "slots_per_core": (0.01, 64),
    "patience": (0, 86400),
    # Below these a login could hardly work.
    "open_files": (1024, 1 << 30),
    "processes": (256, 1 << 22),
}
_PATHS = ("identity", "known_hosts", "pip", "post_init")
_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._:=~@/-]*")


@dataclasses.dataclass(frozen=True)
class Login:
    """How to log in to one sshd, and by which keys it is known."""

    address: str
    port: int = 22
    user: str = dataclasses.field(default_factory=getpass.getuser)
    identity: str = ""
    host_key: tuple[str, ...] = ()
    known_hosts: str = ""

    def __str__(self) -> str:
        return self.address if self.port == 22 else f"{self.address}:{self.port}"


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of each login of the user; 0 leaves one as it is."""

    open_files: int = 0
    processes: int = 0


@dataclasses.dataclass(frozen=True)
class Host(Login):
    """One host of a fleet. `slots` 0 is `slots_per_core` for each of its cores."""

    scratch: str = _DEFAULT_SCRATCH
    slots: int = 0
    slots_per_core: float = 1.0
    python: str = "python3"
    peer: str = ""  # by which other nodes reach it, if not by its address
    jump: Login | None = None
    packages: tuple[str, ...] = ()  # these four are for `workflows up`
    pip: str = ""
    limits: Limits = Limits()
    post_init: str = ""

    def with_slots(self, slots: int) -> "Host":
        """Return the host with `slots`, unless it says how many itself."""
        says = self.slots or self.slots_per_core != 1.0
        return self if says else dataclasses.replace(self, slots=slots)


@dataclasses.dataclass(frozen=True)
class Hosts:
    """The content of a hosts.yaml; a host's place in it is its slot."""

    hosts: tuple[Host, ...]
    patience: float = PATIENCE_S


def read_hosts(path: str) -> Hosts:
    """Read a hosts.yaml; paths in it are relative to its directory.

    Raises:
        UsageError: it cannot be read.
        ConfigError: names everything in it that is wrong.
    """
    import yaml

    if not path:
        raise UsageError(
            "ssh: names no file; write --fleet ssh:hosts.yaml, and into hosts.yaml, one for each:\n"
            "  hosts: [{address: 10.0.0.1, user: me, host_key: ssh-ed25519 AAAA...}]"
        )
    try:
        with open(path, encoding="utf-8") as file:
            found = yaml.safe_load(file)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path} is not YAML: {' '.join(str(error).split())}"]) from error
    return parse_hosts(found, path)


def parse_hosts(found: Any, path: str) -> Hosts:
    """Make hosts of what a hosts.yaml at `path` held.

    Raises:
        ConfigError: names every unknown key, with the nearest known one, and every bad value.
    """
    checked = _Checked(os.path.dirname(os.path.abspath(path)))
    top = checked.mapping(found, path, _TOP)
    defaults = checked.mapping(top.get("defaults", {}), "defaults", _names(Host))
    hosts = top.get("hosts")
    if not isinstance(hosts, list) or not hosts:
        checked.problems.append(f"{path}: hosts must be a list of at least one host")
        hosts = []
    made = []
    for slot, entry in enumerate(hosts):
        where = f"hosts[{slot}]"
        own = {"address": entry} if isinstance(entry, str) else entry
        given = {**defaults, **checked.mapping(own, where, _names(Host))}
        made.append(checked.login(Host, given, where))
    patience = checked.value("patience", top.get("patience", PATIENCE_S), path)
    if checked.problems:
        raise ConfigError(checked.problems)
    return Hosts(tuple(host for host in made if host is not None), patience)


def to_json(host: Host) -> dict[str, Any]:
    """Return a host as plain data; there is no secret in it, only the names of key files."""
    return dataclasses.asdict(host)


def from_json(data: dict[str, Any]) -> Host:
    """Return the host that `to_json` wrote."""
    jump = data["jump"] and Login(**{**data["jump"], "host_key": tuple(data["jump"]["host_key"])})
    lists = {name: tuple(data[name]) for name in ("host_key", "packages")}
    return Host(**{**data, **lists, "jump": jump, "limits": Limits(**data["limits"])})


def _names(kind: type[Login | Limits]) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


class _Checked:
    """Checks values one by one and collects what is wrong."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.problems: list[str] = []

    def mapping(self, found: Any, where: str, known: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(found, dict):
            self.problems.append(f"{where}: must hold names and values")
            return {}
        for name in [name for name in found if name not in known]:
            near = difflib.get_close_matches(str(name), known, 1) or [known[0]]
            self.problems.append(f"{where}: no such key {name!r}; did you mean {near[0]!r}?")
        return {name: value for name, value in found.items() if name in known}

    def login(self, kind: type[Any], given: dict[str, Any], where: str) -> Any:
        if "address" not in given:
            self.problems.append(f"{where}: address is missing")
            return None
        values = {name: self.value(name, value, where) for name, value in given.items()}
        return kind(**values)

    def value(self, name: str, value: Any, where: str) -> Any:
        if name == "jump":
            return value and self.login(
                Login, self.mapping(value, f"{where} jump", _names(Login)), f"{where} jump"
            )
        if name in ("host_key", "packages", "limits"):
            return getattr(self, f"_{name}")(value, where)
        if name in _NUMBERS:
            return self._number(name, value, where)
        if not isinstance(value, str) or not value:
            self.problems.append(f"{where}: {name} must be text")
            return ""
        if name in _PATHS:
            return os.path.join(self.base, os.path.expanduser(value))
        if name in ("scratch", "python") and not _QUOTABLE.fullmatch(value):
            self.problems.append(
                f"{where}: {name} {value!r} may hold A-Z a-z 0-9 _@%+=:,./~ - only"
            )
        return value.removeprefix("~/") if name == "scratch" else value

    def _number(self, name: str, value: Any, where: str) -> Any:
        low, high = _NUMBERS[name]
        kinds = (int, float) if name in ("patience", "slots_per_core") else int
        if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
            self.problems.append(f"{where}: {name} must be a number from {low} to {high}")
            return low
        return value

    def _limits(self, found: Any, where: str) -> Limits:
        given = self.mapping(found, where, _names(Limits))
        return Limits(**{name: self._number(name, value, where) for name, value in given.items()})

    def _packages(self, value: Any, where: str) -> tuple[str, ...]:
        names = value if isinstance(value, list) else [None]
        if not all(isinstance(name, str) and _PACKAGE.fullmatch(name) for name in names):
            self.problems.append(f"{where}: packages must be a list of names: [git, zstd]")
            return ()
        return tuple(names)

    def _host_key(self, value: Any, where: str) -> tuple[str, ...]:
        keys = [value] if isinstance(value, str) else value
        if not isinstance(keys, list) or not all(_is_key(key) for key in keys):
            self.problems.append(
                f"{where}: host_key must be as in the host's /etc/ssh/ssh_host_ed25519_key.pub:"
                " 'ssh-ed25519 AAAA...'"
            )
            return ()
        return tuple(" ".join(key.split()[:2]) for key in keys)


def _is_key(text: Any) -> bool:
    parts = text.split() if isinstance(text, str) else []
    try:
        return len(parts) >= 2 and parts[0].encode() in base64.b64decode(parts[1], validate=True)
    except binascii.Error:
        return False
