"""run_pipeline.sh --fleet is cut off anywhere: nothing is left, or the next `down` removes it.

Real sshds are the nodes, the checkpoint is in S3, and both clouds are as strict as Amazon. A
handful of points is tried with the other tests, the rest by `make soak`.
"""

import contextlib
import dataclasses
import os
import pathlib
import pty
import secrets
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from aws import sigv4
from conftest import ROOT, SAMPLES
from ec2cloud import Request, wait_for
from s3_servers import ADMIN, Weed
from sshd import descendants
from test_ec2_ops import left
from test_run_pipeline import Clone, clone, plain_environment

if TYPE_CHECKING:
    from aws.s3_call import Call
    from ec2fleets import Ec2

__all__ = ["clone"]  # a fixture
# What EC2 would show late it shows within a second here.
WORKFLOWS = """#!/bin/bash
exec {python} -c 'import sys
from workflows.ec2 import teardown
teardown.LATE_S = 2.0
from workflows.cli import main
sys.exit(main())' "$@"
"""
LUIGI = '#!/bin/bash\nexec {python} -m luigi "$@"\n'
CODES = {"hup": 129, "terminal": 129, "term": 143, "int": 130, "int twice": 130}
ENDED_S = 150.0


@dataclasses.dataclass(frozen=True)
class Point:
    """A moment of a run, and what happens then.

    `at`: `before` or `after` EC2 does what the `nth` request for an action asks; `said`: a text is
    on stderr; `log`: a line is in the run's log; `s3`: an object whose key holds a text is put.
    """

    how: str
    at: str
    what: str
    nth: int = 1

    def __str__(self) -> str:
        return f"{self.how} {self.at} {self.what} {self.nth}"


SOME = [
    Point("kill", "after", "CreateFleet"),
    Point("terminal", "log", '"what": "keys"'),
    Point("hup", "s3", "_SUCCESS"),
    Point("child", "after", "TerminateInstances"),
]
MORE = [
    # Before anything is made, and while the parts of a fleet are.
    Point("term", "after", "DescribeInstances"),
    Point("hup", "after", "ImportKeyPair"),
    Point("kill", "after", "ImportKeyPair"),
    Point("kill", "after", "CreateSecurityGroup"),
    Point("terminal", "after", "AuthorizeSecurityGroupIngress", 2),
    Point("int", "after", "CreateLaunchTemplate"),
    Point("child", "before", "CreateFleet"),
    Point("hup", "after", "CreateFleet"),
    # From the launch to the nodes' set-up.
    Point("terminal", "after", "CreateTags"),
    Point("int twice", "after", "DeleteLaunchTemplate"),
    Point("child", "after", "CreateTags", 3),
    Point("term", "said", "is reached"),
    Point("kill", "after", "DeleteTags"),
    Point("hup", "said", "is ready"),
    # The run.
    Point("child", "log", '"what": "planned"'),
    Point("int twice", "log", '"what": "keys"'),
    Point("kill", "log", '"what": "keys"'),
    Point("child", "log", '"what": "keys"'),
    Point("term", "s3", "MergeCounts"),
    Point("kill", "s3", "MergeCounts"),
    Point("kill", "s3", "_SUCCESS"),
    # The teardown.
    Point("terminal", "before", "TerminateInstances"),
    Point("hup", "after", "TerminateInstances"),
    Point("int twice", "after", "TerminateInstances"),
    Point("kill", "after", "TerminateInstances"),
    Point("child", "after", "DeleteKeyPair"),
    Point("kill", "before", "DeleteSecurityGroup"),
    Point("child", "before", "DeleteSecurityGroup"),
    Point("terminal", "after", "DeleteSecurityGroup"),
]


class Night:
    """One run of run_pipeline.sh over an EC2 fleet, and what cuts it off."""

    def __init__(self, ec2: "Ec2", clone: Clone, weed: Weed) -> None:
        self.ec2, self.root, self.weed = ec2, clone.root, weed
        self.mark = f"NIGHT={secrets.token_hex(8)}"
        self.bucket = f"night-{secrets.token_hex(8)}"
        weed.bucket(self.bucket)
        ec2.cloud.account.keys[ADMIN[0]] = sigv4.Credential(ADMIN[1])
        for path in sorted(SAMPLES.glob("*.csv"))[:2]:
            ec2.place.key(path.name, path.read_bytes())
        shutil.copy(ec2.file, self.root)
        shutil.copy(ROOT / "luigi.cfg", self.root)
        for name, text in (("luigi", LUIGI), ("workflows", WORKFLOWS)):
            program = self.root / ".venv/bin" / name
            program.write_text(text.format(python=sys.executable))
            program.chmod(0o755)
        self.environ = plain_environment() | ec2.place.more | weed.environ
        self.environ |= {"PYTHONPATH": str(ROOT), "WORKFLOWS_GRACE": "5"}
        self.environ["NIGHT"] = self.mark.partition("=")[2]
        self.words = ["./run_pipeline.sh", "--fleet", f"ec2:{ec2.name}", "--pattern", "*"]
        self.words += ["--source", str(ec2.place.source), "--workers", "4"]
        self.words += ["--checkpoint", f"s3://{self.bucket}/results"]
        self.err = self.root / "night.err"
        self.err.touch()
        self.point, self.before = SOME[0], 0
        self.pid, self.terminal = 0, -1
        self.process: subprocess.Popen[bytes] | None = None
        self.wake, self.closed = os.pipe(), threading.Event()
        self.cut = threading.Event()
        self.over = threading.Event()
        self.watch = contextlib.ExitStack()

    # -- the run -----------------------------------------------------------------------------------

    def start(self, point: Point) -> None:
        """Start the run, on a terminal of its own if that is to be closed."""
        if point.how == "terminal":
            self.pid, self.terminal = pty.fork()
            if self.pid == 0:
                os.chdir(self.root)
                os.execve(self.words[0], self.words, self.environ)
            threading.Thread(target=self._read_terminal, daemon=True).start()
            return
        with self.err.open("wb") as err:
            self.process = subprocess.Popen(
                self.words,
                cwd=self.root,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=err,
                stderr=err,
                start_new_session=True,
            )
        self.pid = self.process.pid

    def _read_terminal(self) -> None:
        """Show what is on the terminal, and close it when told to: a read would keep it open."""
        with contextlib.suppress(OSError), self.err.open("ab") as err:
            while self.wake[0] not in select.select([self.terminal, self.wake[0]], [], [])[0]:
                err.write(os.read(self.terminal, 1 << 16))
                err.flush()
        os.close(self.terminal)
        self.closed.set()

    def said(self) -> str:
        return self.err.read_text(errors="replace")

    def log(self) -> str:
        found = sorted(self.root.glob(".workflows/runs/*/log.jsonl"))
        return found[-1].read_text(errors="replace") if found else ""

    def end(self) -> int:
        """Wait for the end of the script and of all that it has started; return its exit code."""
        deadline = time.monotonic() + ENDED_S
        while True:
            code = self._code()
            if code is not None:
                break
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)
        self.over.set()
        # A process that survives the script needs some seconds to see that.
        wait_for(lambda: not self.processes(), 60)
        return code

    def _code(self) -> int | None:
        if self.process is not None:
            return self.process.poll()
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def processes(self) -> list[int]:
        """Return the processes that descend from the script, or did."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if self.mark.encode() in pathlib.Path("/proc", name, "environ").read_bytes():
                    found.append(int(name))
        return found

    def close(self) -> None:
        """Leave nothing running."""
        self.over.set()
        self.watch.close()
        for end in self.wake:
            os.close(end)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    # -- the cut -----------------------------------------------------------------------------------

    def arm(self, point: Point) -> None:
        """Do what a point says once it is reached."""
        self.point, self.before = point, point.nth - 1
        if point.at == "after":
            self.ec2.cloud.answered.append(self._answered)
        elif point.at == "before":
            self.ec2.cloud.faults.append(self._asked)
        elif point.at == "s3":
            self.watch.enter_context(self.weed.strict.refusing("slow down", self._put))
        else:
            threading.Thread(target=self._look, daemon=True).start()

    def _asked(self, request: Request) -> None:
        if request.action == self.point.what:
            self._reached()

    def _answered(self, request: Request) -> None:
        was_cut = self.cut.is_set()
        self._asked(request)
        if self.point.how == "child" and self.cut.is_set() and not was_cut:
            raise ConnectionResetError("nobody is there to be answered")

    def _put(self, call: "Call") -> bool:
        if call.operation == "PutObject" and self.point.what in call.key:
            self._reached()
        return False

    def _look(self) -> None:
        text = self.said if self.point.at == "said" else self.log
        while not self.over.wait(0.02) and not self.cut.is_set():
            if self.point.what in text():
                self._reached()

    def _reached(self) -> None:
        self.before -= 1
        if self.before < 0 and not self.cut.is_set():
            self.cut.set()
            self._cut(self.point.how)

    def _cut(self, how: str) -> None:
        if how == "terminal":
            os.write(self.wake[1], b"x")
            self.closed.wait(10)
        elif how == "hup":
            os.killpg(self.pid, signal.SIGHUP)
        elif how == "kill":
            os.kill(self.pid, signal.SIGKILL)
        elif how == "child":
            for pid in self._children():
                os.kill(pid, signal.SIGKILL)
        else:
            os.kill(self.pid, {"term": signal.SIGTERM}.get(how, signal.SIGINT))
            if how == "int twice":
                time.sleep(0.3)  # or both would be one: the first leaves no trace to wait for
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGINT)

    def _children(self) -> list[int]:
        """Return what the script has started that is luigi, or the command `workflows fleet`."""
        found = []
        for pid in descendants(self.pid):
            with contextlib.suppress(OSError):
                words = pathlib.Path("/proc", str(pid), "cmdline").read_bytes().split(b"\0")
                is_program = words[0] == sys.executable.encode()
                if is_program and (b"luigi" in words or b"fleet" in words):
                    found.append(pid)
        return found


@pytest.fixture
def night(ec2: "Ec2", clone: Clone, weed: Weed) -> Iterator[Night]:
    made = Night(ec2, clone, weed)
    yield made
    made.close()


def remains(ec2: "Ec2") -> dict[str, Any]:
    """Return everything that is left of a fleet, here and in EC2, with what its nodes run."""
    found = left(ec2)
    files = list(pathlib.Path(ec2.spec.identity).parent.glob("login*"))
    if files:
        found["login key"] = files
    return found


@pytest.mark.timeout(280)
@pytest.mark.parametrize(
    "point", [*SOME, *(pytest.param(one, marks=pytest.mark.soak) for one in MORE)], ids=str
)
def test_a_run_that_is_cut_off_leaves_nothing_that_down_does_not_remove(
    night: Night, point: Point
) -> None:
    night.arm(point)
    night.start(point)

    code = night.end()

    assert night.cut.is_set(), night.said()
    if point.how in CODES:
        # The teardown is not cut off; its last lines are, with the terminal.
        is_ending = point.what in ("TerminateInstances", "DeleteSecurityGroup")
        ending = int(point.how == "terminal")
        assert code == (ending if is_ending else CODES[point.how]), night.said()
        assert remains(night.ec2) == {}
    again = night.ec2.run("down", "--yes")
    assert again.code == 0, again
    assert remains(night.ec2) == {}
    wait_for(lambda: not night.ec2.region.nodes, 30)
