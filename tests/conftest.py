"""Fixtures: a place to run in, the real taxi rows, and Luigi as a user starts it."""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from s3_servers import Weed, started

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

    @property
    def environ(self) -> dict[str, str]:
        """Return a user's environment, with the package and this place importable."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("WORKFLOWS_", "LUIGI_"))}
        return dict(
            kept,
            PATH=os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]),
            PYTHONPATH=os.pathsep.join([str(ROOT), str(self.path)]),
            PYTHONDONTWRITEBYTECODE="1",
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
def moto() -> Iterator[str]:
    """Return the URL of a moto server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


class Done:
    """How a command ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def __repr__(self) -> str:
        return f"exit {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


@pytest.fixture
def place(tmp_path: pathlib.Path) -> Place:
    """Return a fresh place to run in."""
    return Place(tmp_path)


@pytest.fixture
def taxi(place: Place) -> Place:
    """Return a place whose source holds the bundled taxi months."""
    for path in sorted(SAMPLES.glob("*.csv")):
        place.key(path.name, path.read_bytes())
    return place
