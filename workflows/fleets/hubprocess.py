"""The process of an ssh fleet's hub: started as soon as a verb or a run needs one.

A hub takes as long to load paramiko as a verb takes to load its modules, and both have a core of
their own. So the command line of verbs begins one before it knows the hosts, which it is told
later. Until then it reaches nobody. Next to nothing is imported here, for the same reason.
"""

import atexit
import contextlib
import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Sequence

HUBS = {"ssh": "workflows.fleets.hub", "ec2": "workflows.ec2.hub"}
WAITS = "waits"  # for a byte on its stdin; the hosts are in its file then
_STDERR = 2


class HubProcess:
    """A hub that listens at the socket `name`, once it was told its hosts.

    It reads a pipe that only the driver holds open, so that it ends with the driver. Its file has
    no name: an argument would be too short for many hosts.
    """

    def __init__(self, module: str) -> None:
        self.module, self.name = module, f"workflows-{os.urandom(12).hex()}"
        self._file = _above_standard(os.memfd_create("hosts"))
        self._life, self._hold = os.pipe()
        self.driver = os.getpid()
        self.process = self._launched(WAITS)

    def tell(self, hosts: bytes) -> None:
        """Say which hosts there are."""
        os.pwrite(self._file, hosts, 0)
        with contextlib.suppress(BrokenPipeError):  # it is dead already, and will be replaced
            os.write(self._hold, b"\n")

    def renew(self) -> None:
        """Start another in place of one that has ended."""
        self.process = self._launched()

    def let_go(self) -> None:
        """Let the hub end, without waiting for it."""
        self.forget()
        os.close(self._life)
        os.close(self._file)

    def forget(self) -> None:
        """In a forked child: let go of what keeps the hub alive; it ends with the driver."""
        if self._hold >= 0:
            os.close(self._hold)
            self._hold = -1

    def _launched(self, *more: str) -> "subprocess.Popen[bytes]":
        # Not -m, which takes longer. Both would find modules in the working directory first.
        code = (
            "import sys; sys.path[:] = filter(None, sys.path);"
            f" from {self.module} import start; start()"
        )
        return subprocess.Popen(
            [sys.executable, "-S", "-c", code, str(self._file), self.name, *more],
            stdin=self._life,
            stdout=subprocess.PIPE,
            pass_fds=(self._file,),
            # All that `site` would find is there already; that saves its time.
            env=dict(os.environ, PYTHONPATH=os.pathsep.join(map(os.path.abspath, sys.path))),
            start_new_session=True,
        )


def _above_standard(fd: int) -> int:
    """Return a file whose number a child keeps: the first three are replaced there.

    They are free where the driver itself was started without a stdin or a stdout.
    """
    if fd > _STDERR:
        return fd
    other = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _STDERR + 1)
    os.close(fd)
    return other


_begun: list[HubProcess] = []


def begin(arguments: Sequence[str]) -> str:
    """Begin a hub if the fleet that a command line names, or the settings, will need one.

    Return the fleet's spec, empty if it cannot be known yet.
    """
    spec = _fleet(arguments)
    kind = spec.partition(":")[0]
    if kind in HUBS and not _begun:
        _begun.append(HubProcess(HUBS[kind]))
        atexit.register(_discard)
    return spec


def take(module: str) -> HubProcess:
    """Return the hub that was begun, or a new one."""
    if _begun and _begun[0].module == module and _begun[0].driver == os.getpid():
        return _begun.pop()
    return HubProcess(module)


def _discard() -> None:
    """End a hub that was begun and that nobody needed."""
    while _begun:
        hub = _begun.pop()
        if hub.driver == os.getpid():
            hub.let_go()
            with hub.process as process:
                process.kill()


def _fleet(arguments: Sequence[str]) -> str:
    for number, argument in enumerate(arguments):
        if argument.startswith("--fleet="):
            return argument.partition("=")[2]
        if argument == "--fleet" and number + 1 < len(arguments):
            return arguments[number + 1]
    if any(re.match(r"--\S+-fleet(=|$)", argument) for argument in arguments):
        return ""  # that of one task, as Luigi lets it be
    from workflows.config import settings
    from workflows.errors import ConfigError

    try:
        return settings().fleet
    except ConfigError:  # said when they are needed
        return ""


def _forget() -> None:
    for hub in _begun:
        hub.forget()
    _begun.clear()


os.register_at_fork(after_in_child=_forget)
