"""The last words of a run name what went wrong, whoever's task it was."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Done, Place

MINE = """
import os
import luigi

from workflows.steps import Map


class Copy(Map):
    command = 'cat "$(cat)"'


class Other(luigi.Task):
    number = luigi.IntParameter(default=1)

    def output(self):
        return luigi.LocalTarget(f"other{self.number}")

    def run(self):
        RUN


class Outside(luigi.ExternalTask):
    def output(self):
        return luigi.LocalTarget("no such file")


class Off(Other):
    disabled = True


class Broken(Other):
    def complete(self):
        raise ValueError("cannot tell")


class All(luigi.WrapperTask):
    def requires(self):
        return [Copy(source="source", pattern="*"), OTHER]
"""
LAST = "not finished; finished work is kept: run the same again"


def written(other: str, run: str = "pass", text: str = MINE) -> str:
    return text.replace("OTHER", other).replace("RUN", run)


def ran(place: "Place", other: str, run: str = "pass", *words: str) -> "Done":
    place.module(written(other, run))
    place.key("a", b"one\n")
    return place.run("luigi", "--module", "mine", "All", *words)


@pytest.mark.parametrize(
    ("other", "run", "code", "reason"),
    [
        (
            "Other()",
            "raise ValueError('it broke')",
            30,
            "Other(number=1) failed: ValueError: it broke",
        ),
        ("Other()", "os.kill(os.getpid(), 9)", 30, "Other(number=1) failed: "),
        ("Other()", "os._exit(5)", 30, "Other(number=1) failed: "),
        ("Outside()", "pass", 20, "missing, and no task makes it: Outside()"),
        ("Off()", "pass", 25, "disabled, and so not run: Off(number=1)"),
        ("Broken()", "pass", 35, "Broken(number=1) could not be scheduled: see the error above"),
    ],
)
def test_a_task_that_is_no_step_is_named_with_what_happened_to_it(
    place: "Place", other: str, run: str, code: int, reason: str
) -> None:
    done = ran(place, other, run)

    assert done.code == code, done
    said = done.err.splitlines()
    assert said[-1] == LAST
    assert said[-2].startswith(reason)
    assert "nothing failed" not in done.err
    assert place.outputs("Copy") == {"a": b"one\n"}


def test_many_tasks_that_are_missing_are_counted_and_some_are_named(place: "Place") -> None:
    outside = "*[Many(number=n) for n in range(9)]"
    text = MINE.replace(
        "class All(",
        "class Many(luigi.ExternalTask):\n"
        "    number = luigi.IntParameter()\n\n    output = Other.output\n\n\nclass All(",
    )
    place.module(written(outside, text=text))
    place.key("a", b"one\n")

    done = place.run("luigi", "--module", "mine", "All")

    assert done.code == 20
    names = "Many(number=0), Many(number=1), Many(number=2) and 6 more"
    assert done.err.splitlines()[-2:] == [f"missing, and no task makes it: {names}", LAST]


def test_a_program_that_builds_twice_is_not_told_again_what_went_wrong_before(
    place: "Place",
) -> None:
    place.module(written("Outside()"))
    place.key("a", b"one\n")
    program = (
        "import luigi, mine; from workflows.running import lifecycle\n"
        "luigi.build([mine.All()]); lifecycle.close()\n"
        "open('no such file', 'w').close()\n"
        "print(luigi.build([mine.All()]))\n"
    )

    done = place.run("python", "-c", program)

    assert done.out == "True\n"
    assert "missing" not in done.err


def test_a_lock_of_luigi_that_cannot_be_written_is_no_run_that_goes_on_already(
    place: "Place",
) -> None:
    config = place.path / "luigi.cfg"
    config.write_text(
        config.read_text().replace("lock_pid_dir = .workflows", "lock_pid_dir = file")
    )
    (place.path / "file").touch()

    done = ran(place, "Other()")

    assert done.code == 40, done
    (line,) = done.err.splitlines()
    assert line.startswith("ERROR: cannot write Luigi's lock file/")
    assert ": Not a directory; nothing was run." in line
    assert "lock_pid_dir" in line
