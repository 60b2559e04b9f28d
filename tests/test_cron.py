"""`workflows cron`, which run_pipeline.sh becomes: by itself, under faults, and cut off."""

import contextlib
import os
import pathlib
import signal
import subprocess
import time

import pytest
from test_ec2_script import calls, stub
from test_run_pipeline import PIDS, Clone, clone, plain_environment, wait_until

from workflows.unattended.options import asks_for_help, read, split
from workflows.unattended.refusal import Refused

__all__ = ["clone"]  # a fixture


def typed(clone: Clone, *words: str, **environment: str) -> subprocess.Popen[str]:
    """Start the verb itself, in the directory of a clone."""
    process = subprocess.Popen(
        [".venv/bin/python", "-m", "workflows", "cron", *words],
        cwd=clone.root,
        env=plain_environment() | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    clone.started.append(process)
    return process


# -- the command line ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "own", "luigi"),
    [
        (["--task", "A", "--source", "x"], {"--task": "A"}, ["--source", "x"]),
        (["--task=A=B"], {"--task": "A=B"}, []),
        (["--fleet", "ec2:a", "--x"], {"--fleet": "ec2:a"}, ["--fleet", "ec2:a", "--x"]),
        (["--fleet=ssh", "--x"], {"--fleet": "ssh"}, ["--fleet=ssh", "--x"]),
        (["--notify", "--help"], {"--notify": "--help"}, []),
        (["--", "--task", "A", "--", "-h"], {}, ["--task", "A", "--", "-h"]),
        (["--tas", "A", "--help-all"], {}, ["--tas", "A", "--help-all"]),
        (["--keep-fleet", "--to", "a b"], {"--keep-fleet": "yes", "--to": "a b"}, []),
    ],
)
def test_each_word_is_an_option_of_the_run_or_goes_to_luigi_as_it_is(
    words: list[str], own: dict[str, str], luigi: list[str]
) -> None:
    assert split(words) == (own, luigi)


@pytest.mark.parametrize(
    ("words", "asks"),
    [
        (["--help"], True),
        (["--source", "x", "-h"], True),
        (["--notify", "--help"], False),
        (["--", "--help"], False),
        (["--help-all"], False),
        (["--help", "--task"], False),
    ],
)
def test_help_is_asked_for_by_a_word_of_its_own(words: list[str], asks: bool) -> None:
    assert asks_for_help(words) == asks


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("", 0), ("0", 0), ("90", 90), ("007s", 7), ("30m", 1800), ("2h", 7200), ("1d", 86400)],
)
def test_a_timeout_is_a_number_with_a_unit_from_the_option_or_the_environment(
    text: str, seconds: int
) -> None:
    assert read(["--timeout", text], {"WORKFLOWS_TIMEOUT": "5"}, "/").timeout_s == seconds
    assert read([], {"WORKFLOWS_TIMEOUT": text}, "/").timeout_s == seconds


@pytest.mark.parametrize("text", ["-1", "1.5", "1 s", "s", "1w", "٣", "1\n", "1234567890"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="is not a duration; write 90, 90s, 30m, 2h or 1d"):
        read(["--timeout", text], {}, "/")


def test_a_grace_that_is_no_number_is_refused() -> None:
    with pytest.raises(Refused, match="WORKFLOWS_GRACE 'soon' is not a number of seconds"):
        read([], {"WORKFLOWS_GRACE": "soon"}, "/")


# -- the verb by itself ----------------------------------------------------------------------------


def test_the_verb_runs_in_the_directory_where_it_is_typed_and_speaks_by_its_own_name(
    clone: Clone,
) -> None:
    clone.luigi(PIDS + 'echo "$LUIGI_CONFIG_PATH $*"; until [[ -e end ]]; do sleep 0.02; done')
    first = typed(clone, "--task", "Sizes", "--source", "x")
    clone.pid("child")

    second = typed(clone, "--task", "Sizes")
    _, refused = second.communicate(timeout=60)
    (clone.root / "end").touch()
    out, err = first.communicate(timeout=60)

    assert (first.returncode, second.returncode) == (0, 10)
    assert refused == (
        f"workflows cron: Sizes is already running as pid {first.pid}; this run does nothing\n"
    )
    luigi = "--module workflows.tasks Sizes --source x"
    assert (out, err) == (f"{clone.root}/luigi.cfg {luigi}\n", "")
    assert f"workflows cron[{first.pid}] luigi {luigi}\n" in clone.logs()[0].read_text()


def test_the_verb_whose_stderr_is_closed_says_nothing_and_succeeds(clone: Clone) -> None:
    stub(clone)
    command = "exec .venv/bin/python -m workflows cron --fleet ec2:crawl 2>&-"

    done = subprocess.run(
        ["sh", "-c", command],
        cwd=clone.root,
        env=plain_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "result\n", "")
    assert calls(clone)[-1] == "fleet down crawl --yes"


def test_a_luigi_that_is_not_there_is_named(clone: Clone) -> None:
    (clone.root / ".venv/bin/luigi").unlink()

    done = clone.run()

    assert done.returncode == 127
    assert done.stderr == "run_pipeline.sh: cannot run luigi: No such file or directory\n"


def test_nothing_of_a_run_is_left_when_it_has_ended(clone: Clone) -> None:
    process = typed(clone, MARK="a mark of this test")
    process.communicate(timeout=60)

    assert process.returncode == 0
    assert marked("a mark of this test") == []


def marked(text: str) -> list[int]:
    """Return the processes that have a text in their environment."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if text.encode() in pathlib.Path("/proc", name, "environ").read_bytes():
                found.append(int(name))
    return found


# -- signals ---------------------------------------------------------------------------------------


def test_a_run_that_was_started_by_nohup_survives_its_terminal(clone: Clone) -> None:
    clone.luigi(PIDS + "until [[ -e end ]]; do sleep 0.02; done; echo done")
    words = ["nohup", "./run_pipeline.sh"]
    process = subprocess.Popen(
        words,
        cwd=clone.root,
        env=plain_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    clone.started.append(process)
    clone.pid("child")

    os.killpg(process.pid, signal.SIGHUP)
    os.kill(process.pid, signal.SIGHUP)
    (clone.root / "end").touch()
    out, err = process.communicate(timeout=60)

    assert (process.returncode, out, err) == (0, "done\n", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_at_any_moment_of_the_start_ends_the_run_and_all_of_it(
    clone: Clone, number: int
) -> None:
    """By default before the verb holds signals back: nothing has begun then."""
    clone.luigi("sleep 300")
    for delay_s in (0.02, 0.06, 0.1, 0.15, 0.25, 0.4):
        mark = f"{number} after {delay_s} s of this test"
        process = clone.start(MARK=mark, WORKFLOWS_GRACE="1")
        time.sleep(delay_s)

        process.send_signal(number)
        process.communicate(timeout=60)

        assert process.returncode in (-number, 128 + number)
        wait_until(lambda mark=mark: not marked(mark))  # type: ignore[misc]


@pytest.fixture
def slow_end(clone: Clone) -> Clone:
    """Let `workflows fleet down` end once there is a file `end`."""
    stub(clone)
    program = clone.root / ".venv/bin/workflows"
    waits = "until [[ -e end ]]; do sleep 0.02; done; touch is_down"
    program.write_text(program.read_text().replace("down) ", f"down) {waits}; "))
    return clone


def is_ending(clone: Clone) -> bool:
    return (clone.root / "calls").exists() and calls(clone)[-1] == "fleet down crawl --yes"


def test_signals_during_the_teardown_do_not_stop_it(slow_end: Clone) -> None:
    process = slow_end.start("--fleet", "ec2:crawl")
    wait_until(lambda: is_ending(slow_end), 60)

    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
        os.killpg(process.pid, number)
    (slow_end.root / "end").touch()
    out, _ = process.communicate(timeout=60)

    assert (process.returncode, out) == (0, "result\n")
    assert (slow_end.root / "is_down").exists()


def test_a_run_killed_during_the_teardown_leaves_that_to_its_end_and_the_lock_with_it(
    slow_end: Clone,
) -> None:
    process = slow_end.start("--fleet", "ec2:crawl")
    wait_until(lambda: is_ending(slow_end), 60)

    process.kill()
    process.wait()
    during = slow_end.run()
    (slow_end.root / "end").touch()
    wait_until((slow_end.root / "is_down").exists)

    assert during.returncode == 10
    wait_until(lambda: slow_end.run().returncode == 0, 30)


# -- faults ----------------------------------------------------------------------------------------

BROKEN = """import signal
def broken(*_):
    raise RuntimeError("injected")
signal.sigtimedwait = broken
"""


@pytest.fixture
def broken(tmp_path: pathlib.Path) -> dict[str, str]:
    """Return an environment in which the verb fails while it waits for Luigi."""
    (tmp_path / "sitecustomize.py").write_text(BROKEN)
    return {"PYTHONPATH": str(tmp_path)}


def test_a_fault_of_the_verb_itself_ends_luigi_and_takes_the_fleet_down(
    clone: Clone, broken: dict[str, str]
) -> None:
    stub(clone)
    clone.luigi(PIDS + "wait")

    done = clone.run("--fleet", "ec2:crawl", MARK="a fault of this test", **broken)

    assert done.returncode == 1
    assert "RuntimeError: injected" in done.stderr
    assert calls(clone)[-1] == "fleet down crawl --yes"
    wait_until(lambda: not marked("a fault of this test"))


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_never_reads_does_not_delay_the_end_of_the_fleet(
    clone: Clone, stream: str
) -> None:
    stub(clone)
    program = clone.root / ".venv/bin/workflows"
    program.write_text(program.read_text().replace('echo "says $2"', "[[ $2 = up ]] || echo said"))
    clone.luigi("echo half; exit 30")
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    process = subprocess.Popen(
        ["./run_pipeline.sh", "--fleet", "ec2:crawl"],
        cwd=clone.root,
        env=plain_environment(),
        stdin=subprocess.DEVNULL,
        stdout=writer if stream == "stdout" else subprocess.DEVNULL,
        stderr=writer if stream == "stderr" else subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(writer)

    wait_until(lambda: is_ending(clone), 60)
    drained = b""
    while data := os.read(reader, 1 << 16):
        drained += data
    os.close(reader)

    assert process.wait(60) == 30
    assert drained.strip(b"x") == (b"half\n" if stream == "stdout" else b"said\n")
