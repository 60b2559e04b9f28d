"""Placement, map and eval as a user of s4 knows them. Checks 13 to 25."""

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from workflows.verbs.fleetkeys import parse_pattern

if TYPE_CHECKING:
    from conftest import Keys

AWK = 'awk "{printf \\"%d %s%%\\n\\", NR, \\$1}"'


def test_a_numeric_prefix_decides_where_a_key_is(keys: "Keys") -> None:
    keys.give("b", **{f"kd{n}__00{n}_f.txt": "" for n in range(6)}, kx__013="")

    assert [keys.slot(f"b/d{n}/00{n}_f.txt") for n in range(6)] == [0, 1, 2, 0, 1, 2]
    assert keys.slot("b/x/013") == 1


def test_equal_basenames_meet_on_one_node(keys: "Keys") -> None:
    names = [f"name{n}" for n in range(8)]
    keys.give("b", **{f"k{name}": "" for name in names})
    keys.give("c", **{f"kd__e__{name}": "" for name in names})

    slots = [keys.slot(f"b/{name}") for name in names]
    assert slots == [keys.slot(f"c/d/e/{name}") for name in names]
    assert len(set(slots)) == 3


def test_maps_move_nothing_and_their_keys_lie_beside_what_they_read(six: "Keys") -> None:
    six.ok("map", "in/", "out/deep/", "cat; pwd; echo $WORKFLOWS_SLOT")
    six.ok("map-from-n", "out/deep/", "merged/", "xargs tail -qn1; echo $WORKFLOWS_SLOT")

    for n in range(6):
        assert six.slot(f"out/deep/00{n}_f{n}") == six.slot(f"in/00{n}_f{n}") == n % 3
        assert six.slot(f"merged/00{n}_f{n}") == n % 3
        assert six.read(f"merged/00{n}_f{n}") == f"{n % 3}\n{n % 3}\n"


def test_another_list_of_nodes_is_refused_and_stores_nothing(six: "Keys") -> None:
    for words in (
        ("cp", "luigi.cfg", "fleet://b/000_x"),
        ("cp", "-r", "source", "fleet://b/"),
        ("map", "in/", "out/", "cat"),
        ("rm", "-r", "in/"),
        ("rm", "in/000_f0"),
        ("ls", "in/"),
        ("eval", "in/000_f0", "cat"),
    ):
        (six.place.source / "001_y").write_text("y")
        done = six.run(*words, "--fleet", "local:4")
        assert done.code == (255 if words[0] == "eval" else 1), done
        assert "fleet of 3 nodes" in done.err
    assert six.names("b") == six.names("out") == []
    assert len(six.names("in")) == 6


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "soon"])
def test_a_timeout_that_is_no_number_of_seconds_is_refused(six: "Keys", text: str) -> None:
    done = six.run("map", f"--timeout={text}", "in/", "out/", "cat")

    assert done.code == 2
    assert f"'{text}' is not a number of seconds" in done.err


def test_map_makes_one_key_of_each_with_its_name(six: "Keys") -> None:
    six.give("in/d/e", k007_nested="z\n")

    done = six.run("map", "s4://in/", "s4://out/a/b/", "tr a-z A-Z")

    assert (done.code, done.out) == (0, "")
    names = [*[f"a/b/00{n}_f{n}" for n in range(6)], "a/b/d/e/007_nested"]
    assert six.names("out") == names
    assert [six.read(f"out/{name}") for name in names][5:] == ["X5\nY5\n", "Z\n"]


@pytest.mark.parametrize(
    ("glob", "chosen"),
    [
        ("in/*_f3", ["000_f3"]),
        ("in/00[12]_*", ["001_f1", "002_f2"]),
        ("in/*/*.txt", ["d/a.txt"]),
        ("in/d/*.txt", ["a.txt"]),
        ("in/*.txt", ["b.txt"]),
        ("in/d/", ["a.txt", "e/c.txt"]),
        ("in/d/*/c.txt", ["e/c.txt"]),
        ("in/?.txt", ["b.txt"]),
        ("fleet://in/*/*/*", ["d/e/c.txt"]),
    ],
)
def test_a_glob_chooses_as_in_a_shell(glob: str, chosen: list[str]) -> None:
    keys = ["000_f3", "001_f1", "002_f2", "b.txt", "d/a.txt", "d/e/c.txt"]

    found = [parse_pattern(glob).relative(key) for key in keys]

    assert [name for name in found if name is not None] == chosen


def test_map_over_a_glob(six: "Keys") -> None:
    six.ok("map", "s4://in/*_f3", "s4://out/", "cat")

    assert six.names("out") == ["003_f3"]


@pytest.mark.parametrize(
    ("source", "target"), [("in", "out/"), ("in/", "out"), ("none/", "out/"), ("in/z*", "out/")]
)
@pytest.mark.parametrize("verb", ["map", "map-to-n", "map-from-n"])
def test_a_missing_slash_and_a_map_of_nothing_are_told(
    six: "Keys", verb: str, source: str, target: str
) -> None:
    done = six.run(verb, source, target, "cat")

    assert done.code != 0
    assert ("nothing matches" in done.err) or ("write" in done.err), done
    assert done.err.count("\n") == 1


def test_a_command_knows_the_name_of_its_key(six: "Keys") -> None:
    six.ok("map", "in/", "out/", "sed s/^/$filename:/")

    assert six.read("out/003_f3") == "003_f3:x3\n003_f3:y3\n"


@pytest.mark.parametrize("command", ["false | cat", "echo $UNSET", "grep nothing", "exit 3"])
def test_commands_are_strict_and_their_stderr_is_shown(keys: "Keys", command: str) -> None:
    keys.give("in", k000="x\n")

    done = keys.run("map", "in/", "out/", f"echo why >&2; {command}")

    assert done.code == 1
    assert "out/000 on node 0: exited" in done.err
    assert "    why\n" in done.err
    assert keys.names("out") == []


@pytest.mark.parametrize(
    ("command", "out"),
    [
        ("echo header; cat", "header\n1 2\n3\n"),
        ("cat; echo end", "1 2\n3\nend\n"),
        ("(echo h; cat)", "h\n1 2\n3\n"),
        ("{ echo h; cat; }", "h\n1 2\n3\n"),
        ("if true; then cat; fi", "1 2\n3\n"),
        ("for i in 1 2; do echo $i; done", "1\n2\n"),
        ('while read x; do echo "<$x>"; done', "<1 2>\n<3>\n"),
        (AWK, "1 1%\n2 3%\n"),
        ("date +%Y | tr 0-9 y", "yyyy\n"),
        ("printf '%s\\n' '50% of %s'", "50% of %s\n"),
        ("head -n1", "1 2\n"),
        ("mkdir d; cat > d/x; cat d/x", "1 2\n3\n"),
        ("cat\necho '# no comment'; # a comment", "1 2\n3\n# no comment\n"),
        ("cat <<< $'a\\tb'", "a\tb\n"),
    ],
)
def test_any_bash_is_a_command(keys: "Keys", command: str, out: str) -> None:
    keys.give("in", k000="1 2\n3\n")

    assert keys.ok("eval", "in/000", command) == out
    keys.ok("map", "in/", "out/", command)
    assert keys.read("out/000") == out


def test_a_reader_that_stops_early_does_not_fail_a_large_key(keys: "Keys") -> None:
    keys.give("in", k000="line\n" * 1_000_000)

    assert keys.ok("eval", "in/000", "head -n1") == "line\n"


def test_commands_run_in_private_directories_that_are_removed(six: "Keys") -> None:
    six.give("in", k009_bad="")

    six.run(
        "map", "in/", "out/", "cat > x; sleep 0.1; ls; cat x; pwd >&2; [ $filename != 009_bad ]"
    )

    assert six.read("out/000_f0") == "x\nx0\ny0\n"
    assert len(six.names("out")) == 6
    assert six.place.leftovers() == []


def test_eval_prints_to_the_byte_what_the_command_prints(keys: "Keys") -> None:
    data = b"50% of %s\n\n\n\0\xff" + os.urandom(1000) + b"\n\n"
    keys.ok("cp", "-", "fleet://b/k", stdin=data)

    assert os.fsencode(keys.ok("eval", "b/k", "cat")) == data
    assert keys.ok("eval", "b/k", "wc -c").split() == [str(len(data))]
    assert keys.ok("eval", "b/k", "echo $WORKFLOWS_SLOT").split() == [str(keys.slot("b/k"))]


def test_eval_tells_of_a_missing_key_and_a_failing_command(keys: "Keys") -> None:
    keys.give("b", kk="x")

    missing = keys.run("eval", "b/none", "cat")
    failing = keys.run("eval", "b/k", "cat; echo said >&2; exit 5")

    assert missing.code != 0
    assert "no such key: b/none" in missing.err
    assert failing.code == 5
    assert (failing.out, failing.err.splitlines()[0]) == ("x", "said")
    assert "exited 5" in failing.err


def test_eval_stops_when_its_reader_does(keys: "Keys") -> None:
    keys.give("b", kk="x")
    words = subprocess.list2cmdline(
        keys.place.command("workflows", "eval", "b/k", "yes | head -c 9m")
    )

    done = subprocess.run(
        ["bash", "-c", f"{words} | head -n1"],
        cwd=keys.place.path,
        env=keys.place.environ,
        capture_output=True,
        timeout=60,
    )

    assert done.stdout == b"y\n"
    assert done.stderr == b""
