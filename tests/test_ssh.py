"""Pipelines on ssh nodes: the same answers as on local ones, and what a lost disk costs."""

import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Place
    from sshd import Hosts

TAXI = "workflows.tasks"
# Every run of a command leaves a line in the file LOG, wherever it ran.
STEPS = """
import luigi
from workflows.steps import Basename, Map, MapFromN
LOG = 'echo "$WORKFLOWS_STEP $WORKFLOWS_KEY" >> %s; '
class First(Map):
    command = LOG + "xargs cat"
class Second(Map):
    upstream = First
    command = LOG + "tr a-z A-Z"
class Third(Map):
    upstream = Second
    command = LOG + "sed s/^/3/"
class Together(MapFromN):
    upstream = Third
    command = LOG + "xargs cat"
    gather = Basename()
"""


def prepare(place: "Place", keys: int = 6) -> None:
    place.module(STEPS % (place.path / "log"))
    for number in range(keys):
        place.key(f"{number:03d}_key", f"line {number}\n".encode())


def ran(place: "Place") -> list[str]:
    """Return what ran since the last time, and forget it."""
    log = place.path / "log"
    lines = sorted(log.read_text().splitlines()) if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


def test_the_taxi_pipeline_up_to_its_shuffle_equals_the_local_run(
    taxi: "Place", hosts: "Hosts"
) -> None:
    hosts.add(3)

    far = taxi.luigi("GroupCount", "--fleet", hosts.spec, module=TAXI)
    near = taxi.luigi("GroupCount", "--fleet", "local:3", module=TAXI)

    assert (far.code, near.code) == (0, 0), (far, near)
    for step in ("Fetch", "Select", "GroupCount"):
        assert len(hosts.outputs(step)) == 12
        assert hosts.outputs(step) == taxi.outputs(step)
        placed = {(line["key"], line["slot"], line["id"]) for line in hosts.ledger(step)}
        assert placed == {(line["key"], line["slot"], line["id"]) for line in taxi.ledger(step)}


def test_map_and_map_from_n_on_three_nodes_equal_the_local_run(
    place: "Place", hosts: "Hosts"
) -> None:
    prepare(place)
    hosts.add(3)

    far = place.luigi("Together", "--fleet", hosts.spec)
    near = place.luigi("Together", "--fleet", "local:3")

    assert (far.code, near.code) == (0, 0), (far, near)
    assert hosts.outputs("Together") == place.outputs("Together") != {}


def test_nothing_of_ours_stays_on_a_node_after_a_run_but_its_results(
    place: "Place", hosts: "Hosts"
) -> None:
    prepare(place)
    hosts.add(2)

    done = place.luigi("Second", "--fleet", hosts.spec)

    assert done.code == 0, done
    for slot, node in enumerate(hosts.nodes):
        assert node.ours() == {}
        assert list((node.scratch / str(slot) / "tmp").iterdir()) == []


def test_the_runtime_is_shipped_once(place: "Place", hosts: "Hosts") -> None:
    prepare(place)
    hosts.add(1)
    place.luigi("First", "--fleet", hosts.spec)
    (runtime,) = hosts.nodes[0].scratch.glob("*.pyz")
    before = runtime.stat()

    again = place.luigi("Second", "--fleet", hosts.spec)

    assert again.code == 0, again
    assert [runtime] == list(hosts.nodes[0].scratch.glob("*.pyz"))
    assert (runtime.stat().st_ino, runtime.stat().st_mtime_ns) == (
        before.st_ino,
        before.st_mtime_ns,
    )
    assert [path for path in hosts.nodes[0].scratch.iterdir() if path.name.startswith(".")] == []


def test_a_second_run_runs_nothing(place: "Place", hosts: "Hosts") -> None:
    prepare(place)
    hosts.add(3)
    place.luigi("Second", "--fleet", hosts.spec)
    ran(place)

    again = place.luigi("Second", "--fleet", hosts.spec)

    assert again.code == 0, again
    assert ran(place) == []


def test_a_node_that_comes_back_empty_makes_its_keys_again_and_no_others(
    place: "Place", hosts: "Hosts"
) -> None:
    prepare(place)
    hosts.add(3)
    place.luigi("Third", "--fleet", hosts.spec)
    before = hosts.outputs("Third")
    own = sorted(line["key"] for line in hosts.ledger("Third") if line["slot"] == 1)
    ran(place)
    shutil.rmtree(hosts.nodes[1].scratch)

    again = place.luigi("Third", "--fleet", hosts.spec)

    assert again.code == 0, again
    assert ran(place) == sorted(f"{s} {key}" for s in ("First", "Second", "Third") for key in own)
    assert hosts.outputs("Third") == before


def test_a_disk_lost_within_a_run_costs_its_own_keys_and_the_result_is_the_same(
    place: "Place", hosts: "Hosts"
) -> None:
    prepare(place)
    hosts.add(3)
    wait = 'touch "PATH/$WORKFLOWS_KEY"; while ! test -e PATH/go; do sleep 0.02; done; '
    text = (place.path / "mine.py").read_text()
    (place.path / "mine.py").write_text(
        text.replace('"sed', repr(wait.replace("PATH", str(place.path))) + ' "sed')
    )
    arguments = ["--source", "source", "--pattern", "*", "--fleet", hosts.spec, "--workers", "12"]
    lost = ["001_key", "004_key"]

    with place.start("luigi", "--module", "mine", "Together", *arguments) as run:
        run.wait_for(lambda: all((place.path / key).exists() for key in lost), 30)
        shutil.rmtree(hosts.nodes[1].scratch / "1")
        (place.path / "go").touch()
        code = run.end()
        said = run.said

    assert code == 0, said
    assert f"node 1 ({hosts.nodes[1].address}" in said
    lines = ran(place)
    twice = {line for line in lines if lines.count(line) > 1}
    assert twice == {f"{step} {key}" for step in ("First", "Second", "Third") for key in lost}
    place.run("luigi", "--module", "mine", "Together", *arguments[:4], "--fleet", "local:3")
    assert hosts.outputs("Together") == place.outputs("Together")


def test_a_node_has_as_many_slots_for_each_core_as_it_is_told(
    place: "Place", hosts: "Hosts"
) -> None:
    cores = len(os.sched_getaffinity(0))
    hosts.add()

    found = []
    for about in ({"slots_per_core": 1.5}, {"slots_per_core": 0.01}, {"slots": 7}, {}):
        hosts.write(**{"slots": 0, **about})
        done = place.run("workflows", "health", "--fleet", hosts.spec, WORKFLOWS_SLOTS="3")
        found.append(int(done.out.partition(" slots")[0].split()[-1]))

    assert found == [round(1.5 * cores), 1, 7, 3]
