"""Fixtures: a place to run in, the real taxi rows, and Luigi as a user starts it."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ec2cloud import Cloud
    from ec2fleets import Ec2
    from ec2machines import Region
    from sshd import Hosts
    from typing_extensions import Self

ROOT = pathlib.Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "samples" / "taxi"


class Place:
    """A directory with a luigi.cfg, in which Luigi and the verbs are run as a user runs them."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.source = path / "source"
        self.source.mkdir()
        self.state = path / ".workflows"
        self.checkpoint = self.state / "checkpoint"
        (path / "luigi.cfg").write_text((ROOT / "luigi.cfg").read_text())

        self.more: dict[str, str] = {}  # for the environment

    @property
    def environ(self) -> dict[str, str]:
        """Return a user's environment, with the package and this place importable."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("WORKFLOWS_", "LUIGI_"))}
        return dict(
            kept,
            PATH=os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]),
            PYTHONPATH=os.pathsep.join([str(ROOT), str(self.path)]),
            PYTHONDONTWRITEBYTECODE="1",
            **self.more,
        )

    def key(self, name: str, data: bytes) -> pathlib.Path:
        """Write a source key."""
        path = self.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def module(self, text: str, name: str = "mine") -> None:
        """Write a user's own module of steps."""
        (self.path / f"{name}.py").write_text(text)

    def command(self, *words: str) -> list[str]:
        """Return the command line of Luigi or of the workflows command."""
        program, *rest = words
        start = {"luigi": "luigi", "workflows": "workflows"}[program]
        return [sys.executable, "-m", start, *rest]

    def luigi(self, task: str, *words: str, module: str = "mine", **kwargs: Any) -> "Done":
        """Run `luigi --module module task` over this place's source; wait for it."""
        rest = [] if "--source" in words else ["--source", "source", "--pattern", "*"]
        return self.run("luigi", "--module", module, task, *rest, *words, **kwargs)

    def run(self, *words: str, timeout: float = 120, **env: str) -> "Done":
        """Run a command to its end."""
        done = subprocess.run(
            self.command(*words),
            cwd=self.path,
            env=dict(self.environ, **env),
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        out = done.stdout.decode("utf-8", "surrogateescape")
        return Done(done.returncode, out, done.stderr.decode("utf-8", "surrogateescape"))

    def start(self, *words: str, prefix: tuple[str, ...] = ()) -> "Running":
        """Start a command, behind the words of `prefix`, and do not wait for it."""
        return Running(self, [*prefix, *self.command(*words)])

    def ledger(self, step: str) -> list[dict[str, Any]]:
        """Return every ledger line of a step on all nodes, in order of time."""
        lines = []
        for path in (self.state / "nodes").glob(f"*/ledger/{step}.jsonl"):
            slot = int(path.parent.parent.name)
            lines += [dict(json.loads(line), slot=slot) for line in path.read_text().splitlines()]
        return sorted(lines, key=lambda line: line.get("at", 0))

    def outputs(self, step: str) -> dict[str, bytes]:
        """Return key -> bytes of everything a step has on the nodes, by the ledgers."""
        found = {}
        for line in self.ledger(step):
            path = self.output_path(step, line)
            if path.is_file():
                found[line["key"]] = path.read_bytes()
        return found

    def output_path(self, step: str, line: dict[str, Any]) -> pathlib.Path:
        """Return the file of a ledger line."""
        node = self.state / "nodes" / str(line["slot"])
        return node / "data" / str(step) / str(line["id"]) / str(line["key"])

    def leftovers(self) -> list[str]:
        """Return the temporary files of this place: there must be none after a run."""
        nodes = (self.state / "nodes").glob("*/tmp/*")
        return [str(path) for path in [*nodes, *(self.checkpoint / ".tmp").glob("*")]]


class Done:
    """How a command ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def __repr__(self) -> str:
        return f"exit {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


class Running:
    """A command on its way; a context manager that leaves nothing running."""

    def __init__(self, place: Place, argv: list[str]) -> None:
        self.path = place.path / "running.err"
        self._err = self.path.open("wb")
        self.process = subprocess.Popen(
            argv,
            cwd=place.path,
            env=place.environ,
            stdin=subprocess.DEVNULL,
            stdout=self._err,
            stderr=self._err,
            start_new_session=True,
        )

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._err.close()

    @property
    def said(self) -> str:
        """Return what it has printed so far."""
        return self.path.read_text(errors="replace")

    def wait_for(self, what: "Callable[[], object]", within_s: float) -> float:
        """Wait until `what` holds; return how long that took."""
        started = time.monotonic()
        while not what():
            assert time.monotonic() - started < within_s, f"not within {within_s} s:\n{self.said}"
            time.sleep(0.02)
        return time.monotonic() - started

    def end(self, within_s: float = 60) -> int:
        """Wait for its end; return its exit code."""
        self.wait_for(lambda: self.process.poll() is not None, within_s)
        return int(self.process.returncode)


@pytest.fixture
def place(tmp_path: pathlib.Path) -> Place:
    """Return a fresh place to run in."""
    return Place(tmp_path)


@pytest.fixture
def hosts(tmp_path: pathlib.Path) -> "Iterator[Hosts]":
    """Return an empty fleet of sshds on loopback addresses; `add` starts some."""
    import sshd

    if sshd.SSHD is None:
        pytest.skip("no sshd: apt-get install openssh-server")
    found = sshd.Hosts(tmp_path / "hosts")
    yield found
    found.close()


@pytest.fixture(scope="session")
def cloud() -> "Iterator[Cloud]":
    """Return this process's stand-in for AWS."""
    from ec2cloud import Cloud

    made = Cloud()
    yield made
    made.close()


@pytest.fixture
def region(cloud: "Cloud", tmp_path: pathlib.Path) -> "Iterator[Region]":
    """Return an empty VPC whose instances are real sshds on loopback addresses."""
    import sshd
    from ec2machines import Region

    if sshd.SSHD is None:
        pytest.skip("no sshd: apt-get install openssh-server")
    cloud.reset()
    found = Region(cloud, tmp_path / "ec2")
    yield found
    found.close()


@pytest.fixture
def ec2(region: "Region", place: Place, monkeypatch: pytest.MonkeyPatch) -> "Ec2":
    """Return a fleet in that VPC, and the commands over it; this process may use it too."""
    from ec2fleets import Ec2

    made = Ec2(region, place)
    for name, value in place.more.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(place.path)
    return made


@pytest.fixture
def taxi(place: Place) -> Place:
    """Return a place whose source holds the bundled taxi months."""
    for path in sorted(SAMPLES.glob("*.csv")):
        place.key(path.name, path.read_bytes())
    return place
