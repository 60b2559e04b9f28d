"""A task goes on with the session of one before it, if nothing is left open in it."""

import os
import pathlib
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from faults import asked, kill, runtime, until

from workflows.channel import Channel, Conversations, drop_free
from workflows.errors import NodeLost, WorkflowsError
from workflows.transports.local import LocalNode

if TYPE_CHECKING:
    from conftest import Place

LISTING = {"op": "list", "steps": []}


@pytest.fixture
def node(tmp_path: pathlib.Path) -> Iterator[LocalNode]:
    with runtime(tmp_path / "node") as (node, _):
        yield node
        drop_free(node)


def test_the_next_task_goes_on_with_the_session(node: LocalNode) -> None:
    with Conversations() as task:
        first = task.channel(node)
        first.one(LISTING, "listing")
        assert [e["event"] for e in first.ask(asked(["a"], "true"), "ran")][-1] == "ran"

    with Conversations() as task:
        assert task.channel(node) is first
        assert first.one(LISTING, "listing")["steps"] == {}


def test_two_tasks_at_once_have_a_session_each(node: LocalNode) -> None:
    with Conversations() as before:
        before.channel(node)

    with Conversations() as one, Conversations() as other:
        assert one.channel(node) is not other.channel(node)


def test_what_a_task_leaves_unanswered_ends_with_it(
    node: LocalNode, tmp_path: pathlib.Path
) -> None:
    started = tmp_path / "started"
    with Conversations() as task:
        first = task.channel(node)
        for _ in first.ask(asked(["a"], f"echo $$ > {started}; exec sleep 600"), "ran"):
            break  # "running"; the command goes on
        until(lambda: started.exists() and started.read_text(), "the command runs")
    command = int(started.read_text())

    until(lambda: not os.path.exists(f"/proc/{command}"), "it ended with its task")
    with Conversations() as task:
        assert task.channel(node) is not first


def test_a_lock_is_free_once_its_task_has_ended(node: LocalNode) -> None:
    lock = {"op": "lock", "name": "a"}
    for _ in range(2):
        with Conversations() as task:
            taken: list[bool] = []

            def take(channel: Channel, taken: list[bool]) -> bool:
                taken.append(channel.one(lock, "locked")["ours"])
                return taken[-1]

            channel = task.channel(node)
            until(lambda: take(channel, taken), "the session before lets go")  # noqa: B023
    with Conversations() as one, Conversations() as other:
        until(lambda: one.channel(node).one(lock, "locked")["ours"], "it is free")
        assert not other.channel(node).one(lock, "locked")["ours"]


def test_a_session_that_waits_for_bytes_is_for_nobody_else(
    node: LocalNode, tmp_path: pathlib.Path
) -> None:
    def torn() -> Iterator[bytes]:
        yield b"half"
        raise ValueError("the source broke")

    placed = {"op": "place", "path": str(tmp_path / "placed"), "mode": 0o644}
    with Conversations() as task:
        first = task.channel(node)
        with pytest.raises(ValueError, match="the source broke"):
            first.store(placed, torn())

    with Conversations() as task:
        assert task.channel(node) is not first


def test_what_made_no_sense_was_answered_and_the_session_goes_on(node: LocalNode) -> None:
    with Conversations() as task:
        first = task.channel(node)
        with pytest.raises(WorkflowsError, match="unknown operation 'dance'"):
            first.one({"op": "dance"}, "danced")

    with Conversations() as task:
        assert task.channel(node) is first
        assert first.one(LISTING, "listing")["steps"] == {}


def test_an_interrupted_task_takes_its_session_with_it(node: LocalNode) -> None:
    with Conversations() as task:
        first = task.channel(node)
        task.interrupt()

    with Conversations() as task:
        assert task.channel(node) is not first


def test_no_task_is_given_the_session_of_a_runtime_that_died_meanwhile(node: LocalNode) -> None:
    with Conversations() as task:
        runtime = int(task.channel(node).runtime)
    kill(runtime)
    os.waitid(os.P_PID, runtime, os.WEXITED | os.WNOWAIT)

    with Conversations() as task:
        with pytest.raises(NodeLost, match="its runtime is gone"):
            task.channel(node)
        task.revive(node, wait=True)
        assert task.channel(node).one(LISTING, "listing")["steps"] == {}


def test_a_forked_process_begins_sessions_of_its_own(node: LocalNode) -> None:
    with Conversations() as task:
        task.channel(node)
    ours, theirs = socket.socketpair()

    child = os.fork()
    if child == 0:
        try:
            with Conversations() as task:
                theirs.send(b"y" if task.channel(node).one(LISTING, "listing") else b"n")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    theirs.close()

    assert ours.recv(1) == b"y"
    with Conversations() as task:  # the child did not read what was meant for this process
        assert task.channel(node).one(LISTING, "listing")["steps"] == {}
    ours.close()


COUNTED = """
import os
from workflows.steps import Map
from workflows.transports.local import LocalNode

connect = LocalNode.connect


def counted(node):
    with open(os.environ["SESSIONS"], "a") as file:
        file.write(f"{node.slot}\\n")
    return connect(node)


LocalNode.connect = counted


class Copy(Map):
    command = "read -r path; cat \\"$path\\""


class Count(Map):
    upstream = Copy
    command = "wc -l"
"""


def test_a_run_begins_few_sessions_however_many_tasks_it_has(place: "Place") -> None:
    for number in range(30):
        place.key(f"{number}_key", b"text\n")
    place.module(COUNTED)
    sessions = place.path / "sessions"

    done = place.luigi("Count", "--fleet", "local:2", SESSIONS=str(sessions))

    assert done.code == 0, done
    assert len(place.ledger("Count")) == 30
    # Two of the process that schedules; of tasks as many as ran at once, on two nodes of one slot.
    assert len(sessions.read_text().split()) <= 2 + 2 * 2 * max(1, (os.cpu_count() or 1) // 2)
