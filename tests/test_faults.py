"""Faults that are made for real: killed, stopped and cut-off processes, full disks, torn files."""

import collections
import contextlib
import json
import os
import pathlib
import random
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from workflows import fleet
from workflows.errors import CheckpointError, NodeLost
from workflows.fleet import Channel
from workflows.node.ledger import Ledger
from workflows.node.server import Runtime, Session, Slots
from workflows.node.storage import Storage
from workflows.node.wire import Wire
from workflows.store import DirectoryStore

if TYPE_CHECKING:
    from conftest import Place

MARK = "WORKFLOWS_TEST_MARK"
KEYS, PIECES = 6, 9
PIPELINE = """
from workflows import fleet
from workflows.steps import Map, MapFromN, MapToN

fleet.PING_S, fleet.LOST_S = 0.3, 1.2  # a stopped runtime is found sooner than in real life


class Take(Map):
    command = 'read -r path; sleep 0.15; cat "$path"'


class Cut(MapToN):
    upstream = Take
    command = 'sleep 0.15; while read -r name word; do echo "$name $word" >> "$name"; done; ls'


class Merge(MapFromN):
    upstream = Cut
    command = "sleep 0.03; xargs cat | sort"
    durable = True
"""
# As the pipeline above, but a key takes until the test says `go`.
GATED = """
from workflows import fleet
from workflows.steps import Map

fleet.PING_S, fleet.LOST_S = 0.3, 1.2


class Copy(Map):
    command = 'read -r path; {before}while [ ! -e "$GO" ]; do sleep 0.05; done; cat "$path"'
"""
NAMES = [f"{name}_piece" for name in range(PIECES)]
RESULT = {
    name: "".join(f"{name} word{key}\n" for key in range(KEYS)).encode("ascii") for name in NAMES
}


def until(true: Callable[[], object], what: str, within_s: float = 20.0) -> None:
    """Return once `true()` holds; fail if it does not in time."""
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, f"not in {within_s:g} s: {what}"
        time.sleep(0.002)


class Trial:
    """A place whose processes carry a mark in their environment, by which all of them are found."""

    def __init__(self, place: "Place") -> None:
        self.place = place
        self.mark = secrets.token_hex(8)
        self.runs: list[Run] = []

    def small_pipeline(self) -> None:
        """Make the source and the steps that most of these tests run."""
        self.place.module(PIPELINE)
        for key in range(KEYS):
            text = "".join(f"{name} word{key}\n" for name in NAMES)
            self.place.key(f"{key}_key", text.encode("ascii"))

    def gated_pipeline(self, before: str = "", keys: int = 1) -> pathlib.Path:
        """Make a pipeline whose commands wait; return the file that lets them go on."""
        self.place.module(GATED.replace("{before}", before))
        for key in range(keys):
            self.place.key(f"{key}_key", b"text\n")
        return self.place.path / "go"

    def start(self, task: str = "Merge", *words: str, **env: str) -> "Run":
        """Start a run in a session of its own, as from a terminal."""
        started = Run(self, task, *words, **env)
        self.runs.append(started)
        return started

    def finish(self, task: str = "Merge", *words: str, **env: str) -> "Run":
        """Run to the end."""
        run = self.start(task, *words, **env)
        run.wait()
        return run

    def pids(self) -> list[int]:
        """Return every living process of this trial."""
        wanted = f"{MARK}={self.mark}".encode("ascii")
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if wanted in pathlib.Path("/proc", name, "environ").read_bytes().split(b"\0"):
                    found.append(int(name))
        return found

    def runtimes(self) -> dict[int, int]:
        """Return slot -> process of each runtime; a runtime's watchdog is its child."""
        found = {}
        for pid in self.pids():
            words = command_line(pid)
            if any("/runtime-" in word for word in words) and parent_of(pid) not in found:
                found[pid] = int(words[words.index("-S") + 3])
        parents = {pid: parent_of(pid) for pid in found}
        return {slot: pid for pid, slot in found.items() if parents[pid] not in found}

    def commands(self, word: str) -> list[int]:
        """Return the processes that have `word` on their command line."""
        return [pid for pid in self.pids() if word in command_line(pid)]

    def await_silence(self) -> None:
        """Wait until no process of this trial is left."""
        until(lambda: not self.pids(), f"no process left of {self.described()}")

    def described(self) -> list[str]:
        """Return what is running, for a person."""
        return [f"{pid}: {' '.join(command_line(pid))[:150]}" for pid in self.pids()]

    def kill_all(self) -> None:
        """Kill every process of this trial at once."""
        while pids := self.pids():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def lines(self, step: str) -> int:
        """Return how many lines the ledgers of a step have."""
        ledgers = (self.place.state / "nodes").glob(f"*/ledger/{step}.jsonl")
        return sum(path.read_bytes().count(b"\n") for path in ledgers)

    def result(self) -> dict[str, bytes]:
        """Return the committed checkpoint, name -> bytes."""
        (success,) = self.place.checkpoint.glob("Merge/*/_SUCCESS")
        parts = json.loads(success.read_text())["parts"]
        return {
            part["key"].rsplit("/", 1)[-1]: (self.place.checkpoint / part["object"]).read_bytes()
            for part in parts
        }

    def published(self, *steps: str) -> list[int]:
        """Return how often each key of some steps was published."""
        lines = [(step, line["id"]) for step in steps for line in self.place.ledger(step)]
        return list(collections.Counter(lines).values())


class Run:
    """One `luigi` that was started in the background."""

    def __init__(self, trial: Trial, task: str, *words: str, **env: str) -> None:
        self.trial = trial
        self.path = trial.place.path / f"run-{len(trial.runs)}.err"
        more = ["--source", "source", "--pattern", "*", *words]
        with open(self.path, "wb") as err:
            self.process = subprocess.Popen(
                trial.place.command("luigi", "--module", "mine", task, *more),
                cwd=trial.place.path,
                env={**trial.place.environ, MARK: trial.mark, **env},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=err,
                start_new_session=True,
            )

    @property
    def err(self) -> str:
        """Return what it said so far."""
        return self.path.read_text(errors="replace")

    @property
    def ended(self) -> bool:
        """Tell whether it has ended."""
        return self.process.poll() is not None

    def wait(self, within_s: float = 60.0) -> int:
        """Wait for its end; return the exit code."""
        return self.process.wait(within_s)

    def succeeded(self) -> bool:
        """Wait for its end; tell whether it exited 0, and show what it said if not."""
        code = self.wait()
        if code:
            print(f"exit {code}\n{self.err}")
        return code == 0


def command_line(pid: int) -> list[str]:
    """Return a process's arguments, empty if it is gone."""
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    return []


def parent_of(pid: int) -> int:
    """Return the parent of a process, 0 if it is gone."""
    with contextlib.suppress(OSError):
        text = pathlib.Path(f"/proc/{pid}/stat").read_text(errors="replace")
        return int(text.rpartition(")")[2].split()[1])
    return 0


def is_stopped(pid: int) -> bool:
    """Tell whether a process got SIGSTOP."""
    text = pathlib.Path(f"/proc/{pid}/stat").read_text(errors="replace")
    return text.rpartition(")")[2].split()[0] == "T"


@pytest.fixture
def trial(place: "Place") -> Iterator[Trial]:
    trial = Trial(place)
    try:
        yield trial
        trial.await_silence()
    finally:
        trial.kill_all()
        for run in trial.runs:
            run.process.wait(20)


# -- killed at any moment --------------------------------------------------------------------------


def kill_driver(run: Run, rng: random.Random) -> None:
    """Kill the process that schedules, alone."""
    os.kill(run.process.pid, signal.SIGKILL)


def kill_session(run: Run, rng: random.Random) -> None:
    """Kill what a terminal that goes away would: Luigi and all that it forked."""
    os.killpg(run.process.pid, signal.SIGKILL)


def kill_everything(run: Run, rng: random.Random) -> None:
    """Kill Luigi, its workers, runtimes, watchdogs and commands."""
    run.trial.kill_all()


def kill_runtime(run: Run, rng: random.Random) -> None:
    """Kill the runtime of one node, alone."""
    runtimes = sorted(run.trial.runtimes().values())
    if runtimes:
        os.kill(rng.choice(runtimes), signal.SIGKILL)


def moment(trial: Trial, run: Run, phase: str, rng: random.Random) -> None:
    """Wait until a run is somewhere in `phase`, or has ended already."""
    if phase == "scheduling":
        time.sleep(rng.uniform(0, 0.5))  # the seed is the point: no event happens in there
        return
    if phase == "commit":
        until(lambda: run.ended or any(trial.place.checkpoint.glob("Merge/*/data/*/*")), "a commit")
        time.sleep(rng.uniform(0, 0.02))
        return
    many = KEYS * PIECES if phase == "Cut.pieces" else PIECES if phase == "Merge" else KEYS
    wanted = rng.randint(1, many)
    until(lambda: run.ended or trial.lines(phase) >= wanted, f"{wanted} keys of {phase}")
    time.sleep(rng.uniform(0, 0.1))


PHASES = ["scheduling", "Take", "Cut", "Cut.pieces", "commit"]
KILLS = [kill_driver, kill_session, kill_everything, kill_runtime]
MOMENTS = [(phase, kill) for phase in PHASES for kill in KILLS]


@pytest.mark.parametrize(
    ("seed", "phase", "kill"),
    [
        pytest.param(seed, phase, kill, id=f"{phase}-{kill.__name__}")
        for seed, (phase, kill) in enumerate(MOMENTS)
    ],
)
def test_a_run_killed_at_any_moment_is_completed_by_the_next_one(
    trial: Trial, seed: int, phase: str, kill: Callable[[Run, random.Random], None]
) -> None:
    rng = random.Random(seed)
    trial.small_pipeline()

    for _ in range(1 + seed % 2):  # every other time the second run is killed too
        run = trial.start()
        moment(trial, run, phase, rng)
        kill(run, rng)
        if kill is kill_runtime:
            assert run.succeeded()
            assert "keys failed" not in run.err
        run.wait()
        trial.await_silence()
    rerun = trial.finish()

    assert rerun.succeeded()
    assert trial.result() == RESULT
    assert set(trial.published("Take", "Cut", "Cut.pieces", "Merge")) == {1}
    assert trial.place.leftovers() == []


def test_a_killed_runtime_is_called_lost_and_costs_only_what_it_had_not_published(
    trial: Trial,
) -> None:
    trial.small_pipeline()
    run = trial.start()
    until(lambda: trial.lines("Take") >= 2, "two keys")

    os.kill(trial.runtimes()[1], signal.SIGKILL)

    assert run.succeeded()
    assert "node 1 is lost" in run.err
    assert run.err.count("node 1 is lost") <= 2
    assert "keys failed" not in run.err
    assert trial.result() == RESULT
    assert set(trial.published("Take", "Cut", "Merge")) == {1}


def test_a_runtime_that_is_killed_again_and_again_fails_the_run_in_the_end(trial: Trial) -> None:
    trial.gated_pipeline("echo $$ >> started; ")
    run = trial.start("Copy", "--fleet", "local:1", GO="/nonexistent")

    killed: set[int] = set()
    while not run.ended:
        for pid in set(trial.runtimes().values()) - killed:
            until(lambda: trial.commands("-euo") or run.ended, "a command")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        time.sleep(0.01)

    assert run.wait() == 30
    assert len(killed) == 3
    assert "node 0 is lost: it hung up; Copy 0_key: giving up" in run.err
    assert "Traceback" not in run.err


def test_what_a_run_with_a_revived_runtime_left_ends_when_its_driver_is_killed(
    trial: Trial,
) -> None:
    trial.gated_pipeline()
    run = trial.start("Copy", "--fleet", "local:1", GO="/nonexistent")
    until(lambda: trial.commands("-euo"), "a command")
    first = trial.runtimes()[0]
    os.kill(first, signal.SIGKILL)
    until(lambda: trial.runtimes().get(0, first) != first, "another runtime")
    until(lambda: trial.commands("-euo"), "a command of it")

    os.kill(run.process.pid, signal.SIGKILL)

    trial.await_silence()


ESCAPES = {
    "in the background": "sleep 300 & ",
    "in a new session": "setsid sleep 300 & ",
    "without its descriptors": "setsid sleep 300 < /dev/null > /dev/null 2>&1 & ",
    "deaf to SIGTERM": "(trap '' TERM INT HUP; setsid bash -c 'sleep 300; true') & ",
    "as a daemon": "setsid bash -c 'setsid sleep 300 & sleep 300' & ",
}


@pytest.mark.parametrize("escape", [pytest.param(ESCAPES[name], id=name) for name in ESCAPES])
def test_a_process_that_a_command_leaves_behind_is_dead_after_its_key(
    trial: Trial, escape: str
) -> None:
    trial.gated_pipeline(escape, keys=2)
    (trial.place.path / "go1").touch()
    # The other key goes on for as long as it likes: its process must live.
    trial.place.module(
        GATED.replace("{before}", escape).replace("$GO", "$GO${filename%_key}"), name="mine"
    )
    run = trial.start(
        "Copy", "--fleet", "local:1", WORKFLOWS_SLOTS="2", GO=str(trial.place.path / "go")
    )

    until(lambda: trial.lines("Copy") == 1, "one key")
    left = [pid for pid in trial.commands("300") if b"filename=1_key" in environ_of(pid)]
    other = [pid for pid in trial.commands("300") if b"filename=0_key" in environ_of(pid)]
    (trial.place.path / "go0").touch()

    assert run.succeeded()
    assert left == []
    assert other != []
    assert trial.place.outputs("Copy") == {"0_key": b"text\n", "1_key": b"text\n"}


@pytest.mark.parametrize("escape", [pytest.param(ESCAPES[name], id=name) for name in ESCAPES])
def test_a_process_that_a_command_leaves_behind_is_dead_after_its_run_was_killed(
    trial: Trial, escape: str
) -> None:
    trial.gated_pipeline(escape)
    run = trial.start("Copy", GO="/nonexistent")
    until(lambda: trial.commands("300"), "the process")

    os.kill(run.process.pid, signal.SIGKILL)

    trial.await_silence()


def environ_of(pid: int) -> list[bytes]:
    """Return a process's environment, empty if it is gone."""
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return []


# -- stopped, interrupted --------------------------------------------------------------------------


def test_a_stopped_runtime_is_lost_replaced_and_killed(trial: Trial) -> None:
    go = trial.gated_pipeline(keys=2)
    run = trial.start("Copy", "--fleet", "local:1", GO=str(go))
    until(lambda: trial.commands("-euo"), "a command")
    stopped = trial.runtimes()[0]

    os.kill(stopped, signal.SIGSTOP)
    until(lambda: "node 0 is lost: nothing was heard of it" in run.err, "the loss")
    until(lambda: stopped not in trial.pids(), "the end of the stopped runtime")
    go.touch()

    assert run.succeeded()
    assert trial.place.outputs("Copy") == {"0_key": b"text\n", "1_key": b"text\n"}
    assert trial.place.leftovers() == []


def test_a_runtime_that_is_stopped_while_nobody_talks_to_it_does_not_outlive_the_run(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = trial.gated_pipeline()
    slow = "from workflows.transports import local\nlocal._END_S = 1.0\n"
    trial.place.module(slow + GATED.replace("{before}", ""))
    run = trial.start("Copy", "--fleet", "local:2", GO=str(go))
    until(lambda: trial.commands("-euo"), "a command")

    os.kill(trial.runtimes()[1], signal.SIGSTOP)
    go.touch()

    assert run.succeeded()
    trial.await_silence()


def test_a_driver_that_is_stopped_for_long_and_continued_has_lost_nothing(trial: Trial) -> None:
    go = trial.gated_pipeline()
    run = trial.start("Copy", "--fleet", "local:1", GO=str(go))
    until(lambda: trial.commands("-euo"), "a command")

    os.killpg(run.process.pid, signal.SIGSTOP)
    until(lambda: is_stopped(run.process.pid), "the stop")
    time.sleep(2)  # longer than LOST_S: this is the fault
    os.killpg(run.process.pid, signal.SIGCONT)
    time.sleep(0.5)  # it must have looked at its clock before there is anything to hear
    go.touch()

    assert run.succeeded()
    assert "lost" not in run.err


def test_a_scheduling_process_that_is_stopped_and_continued_goes_on(trial: Trial) -> None:
    trial.small_pipeline()
    run = trial.start()
    until(lambda: trial.lines("Take") >= 2, "two keys")

    os.kill(run.process.pid, signal.SIGSTOP)
    until(lambda: is_stopped(run.process.pid), "the stop")
    until(lambda: not trial.commands("-euo"), "the end of what it had started")
    os.kill(run.process.pid, signal.SIGCONT)

    assert run.succeeded()
    assert trial.result() == RESULT


@pytest.mark.parametrize("phase", ["Take", "Cut.pieces"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interrupted_run_ends_soon_leaves_nothing_and_is_completed_by_the_next_one(
    trial: Trial, name: str, phase: str
) -> None:
    trial.small_pipeline()
    run = trial.start()
    until(lambda: trial.lines(phase) >= 2, f"two keys of {phase}")

    os.killpg(run.process.pid, getattr(signal, name))
    code = run.wait(10)
    trial.await_silence()
    rerun = trial.finish()

    assert code != 0
    assert rerun.succeeded()
    assert trial.result() == RESULT
    assert trial.place.leftovers() == []


# -- two at once -----------------------------------------------------------------------------------


def test_two_runs_at_the_same_moment_both_succeed_and_publish_every_key_once(trial: Trial) -> None:
    trial.small_pipeline()

    runs = [trial.start("Merge", "--no-lock") for _ in range(2)]

    assert all(run.succeeded() for run in runs)
    assert trial.result() == RESULT
    assert set(trial.published("Take", "Cut", "Cut.pieces", "Merge")) == {1}
    assert trial.place.leftovers() == []


def test_a_run_goes_on_when_another_one_is_killed_that_holds_a_ledgers_lock(trial: Trial) -> None:
    trial.small_pipeline()
    first = trial.start("Merge", "--no-lock")
    until(lambda: trial.lines("Take") >= 1, "a key")
    second = trial.start("Merge", "--no-lock")
    until(lambda: len(trial.commands("-I")) > 6, "the second run's runtimes")
    # Stopped wherever they are: with the lock, some of the time. A waiter gets it when they die.
    for pid in trial.runtimes().values():
        if parent_of(pid) == first.process.pid:
            os.kill(pid, signal.SIGSTOP)

    os.kill(first.process.pid, signal.SIGKILL)
    trial_runtimes = [pid for pid in trial.pids() if is_stopped(pid)]
    for pid in trial_runtimes:
        os.kill(pid, signal.SIGKILL)

    assert second.succeeded()
    assert trial.result() == RESULT
    assert set(trial.published("Take", "Cut", "Cut.pieces", "Merge")) == {1}


def test_a_ledgers_lock_is_free_once_its_holder_is_killed(tmp_path: pathlib.Path) -> None:
    ledger = Ledger(str(tmp_path / "Step.jsonl"))
    reader, writer = os.pipe()
    holder = os.fork()
    if holder == 0:
        with ledger.locked():
            os.write(writer, b"locked")
            signal.pause()
        os._exit(0)
    os.read(reader, 6)
    done = threading.Event()

    def append() -> None:
        with Ledger(ledger.path).locked() as fd:
            ledger.append(fd, {"id": "1", "key": "a", "bytes": 1})
        done.set()

    waiting = threading.Thread(target=append)
    waiting.start()
    held = done.wait(0.2)
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    waiting.join(10)
    os.close(reader)
    os.close(writer)

    assert not held
    assert done.is_set()
    assert list(Ledger(ledger.path).entries()) == ["1"]


# -- full disks ------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(path: pathlib.Path, size: str) -> Iterator[pathlib.Path]:
    """Mount a disk of `size` bytes at `path`."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk; run the tests as root")
    path.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True
    )
    if mounted.returncode and os.environ.get("CI") != "true":
        pytest.skip(f"no small disk can be mounted: {mounted.stderr.decode()}")
    assert mounted.returncode == 0, mounted.stderr
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_disk_that_is_full_in_the_middle_of_a_step_is_named_and_more_room_completes_the_run(
    trial: Trial,
) -> None:
    trial.place.module(
        "from workflows.steps import Map\n"
        "class Copy(Map):\n"
        "    command = 'read -r path; cat \"$path\"'\n"
    )
    data = os.urandom(1 << 20)
    for key in range(6):
        trial.place.key(f"{key}_key", data)
    with small_disk(trial.place.state, "4500k") as disk:
        run = trial.finish("Copy", "--fleet", "local:1")
        kept = trial.place.outputs("Copy")
        listed = [line["key"] for line in trial.place.ledger("Copy")]
        files = sorted(path.name for path in disk.glob("nodes/0/data/Copy/*/*"))
        trial.await_silence()
        leftovers = trial.place.leftovers()
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        rerun = trial.finish("Copy", "--fleet", "local:1")
        after = trial.place.outputs("Copy")
        trial.await_silence()

    assert run.process.returncode == 30
    assert "o space left on device" in run.err
    assert "Copy of 5_key on node 0" in run.err
    assert "Traceback" not in run.err
    assert 2 <= len(kept) <= 5
    assert sorted(kept) == sorted(listed) == files
    assert all(value == data for value in kept.values())
    assert leftovers == []
    assert rerun.succeeded()
    assert after == dict.fromkeys([f"{key}_key" for key in range(6)], data)


def test_a_disk_that_is_full_before_anything_ran_is_named(trial: Trial) -> None:
    trial.gated_pipeline()
    with small_disk(trial.place.state, "64k") as disk:
        fill(disk)
        run = trial.finish("Copy", "--fleet", "local:1", GO="/")
        trial.await_silence()

    assert run.process.returncode != 0
    assert "o space left on device" in run.err


def fill(disk: pathlib.Path, leave: int = 0) -> pathlib.Path:
    """Fill a disk up to `leave` bytes; return the file that does."""
    path = disk / "full"
    free = os.statvfs(disk)
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as file:
        for _ in range((free.f_bavail * free.f_frsize - leave) // 4096):
            file.write(bytes(4096))
    return path


def test_a_ledger_on_a_full_disk_is_as_it_was_and_takes_the_line_when_there_is_room(
    tmp_path: pathlib.Path,
) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        ledger = Ledger(str(disk / "Step.jsonl"))
        line = {"id": "1", "key": "k" * 1000, "bytes": 1}
        with ledger.locked() as fd:
            ledger.append(fd, line)
        full = fill(disk)
        # The first page has room for some of it: the line is cut in the middle.
        big = {"id": "2", "key": "k" * 6000, "bytes": 1}

        with pytest.raises(OSError, match="No space left"), ledger.locked() as fd:
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
        made = pathlib.Path(storage.scratch(), "out")
        made.write_bytes(b"text\n")
        full = fill(disk)
        record = {"key": "a", "id": "1", "bytes": 5, "crc": "x" * 5000}

        with pytest.raises(OSError, match="No space left"):
            storage.publish("Step", str(made), record)
        listing, orphans = storage.listing("Step"), storage.orphans("Step")
        full.unlink()
        made = pathlib.Path(storage.scratch(), "out")
        made.write_bytes(b"text\n")
        storage.publish("Step", str(made), record)
        again = storage.listing("Step")
        storage.close()

    assert listing == {}
    assert orphans == []
    assert again == {"1": 5}


def test_a_checkpoint_on_a_full_disk_is_not_committed_and_more_room_completes_it(
    trial: Trial,
) -> None:
    trial.small_pipeline()
    with small_disk(trial.place.path / "store", "16k") as disk:
        words = ["--checkpoint", str(disk)]
        # Room for what the barrier writes, but not for the results.
        full = fill(disk, leave=8192)
        run = trial.finish("Merge", *words)
        trial.await_silence()
        committed = list(disk.glob("Merge/*/_SUCCESS"))
        left = list(disk.glob(".tmp/*"))
        full.unlink()
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        rerun = trial.finish("Merge", *words)
        trial.await_silence()
        after = list(disk.glob("Merge/*/_SUCCESS"))

    assert run.process.returncode == 30
    assert "No space left on device" in run.err
    assert "Traceback" not in run.err
    assert committed == []
    assert left == []
    assert rerun.succeeded()
    assert len(after) == 1


def test_a_store_on_a_full_disk_says_so_and_leaves_nothing(tmp_path: pathlib.Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        store = DirectoryStore(str(disk))

        with pytest.raises(CheckpointError, match="No space left"):
            store.create("a/b", [bytes(100_000)])
        left = [path for path in disk.rglob("*") if path.is_file()]
        created = store.create("a/b", [b"small"])
        read = store.read("a/b")

    assert left == []
    assert created
    assert read == b"small"


# -- torn, damaged and missing files ---------------------------------------------------------------


def ledger_file(trial: Trial, step: str, slot: int) -> pathlib.Path:
    """Return a step's ledger on a node."""
    return trial.place.state / "nodes" / str(slot) / "ledger" / f"{step}.jsonl"


def damage(trial: Trial, how: str) -> None:
    """Do to the outputs of a run what a crash or a person may do."""
    line = trial.place.ledger("Take")[0]
    ledger = ledger_file(trial, "Take", line["slot"])
    path = trial.place.output_path("Take", line)
    if how == "a torn ledger line":
        ledger.write_bytes(ledger.read_bytes()[:-20])
    elif how == "garbage in the ledger":
        garbage = (
            b'\xff\xfe\0\x01\n{"id": "x", "key": "y"}\n{"id": [], "key": 1, "bytes": 2}\n[1]\n\n'
        )
        ledger.write_bytes(garbage + ledger.read_bytes() + b"\x80\x81" * 5000)
    elif how == "a file without its ledger line":
        ledger.unlink()
    elif how == "a truncated file":
        path.chmod(0o644)
        path.write_bytes(b"cut")
    elif how == "a deleted folder":
        path.unlink()
        path.parent.rmdir()


@pytest.mark.parametrize(
    "how",
    [
        "a torn ledger line",
        "garbage in the ledger",
        "a file without its ledger line",
        "a truncated file",
        "a deleted folder",
    ],
)
def test_a_damaged_node_heals_with_the_next_run(trial: Trial, how: str) -> None:
    trial.small_pipeline()
    first = trial.finish("Take")
    before = trial.place.ledger("Take")

    damage(trial, how)
    run = trial.finish()

    assert first.succeeded()
    assert run.succeeded()
    assert trial.result() == RESULT
    assert before


def test_a_node_whose_directory_cannot_be_written_is_refused_with_its_name_and_reason(
    trial: Trial,
) -> None:
    trial.gated_pipeline()
    root = trial.place.state / "nodes" / "0"
    (root / "tmp").mkdir(parents=True)
    with small_disk(root, "1m"):
        subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
        run = trial.finish("Copy", "--fleet", "local:1", GO="/")
        trial.await_silence()

    assert run.process.returncode not in (0, 1)
    assert "node 0" in run.err
    assert "Read-only file system" in run.err
    assert "Traceback" not in run.err


def test_a_node_that_becomes_read_only_fails_the_key_with_the_reason(trial: Trial) -> None:
    go = trial.gated_pipeline()
    root = trial.place.state / "nodes" / "0"
    with small_disk(root, "1m"):
        run = trial.start("Copy", "--fleet", "local:1", GO=str(go))
        until(lambda: trial.commands("-euo"), "a command")
        subprocess.run(["mount", "-o", "remount,ro", str(root)], capture_output=True)
        if os.access(root, os.W_OK):
            subprocess.run(["mount", "-o", "remount,ro,size=0", str(root)], capture_output=True)
        go.touch()
        run.wait()
        trial.await_silence()

    assert run.process.returncode in (0, 30)


def test_a_shipped_file_that_was_cut_off_on_its_way_is_shipped_again(
    tmp_path: pathlib.Path,
) -> None:
    runtime = Runtime(Storage(str(tmp_path)), Slots(1), {})
    ours, theirs = socket.socketpair()
    session = threading.Thread(target=Session(runtime, Wire(theirs)).serve)
    session.start()

    ours.sendall(b'{"op":"file","digest":"d1","size":1000}\n' + b"x" * 500)
    ours.close()
    session.join(10)

    assert list((tmp_path / "files").iterdir()) == []


# -- full pipes ------------------------------------------------------------------------------------


def test_a_command_that_writes_without_end_to_stderr_does_not_hang_and_little_of_it_is_kept(
    trial: Trial,
) -> None:
    trial.place.module(
        "from workflows.steps import Map\n"
        "class Noisy(Map):\n"
        "    command = 'cat; yes noise | head -c 100000000 >&2; yes | head -c 20000000;"
        " echo the end >&2; exit 3'\n"
    )
    trial.place.key("0_key", b"text\n")

    run = trial.finish("Noisy", "--fleet", "local:1")

    assert run.process.returncode == 30
    assert "the end" in run.err
    assert len(run.err) < 20_000
    assert trial.place.leftovers() == []


@pytest.mark.parametrize("fuse", [True, False])
def test_a_command_that_wants_only_the_first_line_does_not_fail_its_upstream(
    trial: Trial, fuse: bool
) -> None:
    trial.place.module(
        "from workflows.steps import Map\n"
        "class Many(Map):\n"
        "    command = 'cat > /dev/null; yes line | head -n 2000000'\n"
        "class First(Map):\n"
        "    upstream = Many\n"
        "    command = 'head -n1'\n"
    )
    trial.place.key("0_key", b"text\n")

    run = trial.finish("First", "--fleet", "local:1", *(["--fuse"] if fuse else []))

    assert run.succeeded()
    assert trial.place.outputs("First") == {"0_key": b"line\n"}
    assert [line["bytes"] for line in trial.place.ledger("First")] == [5]
    (line,) = trial.place.ledger("First")
    assert line["totals"]["Many.bytes_out"] == 10_000_000


# -- a channel against a runtime that is not one ---------------------------------------------------


class FakeNode:
    """A node whose runtime is the test."""

    slot, slots, name, root = 0, 1, "node 0", "/nonexistent"

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()

    def start(self) -> None:
        pass

    def connect(self) -> Wire:
        return Wire(self.ours)

    def revive(self) -> None:
        pass

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    monkeypatch.setattr(fleet, "PING_S", 0.05)
    monkeypatch.setattr(fleet, "LOST_S", 0.3)
    node = FakeNode()
    yield node
    node.close()


LISTING = {"op": "list", "steps": ["Step"]}


def test_a_runtime_that_hangs_up_is_lost(node: FakeNode) -> None:
    channel = Channel(node)

    node.theirs.close()

    with pytest.raises(NodeLost, match=r"node 0 is lost: (it hung up|.*[Bb]roken pipe)"):
        channel.one(LISTING, "listing")


@pytest.mark.parametrize(
    "said",
    [
        b"Last login: Mon\n",
        b"\xff\xfe\0\n",
        b"[1]\n",
        b"7\n",
        b"{}\n",
        b'{"event": 3}\n',
        b"[" * 100_000 + b"\n",
        b'{"event": "lis\n',
    ],
)
def test_a_runtime_that_talks_nonsense_is_lost(node: FakeNode, said: bytes) -> None:
    channel = Channel(node)

    node.theirs.sendall(said)

    with pytest.raises(NodeLost, match="node 0 is lost"):
        channel.one(LISTING, "listing")


@pytest.mark.parametrize("said", [b"", b'{"event": "lis', b'{"event": "listing", "steps": {}}'])
def test_a_runtime_that_falls_silent_is_lost_within_its_time(node: FakeNode, said: bytes) -> None:
    channel = Channel(node)
    started = time.monotonic()

    node.theirs.sendall(said)

    with pytest.raises(NodeLost, match=r"nothing was heard of it for 0\.3 s"):
        channel.one(LISTING, "listing")
    assert time.monotonic() - started < 2


def test_a_runtime_that_answers_pings_is_not_lost_however_long_it_works(node: FakeNode) -> None:
    channel = Channel(node)
    wire = Wire(node.theirs)

    def work() -> None:
        pongs = 0
        while pongs < 15:
            message = wire.recv(5)
            if message is not None and message["op"] == "ping":
                wire.send({"event": "pong", "n": 0})
                pongs += 1
        wire.send({"event": "ran"})

    runtime = threading.Thread(target=work)
    runtime.start()
    events = list(channel.ask({"op": "run"}, "ran"))
    runtime.join()

    assert events == [{"event": "ran"}]


def test_a_runtime_that_reads_nothing_is_lost_even_while_it_is_sent_much(node: FakeNode) -> None:
    channel = Channel(node)

    with pytest.raises(NodeLost, match="node 0 is lost"):
        channel.one({"op": "run", "keys": ["k" * 1000] * 5000}, "ran")


def test_a_runtime_that_takes_no_shipped_file_is_lost(node: FakeNode) -> None:
    channel = Channel(node)
    node.theirs.sendall(b'{"event": "needed", "digests": ["d"]}\n')

    with pytest.raises(NodeLost, match="node 0 is lost"):
        channel.ship({"d": bytes(5_000_000)})


@pytest.mark.parametrize("hang_up", [True, False])
def test_a_runtime_that_stops_in_the_middle_of_an_output_is_lost(
    node: FakeNode, hang_up: bool
) -> None:
    channel = Channel(node)
    node.theirs.sendall(b'{"event": "data", "size": 1000}\n' + b"x" * 10)
    if hang_up:
        node.theirs.shutdown(socket.SHUT_WR)

    with pytest.raises(NodeLost, match="node 0 is lost"):
        list(channel.read("Step", "id", "key"))
