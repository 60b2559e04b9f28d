"""Rows never double or drop: files of a 1:n command that chance made are refused, or used whole."""

import json
import pathlib
import shutil
import zlib
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from faults import runtime

from workflows.node.keys import digest_of

if TYPE_CHECKING:
    from conftest import Done, Keys, Place
    from sshd import Hosts

RANDOM = """
from workflows.steps import Map, MapFromN, MapToN
class Copy(Map):
    command = 'cat "$(cat)"'
class Split(MapToN):
    upstream = Copy
    command = 'while read -r row; do echo "$row" >> "part$((RANDOM % 6))"; done; ls'
class Joined(MapFromN):
    upstream = Split
    command = "xargs cat"
class Kept(Map):
    upstream = Joined
    command = "cat"
    durable = True
"""
KEYS = 6
ROWS = [f"{key} row {number}" for key in range(KEYS) for number in range(40)]
NODES = 3


@pytest.fixture
def split(place: "Place") -> "Place":
    """Return a place in which a random partitioner was run, and all that it made was merged."""
    place.module(RANDOM)
    for key in range(KEYS):
        rows = [row for row in ROWS if row.startswith(f"{key} ")]
        place.key(f"k{key}.csv", "".join(f"{row}\n" for row in rows).encode())
    done = place.luigi("Kept")
    assert (done.code, rows_of(place, place.checkpoint)) == (0, Counter(ROWS)), done
    return place


def rows_of(place: "Place", checkpoint: pathlib.Path) -> Counter[str]:
    """Return the rows of the result that is committed in a checkpoint."""
    (success,) = checkpoint.glob("Kept/*/_SUCCESS")
    parts = json.loads(success.read_text())["parts"]
    return Counter(
        row for part in parts for row in (checkpoint / part["object"]).read_text().splitlines()
    )


def lose(place: "Place", *ledgers: str, slots: tuple[int, ...] = tuple(range(NODES))) -> None:
    """Take outputs and their records from nodes; without `ledgers` all that nodes have."""
    for slot in slots:
        node = place.state / "nodes" / str(slot)
        if not ledgers:
            shutil.rmtree(node)
        for name in ledgers:
            shutil.rmtree(node / "data" / name, ignore_errors=True)
            (node / "ledger" / f"{name}.jsonl").unlink(missing_ok=True)


def forget_barrier(place: "Place") -> None:
    shutil.rmtree(place.checkpoint / "barriers")


def forget_result(place: "Place") -> None:
    shutil.rmtree(place.checkpoint / "Kept")


def is_honest(done: "Done", place: "Place", checkpoint: pathlib.Path) -> bool:
    """Tell whether a run made every row once, or said that it cannot."""
    if done.code == 0:
        return rows_of(place, checkpoint) == Counter(ROWS)
    is_told = "Split of k" in done.err and "not deterministic" in done.err
    return is_told and not list(checkpoint.glob("Kept/*/_SUCCESS"))


def test_a_lost_record_and_a_lost_node_are_refused_for_what_other_nodes_have(
    split: "Place",
) -> None:
    forget_barrier(split)
    forget_result(split)
    lose(split, slots=(0,))

    done = split.luigi("Kept")

    assert done.code == 30, done
    assert "is not deterministic" in done.err
    assert "then workflows rm -r Split" in done.err
    assert not list(split.checkpoint.glob("Kept/*/_SUCCESS"))


def test_what_the_refusal_says_to_do_makes_all_of_it_again(split: "Place") -> None:
    forget_barrier(split)
    forget_result(split)
    lose(split, slots=(0,))
    refused = split.luigi("Kept")

    removed = split.run("workflows", "rm", "-r", "Split")
    done = split.luigi("Kept")

    assert (refused.code, removed.code, done.code) == (30, 0, 0), (refused, removed, done)
    assert rows_of(split, split.checkpoint) == Counter(ROWS)


def test_a_run_with_another_checkpoint_and_a_lost_node_is_refused_likewise(split: "Place") -> None:
    lose(split, slots=(1,))

    done = split.luigi("Kept", "--checkpoint", "other")

    assert done.code == 30, done
    assert "is not deterministic" in done.err
    assert not list((split.path / "other").glob("Kept/*/_SUCCESS"))


@pytest.mark.parametrize(
    ("lost", "slots"),
    [
        (("Split",), (0, 1, 2)),
        (("Split", "Split.pieces"), (0, 1, 2)),
        (("Split", "Split.pieces", "Joined"), (0, 1)),
        (("Split", "Split.pieces", "Joined", "Kept"), (2,)),
    ],
)
@pytest.mark.parametrize("checkpoint", ["the same", "another"])
def test_whatever_is_lost_rows_are_made_once_or_the_run_fails(
    split: "Place", lost: tuple[str, ...], slots: tuple[int, ...], checkpoint: str
) -> None:
    where = split.checkpoint
    if checkpoint == "another":
        where = split.path / "other"
    else:
        forget_barrier(split)
        forget_result(split)
    lose(split, *lost, slots=slots)

    done = split.luigi("Kept", "--checkpoint", str(where))

    assert is_honest(done, split, where), done


def test_outputs_of_two_checkpoints_on_the_same_nodes_are_not_mixed(split: "Place") -> None:
    other = split.path / "other"
    split.module(RANDOM.replace('"xargs cat"', '"xargs cat"\n    durable = True'))
    forget_result(split)
    first = split.luigi("Kept")
    lose(split)
    second = split.luigi("Kept", "--checkpoint", "other")
    forget_result(split)
    lose(split, "Joined", "Kept", slots=(0,))

    third = split.luigi("Kept")

    assert (first.code, second.code) == (0, 0), (first, second)
    assert rows_of(split, other) == Counter(ROWS)
    assert is_honest(third, split, split.checkpoint), third


def test_a_deterministic_step_goes_on_whatever_was_lost(place: "Place") -> None:
    place.module(RANDOM.replace("RANDOM % 6", "${#row} % 6"))
    for key in range(KEYS):
        place.key(f"k{key}.csv", "".join(f"{'x' * n} {key}\n" for n in range(40)).encode())
    first = place.luigi("Kept")
    before = rows_of(place, place.checkpoint)
    forget_barrier(place)
    forget_result(place)
    lose(place, slots=(0,))

    again = place.luigi("Kept")

    assert (first.code, again.code) == (0, 0), (first, again)
    assert rows_of(place, place.checkpoint) == before


def test_a_record_of_an_earlier_version_is_read_as_it_was_meant(split: "Place") -> None:
    # Then the identity of a piece was its maker's and its name's alone.
    (record,) = split.checkpoint.glob("barriers/Split/*.json")
    told = json.loads(record.read_text())
    del told["v"]
    record.write_text(json.dumps(told))
    forget_result(split)
    lose(split, "Split.pieces", "Joined", "Kept")

    done = split.luigi("Kept")

    assert done.code == 0, done
    assert rows_of(split, split.checkpoint) == Counter(ROWS)
    made = {
        digest_of([identity, part])
        for _, identity, _, parts in told["keys"]
        for part, _, _ in parts
    }
    assert {line["id"] for line in split.ledger("Split.pieces")} == made


def test_a_damaged_record_is_named(split: "Place") -> None:
    (record,) = split.checkpoint.glob("barriers/Split/*.json")
    record.chmod(0o644)
    record.write_text(record.read_text()[:100])
    forget_result(split)
    lose(split, "Kept")

    done = split.luigi("Kept")

    assert done.code != 0
    assert f"{record} is damaged; remove it" in done.err
    assert "Traceback" not in done.err


def test_between_ssh_nodes_it_is_refused_too(place: "Place", hosts: "Hosts") -> None:
    place.module(RANDOM)
    for key in range(KEYS):
        place.key(f"k{key}.csv", b"row\n" * 30)
    hosts.add(2)
    first = place.luigi("Kept", "--fleet", hosts.spec)
    forget_barrier(place)
    forget_result(place)
    shutil.rmtree(hosts.nodes[0].scratch)

    done = place.luigi("Kept", "--fleet", hosts.spec)

    assert (first.code, done.code) == (0, 30), (first, done)
    assert "is not deterministic" in done.err


def test_files_of_a_typed_map_are_not_mixed_either(six: "Keys") -> None:
    command = 'while read -r row; do echo "$row" > "$row$RANDOM"; done; ls'
    six.ok("map-to-n", "in/", "out/", command)
    shutil.rmtree(six.place.checkpoint / "barriers")
    for path in six.nodes.glob("0/ledger/out.jsonl"):
        path.unlink()

    done = six.run("map-to-n", "in/", "out/", command)

    assert done.code == 1, done
    assert "not deterministic" in done.err


# -- a node's part ---------------------------------------------------------------------------------


def piece(name: str, data: bytes, proof: str, folder: pathlib.Path) -> dict[str, Any]:
    path = folder / f"{name}.{len(data)}"
    path.write_bytes(data)
    crc = f"{zlib.crc32(data):08x}"
    item = {"key": f"k/{name}", "id": f"id-{name}", "bytes": len(data), "crc": crc}
    return {**item, "path": str(path), "maker": ["maker", proof]}


def test_a_node_refuses_files_of_a_key_beside_others_of_it_until_those_are_removed(
    tmp_path: pathlib.Path,
) -> None:
    def bring(*items: dict[str, Any]) -> list[str]:
        message = {"op": "bring", "step": "S.pieces", "items": list(items)}
        events = [event for event in channel.ask(message, "ran") if "key" in event]
        return [f"{event['event']} {event.get('differs', '')}".strip() for event in events]

    one, two = piece("a", b"1", "p", tmp_path), piece("b", b"2", "p", tmp_path)
    other = piece("c", b"3", "q", tmp_path)
    changed = {**piece("a", b"11", "p", tmp_path)}

    with runtime(tmp_path / "node") as (_, channel):
        assert [bring(one), bring(two), bring(one)] == [["brought"], ["brought"], []]
        assert [bring(other), bring(changed)] == [["failed True"], ["failed True"]]
    with runtime(tmp_path / "node") as (_, channel):
        assert bring(other) == ["failed True"]
        for name in ("id-a", "id-b"):
            channel.one({"op": "drop", "step": "S.pieces", "ids": [name], "why": "rm"}, "dropped")
        assert bring(other) == ["brought"]
