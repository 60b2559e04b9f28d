"""A command that fails without a word gets one line: the likely cause, and the remedy."""

import subprocess
from typing import TYPE_CHECKING

import pytest

from workflows.node.causes import likely_cause

if TYPE_CHECKING:
    from conftest import Place

BASH = ["bash", "--norc", "--noprofile", "-euo", "pipefail", "-c"]
MANY = 'printf -v long "%0140000d" 1; '  # one argument of more than 128 kB


@pytest.mark.parametrize(
    ("command", "cause"),
    [
        (MANY + 'ls "$long"', "Linux takes 128 kB in one argument"),
        (MANY + "export long; ls", "Linux takes 128 kB in one argument"),
        (MANY + "seq 300000 | xargs -n 300000 -x -s 100000 echo", "Linux takes 128 kB in one"),
        ("grep x /dev/null", "grep found nothing"),
        ("echo y | grep -c x | sort", "grep found nothing"),
        ("cat /dev/null | zgrep x > /dev/null", "grep found nothing"),
        ("echo /dev/null | xargs grep x", "grep found nothing"),
        ("diff <(echo a) <(echo b) > /dev/null", "the files differ"),
        ("read -r url < /dev/null; echo $url", "read met the end of its input"),
        ("n=0; ((n++)); echo $n", "the result of expr, let or ((...)) is 0"),
        ("expr 1 - 1 > /dev/null", "the result of expr, let or ((...)) is 0"),
        ("[[ -e /no/such ]] && echo y", "a test was not true"),
        ("no_such_program --x", "no_such_program is not installed on this node"),
        ("./none.sh", "./none.sh is not installed on this node"),
        ("echo true > a; ./a", "./a cannot be executed"),
        ("yes | head -n1", "the next command of the pipe, such as head, stopped reading early"),
        ("kill -9 $$", "the kernel killed it because memory ran out"),
        ("(kill -9 $BASHPID); exit $?", "the kernel killed it because memory ran out"),
        ("(kill -SEGV $BASHPID)", "a program in it crashed"),
        ("(kill -ABRT $BASHPID)", "a program in it gave up"),
        ("timeout 0.01 sleep 9", "timeout(1) ended it"),
    ],
)
def test_a_failure_that_says_nothing_of_its_cause_gets_the_likely_one(
    command: str, cause: str, tmp_path: object
) -> None:
    done = subprocess.run([*BASH, command], cwd=str(tmp_path), capture_output=True, text=True)

    assert done.returncode != 0
    found = likely_cause(command, done.returncode, done.stderr)
    assert found.startswith(f"likely cause: {cause}"), (done, found)
    assert "\n" not in found


@pytest.mark.parametrize(
    ("command", "code", "stderr"),
    [
        ("grep x", 2, "grep: no such file"),
        ("grep x; python3 y.py", 1, "ValueError: y"),
        ("cat x", 1, ""),
        ("./my-grep x", 1, ""),
        ("grep=1; cat $grep", 1, ""),
        ("python3 spread.py", 1, ""),
        ("exit 3", 3, ""),
        ("exit 200", 200, ""),
    ],
)
def test_nothing_is_guessed_where_the_command_says_why_or_nobody_can_know(
    command: str, code: int, stderr: str
) -> None:
    assert likely_cause(command, code, stderr) == ""


STEPS = """
import luigi
from workflows.steps import Map


class Empty(Map):
    command = "xargs cat | grep nothing"


class Long(Map):
    command = "xargs cat; : " + 140_000 * "x"


class Both(luigi.WrapperTask):
    def requires(self):
        return [kind(source="source", pattern="*") for kind in (Empty, Long)]
"""


def test_a_run_says_the_likely_cause_below_the_failed_key(place: "Place") -> None:
    place.module(STEPS)
    place.key("a", b"one\n")

    done = place.run("luigi", "--module", "mine", "Both")

    assert done.code == 30, done
    said = done.err.splitlines()
    empty = next(n for n, line in enumerate(said) if "Empty of a on node" in line)
    long = next(n for n, line in enumerate(said) if "Long of a on node" in line)
    assert said[empty].endswith(": exited 1")
    assert said[empty + 1].startswith("  likely cause: grep found nothing")
    assert said[empty + 2] == "  to see it again: workflows repro Empty a"
    assert said[long].endswith(": could not be started: Argument list too long")
    assert said[long + 1].startswith("  likely cause: Linux takes 128 kB in one argument")
