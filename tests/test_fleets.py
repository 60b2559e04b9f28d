"""Fleets that are begun while what will use them is still loaded, and outputs that were touched."""

import os
import pathlib
import select
from typing import TYPE_CHECKING

import pytest

from workflows.node.storage import Storage

if TYPE_CHECKING:
    from conftest import Place
    from sshd import Hosts

STEP = "from workflows.steps import Map\nclass First(Map):\n    command = 'xargs cat'\n"
# Begins a fleet, waits for its nodes and says their processes; nobody opens it.
BEGIN = """
import sys
from workflows import fleets
fleets.begin(sys.argv[1])
for fleet in fleets._begun.values():
    for node in fleet.nodes:
        print(node.connect().runtime, flush=True)
"""


def has_ended(pid: int, within_s: float = 30) -> bool:
    """Wait for the end of a process that is not ours."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], within_s)[0])
    finally:
        os.close(process)


@pytest.mark.parametrize("more", ["", "raise SystemExit(3)", "import os; os._exit(0)"])
def test_nodes_that_were_begun_and_never_needed_end_with_their_process(
    place: "Place", more: str
) -> None:
    done = place.run("python", "-c", BEGIN + more, "local:2")

    runtimes = [int(pid) for pid in done.out.split()]
    assert (len(runtimes), done.err) == (2, ""), done
    assert all(has_ended(pid) for pid in runtimes)


def test_what_is_wrong_with_a_fleet_is_said_once_when_it_is_opened_not_when_it_is_begun(
    place: "Place",
) -> None:
    place.module(STEP)
    place.key("a_key", b"x\n")

    for spec in ("nowhere:3", "ssh:missing.yaml"):
        assert place.run("python", "-c", BEGIN, spec).err == ""
        done = place.luigi("First", "--fleet", spec)
        assert done.code != 0, done
        assert done.err.count(spec.partition(":")[2]) == 1, done
        assert "Traceback" not in done.err, done


def test_a_directory_in_which_no_node_can_be_made_is_named_once_by_the_run(place: "Place") -> None:
    place.module(STEP)
    place.key("a_key", b"x\n")
    place.state.mkdir()
    (place.state / "nodes").write_text("a file")

    done = place.luigi("First")

    assert done.code != 0, done
    assert "Not a directory" in done.err, done
    assert "Traceback" not in done.err, done


def test_help_starts_no_node(place: "Place") -> None:
    place.module(STEP)

    done = place.luigi("First", "--help")

    assert (done.code, "--fleet" in done.out) == (0, True), done
    assert not (place.state / "nodes").exists()


def test_local_nodes_are_started_before_the_pipeline_is_loaded_and_hosts_not_reached(
    place: "Place", hosts: "Hosts"
) -> None:
    place.module(
        STEP
        + "import sys\n"
        + "from workflows import fleets\n"
        + "print('begun', *fleets._begun, file=sys.stderr)\n"
    )
    place.key("a_key", b"x\n")
    hosts.add(1)

    for spec, begun in (("local:2", " local:2"), (hosts.spec, "")):
        done = place.luigi("First", "--fleet", spec)
        assert done.code == 0, done
        assert f"begun{begun}\n" in done.err, done


def test_nodes_that_were_begun_are_ended_when_it_turns_out_that_another_fleet_is_meant(
    place: "Place",
) -> None:
    other = "import os\nfleets.open_any('local:1')\nos._exit(len(fleets._begun))"

    done = place.run("python", "-c", BEGIN + other, "local:2")

    assert (done.code, done.err) == (0, ""), done
    assert all(has_ended(int(pid)) for pid in done.out.split())


def test_a_forked_process_does_not_take_the_nodes_of_the_one_before_it(place: "Place") -> None:
    fork = (
        "import os\n"
        "if os.fork() == 0:\n"
        "    os._exit(len(fleets._begun))\n"
        "assert os.wait()[1] == 0\n"
        "assert len(fleets._begun) == 1\n"
    )

    done = place.run("python", "-c", BEGIN + fork, "local:1")

    assert (done.code, done.err) == (0, ""), done


def test_several_maps_in_one_process_use_the_same_nodes_until_it_closes_them(
    place: "Place",
) -> None:
    place.key("a_key", b"x\n")
    assert place.run("workflows", "cp", "source/a_key", "fleet://in/a_key").code == 0
    maps = (
        "import os\n"
        "from workflows import run\n"
        "from workflows.cli import main\n"
        "children = f'/proc/self/task/{os.getpid()}/children'\n"
        "for out in 'abc':\n"
        "    assert main(['map', 'in/', out + '/', 'cat', '--fleet', 'local:3']) == 0\n"
        "    print('children', len(open(children).read().split()))\n"
        "run.close()\n"
        "print('children', len(open(children).read().split()))\n"
    )

    done = place.run("python", "-c", maps)

    assert done.out.split("\n") == ["children 3"] * 3 + ["children 0", ""], done


def test_the_nodes_of_another_fleet_are_not_begun_for_a_task_with_a_fleet_of_its_own(
    place: "Place",
) -> None:
    place.module(STEP)
    place.key("a_key", b"x\n")

    done = place.luigi("First", "--First-fleet", "local:1")

    assert done.code == 0, done
    assert sorted(os.listdir(place.state / "nodes")) == ["0"]


def test_an_output_is_read_for_damage_only_if_it_was_touched(tmp_path: pathlib.Path) -> None:
    storage = Storage(str(tmp_path))
    made = pathlib.Path(storage.scratch(), "out")
    made.write_bytes(b"x\n")
    about = {"key": "a_key", "id": "an_id", "bytes": 2}
    line = storage.publish("Step", str(made), {**about, "crc": "not its checksum"})
    path = pathlib.Path(storage.path("Step", "an_id", "a_key"))
    before = path.stat()

    assert storage.is_intact("Step", line)  # so it was not read
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not storage.is_intact("Step", line)
    assert storage.is_intact("Step", {**line, "crc": "46ea081f"}), "touched, but what it was"
    storage.close()


def test_an_output_of_an_earlier_version_whose_line_has_no_stat_is_read(
    tmp_path: pathlib.Path,
) -> None:
    storage = Storage(str(tmp_path))
    made = pathlib.Path(storage.scratch(), "out")
    made.write_bytes(b"x\n")
    about = {"key": "a_key", "id": "an_id", "bytes": 2, "crc": "not its checksum"}
    line = storage.publish("Step", str(made), about)
    del line["stat"]

    assert not storage.is_intact("Step", line)
    storage.close()
