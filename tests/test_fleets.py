"""Local fleets as runs and verbs open them, and outputs that were touched."""

import os
import pathlib
from typing import TYPE_CHECKING

from workflows.node.storage import Storage

if TYPE_CHECKING:
    from conftest import Place

STEP = "from workflows.steps import Map\nclass First(Map):\n    command = 'xargs cat'\n"


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


def test_several_maps_in_one_process_use_the_same_nodes_until_it_closes_them(
    place: "Place",
) -> None:
    place.key("a_key", b"x\n")
    assert place.run("workflows", "cp", "source/a_key", "fleet://in/a_key").code == 0
    maps = (
        "import os\n"
        "from workflows.running import lifecycle\n"
        "from workflows.cli import main\n"
        "children = f'/proc/self/task/{os.getpid()}/children'\n"
        "for out in 'abc':\n"
        "    assert main(['map', 'in/', out + '/', 'cat', '--fleet', 'local:3']) == 0\n"
        "    print('children', len(open(children).read().split()))\n"
        "lifecycle.close()\n"
        "print('children', len(open(children).read().split()))\n"
    )

    done = place.run("python", "-c", maps)

    assert done.out.split("\n") == ["children 3"] * 3 + ["children 0", ""], done


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
