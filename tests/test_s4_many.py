"""map-to-n, map-from-n and the seeds' pipeline as a user of s4 knows them. Checks 26 to 32."""

import collections
import csv
import pathlib
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Keys

SAMPLES = pathlib.Path(__file__).resolve().parent.parent / "samples" / "taxi"
CUT = "cut -d, -f4"
COUNT = "awk 'NR > 1 {n[$1]++} END {for (v in n) print v \",\" n[v]}'"
SUM = "xargs cat | awk -F, '{n[$1] += $2} END {for (v in n) print v, n[v]}' | sort -k2,2nr"


def test_the_seeds_golden_map_to_n_and_from_n(keys: "Keys") -> None:
    for name in "ab":
        keys.give(f"input_{name}", **{f"k00{i}_machine{i}": f"input_{name}{i}\n" for i in range(3)})

    keys.ok("map", "input_a/", "output_a/", "sed s/input/output/")
    for name in "ab":
        keys.ok("map-to-n", f"input_{name}/", f"step/{name}/", "cat > $filename; echo $filename")
    keys.ok("map-from-n", "step/", "merged/", "xargs cat")

    assert keys.read("output_a/000_machine0") == "output_a0\n"
    assert len(keys.names("step")) == 6
    assert keys.names("merged") == ["000_machine0", "001_machine1", "002_machine2"]
    assert keys.read("merged/002_machine2") == "input_a2\ninput_b2\n"


def test_what_all_keys_call_alike_meets_on_one_node(six: "Keys") -> None:
    six.ok("map-to-n", "in/", "out/d/", "cat > results && echo results")

    assert six.names("out") == [f"d/00{n}_f{n}/results" for n in range(6)]
    assert len({six.slot(f"out/d/00{n}_f{n}/results") for n in range(6)}) == 1
    assert six.read("out/d/003_f3/results") == "x3\ny3\n"


def test_files_are_placed_by_their_own_names_and_none_at_all_is_well(six: "Keys") -> None:
    split = "for i in 0 1 2; do echo $filename > 00${i}_part; echo 00${i}_part; done"

    six.ok("map-to-n", "in/", "parts/", split)
    six.ok("map-to-n", "in/", "none/", "true")

    assert len(six.names("parts")) == 18
    for i in range(3):
        assert six.slot(f"parts/004_f4/00{i}_part") == i
    assert six.names("none") == []


def test_maps_go_on_from_what_map_to_n_made(six: "Keys") -> None:
    six.ok("map-to-n", "in/", "n/", "for i in a b; do cat > $i; echo $i; done")

    six.ok("map", "n/", "m/", "wc -l")
    six.ok("map-from-n", "m/", "f/", "xargs cat")

    assert len(six.names("m")) == 12
    assert six.names("f") == ["a", "b"]
    assert six.read("f/a") == "2\n" * 6


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("echo nothing", "no such file"),
        ("echo /etc/passwd", "not a plain file name"),
        ("cat > ../x; echo ../x", "not a plain file name"),
        ("cat > x; echo x; echo x", "printed twice"),
        ("ln -s /etc/passwd x; echo x", "is a link"),
    ],
)
def test_a_bad_name_is_refused_before_anything_lands(six: "Keys", command: str, why: str) -> None:
    bad = f"if [ $filename = 003_f3 ]; then {command}; else cat > fine; echo fine; fi"
    started = time.monotonic()

    done = six.run("map-to-n", "in/", "out/", bad)

    assert time.monotonic() - started < 30
    assert done.code == 1
    assert "out/003_f3" in done.err
    assert why in done.err
    assert six.names("out") == []
    assert pathlib.Path("/etc/passwd").is_file()
    six.give("later", kx="x")
    six.ok("map-to-n", "in/", "out/", "cat > fine; echo fine")
    assert len(six.names("out")) == 6


def test_equal_basenames_of_two_inputs_are_refused_by_name(keys: "Keys") -> None:
    keys.give("in", ka__same="1", kb__same="2")

    done = keys.run("map-to-n", "in/", "out/", "cat > x; echo x")

    assert done.code == 2
    assert "in/a/same and in/b/same" in done.err
    assert keys.names("out") == []


def test_a_name_with_a_space_is_a_name(six: "Keys") -> None:
    six.ok("map-to-n", "in/", "out/", "cat > 'a b'; echo 'a b'")
    six.ok("map-from-n", "out/", "all/", "xargs cat | wc -l")

    assert six.read("out/000_f0/a b") == "x0\ny0\n"
    assert six.ok("eval", "all/a b", "cat").split() == ["12"]


def test_map_from_n_gets_sorted_absolute_paths(keys: "Keys") -> None:
    keys.give("in/may", k000_key0__000_b0="may\n", k001_key1__001_b1="1\n")
    keys.give("in/jun", k000_key0__000_b0="jun\n")

    keys.ok("map-from-n", "in/", "paths/", "cat")
    keys.ok("map-from-n", "in/", "out/deep/", "xargs cat")

    paths = keys.read("paths/000_b0").splitlines()
    assert [path.split("/")[-3:] for path in paths] == [
        ["jun", "000_key0", "000_b0"],
        ["may", "000_key0", "000_b0"],
    ]
    assert all(path.startswith("/") for path in paths)
    assert keys.names("out") == ["deep/000_b0", "deep/001_b1"]
    assert keys.read("out/deep/000_b0") == "jun\nmay\n"


def test_a_suffix_is_kept_if_all_agree_else_dropped(keys: "Keys") -> None:
    keys.give("in", ka__000_same="", kb__000_same="", k001_x="", k001_y="", kplain="", kc__plain="")

    keys.ok("map-from-n", "in/", "out/", "wc -l")

    assert keys.names("out") == ["000_same", "001", "plain"]
    assert keys.read("out/001").strip() == "2"


def test_the_seeds_pipeline_counts_as_python_does(keys: "Keys") -> None:
    keys.ok("cp", "-r", str(SAMPLES), "fleet://rides/")

    keys.ok("map", "rides/", "step1/", CUT)
    keys.ok("map", "step1/", "step2/", COUNT)
    keys.ok("map-to-n", "step2/", "step3/", "cat > results && echo results")
    keys.ok("map-from-n", "step3/", "step4/", SUM)
    keys.ok("map", "rides/", "at_once/", f"{CUT} | {COUNT}")

    expected: collections.Counter[str] = collections.Counter()
    for path in SAMPLES.glob("*.csv"):
        with path.open(newline="") as file:
            rows = csv.reader(file)
            next(rows)
            expected.update(row[3] for row in rows)
    table = keys.ok("eval", "step4/results", "cat")
    shown = dict(line.rsplit(" ", 1) for line in table.splitlines())
    assert {value: int(count) for value, count in shown.items()} == dict(expected)
    for name in keys.names("step2"):
        assert sorted(keys.read(f"step2/{name}")) == sorted(keys.read(f"at_once/{name}"))


def test_a_partition_loses_no_row(keys: "Keys") -> None:
    keys.ok("cp", "-r", str(SAMPLES), "fleet://rides/")
    partition = (
        'tail -n +2 | awk -F, \'{f = ($4 == "" ? "blank" : $4); print > f; seen[f]}'
        " END {for (f in seen) print f}'"
    )

    keys.ok("map-to-n", "rides/", "parts/", partition)
    keys.ok("map-from-n", "parts/", "by_count/", "xargs cat")

    rows = sum(path.read_bytes().count(b"\n") - 1 for path in SAMPLES.glob("*.csv"))
    wc = [keys.ok("eval", f"by_count/{name}", "wc -l") for name in keys.names("by_count")]
    assert sum(map(int, wc)) == rows
