"""Runtimes that are killed or stopped; commands that leave something running, or are ended."""

import os
import pathlib
import signal
import sys
from typing import Any

import pytest
from faults import MARK, Trial, asked, kill, runtime, until

from workflows.errors import NodeLost

# -- runtimes that are killed or stopped -----------------------------------------------------------


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_lost_runtime_is_replaced_and_only_what_it_had_not_published_runs_again(
    trial: Trial, how: str
) -> None:
    trial.gated(5)
    run = trial.start("Copy", "--fleet", "local:1", WORKFLOWS_SLOTS="2", WORKFLOWS_SILENCE_S="1")
    until(lambda: len(trial.started()) == 2, "two commands")
    done = trial.started()[0]
    trial.open(done)
    until(lambda: len(trial.started()) == 3, "a third command")
    running = trial.started()[1:]
    lost = trial.runtimes()[0]

    kill(lost, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    until(lambda: len(trial.started()) == 5, "their commands again")
    is_gone = lost not in trial.pids()
    trial.open()

    assert run.succeeded()
    assert is_gone
    why = "it hung up" if how == "killed" else "nothing was heard of it for 1 s"
    assert f"node 0 is lost: {why}" in run.err
    assert "keys failed" not in run.err
    assert trial.started().count(done) == 1
    assert [trial.started().count(key) for key in running] == [2, 2]
    assert len(trial.started()) == 7
    assert sorted(line["key"] for line in trial.place.ledger("Copy")) == sorted(trial.gates)
    assert trial.place.outputs("Copy") == dict.fromkeys(trial.gates, b"text\n")
    assert trial.place.leftovers() == []


def test_a_runtime_that_is_killed_again_and_again_fails_the_run_in_the_end(trial: Trial) -> None:
    trial.gated(1)
    run = trial.start("Copy", "--fleet", "local:1", WORKFLOWS_RETRIES="1")

    for times in (1, 2):
        until(lambda: len(trial.started()) == times, "a command")  # noqa: B023 - called at once
        kill(trial.runtimes()[0])

    assert run.wait() == 30
    assert "node 0 is lost: it hung up; Copy 0_key: trying again" in run.err
    assert "node 0 is lost: it hung up; Copy 0_key: giving up" in run.err
    assert "Traceback" not in run.err, run.err
    assert trial.place.leftovers() == []


def test_a_runtime_that_replaced_another_ends_when_its_driver_is_killed(trial: Trial) -> None:
    trial.gated(1)
    run = trial.start("Copy", "--fleet", "local:1")
    until(trial.started, "a command")
    kill(trial.runtimes()[0])
    until(lambda: len(trial.started()) == 2, "the command of another runtime")

    kill(run.process.pid)

    trial.await_silence()
    assert trial.place.leftovers() == []


def test_a_runtime_that_is_stopped_while_nobody_talks_to_it_does_not_outlive_the_run(
    trial: Trial,
) -> None:
    trial.gated(1)
    run = trial.start("Copy", "--fleet", "local:2", WORKFLOWS_SILENCE_S="1")
    until(trial.started, "a command")

    kill(trial.runtimes()[1], signal.SIGSTOP)
    trial.open()

    assert run.succeeded()
    trial.await_silence()
    assert trial.place.leftovers() == []


def test_a_runtime_that_ends_while_keys_wait_begins_none_of_them_and_leaves_nothing(
    marked: Trial,
) -> None:
    for number in range(5):
        root = marked.place.path / f"{number}"
        with runtime(root, slots=2) as (node, channel):
            keys = map(str, range(1000))
            events = channel.ask(asked(keys, "sleep 0.004; : > x; sleep 0.002"), "ran")
            for _ in range(3 + number % 3):
                next(events)

            node.close()  # as if the driver had gone; the task's own connection is still there

            assert marked.commands() == []
            assert list(root.glob("0/tmp/*")) == []


# -- what commands leave running -------------------------------------------------------------------

DAEMON = f"""{sys.executable} -ISc '
import os
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    os.closerange(3, 1024)
    os.execvp("sleep", ["sleep", "300"])
os.wait()'"""
STRAYS = {
    "in the background": "sleep 300 &",
    "in a session of its own": "setsid sleep 300 &",
    "with nothing open": "setsid sleep 300 < /dev/null > /dev/null 2>&1 &",
    "deaf to signals": "(trap '' TERM INT HUP; setsid bash -c 'sleep 300; true') &",
    "as a daemon": "(setsid bash -c 'setsid sleep 300 & sleep 300 &' &)",
    "as a daemon that closes what it inherits": DAEMON,
    "without its environment": "setsid env -i sleep 300 &",
    "forking on and on": "(setsid bash -c 'while :; do (sleep 0.001); done' &)",
    "writing on and on": "(setsid bash -c 'while echo late; do :; done' &)",
}


@pytest.fixture
def marked(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> Trial:
    """Return a trial that also finds what this process starts itself."""
    monkeypatch.setenv(MARK, trial.mark.partition("=")[2])
    return trial


@pytest.mark.parametrize("left", [pytest.param(STRAYS[name], id=name) for name in STRAYS])
def test_what_a_command_leaves_behind_is_dead_before_its_key_is_done(
    marked: Trial, left: str
) -> None:
    alive: dict[str, list[list[str]]] = {}
    with runtime(marked.place.path / "nodes") as (_, channel):
        for key in map(str, range(15)):
            outcome = list(channel.ask(asked([key], f"{left}\necho out"), "ran"))

            assert outcome[1]["event"] == "done", outcome
            alive[key] = marked.commands()
        damaged = list(channel.ask({"op": "check", "steps": []}, "checked"))

    assert alive == {key: [] for key in alive}
    assert damaged == [{"event": "checked", "keys": 15}]


def test_what_the_command_of_another_key_has_running_lives_on(marked: Trial) -> None:
    marked.gated(1)
    go = marked.place.path / "gates" / "0_key"
    waiting = f"setsid sleep 301 & [[ $filename == other ]] || read -r _ < {go}; echo out"

    with runtime(marked.place.path / "nodes", slots=2) as (_, channel):
        events = channel.ask(asked(["waiting", "other"], waiting), "ran")
        done = [next(events), next(events)]
        until(lambda: ["sleep", "301"] in marked.commands(), "the other key's")
        marked.open()
        rest = list(events)

    assert [event.get("key") for event in [*done, *rest]] == [None, "other", "waiting", None]


def test_a_stage_of_a_pipe_that_leaves_a_process_behind_does_not_hold_up_the_next(
    marked: Trial,
) -> None:
    with runtime(marked.place.path / "nodes") as (_, channel):
        left = "(setsid sleep 300 &); sleep 300 & echo out"
        outcome = list(channel.ask(asked(["key"], left, "cat", "wc -c"), "ran"))
        alive = marked.commands()

    assert outcome[1]["event"] == "done", outcome
    assert outcome[1]["bytes"] == 2
    assert alive == []


@pytest.mark.parametrize("end", ["session", "driver", "runtime"])
def test_nothing_that_a_command_started_runs_on_unattended(marked: Trial, end: str) -> None:
    path = marked.place.path / "nodes"
    command = "\n".join([*STRAYS.values(), f"touch {path}/up; read -r < <(sleep 300)"])
    with runtime(path) as (node, channel):
        events = channel.ask(asked(["key"], command), "ran")
        next(events)
        until((path / "up").exists, "all of it")

        if end == "session":
            channel.close()
        elif end == "driver":
            node.close()
        else:
            kill(marked.runtimes()[0])
            with pytest.raises(NodeLost, match="node 0 is lost: it hung up"):
                next(events)

        until(lambda: not marked.commands(), "the end of all of it")
        if end == "session":
            assert list(marked.runtimes()) == [0]
        else:
            until(lambda: not marked.pids(), "the end of the runtime and its watchdog")


# -- pipes that end early, commands that are killed ------------------------------------------------


def outcome(path: pathlib.Path, *commands: str) -> tuple[dict[str, Any], bytes]:
    """Run one key through a pipe of commands; return its event and its output."""
    with runtime(path) as (_, channel):
        event = next(e for e in channel.ask(asked(["key"], *commands), "ran") if "key" in e)
        done = event["event"] == "done"
        return event, b"".join(channel.read("Step", "key", "key")) if done else b""


@pytest.mark.parametrize(
    "reader",
    [
        "head -n1",
        "exec < /dev/null; echo 1000000",
        "read -r line; echo $line; exec <&-; sleep 0.05",
    ],
)
def test_a_stage_that_reads_no_more_does_not_fail_or_cut_short_the_one_before(
    tmp_path: pathlib.Path, reader: str
) -> None:
    event, output = outcome(tmp_path, "seq 1000000 1999999", reader, "cat")

    assert event["event"] == "done", event
    assert output == b"1000000\n"
    assert event["stages"][0]["metrics"]["bytes_out"] == 8_000_000


def test_a_stage_that_closes_its_output_early_gives_the_next_one_what_it_wrote(
    tmp_path: pathlib.Path,
) -> None:
    event, output = outcome(tmp_path, "echo some; exec >&-; sleep 0.05", "cat")

    assert event["event"] == "done", event
    assert output == b"some\n"


def test_a_stage_that_fails_once_it_has_written_publishes_nothing(tmp_path: pathlib.Path) -> None:
    event, _ = outcome(tmp_path, "seq 100000; exit 3", "cat", "wc -l")

    assert (event["event"], event["step"], event["why"]) == ("failed", "S0", "exited 3")
    assert list(tmp_path.glob("0/data/*")) == []


@pytest.mark.parametrize(
    ("command", "status", "why"),
    [
        ("kill -9 $$", -9, "killed by SIGKILL"),
        ("kill -SEGV $$", -11, "killed by SIGSEGV"),
        ("kill -PIPE $$", -13, "killed by SIGPIPE"),
        (
            "bash -c 'kill -9 $$'; true",
            137,
            "exited 137, as when something in it is killed by SIGKILL",
        ),
        ("yes | head -n1", 141, "exited 141, as when something in it is killed by SIGPIPE"),
        ("exit 200", 200, "exited 200"),
        ("exit 3", 3, "exited 3"),
    ],
)
def test_a_command_that_a_signal_ended_is_said_to_be(
    tmp_path: pathlib.Path, command: str, status: int, why: str
) -> None:
    event, _ = outcome(tmp_path, command)

    assert (event["event"], event["status"], event["why"]) == ("failed", status, why)


def test_a_command_that_writes_without_end_to_stderr_does_not_hang_and_its_end_is_kept(
    tmp_path: pathlib.Path,
) -> None:
    event, _ = outcome(tmp_path, "seq 3000000 >&2; seq 1000000; echo the end >&2; exit 3")

    assert event["stderr"].endswith("2999999\n3000000\nthe end\n")
    assert len(event["stderr"]) <= 4096
    assert list(tmp_path.glob("0/tmp/*")) == []


def test_a_command_starts_with_every_signal_as_it_should_be(marked: Trial) -> None:
    text = 'for name in INT HUP TERM PIPE; do bash -c "kill -$name \\$\\$; true" || echo $?; done'

    with runtime(marked.place.path / "nodes") as (_, channel):
        list(channel.ask(asked(["key"], text), "ran"))
        said = b"".join(channel.read("Step", "key", "key"))

    assert said.split() == [b"130", b"129", b"143", b"141"]


ESCAPE = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    os.closerange(0, 1024)
    code = "import time\\nend = time.time() + 3\\nwhile time.time() < end:\\n"
    code += " for name in ('junk', '../0.metrics'):\\n"
    code += "  try: open(name, 'a').write('rows=666\\\\n')\\n  except OSError: pass\\n"
    code += " time.sleep(0.001)"
    os.execve(PYTHON, ["python3", "-ISc", code], {})
os.wait()
while not os.path.exists("junk"):
    time.sleep(0.001)
"""


def test_a_daemon_that_carries_nothing_writes_to_no_other_key(marked: Trial) -> None:
    script = marked.place.path / "escape.py"
    script.write_text(ESCAPE.replace("PYTHON", repr(sys.executable)))
    with runtime(marked.place.path / "nodes") as (_, channel):
        first = list(channel.ask(asked(["a"], f"{sys.executable} {script}"), "ran"))
        others = list(channel.ask(asked("bcdef", "sleep 0.05; ls -A | wc -l"), "ran"))
        outputs = [path.read_text() for path in marked.place.path.glob("nodes/0/data/Step/[b-f]/*")]

    done = [event for event in others if event["event"] == "done"]
    assert [event["event"] for event in first] == ["running", "done", "ran"]
    assert len(done) == 5
    assert [event["metrics"].get("rows") for event in done] == [None] * 5
    assert [text.strip() for text in outputs] == ["0"] * 5


def test_a_process_that_luigi_forks_while_a_node_is_revived_reaches_it(
    tmp_path: pathlib.Path,
) -> None:
    with runtime(tmp_path) as (node, _):
        with node._mutex:  # as a task holds it that revives the node
            child = os.fork()
            if child == 0:
                signal.alarm(30)
                node.connect()
                os._exit(0)
        _, status = os.waitpid(child, 0)

    assert status == 0
