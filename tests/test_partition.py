"""Rides by passengers: every row once, where its number says, evenly, the same after any retry."""

import csv
import pathlib
import subprocess
import sys
import zlib
from typing import TYPE_CHECKING

import pytest
from transcripts import ROOT, SAMPLES, Checkout

if TYPE_CHECKING:
    from conftest import Done, Place

FOLDER = ROOT / "workflows" / "pipelines" / "partition"
MODULE = "workflows.pipelines.partition.tasks"
SCRIPT = FOLDER / "scripts" / "partition_rows.py"


def expected(files: int) -> dict[str, list[str]]:
    """Return what the twelve real months come to, worked out with nothing of the project."""
    kept = ("vendor_id", "pickup_datetime", "dropoff_datetime", "passenger_count", "trip_distance")
    found: dict[str, list[str]] = {}
    for path in sorted(SAMPLES.glob("*.csv")):
        with path.open(newline="") as months:
            for row in csv.DictReader(months):
                if row["passenger_count"].isdecimal():
                    line = ",".join(row[name] for name in kept) + "\n"
                    part = zlib.crc32(line.encode()) % files
                    name = f"passengers_{int(row['passenger_count'])}_{part:03d}.csv"
                    found.setdefault(name, []).append(line)
    return found


def partition(place: "Place", *words: str) -> "Done":
    return place.luigi("PartitionByPassengers", *words, module=MODULE)


def files_of(place: "Place") -> dict[str, str]:
    """Return the durable files of the one result there is."""
    paths = place.checkpoint.glob("PartitionByPassengers/*/data/*/*")
    return {path.name: path.read_text() for path in paths}


def spread(place: "Place", step: str, nodes: int) -> float:
    """Return the largest slot's bytes over the mean."""
    loads = [0] * nodes
    for line in place.ledger(step):
        loads[line["slot"]] += line["bytes"]
    return max(loads) * nodes / sum(loads)


def run_script(*words: str, data: bytes, cwd: pathlib.Path) -> "subprocess.CompletedProcess[bytes]":
    scripts = [str(SCRIPT.parent), str(ROOT / "workflows" / "scripts")]
    argv = [sys.executable, "-S", "-m", SCRIPT.stem, *words]
    environ = {"PYTHONPATH": ":".join(scripts)}
    return subprocess.run(argv, input=data, cwd=cwd, capture_output=True, env=environ)


def test_the_readme_shows_what_comes_out(tmp_path: pathlib.Path) -> None:
    (tmp_path / "here").mkdir()

    Checkout(tmp_path / "here").follow(FOLDER / "README.md")


@pytest.mark.parametrize("nodes", [1, 4])
def test_every_real_row_is_where_an_independent_program_puts_it(taxi: "Place", nodes: int) -> None:
    done = partition(taxi, "--files-each", "4", "--fleet", f"local:{nodes}")

    assert done.code == 0, done
    assert files_of(taxi) == {name: "".join(rows) for name, rows in expected(4).items()}
    assert spread(taxi, "PartitionByPassengers", nodes) <= 1.2


def test_each_number_has_as_many_files_as_the_fleet_has_nodes(taxi: "Place") -> None:
    done = partition(taxi, "--fleet", "local:5")

    assert done.code == 0, done
    assert sorted(files_of(taxi)) == [
        f"passengers_{number}_{part:03d}.csv" for number in range(7) for part in range(5)
    ]


def test_the_files_it_lists_are_all_there_are_and_a_second_run_only_lists_them(
    taxi: "Place",
) -> None:
    first, second = partition(taxi), partition(taxi)

    folder, *lines = second.out.splitlines()
    assert (second.code, second.out) == (0, first.out)
    assert {name: int(size) for size, name in map(str.split, lines)} == {
        path.name: path.stat().st_size for path in pathlib.Path(folder).iterdir()
    }
    assert len(taxi.ledger("Partition")) == 12


def test_the_largest_numbers_have_parts_within_a_few_percent() -> None:
    sizes = [sum(map(len, expected(4)[f"passengers_1_{part:03d}.csv"])) for part in range(4)]

    assert max(sizes) <= 1.05 * sum(sizes) / len(sizes)


def test_a_partition_that_is_made_again_is_the_same_as_before(taxi: "Place") -> None:
    partition(taxi)
    before = taxi.ledger("Partition")
    for path in (taxi.state / "nodes").glob("*/ledger"):
        for ledger in path.glob("Partition*.jsonl"):
            ledger.unlink()
    for path in taxi.checkpoint.glob("*/*/_SUCCESS"):
        path.unlink()

    done = partition(taxi)

    assert done.code == 0, done
    proofs = [
        {line["key"]: line["proof"] for line in lines}
        for lines in (before, taxi.ledger("Partition"))
    ]
    assert proofs[0] == proofs[1]


def test_a_column_that_is_not_kept_is_refused_before_anything_runs(taxi: "Place") -> None:
    done = partition(taxi, "--by", "payment_type")

    assert done.code != 0
    assert "--by payment_type is not one of --columns vendor_id" in done.err
    assert taxi.ledger("Fetch") == []


def test_only_whole_numbers_are_kept_and_all_others_are_counted(tmp_path: pathlib.Path) -> None:
    rows = b'1\n 2 \n3.0\n"4"\n5,cut\n,\nx\n-1\n1.5\n1e3\n\n'

    done = run_script("1", "n", "p", data=b"\xef\xbb\xbf N,more\n" + rows, cwd=tmp_path)

    assert done.stdout.split() == [b"p_%d_000.csv" % n for n in range(1, 6)], done.stderr


def test_a_quoted_newline_does_not_end_a_row_and_a_last_line_may_lack_one(
    tmp_path: pathlib.Path,
) -> None:
    data = b'note,n\n"a ""b"",\nc",1\n"d",2\ne,1'

    done = run_script("1", "n", "p", data=data, cwd=tmp_path)

    assert done.stdout.split() == [b"p_1_000.csv", b"p_2_000.csv"]
    assert (tmp_path / "p_1_000.csv").read_bytes() == b'"a ""b"",\nc",1\ne,1\n'


@pytest.mark.parametrize(
    ("data", "status", "said"),
    [
        (b"a,b\n1,2\n", 3, b"not one column 'n'"),
        (b"n,n\n1,2\n", 3, b"not one column 'n'"),
        (b'n\n"1\n', 4, b"never closed"),
        (b"n\n" + b"".join(b"%d\n" % n for n in range(1001)), 4, b"more than 1000 different"),
    ],
)
def test_what_cannot_be_partitioned_is_refused(
    tmp_path: pathlib.Path, data: bytes, status: int, said: bytes
) -> None:
    done = run_script("1", "n", "p", data=data, cwd=tmp_path)

    assert done.returncode == status
    assert said in done.stderr


def test_an_empty_input_has_no_rows_and_no_files(tmp_path: pathlib.Path) -> None:
    done = run_script("3", "n", "p", data=b"", cwd=tmp_path)

    assert (done.returncode, done.stdout) == (0, b"")
