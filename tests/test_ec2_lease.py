"""Nodes that nobody uses end themselves; nodes that EC2 takes back are replaced during a run."""

import json
import os
import pathlib
import signal
from typing import TYPE_CHECKING

from ec2cloud import wait_for
from sshd import descendants

if TYPE_CHECKING:
    from conftest import Place, Running
    from ec2fleets import Ec2

# Keys called slow wait for the file GO. Every command that begins or ends leaves a line in LOG.
STEPS = """
from workflows.steps import Map
SAY = 'echo "%s $WORKFLOWS_STEP $WORKFLOWS_KEY $WORKFLOWS_TEST_NODE" >> {path}/log; '
class First(Map):
    command = "xargs cat; " + SAY % "end"
class Slow(Map):
    upstream = First
    command = (
        SAY % "begin" + 'cat; case $WORKFLOWS_KEY in *slow*) '
        'until test -e {path}/go; do sleep 0.05; done;; esac; ' + SAY % "end"
    )
"""
KEYS = ["000_quick", "001_slow", "001_slow2", "001_slow3"]
ARGUMENTS = ["--module", "mine", "Slow", "--source", "source", "--pattern", "*", "--workers", "4"]
NOTICE = json.dumps({"action": "terminate", "time": "2026-11-21T12:02:00Z"})
LOST_S = 40.0


# -- the dead man ----------------------------------------------------------------------------------


def test_nodes_that_nobody_uses_end_themselves_after_their_flush_hook(ec2: "Ec2") -> None:
    ec2.write(ttl={"idle": "8s", "max": "1h"})
    ec2.fleet.up()
    for name in ec2.tags():
        hook = ec2.node_home(name) / ".workflows/flush"
        hook.write_text(f"#!/bin/sh\ntouch {ec2.place.path}/flushed-{name}\n")
        hook.chmod(0o755)
    names = set(ec2.tags())

    wait_for(lambda: not ec2.live(), LOST_S)

    assert {f"flushed-{name}" for name in names} == {
        path.name for path in ec2.place.path.glob("flushed-*")
    }
    said = {(ec2.node_home(name) / ".workflows/off").read_text() for name in names}
    assert said == {"nobody has renewed its lease for 8 s"}


def test_no_heartbeat_extends_the_longest_life(ec2: "Ec2") -> None:
    ec2.write(nodes=1, ttl={"idle": "10s", "max": "10s"})
    ec2.fleet.up()
    (name,) = ec2.tags()
    state = ec2.node_home(name) / ".workflows"
    os.utime(state / "lease", (2e9, 2e9))

    wait_for(lambda: not ec2.live(), LOST_S)

    assert (state / "off").read_text() == "it has reached its longest life"


def test_a_node_that_can_write_nothing_any_more_ends_itself_all_the_same(ec2: "Ec2") -> None:
    """A full disk: what the agent writes fails, and an `extend` has left its file empty."""
    ec2.write(nodes=1, ttl={"idle": "8s", "max": "1h"})
    ec2.fleet.up()
    (name,) = ec2.tags()
    state = ec2.node_home(name) / ".workflows"
    for file in ("off.new", "notice.new"):
        (state / file).mkdir()
    (state / "deadline").write_text("")
    ec2.cloud.notices[name] = NOTICE

    wait_for(lambda: not ec2.live(), LOST_S)

    assert not (state / "off").exists()


def test_a_node_whose_lease_was_removed_still_ends_itself(ec2: "Ec2") -> None:
    ec2.write(nodes=1, ttl={"idle": "8s", "max": "1h"})
    ec2.fleet.up()
    (name,) = ec2.tags()
    for file in ("lease", "deadline"):
        (ec2.node_home(name) / ".workflows" / file).unlink()

    wait_for(lambda: not ec2.live(), LOST_S)


def test_a_run_keeps_its_nodes_and_they_end_when_its_driver_is_killed(ec2: "Ec2") -> None:
    ec2.write(ttl={"idle": "15s", "max": "1h"})
    with started(ec2) as run:
        wait_for_slow(ec2, run)
        renewed = newest_lease(ec2)
        run.wait_for(lambda: newest_lease(ec2) > renewed, LOST_S)

        os.kill(run.process.pid, signal.SIGKILL)

        wait_for(lambda: not ec2.live(), 2 * LOST_S)


def newest_lease(ec2: "Ec2") -> float:
    return max((ec2.node_home(n) / ".workflows/lease").stat().st_mtime for n in ec2.tags())


# -- notices ---------------------------------------------------------------------------------------


def test_a_node_that_ec2_takes_back_starts_no_more_keys_and_only_its_keys_run_again(
    ec2: "Ec2",
) -> None:
    ec2.write(slots=1)
    with started(ec2) as run:
        old = wait_for_slow(ec2, run)
        ec2.cloud.notices[old] = NOTICE

        run.wait_for(lambda: "EC2 says spot/instance-action" in run.said, LOST_S)
        run.wait_for(lambda: "slot 1 is filled by" in run.said, LOST_S)
        run.wait_for(lambda: begun_on(ec2) - {old}, LOST_S)
        (ec2.place.path / "go").touch()
        code = run.end(120)

    assert code == 0, run.said
    assert old not in ec2.tags()
    assert ec2.slots() == ["0", "1"]
    log = [line.split() for line in (ec2.place.path / "log").read_text().splitlines()]
    ends = [(step, key) for what, step, key, _ in log if what == "end"]
    assert ends.count(("Slow", "000_quick")) == ends.count(("First", "000_quick")) == 1
    assert (
        len([1 for what, step, _, node in log if (what, step, node) == ("begin", "Slow", old)]) == 1
    )
    lost = [key for what, step, key, node in log if (what, step, node) == ("end", "First", old)]
    assert 1 <= len(lost) <= 3
    assert sorted(key for step, key in ends if step == "First" and key in lost) == sorted(2 * lost)
    keys = "1 key" if len(lost) == 1 else f"{len(lost)} keys"
    assert f"keys of lost nodes ran again: {keys}, " in run.said, run.said


def test_a_node_that_is_gone_without_notice_is_replaced_too(ec2: "Ec2") -> None:
    with started(ec2) as run:
        old = wait_for_slow(ec2, run)
        ec2.region.reclaim(old)

        run.wait_for(lambda: "slot 1 is filled by" in run.said, 2 * LOST_S)
        (ec2.place.path / "go").touch()
        code = run.end(120)

    assert code == 0, run.said
    assert ec2.slots() == ["0", "1"]
    assert " failed on" not in run.said


def test_a_hub_that_is_killed_after_a_node_was_replaced_finds_the_new_node(ec2: "Ec2") -> None:
    with started(ec2) as run:
        old = wait_for_slow(ec2, run)
        ec2.region.reclaim(old)
        run.wait_for(lambda: begun_on(ec2) - {old}, 2 * LOST_S)
        (hub,) = [pid for pid in descendants(run.process.pid) if b"ec2.hub" in cmdline(pid)]

        os.kill(hub, signal.SIGKILL)
        run.wait_for(lambda: run.said.count("is lost") > 1, LOST_S)
        (ec2.place.path / "go").touch()
        code = run.end(120)

    assert code == 0, run.said
    assert " failed on" not in run.said


def cmdline(pid: int) -> bytes:
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""  # it has ended


def started(ec2: "Ec2") -> "Running":
    """Bring the fleet up and start a run of which three keys on slot 1 wait for GO."""
    place: Place = ec2.place
    place.module(STEPS.replace("{path}", str(place.path)))
    for key in KEYS:
        place.key(key, key.encode())
    ec2.fleet.up()
    return place.start("luigi", *ARGUMENTS, "--fleet", f"ec2:{ec2.name}")


def wait_for_slow(ec2: "Ec2", run: "Running") -> str:
    """Wait until the slow keys are all that is left; return the instance they are on."""
    run.wait_for(lambda: begun_on(ec2), 60)
    run.wait_for(lambda: "end Slow 000_quick" in log_of(ec2.place.path), 60)
    (name,) = begun_on(ec2)
    return name


def begun_on(ec2: "Ec2") -> set[str]:
    """Return the instances on which slow keys have begun."""
    lines = [line.split() for line in log_of(ec2.place.path).splitlines()]
    return {line[3] for line in lines if line[:2] == ["begin", "Slow"] and "slow" in line[2]}


def log_of(path: pathlib.Path) -> str:
    return (path / "log").read_text() if (path / "log").exists() else ""
