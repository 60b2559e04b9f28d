"""Luigi's worker and scheduler, as steps change them."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Place

STEPS = """
import json, os, pathlib, time
import luigi
from workflows.steps import Map


class Copy(Map):
    command = 'read -r path; cat "$path"'


class Plain(luigi.Task):
    source, pattern, fleet = luigi.Parameter(), luigi.Parameter(), luigi.Parameter()
    number = luigi.IntParameter()

    def output(self):
        return luigi.LocalTarget(f"plain{self.number}")

    def run(self):
        with self.output().open("w") as file:
            file.write(str(os.getpid()))


class After(Map):
    upstream = Copy
    command = "cat"

    def requires(self):
        more = {"source": self.source, "pattern": self.pattern, "fleet": self.fleet}
        return [*super().requires(), *[Plain(number=number, **more) for number in range(3)]]
"""
FAILS = """

class Plain(Plain):
    def run(self):
        raise ValueError("it failed")
"""
DIES = """

class Plain(Plain):
    def run(self):
        os.kill(os.getpid(), 9)
"""
ENDS_BADLY = """
from multiprocessing import util


class Plain(Plain):
    def run(self):
        super().run()
        util.Finalize(None, os._exit, args=(3,), exitpriority=-100)  # after what came of it is told
"""
ODD = """

class Odd(Exception):
    def __init__(self, one, other):
        super().__init__(f"{one} {other}")


class Plain(Plain):
    def run(self):
        raise Odd(1, 2)

    def on_failure(self, exception):
        return exception  # it can be sent, but not received
"""
KILLS = """

class Killer(Plain):
    def requires(self):
        return Copy(source=self.source, pattern=self.pattern, fleet=self.fleet)

    def run(self):
        for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
            try:
                line = pathlib.Path(f"/proc/{pid}/cmdline").read_text()
                parent = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
            except OSError:
                continue
            if f"{os.getcwd()}/.workflows/nodes" in line and int(parent) == os.getppid():
                os.kill(pid, 9)
        super().run()


class After(After):
    def requires(self):
        more = {"source": self.source, "pattern": self.pattern, "fleet": self.fleet}
        return [*super().requires(), Killer(number=3, **more)]
"""
SECOND_TIME = """

class Copy(Copy):
    def run(self):
        first = pathlib.Path("first")
        if self.shard and not first.exists():
            first.touch()
            raise ValueError("the first time")
        return super().run()
"""


@pytest.mark.parametrize(("delay", "keeps_alive"), [("0", "false"), ("0.5", "true")])
def test_a_failed_task_is_tried_again_after_its_delay(
    place: "Place", delay: str, keeps_alive: str
) -> None:
    place.key("one", b"text\n")
    place.module(STEPS + SECOND_TIME)
    (place.path / "again.cfg").write_text(
        f"[core]\nlocal_scheduler = true\n[worker]\nkeep_alive = {keeps_alive}\n"
        "wait_interval = 0.05\nwait_jitter = 0.05\nforce_multiprocessing = true\n"
        f"[scheduler]\nretry_delay = {delay}\nretry_count = 3\n"
    )

    done = place.luigi("Copy", LUIGI_CONFIG_PATH=str(place.path / "again.cfg"))

    assert "the first time" in done.err
    assert place.outputs("Copy") == {"one": b"text\n"}


def test_tasks_that_are_no_steps_run_beside_steps_each_in_a_process(place: "Place") -> None:
    for number in range(3):
        place.key(f"{number}_key", b"text\n")
    place.module(STEPS)

    done = place.luigi("After")

    assert done.code == 0, done
    pids = {(place.path / f"plain{number}").read_text() for number in range(3)}
    assert len(pids) == 3
    assert len(place.outputs("After")) == 3


def test_what_a_process_fails_with_is_told_and_steps_beside_it_are_done(place: "Place") -> None:
    place.key("one", b"text\n")
    place.module(STEPS + FAILS)

    done = place.luigi("After")

    assert done.code == 30, done
    assert "ValueError: it failed" in done.err
    assert place.outputs("Copy") == {"one": b"text\n"}
    assert place.outputs("After") == {}


def test_processes_that_are_killed_are_told_once_and_steps_beside_them_are_done(
    place: "Place",
) -> None:
    place.key("one", b"text\n")
    place.module(STEPS.replace("range(3)", "range(20)") + DIES)

    done = place.luigi("After", "--workers", "8")

    assert done.code == 30, done
    assert done.err.count("died unexpectedly with exit code -9; finished work is kept") == 20
    assert place.outputs("Copy") == {"one": b"text\n"}


def test_what_a_process_said_before_it_died_counts(place: "Place") -> None:
    place.key("one", b"text\n")
    place.module(STEPS.replace("range(3)", "range(20)") + ENDS_BADLY)

    done = place.luigi("After", "--workers", "8")

    assert done.code == 0, done
    assert place.outputs("After") == {"one": b"text\n"}


def test_what_a_process_says_that_cannot_be_understood_ends_the_run(place: "Place") -> None:
    place.key("one", b"text\n")
    place.module(STEPS + ODD)

    done = place.luigi("After")

    assert done.code not in (0, None), done
    assert "missing 1 required positional argument" in done.err


def test_a_runtime_that_dies_between_two_tasks_costs_no_try(place: "Place") -> None:
    for number in range(3):
        place.key(f"{number}_key", b"text\n")
    place.module(STEPS + KILLS)

    done = place.luigi("After", WORKFLOWS_RETRIES="0")

    assert done.code == 0, done
    assert (place.path / "plain3").exists(), "the one who killed them"
    assert "lost" not in done.err
    assert len(place.outputs("After")) == 3


HELD = """
import multiprocessing, os, queue, signal, struct, sys, time
from workflows.luigi_seam.worker import Results

others = multiprocessing.Queue()


def die():
    if sys.argv[1] == "locked":
        others._wlock.acquire()
    else:
        os.write(others._writer.fileno(), struct.pack("!i", 1000) + b"the beginning")
    os.kill(os.getpid(), signal.SIGKILL)


process = multiprocessing.get_context("fork").Process(target=die)
results = Results(others)
results.read_others()
process.start()
process.join()
for _ in range(3):
    results.put(("task", "FAILED", "it died", [], []))
until = time.monotonic() + 10
told = []
while time.monotonic() < until and not told:
    try:
        told.append(results.get(timeout=0.05))
    except queue.Empty:
        pass
results.close()
assert told == [("task", "FAILED", "it died", [], [])], told
"""


@pytest.mark.parametrize("how", ["locked", "cut off"])
def test_the_death_of_a_process_that_was_saying_something_is_told_and_holds_up_nothing(
    place: "Place", how: str
) -> None:
    (place.path / "held.py").write_text(HELD)

    done = place.run("python", "held.py", how, timeout=30)

    assert done.code == 0, done
