"""Parquet through the main pipeline: by name, whatever its type, right to the row."""

import json
import os
import pathlib
import subprocess
import sys
from typing import TYPE_CHECKING

import duckdb
import pytest

if TYPE_CHECKING:
    from conftest import Place

SAMPLES = pathlib.Path(__file__).resolve().parent.parent / "samples" / "parquet"
# What pyarrow 26.0.1 reads in both of them: DuckDB, which the steps use, is to agree with it.
RIDES = {"1": 759, "": 325, "2": 75, "5": 20, "3": 11, "6": 6, "4": 3, "0": 1}


def counted(place: "Place") -> dict[str, int]:
    (path,) = place.checkpoint.glob("MergeCounts/*/data/*/results")
    rows = [line.rsplit(",", 1) for line in path.read_text().splitlines()]
    return {value: int(count) for value, count in rows}


def months(place: "Place", *queries: str) -> None:
    for number, query in enumerate(queries):
        path = place.source / f"{number}.parquet"
        duckdb.sql(f"COPY ({query}) TO '{path}' (FORMAT parquet)")


@pytest.mark.parametrize("fuse", [[], ["--fuse"]])
def test_real_months_are_counted_as_another_reader_counts_them(
    place: "Place", fuse: list[str]
) -> None:
    for path in sorted(SAMPLES.glob("*.parquet")):
        place.key(path.name, path.read_bytes())

    done = place.luigi("MergeCounts", *fuse, module="workflows.tasks")
    verified = place.run("workflows", "verify")

    assert done.code == 0, done
    assert counted(place) == RIDES
    assert (verified.code, verified.out[:16]) == (0, "right: 1200 rows"), verified


def test_names_differ_in_case_and_types_from_month_to_month_and_csv_stands_beside_them(
    place: "Place",
) -> None:
    months(
        place,
        "SELECT 1::BIGINT AS passenger_count, 2.5 AS Airport_fee FROM range(3)",
        "SELECT 1.0::DOUBLE AS Passenger_Count, NULL::INT AS airport_fee FROM range(4)",
        "SELECT NULL::DOUBLE AS PASSENGER_COUNT, 0 AS AIRPORT_FEE FROM range(5)",
        "SELECT 1::UTINYINT AS passenger_count, '2.5' AS airport_fee FROM range(6)",
        "SELECT 7 AS passenger_count, 1 AS airport_fee FROM range(0)",
    )
    place.key("x.csv", b"airport_fee,passenger_count\n2.5,1\n")

    columns = '["passenger_count", "airport_fee"]'
    done = place.luigi("MergeCounts", "--columns", columns, module="workflows.tasks")

    assert done.code == 0, done
    assert counted(place) == {"1,2.5": 10, "1,": 4, ",0": 5}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            b"<?xml version='1.0'?><Error/>",
            "29 bytes begins with \"<?xml version='1.0'?>",
        ),
        (b"PAR1 and then nothing", "its 21 bytes is cut off"),
        (b"PAR1 and then nothing PAR1", "is no whole Parquet file"),
        (b"", "its 0 bytes begins with ''"),
    ],
)
def test_what_is_no_parquet_file_is_named_and_never_counted(
    place: "Place", data: bytes, said: str
) -> None:
    place.key("2018-07.parquet", data)

    done = place.luigi("Select", module="workflows.tasks")

    assert done.code == 30
    assert "2018-07.parquet" in done.err
    assert said in done.err, done
    assert place.outputs("Select") == {}


def test_a_column_that_is_missing_or_ambiguous_is_never_guessed(place: "Place") -> None:
    months(
        place, "SELECT 1 AS fare", 'SELECT 1 AS a, 2 AS passenger_count, 3 AS "Passenger_count "'
    )

    done = place.luigi("Select", module="workflows.tasks")

    assert done.code == 30
    assert "no column 'passenger_count' among: fare" in done.err
    assert "more than one column 'passenger_count' among: a, passenger_count" in done.err


def test_a_node_without_a_package_that_a_step_declares_is_refused_with_what_to_type(
    place: "Place",
) -> None:
    place.module(
        "from workflows.steps import Map\n\n\n"
        "class Fetch(Map):\n"
        '    command = "cat; touch ran"\n'
        '    pip = ("luigi", "no-such-package-at-all>=2")\n'
    )
    place.key("x", b"x\n")

    done = place.luigi("Fetch")

    assert done.code == 30
    assert "Fetch needs the Python package no-such-package-at-all>=2 there" in done.err
    assert f"{sys.executable} -m pip install 'no-such-package-at-all>=2'" in done.err
    assert place.outputs("Fetch") == {}


# A runtime whose commands find their packages in one directory.
ASKED = """
import json, sys
from workflows.node import packages

_, sys.executable, site = sys.argv
for line in sys.stdin:
    print(packages.missing(json.loads(line), {"PYTHONPATH": site}), flush=True)
"""


def test_a_package_may_have_bounds_and_is_looked_for_once_while_it_is_there(
    tmp_path: pathlib.Path,
) -> None:
    site, python, log = (tmp_path / name for name in ("site", "python", "log"))
    python.write_text(f'#!/bin/sh\necho looked >> {log}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    runtime = subprocess.Popen(
        [sys.executable, "-c", ASKED, str(python), str(site)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))),
        text=True,
    )

    def install(version: str) -> None:
        about = site / "ducks-1.dist-info" / "METADATA"
        about.parent.mkdir(parents=True, exist_ok=True)
        about.write_text(f"Metadata-Version: 2.1\nName: ducks\nVersion: {version}\n")

    def missing(*wanted: str) -> str:
        assert runtime.stdin is not None
        assert runtime.stdout is not None
        runtime.stdin.write(json.dumps(wanted) + "\n")
        runtime.stdin.flush()
        return runtime.stdout.readline().strip()

    with runtime:
        answers = [missing("ducks>=1,<2")]
        install("2.0.1")
        answers += [missing("ducks>=1,<2", "ducks")]
        install("1.4.2")
        answers += [missing("ducks>=1,<2", "ducks")]
        answers += [missing("ducks>=1,<2", "ducks"), missing("ducks")]

    assert answers == ["['ducks>=1,<2']", "['ducks>=1,<2']", "[]", "[]", "[]"]
    assert log.read_text() == "looked\n" * 3
