"""The seam to Luigi: nothing outside it touches a private part, and both ends of the range work."""

import ast
import pathlib
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Place

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Modules of Luigi whose names its documentation gives to users.
PUBLIC = {"luigi", "luigi.parameter", "luigi.execution_summary", "luigi.configuration"}
STEPS = """
import os, signal
import luigi
from workflows.steps import Map


class Copy(Map):
    command = 'read -r path; cat "$path"'


class Kept(Map):
    upstream = Copy
    command = "sed s/one/two/"
    durable = True


class Fails(Map):
    upstream = Copy
    command = 'echo "bad row" >&2; exit 3'


class Outside(luigi.Task):
    def output(self):
        return luigi.LocalTarget("outside")

    def run(self):
        with self.output().open("w") as file:
            file.write(str(os.getpid()))


class All(luigi.WrapperTask):
    def requires(self):
        return [Kept(), Outside()]
"""


def test_private_parts_of_luigi_are_touched_in_the_seam_alone() -> None:
    touched = set()

    for path in sorted((ROOT / "workflows").rglob("*.py")):
        if path.parent.name == "luigi_seam":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            wrong = {name for name in names if name.split(".")[0] == "luigi"} - PUBLIC
            touched |= {f"{path.relative_to(ROOT)}: {name}" for name in wrong}

    assert touched == set()


def test_every_module_of_the_seam_says_which_private_part_it_needs_and_why() -> None:
    import workflows.luigi_seam as seam

    modules = {path.stem for path in (ROOT / "workflows/luigi_seam").glob("[a-z]*.py")}
    table = seam.__doc__ or ""

    assert {name for name in modules if f"\n{name} " not in table} == set()


def test_importing_any_module_but_steps_leaves_luigi_as_it_is(place: "Place") -> None:
    program = """
import sys
import luigi, luigi.interface, luigi.scheduler, luigi.worker
delay = luigi.scheduler.scheduler.retry_delay
before = luigi.interface._WorkerSchedulerFactory, sys.excepthook, delay._default
import workflows.planning.plan, workflows.running.lifecycle, workflows.targets
import workflows.luigi_seam.install, workflows.luigi_seam.console, workflows.luigi_seam.worker
after = luigi.interface._WorkerSchedulerFactory, sys.excepthook, delay._default
assert before == after
assert not luigi.Task._event_callbacks, luigi.Task._event_callbacks
import workflows.steps
assert luigi.interface._WorkerSchedulerFactory is not before[0]
"""

    done = place.run("python", "-c", program)

    assert done.code == 0, done


def test_a_wrong_setting_is_told_when_a_run_begins_and_not_at_import(place: "Place") -> None:
    place.module(STEPS)
    place.key("a", b"one\n")

    imported = place.run("python", "-c", "import mine", WORKFLOWS_SLOTS="many")
    run = place.luigi("Copy", WORKFLOWS_SLOTS="many")

    assert run.code != 0
    assert "WORKFLOWS_SLOTS = many" in run.err
    assert "Traceback" not in imported.err + run.err


@pytest.mark.soak
@pytest.mark.parametrize("version", ["3.8.0", "3.8.1"])
def test_the_oldest_and_the_newest_luigi_run_steps(place: "Place", version: str) -> None:
    """Each is installed beside the tests from the package index."""
    own = place.path / f"luigi-{version}"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(own)]
    subprocess.run([*pip, f"luigi=={version}"], check=True, timeout=300)
    place.module(STEPS)
    place.key("a", b"one\n")
    path = f"{own}:{place.environ['PYTHONPATH']}"

    seen = place.run("python", "-c", "import luigi; print(luigi.__file__)", PYTHONPATH=path)
    place.more = {"WORKFLOWS_SOURCE": "source", "WORKFLOWS_PATTERN": "*"}
    done = place.run("luigi", "--module", "mine", "All", PYTHONPATH=path)
    failed = place.luigi("Fails", PYTHONPATH=path)
    again = place.luigi("Kept", PYTHONPATH=path)

    assert f"luigi-{version}" in seen.out
    assert done.code == 0, done
    assert place.outputs("Kept") == {"a": b"two\n"}
    assert (place.path / "outside").exists()
    assert failed.code == 30, failed
    assert "bad row" in failed.err
    assert again.code == 0, again
