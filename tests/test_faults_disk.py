"""Disks that are full, ledgers that are torn, outputs that are damaged."""

import contextlib
import json
import os
import pathlib
import re
import subprocess
from collections.abc import Callable

import pytest
from faults import Trial, fill, resize, runtime, shipping, small_disk

from workflows.errors import CheckpointError, WorkflowsError
from workflows.fleets.channel import Channel
from workflows.node.keys import file_digest
from workflows.node.ledger import Ledger
from workflows.node.storage import Storage
from workflows.storage.store import DirectoryStore

COPY = """
from workflows.steps import Map


class Copy(Map):
    command = 'read -r path; echo "$filename" >> "$TRACE"; cat "$path"'
    durable = True
"""
FULL = "[Nn]o space left on device"


@pytest.fixture
def copy(trial: Trial) -> Trial:
    """Return a trial with the step above."""
    trial.place.module(COPY)
    trial.trace.touch()
    return trial


# -- full disks ------------------------------------------------------------------------------------


def test_a_disk_that_is_full_in_the_middle_of_a_step_is_named_and_more_room_completes_the_run(
    copy: Trial,
) -> None:
    data = os.urandom(1 << 20)
    for key in range(6):
        copy.place.key(f"{key}_key", data)
    with small_disk(copy.place.state / "nodes", "4500k") as disk:
        run = copy.finish("Copy", "--fleet", "local:1")
        copy.await_silence()
        kept = copy.place.outputs("Copy")
        listed = sorted(line["key"] for line in copy.place.ledger("Copy"))
        files = sorted(path.name for path in disk.glob("0/data/Copy/*/*"))
        leftovers = copy.place.leftovers()
        resize(disk, "20m")
        rerun = copy.finish("Copy", "--fleet", "local:1")
        copy.await_silence()
        result = copy.result("Copy")

    assert run.wait() == 30
    assert re.search(rf"Copy of \d_key on node 0: .*{FULL}", run.err)
    assert "Traceback" not in run.err, run.err
    assert 2 <= len(kept) <= 5
    assert set(kept.values()) == {data}
    assert sorted(kept) == listed == files
    assert leftovers == []
    assert rerun.succeeded()
    assert result == dict.fromkeys([f"{key}_key" for key in range(6)], data)
    assert all(copy.started().count(key) == 1 for key in kept)


def test_a_disk_that_is_full_before_anything_ran_is_named(copy: Trial) -> None:
    copy.place.key("0_key", b"text\n")
    with small_disk(copy.place.state / "nodes", "64k") as disk:
        fill(disk)
        run = copy.finish("Copy", "--fleet", "local:1")
        copy.await_silence()

    assert run.wait() not in (0, 1)
    assert re.search(FULL, run.err)
    assert "node 0" in run.err
    assert "Traceback" not in run.err, run.err


def test_a_run_whose_logs_have_no_room_goes_on_without_them(copy: Trial) -> None:
    copy.place.key("0_key", b"text\n")
    with small_disk(copy.place.state / "runs", "16k") as disk:
        fill(disk)
        run = copy.finish("Copy")
        copy.await_silence()

    assert run.succeeded()
    assert copy.result("Copy") == {"0_key": b"text\n"}


def test_a_checkpoint_on_a_full_disk_is_not_committed_and_more_room_completes_it(
    copy: Trial,
) -> None:
    for key in range(3):
        copy.place.key(f"{key}_key", bytes(20_000))
    with small_disk(copy.place.path / "store", "64k") as disk:
        words = ("Copy", "--checkpoint", str(disk))
        run = copy.finish(*words)
        copy.await_silence()
        committed, left = list(disk.glob("Copy/*/_SUCCESS")), list(disk.glob(".tmp/*"))
        resize(disk, "4m")
        rerun = copy.finish(*words)
        copy.await_silence()
        parts = json.loads(next(disk.glob("Copy/*/_SUCCESS")).read_text())["parts"]
        kept = [(disk / part["object"]).stat().st_size for part in parts]
        attempts = list(disk.glob("Copy/*/data/*"))

    assert run.wait() == 30
    assert re.search(rf"cannot write .*{FULL}", run.err)
    assert "Traceback" not in run.err, run.err
    assert (committed, left) == ([], [])
    assert rerun.succeeded()
    assert kept == [20_000] * 3
    assert len(attempts) == 1  # what the first one had copied is swept
    assert len(copy.started()) == 3


def test_a_node_whose_directory_cannot_be_written_is_refused_with_its_name_and_reason(
    copy: Trial,
) -> None:
    copy.place.key("0_key", b"text\n")
    with small_disk(copy.place.state / "nodes" / "0", "1m") as disk:
        (disk / "tmp").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        run = copy.finish("Copy", "--fleet", "local:1")
        copy.await_silence()

    assert run.wait() not in (0, 1)
    assert "node 0 cannot work: Read-only file system" in run.err
    assert "Traceback" not in run.err, run.err


def test_keys_that_a_full_disk_cannot_restore_fail_one_by_one(tmp_path: pathlib.Path) -> None:
    items = [
        {"key": key, "id": key, "url": "http://127.0.0.1:1/", "bytes": 1, "stored": 1}
        for key in ("a", "b")
    ]
    limits = "4m,nr_inodes=64"
    with small_disk(tmp_path / "nodes", limits) as disk, runtime(disk) as (_, channel):
        with contextlib.suppress(OSError):
            for number in range(64):
                (disk / f"{number}").touch()

        events = list(channel.ask({"op": "bring", "step": "S", "items": items}, "ran"))
        failed = {event["key"]: event["why"] for event in events if event["event"] == "failed"}

    assert failed == dict.fromkeys(("a", "b"), "the node cannot: No space left on device")


def test_a_shipped_file_that_finds_no_room_is_named(tmp_path: pathlib.Path) -> None:
    with small_disk(tmp_path / "nodes", "1m") as disk, runtime(disk) as (node, channel):
        fill(disk)
        data = bytes(5000)
        files = {file_digest(data): data}

        with pytest.raises(WorkflowsError, match=f"node 0: .*{FULL}"):
            list(channel.run(shipping(files), files))
        (disk / "full").unlink()
        again = Channel(node)
        said = [event["event"] for event in again.run(shipping(files), files)]
        again.close()

    assert said == ["running", "ran"]


def test_a_ledger_on_a_full_disk_is_as_it_was_and_takes_the_line_when_there_is_room(
    tmp_path: pathlib.Path,
) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        ledger = Ledger(str(disk / "Step.jsonl"))
        with ledger.locked() as fd:
            ledger.append(fd, {"id": "1", "key": "k" * 1000, "bytes": 1})
        full = fill(disk)
        # The first page has room for some of it: the line is cut in the middle.
        big = {"id": "2", "key": "k" * 6000, "bytes": 1}

        with pytest.raises(OSError, match=FULL), ledger.locked() as fd:
            ledger.append(fd, big)
        text = pathlib.Path(ledger.path).read_text()
        full.unlink()
        with ledger.locked() as fd:
            ledger.append(fd, big)

        assert [json.loads(line)["id"] for line in text.splitlines()] == ["1"]
        assert sorted(Ledger(ledger.path).entries()) == ["1", "2"]


def test_nothing_is_published_when_the_disk_is_full_at_the_ledgers_line(
    tmp_path: pathlib.Path,
) -> None:
    with small_disk(tmp_path / "disk", "128k") as disk:
        storage = Storage(str(disk))
        record = {"key": "a", "id": "1", "bytes": 5, "crc": "x" * 5000}

        def publish() -> None:
            made = pathlib.Path(storage.scratch(), "out")
            made.write_bytes(b"text\n")
            storage.publish("Step", str(made), record)

        full = fill(disk, leave=8192)
        with pytest.raises(OSError, match=FULL):
            publish()
        listing, orphans = storage.listing("Step"), storage.orphans("Step")
        full.unlink()
        publish()
        again = storage.listing("Step")
        storage.close()

    assert (listing, orphans) == ({}, [])
    assert again == {"1": 5}


def test_a_store_on_a_full_disk_says_so_and_leaves_nothing(tmp_path: pathlib.Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        store = DirectoryStore(str(disk))

        with pytest.raises(CheckpointError, match=FULL):
            store.create("a/b", [bytes(100_000)])
        left = [path for path in disk.rglob("*") if path.is_file()]
        created = store.create("a/b", [b"small"])
        read = store.read("a/b")

    assert left == []
    assert (created, read) == (True, b"small")


# -- torn, damaged and missing files ---------------------------------------------------------------

GARBAGE = b'\xff\xfe\0\x01\n{"id": "x", "key": "y"}\n{"id": [], "key": 1, "bytes": 2}\n[1]\n\n{}\n'


def tear(ledger: pathlib.Path, output: pathlib.Path) -> None:
    ledger.write_bytes(ledger.read_bytes()[:-20])


def spoil(ledger: pathlib.Path, output: pathlib.Path) -> None:
    ledger.write_bytes(GARBAGE + ledger.read_bytes() + b"\x80\x81" * 5000)


def lose_ledger(ledger: pathlib.Path, output: pathlib.Path) -> None:
    ledger.unlink()


def lose_file(ledger: pathlib.Path, output: pathlib.Path) -> None:
    output.unlink()


def cut_short(ledger: pathlib.Path, output: pathlib.Path) -> None:
    os.truncate(output, 3)


def flip_a_byte(ledger: pathlib.Path, output: pathlib.Path) -> None:
    data = output.read_bytes()
    output.chmod(0o644)
    output.write_bytes(data[:1] + bytes([data[1] ^ 1]) + data[2:])


@pytest.mark.parametrize(
    ("damage", "is_seen", "again"),
    [
        pytest.param(tear, False, 1, id="a torn ledger line"),
        pytest.param(spoil, False, 0, id="garbage in the ledger"),
        pytest.param(lose_ledger, False, 2, id="files without their ledger lines"),
        pytest.param(lose_file, True, 1, id="a ledger line without its file"),
        pytest.param(cut_short, True, 1, id="a truncated output"),
        pytest.param(flip_a_byte, True, 1, id="a corrupted byte"),
    ],
)
def test_a_damaged_node_heals_with_the_next_run_which_makes_only_what_is_damaged(
    copy: Trial,
    damage: Callable[[pathlib.Path, pathlib.Path], None],
    is_seen: bool,
    again: int,
) -> None:
    expected = {f"{key}_key": f"text {key}\n".encode("ascii") for key in range(4)}
    for name, data in expected.items():
        copy.place.key(name, data)
    words = ("--fleet", "local:2")
    first = copy.finish("Copy", *words)
    (success,) = copy.place.checkpoint.glob("Copy/*/_SUCCESS")
    success.unlink()  # or nobody would need what is on the nodes
    ledger = copy.place.state / "nodes" / "1" / "ledger" / "Copy.jsonl"
    last = dict(json.loads(ledger.read_text().splitlines()[-1]), slot=1)
    output = copy.place.output_path("Copy", last)

    damage(ledger, output)
    checked = copy.place.run("workflows", "fsck", *words)
    run = copy.finish("Copy", *words)

    assert first.succeeded()
    assert checked.code == is_seen
    assert (f"Copy/{last['key']} on node 1: " in checked.out) is is_seen
    assert f" keys read, {int(is_seen)} damaged" in checked.out
    assert run.succeeded()
    assert copy.result("Copy") == expected
    assert len(copy.started()) == 4 + again
    assert copy.started()[4:].count(last["key"]) == min(again, 1)
    assert output.read_bytes() == expected[last["key"]]


def test_a_byte_that_flipped_in_what_is_checkpointed_stops_the_commit_and_names_the_key(
    copy: Trial,
) -> None:
    copy.place.key("0_key", b"text\n")
    first = copy.finish("Copy", "--fleet", "local:1")
    (success,) = copy.place.checkpoint.glob("Copy/*/_SUCCESS")
    success.unlink()
    (line,) = copy.place.ledger("Copy")
    flip_a_byte(success, copy.place.output_path("Copy", line))

    run = copy.finish("Copy", "--fleet", "local:1")

    assert first.succeeded()
    assert run.wait() == 30
    assert "Copy/0_key on node 0 is damaged; run: workflows fsck" in run.err
    assert not success.exists()
