"""Whole runs that are killed, interrupted, stopped, or that share one state."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import unittest.mock
from collections.abc import Callable

import pytest
from faults import Run, Trial, is_stopped, kill, until

from workflows.luigi_seam.worker import TaskThread
from workflows.node.ledger import Ledger

KEYS, PIECES = 4, 3
PIPELINE = """
from workflows.steps import Map, MapFromN, MapToN


class Take(Map):
    command = 'read -r path; sleep 0.03; cat "$path"'


class Cut(MapToN):
    upstream = Take
    command = 'sleep 0.03; while read -r name word; do echo "$name $word" >> "$name"; done; ls'


class Merge(MapFromN):
    upstream = Cut
    command = '[ -z "${HELD:-}" ] || read -r _ < "$HELD"; sleep 0.01; xargs cat | sort'
    durable = True
"""
STEPS = ("Take", "Cut", "Cut.pieces", "Merge")
NAMES = [f"{name}_piece" for name in range(PIECES)]
RESULT = {
    name: "".join(f"{name} word{key}\n" for key in range(KEYS)).encode("ascii") for name in NAMES
}


@pytest.fixture
def small(trial: Trial) -> Trial:
    """Return a trial with the steps above and what they read."""
    trial.place.module(PIPELINE)
    for key in range(KEYS):
        text = "".join(f"{name} word{key}\n" for name in NAMES)
        trial.place.key(f"{key}_key", text.encode("ascii"))
    return trial


def assert_complete(trial: Trial) -> None:
    """Check that all is as if nothing had ever happened."""
    published = trial.published(*STEPS)
    assert trial.result("Merge") == RESULT
    assert len(published) == len(set(published)) == 2 * KEYS + KEYS * PIECES + PIECES
    assert trial.place.leftovers() == []


# -- killed at any moment --------------------------------------------------------------------------


def kill_driver(trial: Trial, run: Run) -> None:
    """Kill the process that schedules, alone."""
    kill(run.process.pid)


def kill_session(trial: Trial, run: Run) -> None:
    """Kill what a terminal that goes away would: Luigi and all that it forked."""
    os.killpg(run.process.pid, signal.SIGKILL)


def kill_everything(trial: Trial, run: Run) -> None:
    """Kill Luigi, its workers, runtimes, watchdogs and commands."""
    trial.kill_all()


def kill_runtime(trial: Trial, run: Run) -> None:
    """Kill the runtime of one node, alone."""
    for pid in list(trial.runtimes().values())[:1]:
        kill(pid)


def await_moment(trial: Trial, run: Run, phase: str, rng: random.Random) -> None:
    """Wait until a run is somewhere in `phase`, or has ended already."""
    if phase == "start":
        within_s = 0.4
    elif phase == "commit":
        until(lambda: run.has_ended or any(trial.place.checkpoint.glob("Merge/*/data/*/*")), phase)
        within_s = 0.02
    else:
        wanted = rng.randint(1, {"Cut.pieces": KEYS * PIECES, "Merge": PIECES}.get(phase, KEYS))
        until(lambda: run.has_ended or trial.lines(phase) >= wanted, f"{wanted} keys of {phase}")
        within_s = 0.06
    # No event happens at a random moment: this is the fault, not a wait.
    threading.Event().wait(rng.uniform(0, within_s))


PHASES = ["start", "Take", "Cut", "Cut.pieces", "commit"]
KILLS = [kill_driver, kill_session, kill_driver, kill_everything]
MOMENTS = [(phase, kill) for kill in KILLS for phase in PHASES]


@pytest.mark.parametrize(
    ("seed", "phase", "killed"),
    [
        pytest.param(seed, phase, kill, id=f"{seed}-{phase}-{kill.__name__}")
        for seed, (phase, kill) in enumerate(MOMENTS)
    ],
)
def test_a_run_that_is_killed_at_any_moment_is_completed_by_the_next_one(
    small: Trial, seed: int, phase: str, killed: Callable[[Trial, Run], None]
) -> None:
    rng = random.Random(seed)

    run = small.start("Merge")
    await_moment(small, run, phase, rng)
    killed(small, run)
    run.wait()
    small.await_silence()
    left = list((small.place.state / "nodes").glob("*/tmp/*"))
    rerun = small.finish("Merge")

    assert killed is kill_everything or left == []  # only a watchdog could have removed it
    assert rerun.succeeded()
    assert_complete(small)


@pytest.mark.parametrize(("seed", "phase"), list(enumerate(PHASES)))
def test_a_runtime_that_is_killed_at_any_moment_costs_the_run_nothing_but_time(
    small: Trial, seed: int, phase: str
) -> None:
    run = small.start("Merge")
    await_moment(small, run, phase, random.Random(seed))

    kill_runtime(small, run)

    assert run.succeeded()
    assert "keys failed" not in run.err
    assert "Traceback" not in run.err, run.err
    assert_complete(small)


# -- interrupted, stopped --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "send", "phase"),
    [
        pytest.param("SIGINT", os.killpg, "Take", id="Ctrl-C"),
        pytest.param("SIGINT", os.killpg, "Cut.pieces", id="Ctrl-C after the barrier"),
        pytest.param("SIGINT", os.kill, "Take", id="SIGINT"),
        pytest.param("SIGTERM", os.kill, "Take", id="SIGTERM"),
        pytest.param("SIGTERM", os.killpg, "Cut.pieces", id="SIGTERM to all"),
        pytest.param("SIGHUP", os.killpg, "Take", id="the terminal goes away"),
    ],
)
def test_an_interrupted_run_ends_soon_leaves_nothing_and_is_completed_by_the_next_one(
    small: Trial, name: str, send: Callable[[int, int], None], phase: str
) -> None:
    held = small.place.path / "held"
    os.mkfifo(held)  # however slow the machine, it cannot end by itself
    run = small.start("Merge", HELD=str(held))
    until(lambda: small.lines(phase) >= 2, f"two keys of {phase}")

    send(run.process.pid, getattr(signal, name))
    code = run.wait(15)
    small.await_silence()
    left = small.place.leftovers()
    rerun = small.finish("Merge")

    assert code != 0
    assert "Traceback" not in run.err, run.err
    assert left == []
    assert rerun.succeeded()
    assert_complete(small)


def test_what_goes_wrong_in_a_task_is_not_told_once_it_was_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda said: told.append(str(said.exc_value)))

    for name, is_ended in (("ended", True), ("going on", False)):
        go_on = threading.Event()
        process = unittest.mock.Mock(use_multiprocessing=True)
        process.run.side_effect = lambda name=name, go_on=go_on: go_on.wait() and 1 / (name == "")
        task = TaskThread(process)
        task.start()
        if is_ended:
            monkeypatch.setattr("workflows.luigi_seam.worker._END_S", 0.0)
            task.terminate()
        go_on.set()
        task._thread.join()

    assert told == ["division by zero"], "of the one that was not ended"


FORK_SLOWLY = """
import os, pathlib, time


def slowly():
    pathlib.Path("forking").touch()
    time.sleep(0.5)


os.register_at_fork(after_in_parent=slowly)
"""
PLAIN_TASK = """

class Plain(luigi.Task):
    source, pattern, fleet = luigi.Parameter(), luigi.Parameter(), luigi.Parameter()

    def requires(self):
        return Copy(source=self.source, pattern=self.pattern, fleet=self.fleet)

    def output(self):
        return luigi.LocalTarget("plain")

    def run(self):
        time.sleep(60)
"""


def test_a_ctrl_c_that_python_drops_within_a_fork_ends_the_run_all_the_same(trial: Trial) -> None:
    trial.gated(1)
    trial.open()
    module = trial.place.path / "mine.py"
    module.write_text("import luigi\n" + FORK_SLOWLY + module.read_text() + PLAIN_TASK)
    run = trial.start("Plain", "--fleet", "local:1")  # Luigi forks for what is no step
    until((trial.place.path / "forking").exists, "a fork")

    os.kill(run.process.pid, signal.SIGINT)

    assert run.wait(10) == -signal.SIGINT, run.err
    assert "interrupted: finished work is kept" in run.err
    assert "Traceback" not in run.err, run.err


def test_a_run_that_is_stopped_for_longer_than_a_node_may_be_silent_has_lost_none(
    trial: Trial,
) -> None:
    trial.gated(1)
    run = trial.start("Copy", "--fleet", "local:1", WORKFLOWS_SILENCE_S="1")
    until(trial.started, "a command")

    os.killpg(run.process.pid, signal.SIGSTOP)
    until(lambda: is_stopped(run.process.pid), "the stop")
    threading.Event().wait(1.5)  # the fault itself
    os.killpg(run.process.pid, signal.SIGCONT)
    threading.Event().wait(0.3)  # it must have looked at its clock before there is anything to hear
    trial.open()

    assert run.succeeded()
    assert "lost" not in run.err
    assert trial.started() == ["0_key"]


# -- two at once -----------------------------------------------------------------------------------


def test_two_runs_at_the_same_moment_both_succeed_and_publish_every_key_once(small: Trial) -> None:
    runs = [small.start("Merge", "--no-lock") for _ in range(2)]

    assert [run.succeeded() for run in runs] == [True, True]
    assert_complete(small)


def test_of_two_runs_that_make_one_key_the_first_to_publish_wins_and_neither_overwrites(
    trial: Trial,
) -> None:
    trial.gated(1, after='echo "$WHO"')
    words = ("--fleet", "local:1", "--no-lock")
    first = trial.start("Copy", *words, WHO="first")
    second = trial.start("Copy", *words, WHO="second")
    until(lambda: len(trial.started()) == 2, "both commands")

    trial.open()

    assert first.succeeded()
    assert second.succeeded()
    (line,) = trial.place.ledger("Copy")
    assert trial.place.outputs("Copy")["0_key"] in (b"first\n", b"second\n")
    assert line["bytes"] == len(trial.place.outputs("Copy")["0_key"])
    assert trial.place.leftovers() == []


def test_a_run_goes_on_when_another_one_that_shares_its_state_is_killed(small: Trial) -> None:
    first = small.start("Merge", "--no-lock")
    until(lambda: small.lines("Take") >= 1, "a key")
    second = small.start("Merge", "--no-lock")
    until(lambda: small.lines("Take") >= 2, "another key")

    kill_session(small, first)
    first.wait()

    assert second.succeeded()
    assert_complete(small)


# Between the two questions that Luigi asks of a task, another run does all there is to do.
OVERTAKEN = """
import os, subprocess, sys
from workflows.steps import Map

class Kept(Map):
    command = 'read -r path; cat "$path"'
    durable = True

    def complete(self):
        done = super().complete()
        if not self.shard and not done and "WORKFLOWS_STATE" not in os.environ:
            checkpoint = os.path.abspath(".workflows/checkpoint")
            subprocess.run(
                [sys.executable, "-m", "luigi", *sys.argv[1:], "--checkpoint", checkpoint],
                env=dict(os.environ, WORKFLOWS_STATE="elsewhere"),
                check=True,
                capture_output=True,
            )
        return done
"""


def test_a_run_that_is_overtaken_by_another_one_elsewhere_has_nothing_left_to_do(
    trial: Trial,
) -> None:
    trial.place.module(OVERTAKEN)
    trial.place.key("a_key", b"x\n")
    checkpoint = str(trial.place.checkpoint)

    done = trial.place.luigi("Kept", "--checkpoint", checkpoint, "--no-lock")

    assert done.code == 0, done
    assert trial.result("Kept") == {"a_key": b"x\n"}
    assert trial.place.ledger("Kept") == []


def test_a_ledgers_lock_is_free_once_its_holder_is_killed(tmp_path: pathlib.Path) -> None:
    ledger = Ledger(str(tmp_path / "Step.jsonl"))
    hold = "import sys; from workflows.node.ledger import Ledger\n"
    hold += "with Ledger(sys.argv[1]).locked(): print('locked', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, ledger.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    is_done = threading.Event()

    def append() -> None:
        with Ledger(ledger.path).locked() as fd:
            ledger.append(fd, {"id": "1", "key": "a", "bytes": 1})
        is_done.set()

    with holder:
        assert holder.stdout is not None
        said = holder.stdout.readline()
        waiting = threading.Thread(target=append)
        waiting.start()
        was_free = is_done.wait(0.2)
        holder.kill()
        waiting.join(10)

    assert said == b"locked\n"
    assert not was_free
    assert is_done.is_set()
    assert list(Ledger(ledger.path).entries()) == ["1"]
