"""What s4 gets wrong when things go wrong: failing keys, reruns, lost nodes. Checks 33 to 42."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Keys


def notes(keys: "Keys") -> pathlib.Path:
    path = keys.place.path / "notes"
    path.touch()
    return path


def give_24(keys: "Keys") -> None:
    keys.give("in", **{f"k{n:03d}_f": f"{n}\n" for n in range(24)})


def noted(keys: "Keys", command: str) -> str:
    return f"echo $filename >> '{notes(keys)}'; {command}"


def count(keys: "Keys") -> int:
    return len(notes(keys).read_text().splitlines())


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ours(keys: "Keys") -> dict[int, str]:
    """Return the processes that work in this place, but for this one: pid -> command line."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError):
                cwd = os.readlink(f"/proc/{name}/cwd")
                line = pathlib.Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ")
                if cwd.startswith(str(keys.place.path)) and line:
                    found[int(name)] = line.decode("utf-8", "replace")
    return found


def runtimes(keys: "Keys") -> dict[int, int]:
    """Return slot -> pid of the runtimes (not of their watchdogs, which are their children)."""
    found: dict[int, int] = {}
    for pid, line in sorted(ours(keys).items()):
        match = re.search(r"/nodes/(\d+)/runtime-\w+\.pyz ", line)
        if match:
            found.setdefault(int(match[1]), pid)
    return found


def test_all_failures_are_listed_and_a_repaired_command_runs_those_keys_alone(
    keys: "Keys",
) -> None:
    give_24(keys)

    bad = keys.run(
        *("map", "in/", "out/"),
        noted(keys, "case $filename in 007_f|012_f) echo why $filename >&2; exit 9;; esac; cat"),
    )

    assert bad.code == 1
    for number, node in ((7, 1), (12, 0)):
        assert f"out/{number:03d}_f on node {node}: exited 9\n    why {number:03d}_f" in bad.err
    assert len(keys.names("out")) == 22
    assert count(keys) == 24

    again = keys.run("map", "in/", "out/", noted(keys, "cat"))
    assert (again.code, count(keys)) == (0, 26)
    assert "22 keys of out/ are there already, by another command" in again.err
    once_more = keys.run("map", "in/", "out/", noted(keys, "cat"))
    assert (once_more.code, count(keys)) == (0, 26)
    assert [keys.read(f"out/{n:03d}_f") for n in (0, 7, 12)] == ["0\n", "7\n", "12\n"]


@pytest.mark.parametrize(
    ("verb", "command"),
    [("map", "cat"), ("map-to-n", "cat > a; echo a"), ("map-from-n", "xargs cat")],
)
def test_a_complete_map_runs_nothing_again_and_is_not_overwritten(
    six: "Keys", verb: str, command: str
) -> None:
    six.ok(verb, "in/", "out/", noted(six, command))
    six.ok(verb, "in/", "out/", noted(six, command))
    assert count(six) == 6

    other = six.run(verb, "in/", "out/", f"{command} # another")
    assert other.code != 0
    assert "rm -r out/" in other.err

    six.ok("rm", "-r", "out/")
    six.ok(verb, "in/", "out/", noted(six, command))
    assert count(six) == 12
    six.ok("rm", "in/000_f0")
    six.ok("cp", "-", "fleet://in/000_f0", stdin=b"changed")
    changed = six.run(verb, "in/", "out/", noted(six, command))
    assert changed.code != 0
    assert "out/000_f0" in changed.err


def test_a_command_of_1_to_n_that_makes_others_is_fine_after_rm(six: "Keys") -> None:
    six.ok("map-to-n", "in/", "out/", "echo $RANDOM$RANDOM > a; echo a")
    first = six.read("out/000_f0/a")

    six.ok("rm", "-r", "out/")
    six.ok("map-to-n", "in/", "out/", "echo $RANDOM$RANDOM > a; echo a")

    assert six.read("out/000_f0/a") != first


def test_after_ctrl_c_nothing_runs_on_and_a_rerun_goes_on(six: "Keys") -> None:
    slow = noted(six, "case $WORKFLOWS_SLOT in 0) cat;; *) setsid sleep 300;; esac")
    process = six.start("map", "in/", "out/", slow, WORKFLOWS_SLOTS="1")
    wait_for(lambda: count(six) == 4)  # two are at it
    wait_for(lambda: six.names("out") == ["000_f0", "003_f3"])

    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)

    assert process.returncode == 130
    assert b"Traceback" not in err
    assert b"finished work is kept" in err
    wait_for(lambda: not ours(six), 10)
    assert six.names("out") == ["000_f0", "003_f3"]
    six.ok("rm", "-r", "out/")
    six.ok("map", "in/", "out/", "cat")
    assert len(six.names("out")) == 6


def test_a_killed_runtime_costs_only_what_it_had_in_flight(six: "Keys") -> None:
    slow = noted(six, "while [ ! -e go ] && [ ! -e '{}' ]; do sleep 0.05; done; cat")
    go = six.place.path / "go"
    process = six.start("map", "in/", "out/", slow.replace("{}", str(go)), WORKFLOWS_SLOTS="1")
    wait_for(lambda: count(six) == 3)

    os.kill(runtimes(six)[1], signal.SIGKILL)
    wait_for(lambda: count(six) == 4)
    go.touch()
    _, err = process.communicate(timeout=60)

    assert process.returncode == 0, err
    assert b"node 1" in err
    assert count(six) == 7
    assert len(six.names("out")) == 6


def test_a_node_that_stays_lost_is_named_and_a_rerun_does_what_is_missing(six: "Keys") -> None:
    go = six.place.path / "go"
    slow = noted(six, f"while [ ! -e '{go}' ]; do sleep 0.05; done; cat")
    given = {"WORKFLOWS_RETRIES": "0", "WORKFLOWS_SLOTS": "1"}
    process = six.start("map", "in/", "out/", slow, **given)
    wait_for(lambda: count(six) == 3)
    os.kill(runtimes(six)[1], signal.SIGKILL)
    started = time.monotonic()
    go.touch()
    _, err = process.communicate(timeout=60)

    assert process.returncode == 3, err
    assert time.monotonic() - started < 30
    assert b"node 1 is lost" in err
    left = len(six.names("out"))
    assert 4 <= left < 6
    before = count(six)
    six.ok("map", "in/", "out/", slow)
    assert count(six) - before == 6 - left


def test_with_one_node_down_health_says_so_and_the_others_serve(six: "Keys") -> None:
    os.rename(six.nodes / "1", six.nodes / "gone")
    (six.nodes / "1").write_text("no directory")

    health = six.run("health")

    lines = health.out.splitlines()
    assert health.code == 1
    assert [line.split(":")[0] for line in lines] == ["healthy", "unhealthy", "healthy"]
    assert "node 1" in lines[1]
    assert six.ok("eval", "in/000_f0", "cat") == "x0\ny0\n"
    assert six.read("in/002_f2") == "x2\ny2\n"
    for words in (("eval", "in/001_f1", "cat"), ("map", "in/", "out/", "cat"), ("rm", "in/001_f1")):
        done = six.run(*words)
        assert done.code != 0
        assert "node 1" in done.err
    listed = six.run("ls", "-r", "in")
    assert (listed.code, len(listed.out.splitlines())) == (1, 4)
    assert "node 1" in listed.err

    (six.nodes / "1").unlink()
    os.rename(six.nodes / "gone", six.nodes / "1")
    assert len(six.names("in")) == 6  # a restart keeps its keys


def test_a_command_that_takes_too_long_is_ended_with_all_it_started(six: "Keys") -> None:
    forever = "(sleep 300 & setsid sleep 300 & wait)"

    done = six.run("map", "in/00[12]*", "out/", forever, "--timeout", "0.5")
    evaluated = six.run("eval", "in/000_f0", forever, "--timeout", "0.5")

    assert (done.code, evaluated.code) == (1, 124)
    assert "out/001_f1 on node 1: timeout: ran longer than 0.5 s" in done.err
    assert "in/000_f0 on node 0: timeout" in evaluated.err
    assert ours(six) == {}


@pytest.fixture
def small_disk(keys: "Keys") -> Iterator["Keys"]:
    """Put the second node on a disk of 8 MB."""
    root = keys.nodes / "1"
    root.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "none", root], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    yield keys
    subprocess.run(["umount", "-l", root], check=True)


def test_a_full_disk_is_told_and_has_its_space_back(small_disk: "Keys") -> None:
    keys = small_disk
    big = b"x" * 20_000_000

    put = keys.run("cp", "-", "fleet://b/001_big", stdin=big)
    keys.ok("cp", "-", "fleet://b/001_small", stdin=b"small")
    mapped = keys.run("map", "b/", "out/", "head -c 20000000 /dev/zero")

    assert put.code == 1
    assert "b/001_big on node 1: No space left on device" in put.err
    assert mapped.code == 1
    assert "out/001_small on node 1" in mapped.err
    assert "no space left on device" in mapped.err.lower()
    keys.ok("map", "b/", "out/", "head -c 2000000 /dev/zero")
    assert keys.names("out") == ["001_small"]
    assert keys.names("b") == ["001_small"]


def test_two_maps_into_one_place_never_mix(six: "Keys") -> None:
    go = six.place.path / "go"
    wait = noted(six, f"while [ ! -e '{go}' ]; do sleep 0.05; done; cat; echo $WHO")
    first = six.start("map", "in/", "out/", wait.replace("$WHO", "first"))
    wait_for(lambda: count(six) >= 1)

    second = six.run("map", "fleet://in/", "fleet://out/", "cat; echo second")
    go.touch()
    first.communicate(timeout=60)

    assert (first.returncode, second.code) == (0, 1)
    assert "another map writes to out/" in second.err
    assert {six.read(f"out/00{n}_f{n}").split()[-1] for n in range(6)} == {"first"}


def test_a_put_that_is_killed_leaves_no_key(keys: "Keys") -> None:
    for victims in ("driver", "runtime"):
        process = keys.start("cp", "-", "fleet://b/000_k")
        assert process.stdin is not None
        process.stdin.write(b"x" * 3_000_000)
        process.stdin.flush()
        wait_for(lambda: [*keys.nodes.glob("*/tmp/*/*/file")])
        os.kill(runtimes(keys)[0] if victims == "runtime" else process.pid, signal.SIGKILL)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(b"x" * 3_000_000)
        process.communicate(timeout=60)

        assert process.returncode != 0
        wait_for(lambda: not ours(keys), 10)
        assert keys.names("b") == []
        assert keys.place.leftovers() == []
    keys.ok("cp", "-", "fleet://b/000_k", stdin=b"x")


def test_nothing_listens_where_others_could_reach_it_and_names_reach_no_shell(
    keys: "Keys",
) -> None:
    evil = "000_$(touch pwned);`touch pwned`'\"&touch pwned"
    keys.ok("cp", "-", f"fleet://in/{evil}", stdin=b"x")
    process = keys.start("map", "in/", "out/", noted(keys, "exec sleep 300"))
    wait_for(lambda: count(keys) == 1)

    inodes = set()
    for pid in [process.pid, *ours(keys)]:
        for fd in pathlib.Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                inodes.update(re.findall(r"^socket:\[(\d+)\]$", os.readlink(fd)))
    listening = [
        line.split()[9]
        for table in ("tcp", "tcp6", "udp", "udp6")
        for line in pathlib.Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    keys.ok("map", "in/", "out/", "cat")
    keys.ok("map-from-n", "out/", "all/", "xargs cat")

    assert inodes
    assert not inodes.intersection(listening)
    assert keys.read(f"all/{evil.rstrip()}") == "x"
    assert not [*keys.place.path.rglob("pwned*")]


def test_fast_verbs_do_not_load_what_is_slow() -> None:
    slow = "{'luigi', 'boto3', 'paramiko', 'yaml', 'urllib.request'}"
    for verb in ("ls", "cp", "rm", "eval", "health", "status", "exec", "put", "get", "config"):
        code = (
            f"import sys; from workflows import cli; cli._parser({verb!r});"
            f" import workflows.verbs.{verb}; print(sorted({slow} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        assert (verb, done.stdout) == (verb, b"[]\n")
