"""Fixtures: a place to run in, the real taxi rows, and Luigi as a user starts it."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from faults import Trial
from s3_servers import Weed, started, strict_before

if TYPE_CHECKING:
    from ec2cloud import Cloud
    from ec2fleets import Ec2
    from ec2machines import Region
    from sshd import Hosts
    from typing_extensions import Self


ROOT = pathlib.Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "samples" / "taxi"

# Started by nohup, cron or in the background, Python inherits that these are ignored, and so would
# everything the tests start: but a user at a terminal can always press Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
for _ignored in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(_ignored, signal.SIG_DFL)


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
        """Return the command line of Luigi, of the workflows command or of Python."""
        program, *rest = words
        start = {"luigi": ["-m", "luigi"], "workflows": ["-m", "workflows"], "python": []}[program]
        return [sys.executable, *start, *rest]

    def luigi(self, task: str, *words: str, module: str = "mine", **kwargs: Any) -> "Done":
        """Run `luigi --module module task` over this place's source; wait for it."""
        rest = [] if "--source" in words else ["--source", "source", "--pattern", "*"]
        return self.run("luigi", "--module", module, task, *rest, *words, **kwargs)

    def run(self, *words: str, timeout: float = 120, **env: Any) -> "Done":
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


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Weed]":
    """Return a SeaweedFS for all tests of this process; each makes buckets of its own."""
    with started(tmp_path_factory.mktemp("weed")) as server:
        yield server


@pytest.fixture(scope="session")
def raw_moto() -> Iterator[tuple[str, int]]:
    """Return the address of a moto server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture(scope="session")
def moto(raw_moto: tuple[str, int]) -> Iterator[str]:
    """Return the URL of that server, behind one that is as strict as Amazon."""
    strict = strict_before(raw_moto)
    yield strict.url
    strict.close()


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

    def wait_for(
        self, what: "Callable[[], object]", within_s: float, every_s: float = 0.02
    ) -> float:
        """Wait until `what` holds; return how long that took."""
        started = time.monotonic()
        while not what():
            assert time.monotonic() - started < within_s, f"not within {within_s} s:\n{self.said}"
            time.sleep(every_s)
        return time.monotonic() - started

    def end(self, within_s: float = 60) -> int:
        """Wait for its end; return its exit code."""
        self.wait_for(lambda: self.process.poll() is not None, within_s)
        return int(self.process.returncode)


@pytest.fixture
def place(tmp_path: pathlib.Path) -> Place:
    """Return a fresh place to run in."""
    return Place(tmp_path)


@pytest.fixture(scope="session")
def new_place() -> Callable[[pathlib.Path], Place]:
    """Return what makes a place, for fixtures that live longer than a test."""
    return Place


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
def region(
    cloud: "Cloud", tmp_path: pathlib.Path, request: pytest.FixtureRequest
) -> "Iterator[Region]":
    """Return an empty VPC whose instances are real sshds on loopback addresses."""
    import sshd
    from ec2machines import Region

    if sshd.SSHD is None:
        pytest.skip("no sshd: apt-get install openssh-server")
    # Each test has delays of its own, always the same; TEST_SEED=1, 2, ... tries others.
    own = request.node.nodeid + os.environ.get("TEST_SEED", "")
    cloud.reset(zlib.crc32(own.encode()))
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


@pytest.fixture
def trial(place: Place) -> Iterator[Trial]:
    """Return a place for runs that faults are done to; in the end no process of it may be left."""
    trial = Trial(place)
    try:
        yield trial
        trial.await_silence()
    finally:
        trial.close()


class Keys:
    """A place whose fleet is used by the verbs alone, with short ways to type them."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.nodes = place.state / "nodes"
        self._started: list[subprocess.Popen[bytes]] = []

    def close(self) -> None:
        """End what a failed test left running."""
        for process in self._started:
            with process:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)

    def run(self, *words: str, stdin: bytes = b"", timeout: float = 60, **env: str) -> "Done":
        """Run a verb to its end."""
        done = subprocess.run(
            self.place.command("workflows", *words),
            cwd=self.place.path,
            env=dict(self.place.environ, **env),
            input=stdin,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        out = done.stdout.decode("utf-8", "surrogateescape")
        ended = Done(done.returncode, out, done.stderr.decode("utf-8", "replace"))
        assert "Traceback" not in ended.err, ended
        return ended

    def ok(self, *words: str, **kwargs: Any) -> str:
        """Run a verb that must succeed; return its stdout."""
        done = self.run(*words, **kwargs)
        assert done.code == 0, done
        return done.out

    def start(self, *words: str, **env: str) -> "subprocess.Popen[bytes]":
        """Start a verb in a process group of its own."""
        process = subprocess.Popen(
            self.place.command("workflows", *words),
            cwd=self.place.path,
            env=dict(self.place.environ, **env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def give(self, prefix: str, **files: "bytes | str") -> None:
        """Store several keys below a prefix; `__` in a name stands for a slash."""
        folder = self.place.path / "given"
        shutil.rmtree(folder, ignore_errors=True)
        for name, data in files.items():
            path = folder / name.removeprefix("k").replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data.encode() if isinstance(data, str) else data)
        self.ok("cp", "-r", str(folder), f"fleet://{prefix}")

    def names(self, step: str) -> list[str]:
        """Return a step's keys, as `ls -r` prints them."""
        return [line.split(None, 3)[3] for line in self.run("ls", "-r", step).out.splitlines()]

    def read(self, key: str) -> str:
        """Return a key's content."""
        return self.ok("cp", f"fleet://{key}", "-")

    def slot(self, key: str) -> int:
        """Return the node whose directory has a key's file."""
        return int(self.file(key).relative_to(self.nodes).parts[0])

    def file(self, key: str) -> pathlib.Path:
        """Return the file of a key, which is on one node alone."""
        step, _, rest = key.partition("/")
        found = [*self.nodes.glob(f"*/data/{step}/*/{rest}")]
        found += self.nodes.glob(f"*/data/{step}.pieces/*/{rest}")
        found = [path for path in found if path.is_file()]
        made = [path for path in found if ".pieces" in str(path)] or found
        assert len(made) == 1, (key, found)
        return made[0]


@pytest.fixture
def keys(place: Place) -> Iterator[Keys]:
    """Return the verbs' view of a fresh place with three nodes."""
    keys = Keys(place)
    yield keys
    keys.close()


@pytest.fixture
def six(keys: Keys) -> Keys:
    """Return the same with six keys of two lines: in/000_f0 to in/005_f5."""
    keys.give("in", **{f"k00{n}_f{n}": f"x{n}\ny{n}\n" for n in range(6)})
    return keys
