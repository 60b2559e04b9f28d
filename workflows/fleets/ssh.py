"""Logging in by ssh: strict host keys, keys or an agent, one jump host. The only user of paramiko.

A connection is a paramiko Transport over a socket of our own, so that small messages leave at once
(TCP_NODELAY) and a peer that acknowledges nothing is given up (TCP_USER_TIMEOUT).
"""

import base64
import contextlib
import hashlib
import logging
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from workflows.errors import NodeLost, NodeRefused
from workflows.fleets.hosts import Host, Login

# paramiko loads it to read `Match exec` in ssh's own configuration, which nobody does here; it can
# do without, and that takes half as long.
_left_out = {"invoke": None} if "invoke" not in sys.modules else {}
sys.modules.update(_left_out)  # type: ignore[arg-type]
import paramiko  # noqa: E402 - see above

for _name in _left_out:
    del sys.modules[_name]

if TYPE_CHECKING:
    from typing_extensions import Self

CONNECT_S = 8.0
USER_TIMEOUT_S = 15.0
_ASK_S, _SILENCE_S = 4.0, 15.0  # how often a watched host is asked, how long it may say nothing
_LOOK_S = 0.5
_LONGEST_PAUSE_S = 2.0
_LOGINS = threading.BoundedSemaphore(8)
_GCM = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
_RSA = ("rsa-sha2-512", "rsa-sha2-256")
_DEFAULT_IDENTITIES = ("id_ed25519", "id_ecdsa", "id_rsa")
# sshd's way to say that it has too many logins in progress, or that it is just coming up.
_TRANSIENT = (EOFError, ConnectionResetError, BrokenPipeError)

# Exceptions of a broken connection.
BROKEN = (OSError, EOFError, paramiko.SSHException)

# Its threads log tracebacks of every connection that ends; what matters is raised here.
logging.getLogger("paramiko").addHandler(logging.NullHandler())
logging.getLogger("paramiko").propagate = False


class Ran(NamedTuple):
    """How a remote command ended; status -1 is no status at all: the connection broke."""

    status: int
    out: bytes
    err: bytes


class Full(Exception):
    """A connection has as many commands at once as its host allows (sshd's MaxSessions)."""


class _Heard:
    """A socket, or a channel in its place, that counts what comes and acknowledges it at once.

    sshd sends two small packets after a login, and the second waits for the first one's
    acknowledgement (Nagle's algorithm), which Linux holds back for 40 ms.
    """

    def __init__(self, sock: Any) -> None:
        self._sock, self._is_socket = sock, isinstance(sock, socket.socket)
        self.received = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def recv(self, size: int) -> bytes:
        """Receive as a socket does."""
        data: bytes = self._sock.recv(size)
        self.received += len(data)
        if self._is_socket:
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return data


class Connection:
    """One login; a context manager."""

    def __init__(self, transport: paramiko.Transport, jump: "Connection | None" = None) -> None:
        self.transport, self.jump = transport, jump
        self.why_closed = ""  # what `watch` found

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def host_key(self) -> str:
        """Return the key that the host has shown, and that was checked."""
        return _shown(self.transport.get_remote_server_key())

    def command(self, line: str) -> paramiko.Channel:
        """Start a command; `line` goes to whatever login shell the user has.

        Raises:
            Full: it has as many as it may.
            OSError, paramiko.SSHException: the connection broke.
        """
        try:
            channel = self.transport.open_session(timeout=CONNECT_S)
        except paramiko.SSHException as error:
            # Of two threads that are turned away at once, paramiko tells only one so.
            told = isinstance(error, paramiko.ChannelException) or "Unable to open" in str(error)
            if told and self.transport.is_active():
                raise Full(str(error)) from error
            raise
        try:
            channel.settimeout(CONNECT_S)
            channel.exec_command(line)
        except BaseException:
            channel.close()
            raise
        return channel

    def run(self, line: str, stdin: bytes = b"", timeout_s: float = 60.0) -> Ran:
        """Run a command to its end.

        Raises:
            OSError: the connection broke, or nothing moved for `timeout_s`.
        """
        try:
            with contextlib.closing(self.command(line)) as channel:
                channel.settimeout(timeout_s)
                with contextlib.suppress(
                    OSError
                ):  # it may end without reading; its status says why
                    channel.sendall(stdin)
                    channel.shutdown_write()
                out, err = _drained(channel.recv), _drained(channel.recv_stderr)
                return Ran(channel.recv_exit_status(), out, err)
        except (paramiko.SSHException, EOFError, Full) as error:
            raise ConnectionResetError(str(error)) from error

    def watch(self) -> None:
        """Close the connection once its host is silent, though its kernel may not be.

        The host is asked now and then, so that one with nothing to say answers at least. Anything
        that it says counts: an answer may wait behind much data.
        """
        for work in (self._ask, self._listen):
            threading.Thread(target=work, daemon=True).start()

    def _ask(self) -> None:
        while self.transport.is_active():
            with contextlib.suppress(*BROKEN):
                self.transport.global_request("keepalive@openssh.com", wait=True)
            time.sleep(_ASK_S)

    def _listen(self) -> None:
        # Not by the clock: this process may have been stopped itself, with answers waiting for it.
        sock: Any = self.transport.sock
        received, silent_s = sock.received, 0.0
        while self.transport.is_active():
            time.sleep(_LOOK_S)
            silent_s = silent_s + _LOOK_S if sock.received == received else 0.0
            received = sock.received
            if silent_s >= _SILENCE_S:
                self.why_closed = f"nothing was heard of it for {_SILENCE_S:g} s"
                self.transport.close()

    def close(self) -> None:
        """Close the connection, and with it every command's."""
        self.transport.close()
        if self.jump is not None:
            self.jump.close()


def connect(node: str, host: Host) -> Connection:
    """Log in to a host, through its jump host if it has one; `node` is what errors call it.

    Raises:
        NodeLost: it cannot be reached.
        NodeRefused: its host key is unknown or has changed, or it does not let us in.
    """
    pause_s = 0.1
    while True:
        try:
            with _LOGINS:
                return _connect(node, host)
        except _Again as again:
            if pause_s > _LONGEST_PAUSE_S:
                raise NodeLost(node, f"{host} hangs up on logins: {again}") from again
        time.sleep(random.uniform(pause_s, 3 * pause_s))  # noqa: S311 - not all at once again
        pause_s *= 2


def connect_watched(node: str, host: Host) -> Connection:
    """Log in as `connect` does; the connection ends once its host no longer answers."""
    connection = connect(node, host)
    connection.watch()
    return connection


class _Again(Exception):
    """A login was turned away in a way that may pass."""


def _connect(node: str, host: Host) -> Connection:
    if host.jump is None:
        return Connection(_login(node, host, _dialled(node, host)))
    jump = Connection(_login(node, host.jump, _dialled(node, host.jump)))
    try:
        target = (host.address, host.port)
        through = jump.transport.open_channel("direct-tcpip", target, ("", 0), timeout=CONNECT_S)
        through.settimeout(CONNECT_S)
        return Connection(_login(node, host, through), jump)
    except (paramiko.SSHException, OSError) as error:
        jump.close()
        raise NodeLost(node, f"{host.jump} cannot reach {host}: {error}") from error
    except BaseException:
        jump.close()
        raise


def _dialled(node: str, login: Login) -> socket.socket:
    try:
        sock = socket.create_connection((login.address, login.port), CONNECT_S)
    except OSError as error:
        raise NodeLost(node, f"cannot connect to {login}: {error}") from error
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(USER_TIMEOUT_S * 1000))
    return sock


def _login(node: str, login: Login, sock: Any) -> paramiko.Transport:
    """Shake hands over `sock`, check the host key, and only then log in."""
    known = known_keys(node, login)
    transport = paramiko.Transport(_Heard(sock))  # type: ignore[arg-type]
    try:
        transport.banner_timeout = transport.auth_timeout = CONNECT_S
        options = transport.get_security_options()
        options.ciphers = _first(options.ciphers, _GCM)
        kinds = {kind for key in known for kind in _kinds(key.split()[0])}
        options.key_types = _first(options.key_types, tuple(kinds))
        _shake_hands(node, login, transport)
        _check_host_key(node, login, transport.get_remote_server_key(), known)
        _authenticate(node, login, transport)
    except BaseException:
        transport.close()
        raise
    return transport


def _shake_hands(node: str, login: Login, transport: paramiko.Transport) -> None:
    started = time.monotonic()
    try:
        transport.start_client(timeout=CONNECT_S)
    except _TRANSIENT as error:
        raise _Again(str(error) or "it closed the connection") from error
    except paramiko.SSHException as error:
        if time.monotonic() - started < CONNECT_S / 2 and "banner" in str(error):
            raise _Again(str(error)) from error
        raise NodeLost(node, f"no handshake with {login}: {error}") from error
    if not transport.initial_kex_done:  # paramiko says nothing at a timeout
        raise NodeLost(node, f"no handshake with {login}: it said nothing for {CONNECT_S:g} s")


def _first(offered: Any, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Return `offered` with those of `wanted` that are in it at the front."""
    front = [name for name in wanted if name in offered]
    return (*front, *[name for name in offered if name not in front])


def _kinds(kind: str) -> tuple[str, ...]:
    return _RSA if kind == "ssh-rsa" else (kind,)


# -- whether it is the right host ------------------------------------------------------------------


def known_keys(node: str, login: Login) -> list[str]:
    """Return the keys that the host may show, as ``type base64``."""
    if login.host_key:
        return list(login.host_key)
    path = login.known_hosts or os.path.expanduser("~/.ssh/known_hosts")
    try:
        hosts = paramiko.HostKeys(path)
    except OSError as error:
        if login.known_hosts:
            raise NodeRefused(node, f"cannot read {path}: {error.strerror}") from error
        return []
    name = login.address if login.port == 22 else f"[{login.address}]:{login.port}"
    found: Mapping[str, paramiko.PKey] = hosts.lookup(name) or {}
    return [f"{kind} {key.get_base64()}" for kind, key in found.items()]


def _shown(key: paramiko.PKey) -> str:
    return f"{key.get_name()} {key.get_base64()}"


def _check_host_key(node: str, login: Login, key: paramiko.PKey, known: list[str]) -> None:
    shown = _shown(key)
    if shown in known:
        return
    if not known:
        raise NodeRefused(
            node,
            f"the host key of {login} is not known: {_fingerprint(shown)}. If the host itself says"
            " the same (ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub, typed there), give it in"
            f" hosts.yaml as\n  host_key: {shown}",
        )
    expected = ", ".join(_fingerprint(one) for one in known)
    raise NodeRefused(
        node,
        f"the host key of {login} HAS CHANGED: it shows {_fingerprint(shown)}, known is {expected}."
        " Somebody may be listening in. Only if you know why (a reinstalled host), compare it"
        " with ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub on the host and put the new key into"
        " hosts.yaml or known_hosts",
    )


def _fingerprint(key: str) -> str:
    kind, text = key.split()[:2]
    digest = base64.b64encode(hashlib.sha256(base64.b64decode(text)).digest()).decode()
    return f"{kind} SHA256:{digest.rstrip('=')}"


# -- whether it lets us in -------------------------------------------------------------------------


def _authenticate(node: str, login: Login, transport: paramiko.Transport) -> None:
    tried = []
    for name, key in _identities(node, login):
        tried.append(name)
        try:
            transport.auth_publickey(login.user, key)
        except paramiko.AuthenticationException as error:
            if "timeout" in str(error).lower():
                raise NodeLost(node, f"no login to {login}: {error}") from error
            if not transport.is_active() and "too many" not in str(error).lower():
                raise _Again(str(error)) from error
            continue
        except (paramiko.SSHException, *_TRANSIENT) as error:
            if transport.is_active():
                continue  # a key of a kind that the host has switched off
            raise _Again(str(error)) from error
        return
    what = f"with {', '.join(tried)}" if tried else "there is no key to try"
    raise NodeRefused(
        node,
        f"{login} does not let {login.user} in: {what}. Name the key's file as identity in"
        " hosts.yaml or ssh-add it; to see why:"
        f" ssh -v -p {login.port} {login.user}@{login.address}",
    )


def _identities(node: str, login: Login) -> Iterator[tuple[str, paramiko.PKey]]:
    """Yield the keys to try: the identity file, or the agent's and those in ~/.ssh."""
    if login.identity:
        try:
            yield login.identity, paramiko.PKey.from_path(login.identity)
            return
        except paramiko.PasswordRequiredException:
            pass  # then the agent must have it
        except (OSError, ValueError, TypeError, paramiko.SSHException) as error:
            if "password" not in str(error).lower() and "encrypted" not in str(error).lower():
                why = getattr(error, "strerror", None) or error
                raise NodeRefused(node, f"cannot read {login.identity}: {why}") from error
    with contextlib.suppress(paramiko.SSHException, OSError):
        for key in paramiko.Agent().get_keys():
            yield f"the agent's {key.get_name()} {key.comment}", key
    if login.identity:
        return
    for name in _DEFAULT_IDENTITIES:
        path = os.path.expanduser(f"~/.ssh/{name}")
        with contextlib.suppress(OSError, ValueError, TypeError, paramiko.SSHException):
            yield path, paramiko.PKey.from_path(path)


def _drained(recv: Any) -> bytes:
    parts = []
    while data := recv(1 << 16):
        parts.append(data)
    return b"".join(parts)
