"""What `eval` and `exec` exit with, and what they pass on."""

import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from workflows.errors import OWN_FAILURE

if TYPE_CHECKING:
    from conftest import Keys

BINARY = bytes(range(256)) * 700  # more than a pipe holds


def run(
    keys: "Keys", *words: str, stdin: bytes | int = b""
) -> "subprocess.CompletedProcess[bytes]":
    """Run a verb; its output stays bytes."""
    given: dict[str, Any] = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin}
    done: subprocess.CompletedProcess[bytes] = subprocess.run(
        keys.place.command("workflows", *words),
        cwd=keys.place.path,
        env=keys.place.environ,
        capture_output=True,
        timeout=60,
        **given,
    )
    return done


def test_eval_exits_with_its_commands_status_and_with_255_where_no_command_failed(
    keys: "Keys",
) -> None:
    keys.give("b", kk="x")

    for command, status in (("exit 7", 7), ("exit 2", 2), ("kill -9 $$", 137), ("true", 0)):
        assert keys.run("eval", "b/k", command).code == status, command
    assert keys.run("eval", "b/k", "sleep 60", "--timeout", "0.3").code == 124
    for words in (
        ("b/none", "true"),
        ("b/k", "true", "--fleet", "locl:3"),
        ("b/k", "true", "--tiemout", "3"),
        ("b/k", ""),
        ("b/k",),
    ):
        assert keys.run("eval", *words).code == OWN_FAILURE, words


def test_eval_passes_on_every_byte_of_stdout_and_stderr(keys: "Keys") -> None:
    keys.give("b", kk=BINARY)

    done = run(keys, "eval", "b/k", "tee /dev/stderr; exit 3")

    assert (done.returncode, done.stdout) == (3, BINARY)
    assert done.stderr.startswith(BINARY)
    assert b"exited 3" in done.stderr[len(BINARY) :]


@pytest.mark.parametrize("how", ["pipe", "file"])
def test_exec_passes_every_byte_of_stdin_on_and_exits_with_its_commands_status(
    keys: "Keys", how: str
) -> None:
    path = keys.place.path / "given"
    path.write_bytes(BINARY)

    with path.open("rb") as file:
        stdin = BINARY if how == "pipe" else file.fileno()
        done = run(keys, "exec", "--node", "1", "--raw", "cat; exit 9", stdin=stdin)

    assert (done.returncode, done.stdout) == (9, BINARY)
    assert done.stderr == b"workflows: node 1: exited 9\n"


def test_exec_passes_the_same_stdin_to_each_node_also_to_a_slow_one_and_to_none_that_wants_none(
    keys: "Keys",
) -> None:
    many = BINARY * 60  # 10 MB: more than is sent ahead
    command = "case $WORKFLOWS_SLOT in 0) head -c1 | wc -c;; 1) sleep 1; wc -c;; 2) wc -c;; esac"

    done = run(keys, "exec", command, stdin=many)

    assert done.returncode == 0, done
    said = sorted(done.stdout.decode().splitlines())
    assert said == ["node 0: 1", f"node 1: {len(many)}", f"node 2: {len(many)}"]


def test_exec_starts_before_its_stdin_ends_and_ends_before_it_does(keys: "Keys") -> None:
    process = keys.start("exec", "--node", "0", "read -r x; echo got $x")
    assert process.stdin is not None
    assert process.stdout is not None

    process.stdin.write(b"one\n")
    process.stdin.flush()

    assert process.stdout.readline() == b"node 0: got one\n"
    assert process.wait(20) == 0


def test_exec_reads_nothing_with_n_and_where_stdin_is_closed(keys: "Keys") -> None:
    done = run(keys, "exec", "-n", "--node", "0", "cat", stdin=b"unread")
    words = subprocess.list2cmdline(keys.place.command("workflows", "exec", "--node", "0", "cat"))
    closed = subprocess.run(
        ["bash", "-c", f"{words} <&-"],
        cwd=keys.place.path,
        env=keys.place.environ,
        capture_output=True,
        timeout=60,
    )

    assert (done.returncode, done.stdout) == (0, b"")
    assert (closed.returncode, closed.stdout, closed.stderr) == (0, b"", b"")


def test_exec_exits_with_the_greatest_status_and_with_255_if_a_node_cannot_be_asked(
    keys: "Keys",
) -> None:
    assert keys.run("exec", "exit $((3 - WORKFLOWS_SLOT))").code == 3
    assert keys.run("exec", "--node", "1", "exit 4").code == 4
    os.rename(keys.nodes / "1", keys.nodes / "gone")
    (keys.nodes / "1").write_text("no directory")

    done = keys.run("exec", "exit 3")

    assert done.code == OWN_FAILURE
    assert "node 1" in done.err
    assert keys.run("exec", "--raw", "true").code == OWN_FAILURE


def test_eval_and_exec_name_the_signal_and_the_likely_cause_of_a_commands_end(
    keys: "Keys",
) -> None:
    keys.give("b", kk="x")

    ended = keys.run("exec", "--node", "1", "kill $$")
    silent = keys.run("eval", "b/k", "grep nothing")

    assert (ended.code, ended.err) == (143, "workflows: node 1: killed by SIGTERM\n")
    assert silent.code == 1
    assert "workflows: likely cause: grep found nothing" in silent.err
