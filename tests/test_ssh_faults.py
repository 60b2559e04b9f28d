"""Lost is not failed: nodes that die, hang, or are cut off while a run has keys on them."""

import contextlib
import os
import pathlib
import signal
import subprocess
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from sshd import descendants

if TYPE_CHECKING:
    from conftest import Place, Running
    from sshd import Hosts

NOTICED_S = 20.0
# Slow keys wait for the file GO; every command that ends leaves a line in the file LOG.
STEPS = """
from workflows.steps import Map
END = 'echo "$WORKFLOWS_STEP $WORKFLOWS_KEY" >> %(path)s/log'
class First(Map):
    command = "xargs cat; " + END
class Slow(Map):
    upstream = First
    command = (
        'cat; touch "%(path)s/$WORKFLOWS_KEY.started";'
        ' case $WORKFLOWS_KEY in *slow*) until test -e %(path)s/go; do sleep 0.05; done;; esac; '
        + END
    )
"""
KEYS = ["000_quick", "001_quick", "001_slow", "002_quick"]
ARGUMENTS = ["--module", "mine", "Slow", "--source", "source", "--pattern", "*", "--workers", "8"]


class Scene:
    """A run on three nodes: all keys are done but one, which hangs on node 1."""

    def __init__(self, place: "Place", hosts: "Hosts", run: "Running") -> None:
        self.place, self.hosts, self.run = place, hosts, run
        self.node = hosts.nodes[1]

    def wait_until_all_but_one_is_done(self) -> None:
        self.run.wait_for((self.place.path / "001_slow.started").exists, 30)
        # Done is what is in the ledger; its command may have ended a moment before.
        self.run.wait_for(lambda: len(self.hosts.ledger("Slow")) == len(KEYS) - 1, 30)

    def log(self) -> list[str]:
        path = self.place.path / "log"
        return sorted(path.read_text().splitlines()) if path.exists() else []

    def is_lost(self) -> bool:
        """Tell whether the run has named the node as lost."""
        name = f"node 1 ({self.node.address}:{self.node.port}) is lost"
        return name in " ".join(self.run.said.split())

    def runtime(self) -> int:
        """Return the node's runtime; its watchdog, which looks alike, is its child."""
        return min(pid for pid, line in self.node.ours().items() if ".pyz" in line)

    def go(self) -> None:
        (self.place.path / "go").touch()

    def end(self) -> None:
        """Let the run end; nothing may have failed, nothing finished may have run again."""
        self.go()
        assert self.run.end() == 0, self.run.said
        assert self.log() == sorted(f"{step} {key}" for step in ("First", "Slow") for key in KEYS)
        assert self.hosts.outputs("Slow") == {key: key.encode() for key in KEYS}
        assert " failed on" not in self.run.said


def cmdline(pid: int) -> bytes:
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""  # it has ended


def scene_of(place: "Place", hosts: "Hosts", prefix: "tuple[str, ...]" = ()) -> Iterator[Scene]:
    place.module(STEPS % {"path": place.path})
    for key in KEYS:
        place.key(key, key.encode())
    with place.start("luigi", *ARGUMENTS, "--fleet", hosts.spec, prefix=prefix) as run:
        scene = Scene(place, hosts, run)
        scene.wait_until_all_but_one_is_done()
        yield scene


@pytest.fixture
def scene(place: "Place", hosts: "Hosts") -> Iterator[Scene]:
    yield from scene_of(place, hosts.add(3))


# -- the node --------------------------------------------------------------------------------------


def test_a_node_that_is_killed_is_noticed_and_its_key_runs_on_it_when_it_is_back(
    scene: Scene,
) -> None:
    scene.node.kill()

    scene.run.wait_for(scene.is_lost, NOTICED_S)
    scene.node.start()
    scene.end()


def test_a_runtime_that_is_killed_is_noticed_and_its_key_runs_again(scene: Scene) -> None:
    os.kill(scene.runtime(), signal.SIGKILL)

    scene.run.wait_for(scene.is_lost, NOTICED_S)
    scene.end()


def test_a_connection_that_is_cut_is_noticed_and_its_key_runs_again(scene: Scene) -> None:
    # The processes that serve the connection, and not what they have started.
    _, *below = scene.node.tree()
    serving = [pid for pid in below if b"sshd:" in cmdline(pid)]
    assert serving
    for pid in serving:
        with contextlib.suppress(ProcessLookupError):  # it may follow the one before
            os.kill(pid, signal.SIGKILL)

    scene.run.wait_for(scene.is_lost, NOTICED_S)
    scene.end()


def test_a_node_that_hangs_is_noticed_and_its_key_runs_on_it_when_it_goes_on(scene: Scene) -> None:
    scene.node.signal(signal.SIGSTOP)

    took = scene.run.wait_for(scene.is_lost, NOTICED_S)
    scene.node.signal(signal.SIGCONT)

    assert took > 1
    scene.end()


def test_a_runtime_that_hangs_is_noticed_and_replaced(scene: Scene) -> None:
    runtime = scene.runtime()
    started = scene.place.path / "001_slow.started"
    started.unlink()
    os.kill(runtime, signal.SIGSTOP)

    scene.run.wait_for(scene.is_lost, NOTICED_S)
    scene.run.wait_for(started.exists, 20)  # or the old command could be the one that ends
    scene.end()

    assert runtime not in scene.node.ours()


def test_a_node_that_stays_away_fails_the_run_as_lost_and_all_else_is_kept(
    place: "Place", hosts: "Hosts"
) -> None:
    hosts.top["patience"] = 1
    for scene in scene_of(place, hosts.add(3)):
        scene.node.kill()

        code = scene.run.end()

        assert code != 0
        assert scene.is_lost()
        assert len(scene.log()) == 7


# -- the network -----------------------------------------------------------------------------------


@pytest.fixture
def network() -> "Iterator[str]":
    """Return the name of a network namespace of our own, in which packets may be dropped."""
    name = f"workflows-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no network namespace: {made.stderr.strip()}")
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can drop packets")
def test_a_node_whose_packets_are_dropped_is_noticed_and_its_key_runs_when_they_pass_again(
    place: "Place", hosts: "Hosts", network: str
) -> None:
    inside = ("ip", "netns", "exec", network)
    hosts.add(3, prefix=list(inside), waits=False)
    for scene in scene_of(place, hosts, inside):
        rules = [["INPUT", way, scene.node.address, "-j", "DROP"] for way in ("-s", "-d")]
        for rule in rules:
            subprocess.run([*inside, "iptables", "-A", *rule], check=True)

        took = scene.run.wait_for(scene.is_lost, NOTICED_S)
        for rule in rules:
            subprocess.run([*inside, "iptables", "-D", *rule], check=True)

        assert took > 1
        scene.end()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can drop packets")
def test_nothing_runs_on_for_20_s_on_a_node_that_has_lost_its_driver(
    place: "Place", hosts: "Hosts", network: str
) -> None:
    inside = ("ip", "netns", "exec", network)
    hosts.add(3, prefix=list(inside), waits=False)
    for scene in scene_of(place, hosts, inside):
        drop = ["iptables", "-A", "INPUT", "-i", "lo", "-j", "DROP"]
        subprocess.run([*inside, *drop], check=True)

        took = scene.run.wait_for(scene.node.is_clean, 20)

        assert took > 1


# -- the driver ------------------------------------------------------------------------------------


def test_nothing_runs_on_when_the_driver_is_killed(scene: Scene) -> None:
    assert scene.node.ours()

    os.kill(scene.run.process.pid, signal.SIGKILL)

    scene.run.wait_for(lambda: all(node.is_clean() for node in scene.hosts.nodes), 20)
    scene.go()
    again = scene.place.run("luigi", *ARGUMENTS, "--fleet", scene.hosts.spec)
    assert again.code == 0, again
    assert scene.log() == sorted(f"{step} {key}" for step in ("First", "Slow") for key in KEYS)


def test_a_hub_that_is_killed_is_replaced(scene: Scene) -> None:
    (hub,) = [
        pid for pid in descendants(scene.run.process.pid) if b"workflows.fleets.hub" in cmdline(pid)
    ]
    os.kill(hub, signal.SIGKILL)

    scene.run.wait_for(scene.is_lost, NOTICED_S)
    scene.end()
    scene.run.wait_for(lambda: all(node.is_clean() for node in scene.hosts.nodes), 20)
