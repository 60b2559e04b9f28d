"""The verbs about nodes: health, status, config, exec, put, get."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from workflows.errors import NodeLost
from workflows.fleets.fleet import open_fleet
from workflows.node.incoming import NewFile

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

    from conftest import Keys


def test_health_prints_a_line_for_each_node(keys: "Keys") -> None:
    lines = keys.ok("health").splitlines()

    assert [line.split(",")[0].split(": ")[:2] for line in lines] == [
        ["healthy", f"node {n}"] for n in range(3)
    ]
    assert len(keys.ok("health", "--fleet", "local:2").splitlines()) == 2


def test_status_says_what_each_node_holds(six: "Keys") -> None:
    rows = [line.split() for line in six.ok("status").splitlines()]

    assert rows[0][:3] == ["node", "state", "slots"]
    assert [(row[1], row[2], row[5]) for row in rows[1:]] == [
        (str(n), "healthy", "2") for n in range(3)
    ]


def test_config_prints_what_is_in_effect(keys: "Keys") -> None:
    given = {"WORKFLOWS_RETRIES": "7", "WORKFLOWS_SLOTS": "5"}
    out = keys.ok("config", "--fleet", "local:2", **given)

    assert "[fleet]\nspec = local:2\n" in out
    assert "retries = 7\n" in out
    assert f"# 1: node 1, 5 slots, {keys.nodes}/1\n" in out
    assert not keys.nodes.exists()  # looking starts nothing


def test_exec_prefixes_each_line_and_collects_every_outcome(keys: "Keys") -> None:
    done = keys.run("exec", "echo a; printf b; echo e >&2; exit $((WORKFLOWS_SLOT * 3))")

    assert done.code == 6
    assert sorted(done.out.splitlines()) == [f"node {n}: {c}" for n in range(3) for c in "ab"]
    for text in ("node 0: e", "node 1: e", "node 1: exited 3", "node 2: exited 6"):
        assert text in done.err
    assert keys.ok("exec", "--node", "2", "pwd").startswith(f"node 2: {keys.nodes}/2/tmp/")
    assert keys.run("exec", "--node", "3", "pwd").code == 255
    late = keys.run("exec", "--timeout", "0.3", "--node", "0", "sleep 300")
    assert (late.code, "timeout" in late.err) == (124, True)


def test_exec_shows_lines_as_they_come_and_ctrl_c_ends_the_commands(keys: "Keys") -> None:
    process = keys.start("exec", "echo started $$; sleep 300")
    assert process.stdout is not None
    pids = [int(process.stdout.readline().split()[-1]) for _ in range(3)]

    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=20)

    assert process.returncode == 130
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_put_and_get_move_a_file_to_and_from_every_node(keys: "Keys") -> None:
    script = keys.place.path / "a b.sh"
    script.write_bytes(b"#!/bin/sh\necho it runs \xff\n")
    script.chmod(0o755)
    target = f"{keys.place.path}/on nodes/x'y/"

    keys.ok("put", "a b.sh", target)
    keys.ok("get", f"{target}a b.sh", "back")

    assert keys.ok("exec", f'"{target}a b.sh" | wc -c', "--node", "1") == "node 1: 10\n"
    for slot in range(3):
        back = keys.place.path / "back" / str(slot) / "a b.sh"
        assert back.read_bytes() == script.read_bytes()
    assert os.listdir(target) == ["a b.sh"]


MEASURED = """
import resource, subprocess, sys
print(subprocess.call(sys.argv[1:]), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.parametrize("verb", ["put", "get"])
def test_a_file_is_never_held_in_memory_and_no_other_copy_of_it_is_kept(
    keys: "Keys", verb: str
) -> None:
    path, size = keys.place.path / "large", 120 << 20
    with path.open("wb") as file:
        file.truncate(size)
    target = keys.place.path / "elsewhere"
    words = [str(path), str(target / "large")] if verb == "put" else [str(path), str(target)]
    command = keys.place.command("workflows", verb, *words, "--node", "0")

    measured = subprocess.run(
        [sys.executable, "-c", MEASURED, *command],
        cwd=keys.place.path,
        env=keys.place.environ,
        capture_output=True,
        text=True,
        timeout=120,
    )

    status, most_kb = measured.stdout.split()[-2:]
    assert status == "0", measured
    assert int(most_kb) << 10 < size, measured
    (arrived,) = target.rglob("large")
    assert arrived.stat().st_size == size
    assert sum(each.stat().st_size for each in keys.nodes.rglob("*")) < size


def test_what_a_pipe_gives_goes_to_every_node(keys: "Keys") -> None:
    os.mkfifo(keys.place.path / "pipe")

    with ThreadPoolExecutor() as pool:
        writing = pool.submit((keys.place.path / "pipe").write_bytes, bytes(3 << 20))
        keys.ok("put", "pipe", str(keys.place.path / "there"))
        writing.result()
    keys.ok("get", str(keys.place.path / "there"), "back")

    back = [path.read_bytes() for path in (keys.place.path / "back").glob("*/there")]
    assert back == [bytes(3 << 20)] * 3


def test_what_a_put_replaces_is_seen_whole_and_one_that_is_cut_off_leaves_nothing(
    keys: "Keys",
) -> None:
    target = keys.place.path / "there" / "file"
    (keys.place.path / "old").write_text("old")
    keys.ok("put", "old", str(target), "--node", "0")
    fleet = open_fleet("local:1", state=str(keys.place.state), slots=1)

    def cut() -> "Iterator[bytes]":
        yield bytes(1 << 20)
        assert target.read_text() == "old"
        raise InterruptedError

    with contextlib.closing(fleet):
        with pytest.raises(NodeLost):
            fleet.channel(0).store({"op": "place", "path": str(target), "mode": 0o644}, cut())
        fleet.drop(0)
        deadline = time.monotonic() + 60
        while os.listdir(target.parent) != ["file"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    assert target.read_text() == "old"


@pytest.mark.parametrize(
    "words",
    [
        ("put", "none", "/tmp/x"),
        ("put", "luigi.cfg", "relative"),
        ("put", "luigi.cfg", "/proc/no/such"),
        ("get", "relative", "x"),
        ("get", "/no/such/file", "x"),
    ],
)
def test_what_cannot_be_moved_is_said(keys: "Keys", words: tuple[str, ...]) -> None:
    done = keys.run(*words)

    assert done.code in (1, 2)
    assert words[1] in done.err or os.path.dirname(words[2]) in done.err


# Takes a part of what is put there, then is killed.
HALF = """
import os, signal, sys
from workflows.node.incoming import NewFile
NewFile(sys.argv[1], 0o644).add(b"half" * 100_000)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_put_to_a_node_that_is_killed_leaves_nothing_beside_the_file(
    keys: "Keys", tmp_path: "pathlib.Path"
) -> None:
    target = tmp_path / "etc" / "settings"
    target.parent.mkdir()
    target.write_text("old")

    killed = subprocess.run(
        [sys.executable, "-c", HALF, str(target)], env=keys.place.environ, timeout=60, check=False
    )

    assert killed.returncode == -signal.SIGKILL
    assert os.listdir(target.parent) == ["settings"]
    assert target.read_text() == "old"


@pytest.mark.parametrize("is_named", [False, True])
def test_what_is_put_is_whole_also_where_no_file_can_be_without_a_name(
    tmp_path: "pathlib.Path", monkeypatch: pytest.MonkeyPatch, is_named: bool
) -> None:
    if is_named:
        monkeypatch.setattr(os, "O_TMPFILE", os.O_CREAT | os.O_DIRECTORY)  # which none takes
    target = tmp_path / "here"
    target.write_text("old")

    file = NewFile(str(target), 0o750)
    file.add(b"new")
    file.publish(3, zlib.crc32(b"new"))
    file.abandon()

    assert os.listdir(tmp_path) == ["here"]
    assert (target.read_bytes(), target.stat().st_mode & 0o777) == (b"new", 0o750)
