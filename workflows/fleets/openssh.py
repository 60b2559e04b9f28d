"""The system's ssh, told to log in as we do: a configuration file, and the pinned host keys alone.

A file, not options: ssh hands it on to the one that it starts for a jump host, but options not.
"""

import hashlib
import os
import tempfile

from workflows.errors import NodeRefused, UsageError
from workflows.fleets.hosts import Host, Login
from workflows.fleets.ssh import known_keys

NODE = "node"  # what ssh calls the host, whatever its address
_ALWAYS = """\
Host *
  StrictHostKeyChecking yes
  UserKnownHostsFile "{known}"
  GlobalKnownHostsFile none
  CheckHostIP no
  UpdateHostKeys no
  VerifyHostKeyDNS no
  ServerAliveInterval 5
  ConnectTimeout 8
"""


def write_config(node: str, host: Host, folder: str) -> str:
    """Write what ``ssh -F`` needs for a host, which it knows as `NODE`; return the file's path.

    It is named by its content: what is there already is right, also for one that runs now.

    Raises:
        NodeRefused: a host key is not known.
        UsageError: nothing can be written to `folder`.
    """
    logins: dict[str, Login] = {NODE: host}
    if host.jump is not None:
        logins["jump"] = host.jump
    keys = [f"{alias} {key}\n" for alias, one in logins.items() for key in _keys(node, one)]
    parts = [_entry(alias, one) for alias, one in logins.items()]
    if host.jump is not None:
        parts[0] += "  ProxyJump jump\n"
    content = "".join(keys + parts)
    path = os.path.join(folder, hashlib.sha256(content.encode()).hexdigest()[:16])
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        _write(path + ".known_hosts", "".join(keys))
        known = _ALWAYS.format(known=_escaped(path + ".known_hosts"))
        _write(path + ".config", "".join([*parts, known]))
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}") from error
    return path + ".config"


def _keys(node: str, login: Login) -> list[str]:
    found = known_keys(node, login)
    if not found:
        raise NodeRefused(
            node, f"the host key of {login} is not known; `workflows health` shows what to do"
        )
    return found


def _entry(alias: str, login: Login) -> str:
    lines = [
        f"Host {alias}",
        f"HostName {login.address}",
        f"HostKeyAlias {alias}",
        f"Port {login.port}",
        f"User {login.user}",
    ]
    if login.identity:
        lines += [f'IdentityFile "{_escaped(login.identity)}"', "IdentitiesOnly yes"]
    return "\n  ".join(lines) + "\n"


def _escaped(path: str) -> str:
    return path.replace("%", "%%")


def _write(path: str, text: str) -> None:
    with tempfile.NamedTemporaryFile(
        "w", dir=os.path.dirname(path), prefix=".", delete=False, encoding="utf-8"
    ) as file:
        file.write(text)
    os.replace(file.name, path)
