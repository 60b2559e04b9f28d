"""Whatever becomes of the words, the fleet goes: by `down`, `sweep`, a failed `up`, a run's end."""

import contextlib
import errno
import fcntl
import io
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from ec2cloud import Request, error_body, wait_for
from test_ec2_ops import PAST, late, left
from test_run_pipeline import Clone, clone, plain_environment

from workflows.ec2 import ground, lease, loginkey, teardown
from workflows.ec2.api import EXPIRES, Aws
from workflows.ec2.teardown import leftovers
from workflows.ec2_fleet import Ec2Fleet
from workflows.errors import FleetError
from workflows.reporting import messages

if TYPE_CHECKING:
    from ec2fleets import Ec2

__all__ = ["clone"]  # a fixture
STATES = ("fine", "closed", "full", "gone")
PAIRS = [
    pytest.param(out, err, marks=[] if out == err else [pytest.mark.soak])
    for out in STATES
    for err in STATES
    if (out, err) != ("fine", "fine")
]


@contextlib.contextmanager
def streams(out: str, err: str) -> Iterator[tuple[str, list[int]]]:
    """Yield how a shell gives a program such streams, and the descriptors it needs for that."""
    reader, writer = os.pipe()
    os.close(reader)
    words = {"fine": "{0}>/dev/null", "closed": "{0}>&-", "full": "{0}>/dev/full"}
    words["gone"] = f"{{0}}>&{writer}"
    try:
        yield f"{words[out].format(1)} {words[err].format(2)}", [writer]
    finally:
        os.close(writer)


def code_of(argv: list[str], out: str, err: str, cwd: pathlib.Path, environ: dict[str, str]) -> int:
    """Run a program whose streams are broken to its end; return its exit code."""
    with streams(out, err) as (redirections, kept):
        words = ["bash", "-c", f'exec "$@" {redirections}', "bash", *argv]
        return subprocess.run(
            words, cwd=cwd, env=environ, stdin=subprocess.DEVNULL, pass_fds=kept, timeout=120
        ).returncode


def fleet_code(ec2: "Ec2", out: str, err: str, *words: str) -> int:
    argv = ec2.place.command("workflows", "fleet", *words)
    return code_of(argv, out, err, ec2.place.path, ec2.place.environ)


def launched(ec2: "Ec2", nodes: int = 1) -> list[str]:
    """Launch instances that are no machines: what is tested here never logs in to one."""
    ec2.region.boots = False
    ec2.write(nodes=nodes)
    return ec2.converge()


def is_gone(ec2: "Ec2") -> bool:
    return left(ec2) == {} and not pathlib.Path(ec2.spec.identity).exists()


# -- what is printed -------------------------------------------------------------------------------


@pytest.mark.parametrize(("out", "err"), PAIRS)
def test_down_removes_the_fleet_whatever_becomes_of_its_words(
    ec2: "Ec2", out: str, err: str
) -> None:
    launched(ec2)

    code = fleet_code(ec2, out, err, "down", ec2.name, "--yes")

    assert is_gone(ec2)
    assert code == (0 if err == "fine" else 1)  # nothing of it is for stdout


@pytest.mark.parametrize(("out", "err"), PAIRS)
def test_sweep_removes_what_is_over_whatever_becomes_of_its_words(
    ec2: "Ec2", out: str, err: str
) -> None:
    launched(ec2)
    found = leftovers(Aws("us-east-1"), ec2.name)
    volumes = found.pop("volumes", {})  # which moto would never let go of
    every = [one for ids in found.values() for one in ids]
    ec2.region.ec2.create_tags(Resources=every, Tags=[{"Key": EXPIRES, "Value": PAST}])
    if volumes:
        ec2.region.ec2.delete_tags(Resources=list(volumes), Tags=[{"Key": "workflows:fleet"}])

    code = fleet_code(ec2, out, err, "sweep", "--regions", "us-east-1", "--yes")

    assert left(ec2) == {}
    assert code == 1


def one_short(ec2: "Ec2") -> None:
    """Let EC2 launch one spot instance fewer than it is asked for, and none on demand."""

    def fault(request: Request) -> bytes | None:
        if request.action == "CreateFleet":
            name = "TargetCapacitySpecification.{}TargetCapacity"
            if request.body[name.format("OnDemand")] != "0":
                return error_body("InsufficientInstanceCapacity", "none left")
            fewer = str(int(request.body[name.format("Total")]) - 1)
            raw = request.raw.decode()
            for kind in ("Total", "Spot"):
                raw = raw.replace(
                    f"{name.format(kind)}={request.body[name.format(kind)]}",
                    f"{name.format(kind)}={fewer}",
                )
            request.raw = raw.encode()
        return None

    ec2.cloud.faults.append(fault)


@pytest.mark.parametrize(("out", "err"), PAIRS)
def test_up_that_fails_terminates_what_came_whatever_becomes_of_its_words(
    ec2: "Ec2", out: str, err: str
) -> None:
    ec2.region.boots = False
    one_short(ec2)

    code = fleet_code(ec2, out, err, "up", ec2.name, "--yes")

    assert ec2.live() == []
    assert "launch templates" not in left(ec2)
    # Where nobody can read what it would cost, nothing is launched.
    assert code == (4 if err == "fine" else 1)
    assert bool(ec2.cloud.asked("CreateFleet")) == (err == "fine")


def test_up_whose_reader_leaves_after_the_plan_terminates_what_came(ec2: "Ec2") -> None:
    ec2.region.boots = False
    one_short(ec2)
    process = subprocess.Popen(
        ec2.place.command("workflows", "fleet", "up", ec2.name, "--yes"),
        cwd=ec2.place.path,
        env=ec2.place.environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    while b"at most $" not in process.stderr.readline():
        assert process.poll() is None
    process.stderr.close()

    assert process.wait(120) != 0
    assert ec2.live() == []
    assert "launch templates" not in left(ec2)


@pytest.mark.parametrize(("out", "err"), PAIRS)
def test_a_run_ends_its_fleet_whatever_becomes_of_its_words(
    ec2: "Ec2", clone: Clone, out: str, err: str
) -> None:
    launched(ec2)
    (clone.root / ec2.file.name).write_text(ec2.file.read_text())
    clone.luigi("touch started; echo result")
    program = clone.root / ".venv/bin/workflows"
    program.write_text(
        '#!/bin/bash\n[[ "$1 $2" != "fleet up" ]] || exit 0\n[[ $1 == fleet ]] || exit 1\n'
        f'exec {sys.executable} -m workflows "$@"\n'
    )
    program.chmod(0o755)
    environ = plain_environment() | ec2.place.environ
    words = ["./run_pipeline.sh", "--fleet", f"ec2:{ec2.name}"]

    code = code_of(words, out, err, clone.root, environ)

    # Without a stdout nothing is begun: the result would be lost.
    assert (clone.root / "started").exists() == (out != "closed")
    assert is_gone(ec2) == (out != "closed")
    # A stderr that is closed is a wish for silence.
    assert (code == 0) == (out == "fine" and err == "closed")


def test_a_reader_that_never_reads_holds_no_teardown_up(ec2: "Ec2") -> None:
    launched(ec2)
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETFL, os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    fcntl.fcntl(writer, fcntl.F_SETFL, 0)
    process = subprocess.Popen(
        ec2.place.command("workflows", "fleet", "down", ec2.name, "--yes"),
        cwd=ec2.place.path,
        env=ec2.place.environ,
        stderr=writer,
    )
    os.close(writer)

    wait_for(lambda: is_gone(ec2), 60)  # while not a line can be written
    said = b""
    while data := os.read(reader, 1 << 16):
        said += data
    os.close(reader)

    assert process.wait(60) == 0
    assert f"nothing of {ec2.name} is left".encode() in said


def test_down_asks_first_and_without_a_yes_terminates_nothing(ec2: "Ec2") -> None:
    launched(ec2)

    code = fleet_code(ec2, "full", "full", "down", ec2.name)

    assert code == 2
    assert len(ec2.live()) == 1


def test_a_terminal_that_closes_during_down_stops_nothing(ec2: "Ec2") -> None:
    launched(ec2)
    with ec2.place.start("workflows", "fleet", "down", ec2.name, "--yes") as running:

        def hang_up(request: Request) -> None:
            if request.action == "TerminateInstances":
                os.killpg(running.process.pid, signal.SIGHUP)

        ec2.cloud.answered.append(hang_up)

        assert running.end() == 0, running.said
    assert is_gone(ec2)


# -- what goes wrong meanwhile ---------------------------------------------------------------------


def test_instances_are_terminated_before_anything_else_is_asked(ec2: "Ec2") -> None:
    launched(ec2)
    ec2.cloud.requests.clear()

    ec2.run("down", "--yes")

    first = [request.action for request in ec2.cloud.requests[:2]]
    assert first == ["DescribeInstances", "TerminateInstances"]


@pytest.mark.parametrize(
    "action",
    [
        *["DescribeLaunchTemplates", "DescribeKeyPairs", "DescribeVolumes"],
        *["DescribeSecurityGroups", "DeleteKeyPair", "DeleteSecurityGroup"],
    ],
)
def test_a_part_that_cannot_be_removed_keeps_no_other(ec2: "Ec2", action: str) -> None:
    launched(ec2)
    ec2.cloud.refuse(action, "UnauthorizedOperation")

    with pytest.raises(FleetError, match="UnauthorizedOperation"):
        ec2.fleet.down()

    assert ec2.live() == []
    kept = {"DescribeKeyPairs": "key pairs", "DeleteKeyPair": "key pairs"}
    kept |= dict.fromkeys(("DescribeSecurityGroups", "DeleteSecurityGroup"), "security groups")
    ec2.cloud.faults.clear()
    assert set(left(ec2)) == ({kept[action]} if action in kept else set())
    ec2.fleet.down()
    assert is_gone(ec2)


def test_an_instance_that_is_protected_keeps_no_other(ec2: "Ec2") -> None:
    first, _ = launched(ec2, nodes=2)

    def fault(request: Request) -> bytes | None:
        is_asked = first in request.listed("InstanceId")
        if request.action == "TerminateInstances" and is_asked:
            return error_body("OperationNotPermitted", f"{first} may not be terminated")
        return None

    ec2.cloud.faults.append(fault)

    with pytest.raises(FleetError, match="may not be terminated"):
        teardown.terminate(Aws("us-east-1"), [one["InstanceId"] for one in ec2.live()])

    assert [one["InstanceId"] for one in ec2.live()] == [first]


def test_a_program_that_cannot_be_told_loses_its_fleet_all_the_same(ec2: "Ec2") -> None:
    launched(ec2)

    def say(text: str) -> None:
        raise ValueError(f"not now: {text}")

    Ec2Fleet(ec2.spec, say=say).down()

    assert is_gone(ec2)


def test_logs_of_runs_that_make_no_sense_do_not_matter(ec2: "Ec2") -> None:
    launched(ec2)
    log = ec2.place.state / "runs" / "1" / "log.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text('{"what": "fleet"}\n')  # of which fleet?

    done = ec2.run("down", "--yes")

    assert done.code == 0, done
    assert is_gone(ec2)
    assert "its cost is not known: " in done.err
    assert "Traceback" not in done.err


def test_what_a_killed_up_had_asked_for_is_waited_for(
    ec2: "Ec2", monkeypatch: pytest.MonkeyPatch
) -> None:
    launched(ec2)
    ec2.region.ec2.create_launch_template(
        LaunchTemplateName=f"workflows-{ec2.name}-cut-off",
        LaunchTemplateData={"InstanceType": "m7i.large"},
        TagSpecifications=[
            {
                "ResourceType": "launch-template",
                "Tags": [{"Key": "workflows:fleet", "Value": ec2.name}],
            }
        ],
    )
    monkeypatch.setattr(teardown, "LATE_S", 8.0)
    looks, came = iter(range(100)), threading.Event()

    def launches(request: Request) -> None:
        if request.action == "DescribeInstances" and next(looks) == 2:
            late(ec2)
            came.set()

    ec2.cloud.answered.append(launches)

    ec2.fleet.down()

    assert came.is_set()
    assert ec2.live() == []


# -- the login key ---------------------------------------------------------------------------------


def test_a_login_key_of_the_users_own_stays(ec2: "Ec2") -> None:
    path = pathlib.Path(ec2.spec.identity)
    ground.make_login_key(str(path), "ann@example")
    launched(ec2)

    ec2.fleet.down()

    assert left(ec2) == {}
    assert path.exists()


def test_a_login_key_that_another_fleet_uses_too_stays(ec2: "Ec2") -> None:
    ground.make_login_key(ec2.spec.identity, "workflows-other@us-east-1")
    launched(ec2)

    ec2.fleet.down()

    assert pathlib.Path(ec2.spec.identity).exists()
    assert not loginkey.is_ours(ec2.spec)


# -- lines -----------------------------------------------------------------------------------------


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for one in (reader, writer):
        with contextlib.suppress(OSError):
            os.close(one)


def stream_on(writer: int, monkeypatch: pytest.MonkeyPatch) -> messages.Stream:
    monkeypatch.setattr(messages, "_NAMES", {writer: "stderr"})
    return messages.Stream(writer)


def test_lines_arrive_in_order(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = stream_on(pipe[1], monkeypatch)
    for number in range(1000):
        stream.print(f"line {number} \udcff")

    assert stream.flush() == ""
    lines = os.read(pipe[0], 1 << 16).decode().splitlines()
    assert lines == [f"line {number} \\udcff" for number in range(1000)]


def test_a_line_that_cannot_be_written_is_told_at_the_end(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = stream_on(pipe[1], monkeypatch)
    stream.print("arrives")
    assert stream.flush() == ""
    os.close(pipe[0])

    stream.print("is lost")

    assert stream.flush() == "Broken pipe"


@pytest.mark.parametrize("flags", [0, os.O_NONBLOCK])
def test_nobody_waits_for_ever_for_a_reader(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, flags: int
) -> None:
    stream = stream_on(pipe[1], monkeypatch)
    fcntl.fcntl(pipe[1], fcntl.F_SETFL, flags)
    stream.print("x" * (1 << 20))

    assert stream.flush(0.2) == "nobody reads stderr"
    rest = 1 << 20
    while rest > 0:
        rest -= len(os.read(pipe[0], 1 << 16))
    assert stream.flush() == ""


def test_leases_are_renewed_though_nothing_can_be_said(
    ec2: "Ec2", monkeypatch: pytest.MonkeyPatch
) -> None:
    full = io.TextIOWrapper(Full())
    monkeypatch.setattr(sys, "stderr", full)
    ec2.cloud.refuse("DescribeInstances", "UnauthorizedOperation")
    beats = iter((True, True))

    def sleep(_: float) -> None:
        if not next(beats, False):
            raise EndOfTest

    monkeypatch.setattr(time, "sleep", sleep)
    keeper = lease.Keeper([], ec2.name, "")
    keeper.remotes = [Silent()]  # type: ignore[list-item]

    with pytest.raises(EndOfTest):
        keeper()

    assert Silent.beats >= 3


class Full(io.BytesIO):
    """A file on a full disk."""

    def write(self, _: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


class EndOfTest(BaseException):
    """Ends what would go on for ever."""


class Silent:
    """A node that does not answer."""

    slot = 0
    beats = 0

    def run(self, *_: Any) -> str:
        Silent.beats += 1
        raise ValueError
