"""Plain `luigi`, without a luigi.cfg of ours, tells the truth; what the user says wins."""

import configparser
import json
import pathlib
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from workflows.luigi_seam import install

if TYPE_CHECKING:
    from conftest import Done, Place

ROOT = pathlib.Path(__file__).resolve().parents[2]
MINE = """
import luigi

from workflows.steps import Map


class Copy(Map):
    command = '[[ $filename != bad ]] || exit 3; cat "$(cat)"'
    durable = True


if __name__ == "__main__":
    import sys

    words = dict(source="source", pattern="*")
    if sys.argv[1] == "build":
        sys.exit(not luigi.build([Copy(**words)]))
    sys.exit(not luigi.run(["Copy", "--source", "source", "--pattern", "*"]))
"""


@pytest.fixture
def plain(place: "Place") -> "Place":
    """Return a place without a luigi.cfg, with a good key and a bad one."""
    (place.path / "luigi.cfg").unlink()
    place.module(MINE)
    place.key("good", b"one\n")
    return place


def started(place: "Place", how: str) -> "Done":
    """Run the pipeline the way a user of Luigi may."""
    words = ["--module", "mine", "Copy", "--source", "source", "--pattern", "*"]
    if how == "luigi":
        from conftest import Done

        program = pathlib.Path(sys.executable).with_name("luigi")
        done = subprocess.run(
            [program, *words],
            cwd=place.path,
            env=place.environ,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return Done(done.returncode, done.stdout, done.stderr)
    return place.run(
        *(["luigi", *words] if how == "python -m luigi" else ["python", "mine.py", how])
    )


@pytest.mark.parametrize(
    ("how", "code"), [("luigi", 30), ("python -m luigi", 30), ("build", 1), ("run", 1)]
)
def test_a_failed_key_fails_plain_luigi_at_once_and_without_its_debug_log(
    plain: "Place", how: str, code: int
) -> None:
    good = started(plain, how)
    plain.key("bad", b"two\n")

    bad = started(plain, how)

    assert good.code == 0, good
    assert good.out.endswith("one\n")
    assert bad.code == code, bad
    assert bad.out == ""
    assert "Copy of bad on node " in bad.err
    for run in (good, bad):
        assert "DEBUG" not in run.err
        assert "INFO: Informed" not in run.err
        assert "luigid" not in run.err


SETTINGS = """
import json, sys
import luigi, luigi.interface, luigi.retcodes, luigi.worker, luigi.configuration
from luigi.cmdline_parser import CmdlineParser

def found():
    core, worker = luigi.interface.core(**json.loads(sys.argv[1])), luigi.worker.worker()
    codes = luigi.retcodes.retcode()
    config = luigi.configuration.get_config()
    return {
        "local_scheduler": core.local_scheduler, "scheduler_port": core.scheduler_port,
        "workers": core.workers, "log_level": core.log_level, "wait_interval": worker.wait_interval,
        "task_failed": codes.task_failed, "not_run": codes.not_run,
        "retries": config.getint("core", "rpc_retry_attempts", 3),
    }

import workflows.steps
from workflows.luigi_seam.install import install
install({}, print, print)  # again: it changes nothing
if sys.argv[2:]:
    with CmdlineParser.global_instance(sys.argv[2:]):
        print(json.dumps(found()))
else:
    print(json.dumps(found()))
"""
FILLED = {
    "local_scheduler": True,
    "scheduler_port": 8082,
    "workers": 8,
    "log_level": "WARNING",
    "wait_interval": 0.05,
    "task_failed": 30,
    "not_run": 25,
    "retries": 10,
}
TASK = ("Task",)


@pytest.mark.parametrize(
    ("config", "given", "words", "differs"),
    [
        ("", {}, (), {}),
        ("[retcode]\ntask_failed = 7\n", {}, (), {"task_failed": 7}),
        ("[retcode]\nnot_run = 0\n", {}, TASK, {"not_run": 0}),
        ("[core]\nworkers = 1\nlog_level = DEBUG\n", {}, (), {"workers": 1, "log_level": "DEBUG"}),
        ("[core]\nrpc-retry-attempts = 2\n", {}, (), {"retries": 2}),
        ("[core]\nworker-wait-interval = 3\n", {}, (), {"wait_interval": 3.0}),
        ("[core]\nlocal_scheduler = false\n", {}, (), {"local_scheduler": False}),
        (
            "[core]\nscheduler_port = 8083\n",
            {},
            (),
            {"local_scheduler": False, "scheduler_port": 8083},
        ),
        ("[core]\ndefault-scheduler-host = localhost\n", {}, (), {"local_scheduler": False}),
        ("[core]\nscheduler_host = x\nlocal_scheduler = true\n", {}, (), {}),
        ("", {}, ("--scheduler-host", "localhost", *TASK), {"local_scheduler": False}),
        ("", {}, ("--scheduler-url", "http://localhost", *TASK), {"local_scheduler": False}),
        ("", {}, ("--local-scheduler", "--scheduler-host", "x", *TASK), {}),
        ("", {}, ("--workers", "3", *TASK), {"workers": 3}),
        (
            "[core]\nworkers = 2\n",
            {},
            ("--log-level", "INFO", *TASK),
            {"workers": 2, "log_level": "INFO"},
        ),
        ("", {"local_scheduler": False}, (), {"local_scheduler": False}),
        ("", {"scheduler_port": 8083}, (), {"local_scheduler": False, "scheduler_port": 8083}),
        ("", {"workers": 5}, (), {"workers": 5}),
    ],
)
def test_what_the_user_says_beats_what_is_filled_in(
    tmp_path: pathlib.Path,
    config: str,
    given: dict[str, Any],
    words: tuple[str, ...],
    differs: dict[str, Any],
) -> None:
    (tmp_path / "a.cfg").write_text(config)

    done = subprocess.run(
        [sys.executable, "-c", SETTINGS, json.dumps(given), *words],
        cwd=tmp_path,
        env={"LUIGI_CONFIG_PATH": str(tmp_path / "a.cfg"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert json.loads(done.stdout) == {**FILLED, **differs}


def test_what_is_filled_in_is_what_luigi_cfg_says() -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "luigi.cfg")

    for table in (install.DEFAULTS, install.READ_LATER):
        for section, values in table.items():
            said = {
                name: type(value)(parser[section][name])
                if not isinstance(value, bool)
                else parser[section].getboolean(name)
                for name, value in values.items()
            }
            assert said == values


def test_what_is_filled_in_is_documented() -> None:
    reference = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
    part = reference.partition("### Luigi's own settings")[2].partition("\n## ")[0]

    for table in (install.DEFAULTS, install.READ_LATER):
        for section, values in table.items():
            row = next(line for line in part.splitlines() if line.startswith(f"| `[{section}]` |"))
            assert [name for name in values if f"`{name}`" not in row] == []
