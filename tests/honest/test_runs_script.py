"""run_pipeline.sh tells the truth about its result, its lock and its exit code."""

import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable

import pytest
from test_run_pipeline import Clone, clone, plain_environment, wait_until

__all__ = ["clone"]  # a fixture

OLD = "the last good result\n"


def shell(clone: Clone, line: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a line of sh in the project's directory, as cron runs one."""
    return subprocess.run(
        ["sh", "-c", line],
        cwd=clone.root,
        env=plain_environment() | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def files(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def result(clone: Clone, tmp_path: pathlib.Path) -> pathlib.Path:
    """Return yesterday's result, alone in a directory."""
    folder = tmp_path / "a user's results"
    folder.mkdir()
    path = folder / "rides.txt"
    path.write_text(OLD)
    return path


# -- a result that does not reach its reader -------------------------------------------------------


@pytest.mark.parametrize(
    ("redirection", "why"),
    [
        (">/dev/full", "No space left on device"),
        ("| (exec <&-; until [ -e ended ]; do sleep 0.02; done)", "Broken pipe"),
    ],
)
def test_a_result_that_cannot_be_written_to_stdout_is_said_in_one_line_and_exits_74(
    clone: Clone, redirection: str, why: str
) -> None:
    clone.luigi("echo 1=5134")

    done = shell(clone, f"{{ ./run_pipeline.sh; echo $? > code; touch ended; }} {redirection}")

    assert (clone.root / "code").read_text() == "74\n", done
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"run_pipeline.sh: the result could not be written to stdout: {why}. It is kept: see "
    )
    assert "1=5134\n" in pathlib.Path(line.partition("see ")[2]).read_text()


def test_a_run_whose_stdout_is_closed_is_refused_before_anything_runs(clone: Clone) -> None:
    clone.luigi("touch started; echo 1=5134")

    done = shell(clone, "exec ./run_pipeline.sh >&-")

    assert done.returncode == 2
    assert done.stderr == (
        "run_pipeline.sh: stdout is closed, so the result would be lost;"
        " add --to FILE, or >/dev/null if you do not want it\n"
    )
    assert not (clone.root / "started").exists()


def test_a_run_whose_stderr_is_closed_prints_the_result_alone(clone: Clone) -> None:
    clone.luigi("echo progress >&2; echo 1=5134")

    done = shell(clone, "exec ./run_pipeline.sh 2>&-")

    assert (done.returncode, done.stdout) == (0, "1=5134\n")


def test_a_failed_run_whose_stdout_is_full_keeps_the_exit_code_of_its_failure(clone: Clone) -> None:
    clone.luigi("echo half; exit 30")

    assert shell(clone, "exec ./run_pipeline.sh >/dev/full").returncode == 30


# -- --to FILE -------------------------------------------------------------------------------------


def test_a_result_replaces_the_file_of_to_with_the_permissions_of_the_umask(
    clone: Clone, result: pathlib.Path
) -> None:
    clone.luigi("echo new")

    for mask in ("022", "077"):
        done = shell(clone, f'umask {mask}; exec ./run_pipeline.sh --to "$TO"', TO=str(result))

        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done
        assert result.read_text() == "new\n"
        assert stat.S_IMODE(result.stat().st_mode) == 0o666 & ~int(mask, 8)
        assert files(result.parent) == ["rides.txt"]
        result.write_text(OLD)


def test_to_follows_a_link_and_is_relative_to_where_the_user_is(
    clone: Clone, result: pathlib.Path
) -> None:
    clone.luigi("echo new")
    (result.parent / "link.txt").symlink_to(result)

    done = subprocess.run(
        [clone.root / "run_pipeline.sh", "--to=link.txt"],
        cwd=result.parent,
        env=plain_environment(),
        capture_output=True,
        text=True,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert (result.parent / "link.txt").is_symlink()
    assert result.read_text() == "new\n"


@pytest.mark.parametrize(
    ("luigi", "arguments", "code"),
    [
        ("echo half; exit 30", [], 30),
        ("echo half; sleep 300", ["--timeout", "1"], 124),
        ("echo half; kill -9 $$", [], 137),
        ("true", [], 74),
    ],
    ids=["failed", "too late", "killed", "nothing printed"],
)
def test_a_run_that_does_not_succeed_leaves_the_file_of_to_as_it_was(
    clone: Clone, result: pathlib.Path, luigi: str, arguments: list[str], code: int
) -> None:
    clone.luigi(luigi)

    done = clone.run("--to", str(result), *arguments, WORKFLOWS_GRACE="1")

    assert done.returncode == code, done
    assert result.read_text() == OLD
    assert files(result.parent) == ["rides.txt"]


def test_a_run_that_ends_in_a_signal_leaves_the_file_of_to_as_it_was(
    clone: Clone, result: pathlib.Path
) -> None:
    clone.luigi("echo half; touch started; sleep 300")
    process = clone.start("--to", str(result))
    wait_until((clone.root / "started").exists, 60)

    process.terminate()
    process.communicate(timeout=60)

    assert process.returncode == 143
    assert result.read_text() == OLD
    assert files(result.parent) == ["rides.txt"]


def program(clone: Clone, name: str, text: str) -> dict[str, str]:
    """Put a program before those of the system."""
    folder = clone.root.parent / "programs"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


FULL_DISK = """import os
whole = os.{broken}
def full(file, *rest, **more):
    new = file if isinstance(file, str) else os.readlink(f"/proc/self/fd/{{file}}")
    if os.path.basename(new).startswith(".rides.txt."):
        raise OSError(28, "No space left on device")
    return whole(file, *rest, **more)
os.{broken} = full
"""


def at_start_of_python(clone: Clone, text: str) -> dict[str, str]:
    """Let each Python run a text when it starts."""
    folder = clone.root.parent / "faults"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(text)
    return {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize("broken", ["fsync", "rename", "open"])
def test_a_disk_that_fills_up_at_the_end_leaves_the_file_of_to_and_exits_74(
    clone: Clone, result: pathlib.Path, broken: str
) -> None:
    clone.luigi("echo new")
    environment = at_start_of_python(clone, FULL_DISK.format(broken=broken))

    done = clone.run("--to", str(result), **environment)

    assert done.returncode == 74
    assert done.stderr.startswith(
        f"run_pipeline.sh: the result could not be written to {result}: No space left on device."
        f" {result} is left as it was; the result is kept: see "
    )
    assert result.read_text() == OLD
    assert files(result.parent) == ["rides.txt"]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("{0}", "--to {0} is not a regular file"),
        ("/dev/null", "--to /dev/null is not a regular file"),
        ("{0}/no/rides.txt", "--to {0}/no/rides.txt: there is no such directory"),
        ("", "--to needs the name of a file"),
    ],
)
def test_a_to_that_cannot_be_replaced_is_refused_before_anything_runs(
    clone: Clone, result: pathlib.Path, place: str, message: str
) -> None:
    clone.luigi("touch started")

    for words in (["--to", place.format(result.parent)], [f"--to={place.format(result.parent)}"]):
        done = clone.run(*words)

        said = f"run_pipeline.sh: {message.format(result.parent)}\n"
        assert (done.returncode, done.stderr) == (2, said)
    assert not (clone.root / "started").exists()


# -- a lock that cannot be written -----------------------------------------------------------------

LOCK = ".workflows/lock/workflows.tasks.MergeCounts"


def replaced(clone: Clone, name: str, put: Callable[[pathlib.Path], object]) -> None:
    path = clone.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    put(path)


FULL: Callable[[pathlib.Path], object] = lambda path: path.symlink_to("/dev/full")  # noqa: E731
GONE: Callable[[pathlib.Path], object] = lambda path: path.symlink_to("/no/such/place")  # noqa: E731


@pytest.mark.parametrize(
    ("name", "put", "why"),
    [
        (LOCK, pathlib.Path.mkdir, "Is a directory"),
        (LOCK, FULL, "No space left on device"),
        (LOCK, GONE, "No such file or directory"),
        (".workflows/lock/.venv", pathlib.Path.mkdir, "Is a directory"),
        (".workflows/lock", pathlib.Path.touch, "File exists"),
        (".workflows", pathlib.Path.touch, "Not a directory"),
    ],
)
def test_a_lock_that_cannot_be_written_is_not_taken_for_one_that_somebody_holds(
    clone: Clone, name: str, put: Callable[[pathlib.Path], object], why: str
) -> None:
    replaced(clone, name, put)
    clone.luigi("touch started")

    done = clone.run()

    assert done.returncode == 73, done
    (line,) = done.stderr.splitlines()
    assert line.startswith("run_pipeline.sh: cannot write ")
    assert f"{clone.root}/{name}" in line or f"{clone.root}/.workflows" in line
    assert why in line
    assert "already running" not in line
    assert not (clone.root / "started").exists()


def test_a_file_system_without_locks_is_not_taken_for_a_lock_that_somebody_holds(
    clone: Clone,
) -> None:
    done = clone.run(**program(clone, "flock", "exit 1"))

    assert done.returncode == 73
    assert "cannot lock " in done.stderr
    assert "already running" not in done.stderr


def test_without_flock_a_lock_that_fails_is_not_taken_for_one_that_somebody_holds(
    clone: Clone, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "bin").mkdir()
    for name in ["bash", "cat", "cmp", "mkdir", "readlink", "rm", "sleep"]:
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or name)
    broken = tmp_path / "python"
    broken.write_text('#!/bin/sh\n[ "$1" = -c ] || exit 1\n')
    broken.chmod(0o755)

    done = clone.run(PATH=f"{tmp_path}/bin", PYTHON=str(broken))

    assert done.returncode == 73, done
    assert "already running" not in done.stderr


# -- exit codes ------------------------------------------------------------------------------------


def documented(clone: Clone) -> set[int]:
    text = clone.run("--help").stdout.partition("exit codes:")[2]
    return {int(number) for number in re.findall(r"(?:^|[\s,])(\d+)(?=[\s,])", text)}


def no_environment(clone: Clone) -> int:
    with (clone.root / "requirements.txt").open("a") as pins:
        pins.write("# a change\n")
    offline = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "/dev/null", "PYTHON": sys.executable}
    return clone.run(**offline).returncode


def already_running(clone: Clone) -> int:
    clone.luigi("touch started; sleep 300")
    clone.start()
    wait_until((clone.root / "started").exists, 60)
    return clone.run().returncode


def ended_by(number: int) -> Callable[[Clone], int]:
    def end(clone: Clone) -> int:
        clone.luigi("touch started; sleep 300")
        process = clone.start(WORKFLOWS_GRACE="1")
        wait_until((clone.root / "started").exists, 60)
        os.kill(process.pid, number)
        return process.wait(60)

    return end


def fleet_stays(clone: Clone) -> int:
    clone.luigi("echo new")
    verb = clone.root / ".venv/bin/workflows"
    verb.write_text('#!/bin/bash\n[[ "$2" == up ]]\n')
    verb.chmod(0o755)
    return clone.run("--fleet", "ec2:crawl").returncode


def said_by(text: str) -> Callable[[Clone], int]:
    def run(clone: Clone) -> int:
        clone.luigi(text)
        return clone.run("--timeout", "1").returncode

    return run


def full(clone: Clone) -> int:
    clone.luigi("echo new")
    return shell(clone, "exec ./run_pipeline.sh > /dev/full").returncode


def no_lock(clone: Clone) -> int:
    replaced(clone, LOCK, pathlib.Path.mkdir)
    return clone.run().returncode


@pytest.mark.parametrize(
    ("code", "stage"),
    [
        (0, said_by("echo new")),
        (1, no_environment),
        (1, fleet_stays),
        (2, lambda clone: clone.run("--timeout", "soon").returncode),
        (2, lambda clone: clone.run(LUIGI_CONFIG_PATH="no.cfg").returncode),
        (10, already_running),
        (30, said_by("exit 30")),
        (73, no_lock),
        (74, full),
        (124, said_by("sleep 300")),
        (129, ended_by(1)),
        (130, ended_by(2)),
        (143, ended_by(15)),
    ],
)
def test_each_stage_that_can_fail_exits_as_help_says(
    clone: Clone, code: int, stage: Callable[[Clone], int]
) -> None:
    assert stage(clone) == code
    assert code in documented(clone)
