"""run_pipeline.sh, with a stub for luigi in an environment; the real set-up with -m fresh."""

import contextlib
import dataclasses
import os
import pathlib
import pty
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPT_FILES = ["run_pipeline.sh", "requirements.txt", "requirements-dev.txt", "pyproject.toml"]
PIDS = "echo $$ > pid.luigi; sleep 300 & echo $! > pid.child; "
INTERRUPTED = (
    "run_pipeline.sh: interrupted: finished work is kept, run the same again to continue\n"
)


@dataclasses.dataclass
class Clone:
    """A copy of the project whose luigi is whatever shell text a test says."""

    root: pathlib.Path
    started: list[subprocess.Popen[str]] = dataclasses.field(default_factory=list)

    def luigi(self, text: str) -> None:
        stub = self.root / ".venv/bin/luigi"
        stub.write_text(f"#!/bin/bash\n{text}\n")
        stub.chmod(0o755)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["./run_pipeline.sh", *arguments],
            cwd=self.root,
            env=plain_environment() | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def logs(self) -> list[pathlib.Path]:
        return sorted((self.root / ".workflows/logs").glob("run-*.log"))

    def pid(self, name: str) -> int:
        path = self.root / f"pid.{name}"
        wait_until(lambda: path.exists() and path.read_text().endswith("\n"))
        return int(path.read_text())


def plain_environment() -> dict[str, str]:
    """What cron gives: no more."""
    return {"HOME": os.environ.get("HOME", "/"), "PATH": "/usr/bin:/bin"}


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has collected yet does not."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def make_environment(root: pathlib.Path) -> None:
    """Make a .venv with the packages of the Python that runs the tests, and no programs."""
    (root / ".venv/bin").mkdir(parents=True)
    (root / ".venv/bin/python").symlink_to(sys.executable)
    (root / ".venv/lib").symlink_to(pathlib.Path(sys.prefix, "lib"))
    shutil.copy(pathlib.Path(sys.prefix, "pyvenv.cfg"), root / ".venv")
    write_fingerprint(root)


def write_fingerprint(root: pathlib.Path) -> None:
    """Say that .venv is up to date, the way the script does."""
    python = os.path.realpath(root / ".venv/bin/python")
    made_from = f"directory {root}\npython {python}\nasked for \n"
    for name in ["requirements.txt", "pyproject.toml"]:
        made_from += (root / name).read_text(encoding="utf-8")
    (root / ".venv/.made-from").write_text(made_from, encoding="utf-8")


@pytest.fixture
def clone(tmp_path: pathlib.Path) -> Iterator[Clone]:
    root = tmp_path.resolve() / "a project's path"
    root.mkdir()
    for name in SCRIPT_FILES:
        shutil.copy(ROOT / name, root)
    (root / "luigi.cfg").touch()
    make_environment(root)
    made = Clone(root)
    made.luigi("true")
    yield made
    for process in made.started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_the_main_pipeline_runs_with_the_arguments_given(clone: Clone) -> None:
    clone.luigi("printf '%s\\n' \"$@\"")

    done = clone.run("--source", "s3://bucket/a b/", "--workers=2")

    expected = ["--module", "workflows.tasks", "MergeCounts", "--source", "s3://bucket/a b/"]
    assert done.stdout.splitlines() == [*expected, "--workers=2"]
    assert done.stderr == ""
    assert done.returncode == 0


def test_another_pipeline_runs_by_its_name_and_the_rest_after_two_dashes_untouched(
    clone: Clone,
) -> None:
    clone.luigi('echo "$*"')

    done = clone.run("--task=Sizes", "--module", "pipelines.sizes", "--", "--task", "x")

    assert done.stdout == "--module pipelines.sizes Sizes --task x\n"


@pytest.mark.parametrize("status", [0, 10, 30, 40])
def test_the_exit_code_of_luigi_passes_through(clone: Clone, status: int) -> None:
    clone.luigi(f"exit {status}")

    assert clone.run().returncode == status


def test_the_result_is_on_stdout_and_in_the_log(clone: Clone) -> None:
    clone.luigi('echo "1=5134"; echo "a step" >&2; echo "a line of luigi" >> "$WORKFLOWS_LOG"')

    done = clone.run("--workers", "3")

    log = clone.logs()[0].read_text()
    assert (done.stdout, done.stderr) == ("1=5134\n", "a step\n")
    assert "luigi --module workflows.tasks MergeCounts --workers 3\n" in log
    assert "1=5134\n" in log
    assert "a line of luigi\n" in log
    assert re.search(r"exit 0 after \d+ s\n$", log)


def test_the_last_thirty_logs_are_kept(clone: Clone) -> None:
    logs = clone.root / ".workflows/logs"
    logs.mkdir(parents=True)
    for number in range(40):
        (logs / f"run-20200101T0000{number:02}-1.log").touch()

    clone.run()

    kept = [log.name for log in clone.logs()]
    assert len(kept) == 30
    assert kept[0] == "run-20200101T000011-1.log"
    assert not kept[-1].startswith("run-2020")


def test_a_reader_that_leaves_early_does_not_stop_the_run_but_makes_it_fail(clone: Clone) -> None:
    clone.luigi('for i in {1..20000}; do echo "$i" || exit 9; done')

    process = clone.start()
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()

    assert process.wait(timeout=30) == 74
    assert "\n20000\n" in clone.logs()[0].read_text()


def test_luigi_reads_the_configuration_of_the_project_unless_told_otherwise(clone: Clone) -> None:
    clone.luigi('echo "$LUIGI_CONFIG_PATH"; pwd')

    ours = clone.run().stdout.splitlines()
    (clone.root / "other.cfg").touch()
    theirs = clone.run(LUIGI_CONFIG_PATH="other.cfg").stdout.splitlines()
    missing = clone.run(LUIGI_CONFIG_PATH="missing.cfg")

    assert ours == [f"{clone.root}/luigi.cfg", str(clone.root)]
    assert theirs[0] == f"{clone.root}/other.cfg"
    assert (missing.returncode, missing.stdout) == (2, "")


def test_it_can_be_called_from_anywhere_and_through_a_link(
    clone: Clone, tmp_path: pathlib.Path
) -> None:
    clone.luigi("pwd")
    link = tmp_path / "nightly"
    link.symlink_to(clone.root / "run_pipeline.sh")

    done = subprocess.run([link], cwd="/", env=plain_environment(), capture_output=True, text=True)

    assert done.stdout == f"{clone.root}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--timeout", "soon"], "--timeout 'soon' is not a duration; write 90, 90s, 30m, 2h or 1d"),
        (["--timeout"], "--timeout needs a value"),
        (["--task", "a b"], "--task 'a b' is not the name of a task"),
        (["--module=../x"], "--module '../x' is not the name of a module"),
    ],
)
def test_a_wrong_argument_is_said_and_exits_2(
    clone: Clone, arguments: list[str], message: str
) -> None:
    done = clone.run(*arguments)

    assert message in done.stderr
    assert done.returncode == 2
    assert clone.logs() == []


def test_help_names_every_option_and_runs_nothing(clone: Clone) -> None:
    done = clone.run("--help")

    assert done.returncode == 0
    options = {"--task", "--module", "--timeout", "--setup", "--setup-dev", "--help"}
    assert options <= set(re.findall(r"--[a-z-]+", done.stdout))
    assert clone.logs() == []


def test_a_second_run_of_the_same_pipeline_says_who_runs_it_and_exits_10(clone: Clone) -> None:
    clone.luigi(PIDS + "wait")
    first = clone.start()
    clone.pid("luigi")

    second = clone.run()

    message = f"run_pipeline.sh: MergeCounts is already running as pid {first.pid}"
    assert second.stderr == f"{message}; this run does nothing\n"
    assert second.returncode == 10
    assert second.stdout == ""
    assert first.poll() is None
    assert len(clone.logs()) == 1


@pytest.mark.parametrize("page", ["README.md", "docs/operations.md", "docs/tutorial.md"])
def test_the_line_for_cron_replaces_a_result_by_another_one_alone(clone: Clone, page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    line = re.search(r"^    5 \* \* \* \*  (.*)$", text, re.MULTILINE)
    assert line is not None
    (clone.root.parent / "workflows").symlink_to(clone.root)
    command = line[1].replace("/home/ann", str(clone.root.parent))
    result = clone.root.parent / re.findall(r"\w+\.txt", command)[0]
    result.write_text("the last good result\n")

    def cron() -> tuple[str, str]:
        done = subprocess.run(
            ["sh", "-c", command], env=plain_environment(), capture_output=True, text=True
        )
        return result.read_text(), done.stderr

    clone.luigi("touch started; until [[ -e end ]]; do sleep 0.02; done; echo new")
    first = clone.start()
    wait_until((clone.root / "started").exists, 60)
    meanwhile = cron()
    (clone.root / "end").touch()
    first.communicate(timeout=60)
    clone.luigi("echo half; exit 30")
    failed = cron()
    clone.luigi("echo new")
    done = cron()

    assert meanwhile[0] == "the last good result\n"
    assert "already running" in meanwhile[1]
    assert failed == ("the last good result\n", "")
    assert done == ("new\n", "")
    assert sorted(path.name for path in clone.root.parent.glob("*.*")) == [result.name]


def test_two_different_pipelines_run_at_the_same_time(clone: Clone) -> None:
    clone.luigi('[[ $3 == Other ]] || { echo $$ > pid.luigi; sleep 300; }; echo "$3"')
    clone.start()
    clone.pid("luigi")

    assert clone.run("--task", "Other").stdout == "Other\n"


def test_without_flock_a_second_run_is_kept_out_as_well(
    clone: Clone, tmp_path: pathlib.Path
) -> None:
    needed = ["bash", "cat", "cmp", "mkdir", "readlink", "rm", "sleep", "tee"]
    (tmp_path / "bin").mkdir()
    for name in needed:
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or name)
    clone.luigi(PIDS + "wait")
    # Naming a Python is also a wish for one to make .venv with, so the fingerprint has to know it.
    made_from = clone.root / ".venv/.made-from"
    made_from.write_text(
        made_from.read_text().replace("asked for \n", f"asked for {sys.executable}\n")
    )
    environment = {"PATH": f"{tmp_path}/bin", "PYTHON": sys.executable}
    clone.start(**environment)
    clone.pid("luigi")

    assert clone.run(**environment).returncode == 10


def test_a_run_killed_by_kill_9_takes_luigi_with_it_and_frees_the_lock_at_once(
    clone: Clone,
) -> None:
    clone.luigi(PIDS + "wait")
    first = clone.start()
    luigi, child = clone.pid("luigi"), clone.pid("child")

    first.kill()
    clone.luigi("echo again")
    second = clone.run()

    assert second.stdout == "again\n"
    assert not is_alive(luigi)
    assert not is_alive(child)


def test_a_process_that_outlives_the_run_does_not_keep_its_lock(clone: Clone) -> None:
    clone.luigi("setsid sleep 300 >/dev/null 2>&1 & echo $! > pid.child; sleep 0.2")
    clone.run()
    escaped = clone.pid("child")

    try:
        second = clone.run()

        assert is_alive(escaped)
        assert second.returncode == 0
    finally:
        for pid in [escaped, clone.pid("child")]:
            os.kill(pid, signal.SIGKILL)


def test_when_luigi_is_killed_by_kill_9_its_children_are_ended_and_the_code_is_137(
    clone: Clone,
) -> None:
    clone.luigi(PIDS + "kill -9 $$")

    done = clone.run()

    assert done.returncode == 137
    assert done.stderr == ""
    assert not is_alive(clone.pid("child"))
    assert "exit 137" in clone.logs()[0].read_text()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_everything_and_gives_its_code(clone: Clone, number: int, code: int) -> None:
    clone.luigi(PIDS + "wait")
    process = clone.start()
    luigi, child = clone.pid("luigi"), clone.pid("child")

    process.send_signal(number)
    _, err = process.communicate(timeout=10)

    assert process.returncode == code
    assert err == INTERRUPTED
    assert not is_alive(luigi)
    assert not is_alive(child)
    assert f"exit {code}" in clone.logs()[0].read_text()


def test_luigi_has_time_to_clean_up_when_asked_to_end(clone: Clone) -> None:
    clone.luigi("trap 'sleep 0.5; echo cleaned; exit 0' TERM; " + PIDS + "wait; wait")
    process = clone.start()
    clone.pid("child")

    process.terminate()
    out, _ = process.communicate(timeout=10)

    assert out == "cleaned\n"
    assert process.returncode == 143


def test_what_ignores_term_is_killed_after_the_grace(clone: Clone) -> None:
    clone.luigi("trap '' TERM; " + PIDS + "wait")
    process = clone.start(WORKFLOWS_GRACE="1")
    luigi = clone.pid("luigi")
    clone.pid("child")

    process.terminate()
    process.communicate(timeout=10)

    assert process.returncode == 143
    assert not is_alive(luigi)


def test_a_second_signal_does_not_wait_for_the_grace(clone: Clone) -> None:
    clone.luigi("trap '' TERM; " + PIDS + "wait")
    process = clone.start()
    clone.pid("child")
    process.terminate()
    time.sleep(0.3)

    process.terminate()
    process.communicate(timeout=5)

    assert process.returncode == 143


@pytest.mark.parametrize("how", ["option", "environment"])
def test_a_run_that_takes_too_long_is_stopped_with_124(clone: Clone, how: str) -> None:
    clone.luigi(PIDS + "wait")

    done = clone.run("--timeout", "1s") if how == "option" else clone.run(WORKFLOWS_TIMEOUT="1")

    message = "run_pipeline.sh: stopped: MergeCounts ran longer than 1 s (--timeout)\n"
    assert (done.returncode, done.stderr) == (124, message)
    assert not is_alive(clone.pid("child"))


def test_a_run_that_ends_in_time_is_not_touched_by_its_timeout(clone: Clone) -> None:
    clone.luigi("sleep 0.2; exit 30")

    assert clone.run("--timeout", "5m").returncode == 30


def whole(terminal: int) -> bytes:
    """Return what a terminal shows that nobody holds open any more; one read may give a part."""
    shown = b""
    with contextlib.suppress(OSError):  # EIO is its end
        while data := os.read(terminal, 65536):
            shown += data
    os.close(terminal)
    return shown


def test_on_a_terminal_luigi_sees_one_and_ctrl_c_leaves_one_line(clone: Clone) -> None:
    clone.luigi("[[ -t 2 ]] && echo progress >&2; echo $$ > pid.luigi; sleep 300")
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(clone.root)
        os.execve("./run_pipeline.sh", ["./run_pipeline.sh"], plain_environment())
    luigi = clone.pid("luigi")

    os.write(terminal, b"\x03")
    _, status = os.waitpid(child, 0)
    shown = whole(terminal).decode().replace("^C", "").replace("\r\n", "\n")

    assert os.waitstatus_to_exitcode(status) == 130
    assert shown == f"progress\n\r\x1b[K{INTERRUPTED}"
    assert not is_alive(luigi)


def test_a_second_start_adds_well_under_a_tenth_of_a_second(clone: Clone) -> None:
    """Of processor time, and not much waiting: other tests run beside this one."""
    clone.luigi("date +%s%N")
    worked, waited = [], []

    for _ in range(5):
        before, busy = time.time_ns(), busy_s()
        waited.append(int(clone.run().stdout) - before)
        worked.append(busy_s() - busy)

    assert min(worked) < 0.1
    assert min(waited) < 500_000_000


def busy_s() -> float:
    """Return the processor seconds of all processes that this one has waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_a_changed_pin_makes_the_environment_anew(clone: Clone) -> None:
    with (clone.root / "requirements.txt").open("a") as pins:
        pins.write("# a change\n")

    # No index to install from: it must try, fail, and say so, rather than run what is out of date.
    done = clone.run(PIP_NO_INDEX="1", PIP_CONFIG_FILE="/dev/null", PYTHON=sys.executable)

    assert "making .venv from requirements.txt" in done.stderr
    assert "could not make .venv; all of it: .workflows/logs/setup.venv.log" in done.stderr
    assert done.returncode == 1
    assert not (clone.root / ".venv/.made-from").exists()


def test_a_python_out_of_range_is_refused_by_name(clone: Clone, tmp_path: pathlib.Path) -> None:
    old = tmp_path / "python3.8"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)

    done = clone.run("--setup", PYTHON=str(old))

    assert f"PYTHON={old} is not a Python from 3.10 to 3.13" in done.stderr
    assert done.returncode == 1


# A Python as Debian ships it: without what makes pip, or without the pip of the system as well.
BARE_PYTHON = """#!/bin/bash
case "$1 $2 $*" in
  "-m venv "*--without-pip*) ;;
  "-m venv "*) echo "ensurepip is not available" >&2; exit 1 ;;
  "-m pip "*) [[ {has_pip} ]] || {{ echo "No module named pip" >&2; exit 1; }} ;;
esac
exec {python} "$@"
"""


@pytest.mark.fresh
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", ["ensurepip", "pip", "neither"])
def test_a_fresh_clone_makes_its_environment_whatever_python_lacks(
    way: str, request: pytest.FixtureRequest, tmp_path: pathlib.Path
) -> None:
    if "fresh" not in str(request.config.getoption("-m")):
        pytest.skip("installs from the package index; select it with -m fresh")
    root = tmp_path / "fresh clone"
    ignored = shutil.ignore_patterns(".venv*", ".workflows", ".git", "*_cache", "__pycache__")
    shutil.copytree(ROOT, root, ignore=ignored)
    python = tmp_path / "python"
    has_pip = "yes" if way == "pip" else ""
    python.write_text(BARE_PYTHON.format(has_pip=f'-n "{has_pip}"', python=sys.executable))
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": sys.executable if way == "ensurepip" else str(python)}

    def setup() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["./run_pipeline.sh", "--setup"],
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    killed = setup()
    wait_until((root / ".venv/bin").exists, 60)
    killed.send_signal(signal.SIGTERM)
    assert killed.wait(timeout=60) == 143
    both = [setup(), setup()]

    assert [process.wait(timeout=300) for process in both] == [0, 0]
    log = (root / ".workflows/logs/setup.venv.log").read_text()
    ways = {"ensurepip": "pip_by_ensurepip", "pip": "pip_of_the_system"}
    assert re.findall("^== (.*?),", log, re.MULTILINE)[-1] == ways.get(way, "pip_from_the_index")
    program = "import boto3, luigi, paramiko, workflows; print(workflows.__file__)"
    command = [str(root / ".venv/bin/python"), "-W", "error", "-c", program]
    environment["LUIGI_CONFIG_PATH"] = str(root / "luigi.cfg")
    imported = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert imported.stdout == f"{root}/workflows/__init__.py\n"
    for name in ["luigi", "luigid", "workflows"]:
        assert os.access(root / ".venv/bin" / name, os.X_OK)


# -- whoever has to know ---------------------------------------------------------------------------

WORD = (
    'printf "%s %s %s\\n" "$WORKFLOWS_TASK" "$WORKFLOWS_EXIT" "$(wc -l < "$WORKFLOWS_LOG")" >> word'
)


def words(clone: Clone) -> list[str]:
    path = clone.root / "word"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("code", [0, 30])
def test_one_word_is_sent_after_each_run_with_its_exit_code_and_log(
    clone: Clone, code: int
) -> None:
    clone.luigi(f"echo result; exit {code}")

    done = clone.run("--notify", f"cat > said; {WORD}")

    assert done.returncode == code
    (line,) = words(clone)
    assert line.split()[:2] == ["MergeCounts", str(code)]
    said = (clone.root / "said").read_text()
    assert "result\n" in said
    assert f"exit {code} after" in said


def test_word_is_sent_of_a_run_that_is_stopped_or_takes_too_long(clone: Clone) -> None:
    clone.luigi("touch started; sleep 300")
    process = clone.start(WORKFLOWS_NOTIFY=WORD, WORKFLOWS_GRACE="1")
    wait_until((clone.root / "started").exists, 60)

    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    late = clone.run("--timeout", "1", WORKFLOWS_NOTIFY=WORD, WORKFLOWS_GRACE="1")

    assert (process.returncode, late.returncode) == (143, 124)
    assert [line.split()[1] for line in words(clone)] == ["143", "124"]


def test_a_hook_that_fails_is_said_and_changes_nothing(clone: Clone) -> None:
    done = clone.run("--notify=exit 9")

    assert done.returncode == 0
    assert done.stderr == "run_pipeline.sh: --notify exited 9: exit 9\n"


def test_no_word_is_sent_where_nothing_was_run(clone: Clone) -> None:
    for arguments in (["--task", "1", "--notify", WORD], ["--setup", "--notify", WORD]):
        clone.run(*arguments)

    assert words(clone) == []
