"""What the tests of faults share: runs in the background, their processes, gates, small disks."""

import contextlib
import json
import os
import pathlib
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from workflows.fleets.channel import Channel
from workflows.fleets.local import LocalNode

if TYPE_CHECKING:
    from conftest import Place

Event = dict[str, Any]
MARK = "TRIAL_MARK"
# A key takes until the test opens its gate; TRACE says which were started, in their order.
GATED = """
from workflows.steps import Map


class Copy(Map):
    command = '''read -r path; echo "$filename" >> "$TRACE"
    %s
    read -r _ < "$GATES/$filename"; %s'''
"""


def until(true: Callable[[], object], what: str, within_s: float = 30.0) -> None:
    """Return once `true()` holds; fail if it does not in time."""
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, f"not in {within_s:g} s: {what}"
        time.sleep(0.003)


class Trial:
    """A place whose processes carry a mark in their environment, by which all of them are found."""

    def __init__(self, place: "Place") -> None:
        self.place = place
        self.mark = f"{MARK}={secrets.token_hex(8)}"
        self.runs: list[Run] = []
        self.gates: dict[str, int] = {}
        self.trace = place.path / "trace"

    # -- runs ----------------------------------------------------------------------------------

    def start(self, task: str, *words: str, **env: str) -> "Run":
        """Start a run in a session of its own, as from a terminal."""
        run = Run(self, task, *words, **env)
        self.runs.append(run)
        return run

    def finish(self, task: str, *words: str, **env: str) -> "Run":
        """Run to the end."""
        run = self.start(task, *words, **env)
        run.wait()
        return run

    def gated(self, keys: int, before: str = "", after: str = 'cat "$path"') -> None:
        """Make keys and a step `Copy`, whose commands wait between `before` and `after`."""
        self.place.module(GATED % (before, after))
        (self.place.path / "gates").mkdir()
        self.trace.touch()
        for number in range(keys):
            self.place.key(f"{number}_key", b"text\n")
            path = self.place.path / "gates" / f"{number}_key"
            os.mkfifo(path)
            self.gates[path.name] = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def open(self, *keys: str) -> None:
        """Let the commands of some keys go on, all if none is named: now and when they come."""
        for key in keys or self.gates:
            os.write(self.gates[key], b"\n" * 9)

    def started(self) -> list[str]:
        """Return the gated keys whose commands were started, in order, each as often as it was."""
        return self.trace.read_text().split()

    # -- processes -----------------------------------------------------------------------------

    def pids(self) -> list[int]:
        """Return every living process that has the mark, or works below the place."""
        wanted, place = self.mark.encode("ascii"), f"{self.place.path}/"
        found = []
        for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
            with contextlib.suppress(OSError):
                cwd = os.readlink(f"/proc/{pid}/cwd") + "/"
                environ = pathlib.Path(f"/proc/{pid}/environ").read_bytes()
                if wanted in environ.split(b"\0") or cwd.startswith(place):
                    found.append(pid)
        return found

    def runtimes(self) -> dict[int, int]:
        """Return slot -> process of each runtime."""
        found = {}
        for pid in self.pids():
            words = command_line(pid)
            with contextlib.suppress(OSError):
                # Its watchdog has the same command line, but soon reads nothing.
                is_one = os.readlink(f"/proc/{pid}/fd/0").startswith("pipe:")
                if is_one and any("/runtime-" in word for word in words):
                    found[pid] = int(words[words.index("-S") + 5])
        return {slot: pid for pid, slot in found.items() if parent(pid) not in found}

    def commands(self) -> list[list[str]]:
        """Return the command lines of all but runtimes and what runs or watches them."""
        lines = [command_line(pid) for pid in self.pids()]
        return [words for words in lines if words and not any("/runtime-" in w for w in words)]

    def await_silence(self, within_s: float = 20.0) -> None:
        """Wait until no process is left."""
        deadline = time.monotonic() + within_s
        while pids := self.pids():
            left = [f"{pid}: {' '.join(command_line(pid))[:150]}" for pid in pids]
            assert time.monotonic() < deadline, f"still there after {within_s:g} s: {left}"
            time.sleep(0.003)

    def kill_all(self) -> None:
        """Kill every process of this trial at once."""
        while pids := self.pids():
            for pid in pids:
                kill(pid)

    def close(self) -> None:
        """Leave nothing behind, whatever the test did."""
        for run in self.runs:
            kill(run.process.pid)
        self.kill_all()
        for run in self.runs:
            run.process.wait(20)
        for fd in self.gates.values():
            os.close(fd)

    # -- what came of it -----------------------------------------------------------------------

    def lines(self, step: str) -> int:
        """Return how many lines the ledgers of a step have."""
        ledgers = (self.place.state / "nodes").glob(f"*/ledger/{step}.jsonl")
        return sum(path.read_bytes().count(b"\n") for path in ledgers)

    def published(self, *steps: str) -> list[str]:
        """Return the identity of each ledger line of some steps: each once, or all is wrong."""
        return sorted(line["id"] for step in steps for line in self.place.ledger(step))

    def result(self, step: str) -> dict[str, bytes]:
        """Return the committed checkpoint of a step, name -> bytes."""
        (success,) = self.place.checkpoint.glob(f"{step}/*/_SUCCESS")
        parts = json.loads(success.read_text())["parts"]
        return {
            part["key"].rsplit("/", 1)[-1]: (self.place.checkpoint / part["object"]).read_bytes()
            for part in parts
        }


class Run:
    """One `luigi` that was started in the background."""

    def __init__(self, trial: Trial, task: str, *words: str, **env: str) -> None:
        self._path = trial.place.path / f"run-{len(trial.runs)}.err"
        mark, _, value = trial.mark.partition("=")
        more = ["--source", "source", "--pattern", "*", *words]
        gates = {"GATES": str(trial.place.path / "gates"), "TRACE": str(trial.trace)}
        with open(self._path, "wb") as err:
            self.process = subprocess.Popen(
                trial.place.command("luigi", "--module", "mine", task, *more),
                cwd=trial.place.path,
                env={**trial.place.environ, **gates, mark: value, **env},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=err,
                start_new_session=True,
            )

    @property
    def err(self) -> str:
        """Return what it said so far."""
        return self._path.read_text(errors="replace")

    @property
    def has_ended(self) -> bool:
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


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to a process, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def command_line(pid: int) -> list[str]:
    """Return a process's arguments, empty if it is gone."""
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")[:-1]
    return []


def parent(pid: int) -> int:
    """Return the process that a process is a child of, 0 if it is gone."""
    with contextlib.suppress(OSError):
        text = pathlib.Path(f"/proc/{pid}/stat").read_text(errors="replace")
        return int(text.rpartition(")")[2].split()[1])
    return 0


def is_stopped(pid: int) -> bool:
    """Tell whether a process got SIGSTOP."""
    text = pathlib.Path(f"/proc/{pid}/stat").read_text(errors="replace")
    return text.rpartition(")")[2].split()[0] == "T"


@contextlib.contextmanager
def small_disk(path: pathlib.Path, size: str) -> Iterator[pathlib.Path]:
    """Mount a disk of `size` bytes at `path`."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk; run the tests as root")
    path.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def resize(disk: pathlib.Path, size: str) -> None:
    """Make more room on a small disk."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def fill(disk: pathlib.Path, leave: int = 0) -> pathlib.Path:
    """Fill a disk up to `leave` bytes; return the file that does."""
    path = disk / "full"
    free = os.statvfs(disk)
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as file:
        for _ in range((free.f_bavail * free.f_frsize - leave) // 4096):
            file.write(bytes(4096))
    return path


# -- a runtime without Luigi -----------------------------------------------------------------------


@contextlib.contextmanager
def runtime(root: pathlib.Path, slots: int = 1) -> Iterator[tuple[LocalNode, Channel]]:
    """Start a node's runtime as a run does, and a session with it."""
    node = LocalNode(0, 1, slots, str(root))
    node.start()
    channel = Channel(node)
    try:
        yield node, channel
    finally:
        channel.close()
        node.close()


def asked(keys: Iterable[str], *commands: str) -> Event:
    """Return the message that runs a pipe of commands over keys."""
    stages = [
        {"step": f"S{n}", "command": command, "files": {}, "laws": [], "timeout_s": 0}
        for n, command in enumerate(commands)
    ]
    work = {"step": "Step", "mode": "map", "spec": "s", "env": {}, "stages": stages}
    source = {"url": "nowhere", "bytes": 0, "id": "source", "was": ["nowhere", 0, "etag"]}
    items = [{"key": key, "id": key, "inputs": [], "source": source} for key in keys]
    return {"op": "run", "work": work, "keys": items}


def shipping(files: dict[str, bytes]) -> Event:
    """Return the message that runs no key of a step that ships `files`."""
    message = asked([], "true")
    message["work"]["stages"][0]["files"] = {f"file{n}": digest for n, digest in enumerate(files)}
    return message
