"""Nodes whose clocks are wrong, by libfaketime: runs work all the same, and health says so."""

import pathlib
from typing import TYPE_CHECKING

import pytest
from conftest import SAMPLES

if TYPE_CHECKING:
    from conftest import Place
    from sshd import Hosts

LIBRARY = next(pathlib.Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
DAY_S = 86400
ARGUMENTS = ["--module", "workflows.tasks", "MergeCounts", "--source", "source", "--pattern", "*"]

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="no libfaketime: apt-get install faketime")


def add(hosts: "Hosts", skew_s: int) -> None:
    """Add a node on which all that is started by ssh reads a clock that is off by `skew_s`."""
    env = {
        "LD_PRELOAD": LIBRARY,
        "FAKETIME": f"{skew_s:+d}",
        # As on a real node: a clock that is set differs, time that passes does not.
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    hosts.add(env=env if skew_s else {})


@pytest.fixture
def skewed(hosts: "Hosts") -> "Hosts":
    """Return a fleet of three nodes: one is right, one two days ahead, one four months behind."""
    for skew_s in (0, 2 * DAY_S, -120 * DAY_S):
        add(hosts, skew_s)
    return hosts


def test_health_refuses_a_node_whose_clock_is_wrong_with_how_much_and_what_to_do(
    place: "Place", skewed: "Hosts"
) -> None:
    done = place.run("workflows", "health", "--fleet", skewed.spec)

    right, ahead, behind = done.out.splitlines()
    assert done.code == 1, done
    assert right.startswith("healthy: node 0")
    assert ahead.startswith("unhealthy: node 1")
    assert behind.startswith("unhealthy: node 2")
    assert off_by(ahead) == pytest.approx(2 * DAY_S, abs=5)
    assert off_by(behind) == pytest.approx(-120 * DAY_S, abs=5)
    assert "timedatectl set-ntp true" in ahead


def off_by(line: str) -> int:
    return int(line.partition("its clock is ")[2].split()[0])


def test_a_pipeline_on_nodes_whose_clocks_are_wrong_gives_the_same_result(
    place: "Place", skewed: "Hosts"
) -> None:
    """Shuffle, certificates and checkpoints included; and what is done is not made again."""
    for path in sorted(SAMPLES.glob("*.csv"))[:6]:
        place.key(path.name, path.read_bytes())

    here = place.run("luigi", *ARGUMENTS, "--fleet", "local:3")
    for path in (place.checkpoint / "MergeCounts").rglob("_SUCCESS"):
        path.unlink()
    there = place.run("luigi", *ARGUMENTS, "--fleet", skewed.spec)
    again = place.run("luigi", *ARGUMENTS, "--fleet", skewed.spec)

    assert here.code == there.code == again.code == 0, (here, there, again)
    assert there.out.splitlines()[1:] == here.out.splitlines()[1:] != []
    assert again.err == ""
    times = {line["slot"]: line["at"] for line in skewed.ledger("Select")}
    assert times[1] - times[0] == pytest.approx(2 * DAY_S, abs=600)
    assert times[2] - times[0] == pytest.approx(-120 * DAY_S, abs=600)
