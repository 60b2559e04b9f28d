"""What happens when files that a 1:n step made are lost, damaged or others than the first time."""

import pathlib
import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Done, Place
    from sshd import Hosts

SPLIT = """
from workflows.steps import Map, MapFromN, MapToN


class Fetch(Map):
    command = 'cat "$(cat)"'


class Split(MapToN):
    upstream = Fetch
    command = 'cat > content; cp content x; cp content y; echo x; echo y; EXTRA'


class Joined(MapFromN):
    upstream = Split
    command = "xargs cat | sort"
    durable = True
"""
WHOLE = {"x": b"a\nb\nc\n", "y": b"a\nb\nc\n"}


def prepare(place: "Place", extra: str = "true") -> None:
    place.module(SPLIT.replace("EXTRA", extra))
    for number, letter in enumerate("abc"):
        place.key(f"00{number}_key", f"{letter}\n".encode())


def forget_all_but_what_was_made(nodes: "list[pathlib.Path]", place: "Place") -> None:
    """Take away what Joined and the delivery made: only Split's own files are left."""
    for node in nodes:
        for path in [*node.glob("ledger/*"), *node.glob("data/*")]:
            if path.name.partition(".jsonl")[0] in ("Joined", "Split.pieces"):
                path.unlink() if path.is_file() else shutil.rmtree(path)
    shutil.rmtree(place.checkpoint / "Joined")


def hit(path: pathlib.Path, damage: str) -> None:
    if damage == "deleted":
        path.unlink()
    else:
        path.chmod(0o644)
        path.write_bytes(b"!\n" if damage == "changed" else b"")


@pytest.mark.parametrize("damage", ["deleted", "changed", "cut"])
def test_a_key_of_a_1_to_n_step_that_lost_a_file_is_made_again_and_no_other(
    place: "Place", damage: str
) -> None:
    prepare(place)
    first = place.luigi("Joined", "--fleet", "local:2")
    nodes = sorted((place.state / "nodes").glob("?"))
    forget_all_but_what_was_made(nodes, place)
    (line,) = [line for line in place.ledger("Split") if line["key"] == "001_key"]
    hit(place.output_path("Split", line) / "x", damage)

    done = place.luigi("Joined", "--fleet", "local:2")

    assert (first.code, done.code) == (0, 0), (first, done)
    assert place.outputs("Joined") == WHOLE
    assert made_again(place.ledger("Split")) == ["001_key"]
    told(done)


def test_on_ssh_nodes_a_key_that_lost_a_file_is_made_again_too(
    place: "Place", hosts: "Hosts"
) -> None:
    prepare(place)
    hosts.add(2)
    first = place.luigi("Joined", "--fleet", hosts.spec)
    nodes = [node.scratch / str(slot) for slot, node in enumerate(hosts.nodes)]
    forget_all_but_what_was_made(nodes, place)
    for path in [path for node in nodes for path in node.glob("data/Split/*/001_key/*")]:
        path.unlink()

    done = place.luigi("Joined", "--fleet", hosts.spec)

    assert (first.code, done.code) == (0, 0), (first, done)
    assert hosts.outputs("Joined") == WHOLE
    assert made_again(hosts.ledger("Split")) == ["001_key"]
    told(done)


def made_again(lines: "list[dict[str, object]]") -> list[object]:
    """Return the keys that were taken out of a ledger; each must have been done twice."""
    gone = [line["key"] for line in lines if "gone" in line]
    assert len([line for line in lines if "gone" not in line]) == 3 + len(gone)
    return gone


def told(done: "Done") -> None:
    assert "Split of 001_key on " in done.err, done
    assert "in its file x: " in done.err
    assert "making it again" in done.err


def test_a_1_to_n_step_that_makes_other_files_the_second_time_is_named_with_its_manifest(
    place: "Place",
) -> None:
    prepare(place, f"cat {place.path}/state >> x")
    (place.path / "state").write_text("1\n")
    first = place.luigi("Joined", "--fleet", "local:1")
    shutil.rmtree(place.state / "nodes")
    shutil.rmtree(place.checkpoint / "Joined")
    (place.path / "state").write_text("2\n")

    done = place.luigi("Joined", "--fleet", "local:1")
    (manifest,) = (place.checkpoint / "barriers" / "Split").iterdir()
    manifest.unlink()
    removed = place.run("workflows", "rm", "-r", "Split", "--fleet", "local:1")
    again = place.luigi("Joined", "--fleet", "local:1")

    assert (first.code, done.code) == (0, 30), (first, done)
    assert "Split of 000_key is not deterministic" in done.err
    assert str(manifest) in done.err
    assert (removed.code, again.code) == (0, 0), (removed, again)
    assert place.outputs("Joined")["x"] == b"2\n2\n2\na\nb\nc\n"
