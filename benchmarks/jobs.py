"""The main job twice: as this project runs it, and its floor, the same commands under ``xargs -P``.

Both start from nothing, read the same files, leave the same files on the same file system, and
their results are compared.
"""

import glob
import os
import pathlib
import shlex
import shutil
from collections.abc import Callable, Sequence
from typing import NamedTuple

from benchmarks import data, measure
from benchmarks.measure import Took
from workflows import tasks
from workflows.fleets.fleet import open_fleet
from workflows.node.work import BASH

ROOT = pathlib.Path(__file__).resolve().parent.parent
# The user's own environment, not the developer's: what is installed there, Luigi may import.
PYTHON = ROOT / ".venv/bin/python"
NODES = 3
_BIG = 1 << 20  # bytes
KEYED_STEPS = 4  # Fetch, Select, GroupCount, Shuffle; MergeCounts is one key whatever comes in
CORES = len(os.sched_getaffinity(0))


class ResultsDiffer(Exception):
    """Two ways to do the same job came to different results."""


def slots(nodes: int = NODES) -> int:
    """Return how many commands the fleet runs at once, all nodes together."""
    fleet = open_fleet(f"local:{nodes}", state="unused", slots=0)
    return sum(node.slots for node in fleet.nodes)


def floor_sizes() -> list[int]:
    """Return how many processes floors have: as many as cores, one more, as the fleet has slots."""
    return sorted({CORES, CORES + 1, slots()})


class Ours(NamedTuple):
    """The job as a user starts it: luigi, from a fresh process, on local nodes."""

    folder: str
    source: str
    fuse: bool = False
    nodes: int = NODES

    def clean(self) -> None:
        """Forget all earlier runs."""
        _fresh(self.folder)
        os.mkdir(os.path.join(self.folder, ".workflows"))

    def run(self, *, watch_memory: bool = False) -> Took:
        """Run the job, or what is left of it."""
        argv = [str(PYTHON), "-m", "luigi", "--module", "workflows.tasks", "MergeCounts"]
        argv += ["--source", self.source, "--pattern", "*", "--fleet", f"local:{self.nodes}"]
        argv += ["--checkpoint", ".workflows/checkpoint", *(["--fuse"] if self.fuse else [])]
        environ = {
            name: value for name, value in os.environ.items() if not name.startswith("WORKFLOWS_")
        }
        environ["PYTHONPATH"] = str(ROOT)
        environ["LUIGI_CONFIG_PATH"] = str(ROOT / "luigi.cfg")
        return measure.run(argv, cwd=self.folder, env=environ, watch_memory=watch_memory)

    def result(self) -> bytes:
        """Return what the job came to."""
        pattern = os.path.join(self.folder, ".workflows/checkpoint/MergeCounts/*/data/*/results")
        return _only(glob.glob(pattern))


class Floor(NamedTuple):
    """The same commands on the same files under xargs: one pass a step, or one pipe a key."""

    folder: str
    source: str
    processes: int
    fuse: bool = False

    def clean(self) -> None:
        """Forget all earlier runs; lay out the folders and scripts that nodes get shipped."""
        _fresh(self.folder)
        for step in ("Fetch", "Select", "GroupCount", "Shuffle", "MergeCounts"):
            os.mkdir(os.path.join(self.folder, step))
        for script in (ROOT / "workflows/scripts").glob("*.*"):
            shutil.copy(script, self.folder)
        names = sorted(os.listdir(self.source))
        pathlib.Path(self.folder, "names").write_bytes(b"".join(map(_terminated, names)))
        pathlib.Path(self.folder, "floor.sh").write_text(self.script())

    def run(self) -> Took:
        """Run the job."""
        environ = dict(os.environ, LC_ALL="C", IN=self.source, OUT=self.folder)
        return measure.run(["bash", "--norc", "floor.sh"], cwd=self.folder, env=environ)

    def result(self) -> bytes:
        """Return what the job came to."""
        return _only(glob.glob(os.path.join(self.folder, "MergeCounts/results")))

    def script(self) -> str:
        """Return the passes over all keys, each key by a strict bash of its own, as on nodes."""
        fetch, select, count, shuffle, merge = commands()
        fetch = f'{fetch} <<< "$IN/$0"'
        if self.fuse:
            passes = [f'{fetch} | {select} | {count} > "$OUT/GroupCount/$0"']
        else:
            passes = [
                f'{fetch} > "$OUT/Fetch/$0"',
                f'{select} < "$OUT/Fetch/$0" > "$OUT/Select/$0"',
                f'{count} < "$OUT/Select/$0" > "$OUT/GroupCount/$0"',
            ]
        passes.append(f'cd "$OUT/Shuffle/$0"; exec < "$OUT/GroupCount/$0"; {shuffle}')
        lines = ["set -euo pipefail", "(cd Shuffle; exec xargs -0 mkdir) < names"]
        for each in passes:
            named = f"export filename=$0; {each}"
            argv = ["xargs", "-0", "-n", "1", "-P", str(self.processes), *BASH, named]
            lines.append(shlex.join(argv) + " < names > pieces")
        lines.append('find "$OUT/Shuffle" -type f | sort > paths')
        lines.append(shlex.join([*BASH, merge]) + ' < paths > "$OUT/MergeCounts/results"')
        return "\n".join(lines) + "\n"


def commands() -> list[str]:
    """Return the commands of the five steps, as the pipeline itself states them."""
    steps = (tasks.Fetch, tasks.Select, tasks.GroupCount, tasks.Shuffle, tasks.MergeCounts)
    return [step().command for step in steps]


def alternate(
    jobs: Sequence["tuple[str, Ours | Floor]"],
    rounds: int,
    say: Callable[[str], None],
) -> dict[str, list[Took]]:
    """Run the jobs in turn, `rounds` times, each time another one first; return what each took.

    Every run has a folder of its own. Its big files are emptied at once, for all of them would not
    fit; all is removed at the end: ext4 does not reuse an inode for a minute, and whenever it needs
    one looks at all that were just freed. Removing files would slow down what is measured next.

    Raises:
        ResultsDiffer: not all came to the same bytes.
    """
    took: dict[str, list[Took]] = {name: [] for name, _ in jobs}
    results: dict[bytes, str] = {}
    folders: list[str] = []
    turns = list(jobs)
    for number in range(rounds):
        turns.append(turns.pop(0))
        for name, job in turns:
            here = job._replace(folder=f"{job.folder}-{len(folders)}")
            folders.append(here.folder)
            here.clean()
            measure.level(data.size(job.source))
            one = here.run()
            took[name].append(one)
            results.setdefault(here.result(), name)
            say(f"round {number + 1}: {name}: {one.wall_s:.2f} s, CPU {one.cpu_s:.2f} s")
            _empty(here.folder)
            if len(results) > 1:
                raise ResultsDiffer(f"{' and '.join(results.values())} differ: {list(results)}")
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return took


def _fresh(folder: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)


def _empty(folder: str) -> None:
    """Give back the disk space of a folder, but no inode."""
    for path in pathlib.Path(folder).rglob("*"):
        if path.is_file() and path.stat().st_size > _BIG:
            path.chmod(0o600)
            os.truncate(path, 0)


def _terminated(name: str) -> bytes:
    return os.fsencode(name) + b"\0"


def _only(paths: list[str]) -> bytes:
    if len(paths) != 1:
        raise ResultsDiffer(f"expected one result, found {paths}")
    return pathlib.Path(paths[0]).read_bytes()
