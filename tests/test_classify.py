"""Rows classified in data frames: each once, in order, alike for any fleet and any cut."""

import csv
import datetime as dt
import gzip
import pathlib
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from transcripts import ROOT, SAMPLES, Checkout

if TYPE_CHECKING:
    from conftest import Done, Place

pytest.importorskip("pandas", reason="the example classifier needs it: pip install pandas")

FOLDER = ROOT / "workflows" / "pipelines" / "classify"
MODULE = "workflows.pipelines.classify.tasks"
SCRIPTS = [FOLDER / "scripts", ROOT / "workflows" / "scripts"]


def expected(paths: list[pathlib.Path]) -> str:
    """Return what some real months come to, worked out row by row with nothing of the project."""
    lines: list[str] = []
    for path in paths:
        texts = path.read_text().splitlines()[1:]
        with path.open(newline="") as months:
            for row, text in zip(csv.DictReader(months), texts, strict=True):
                miles, fare = float(row["trip_distance"]), float(row["fare_amount"])
                start, end = (
                    dt.datetime.fromisoformat(row[f"{name}_datetime"])
                    for name in ("pickup", "dropoff")
                )
                minutes = (end - start).total_seconds() / 60
                kind = "long" if miles >= 10 else "usual"
                kind = "short" if miles < 1 else kind
                kind = "standing" if miles == 0 else kind
                kind = "airport" if row["rate_code_id"] in ("2", "3") else kind
                kind = "impossible" if minutes <= 0 or miles > 2 * minutes else kind
                lines.append(f"{text},{'refund' if fare < 0 else kind}\n")
    header = paths[0].read_text().splitlines()[0]
    return f"{header},CLASSIFICATION\n{''.join(lines)}"


def classify(place: "Place", *words: str) -> "Done":
    return place.luigi("ClassifyRows", *words, module=MODULE)


def result(done: "Done") -> bytes:
    """Return the bytes of the file that a run says it made."""
    assert done.code == 0, done
    return pathlib.Path(done.out.split("\n")[0], "classified.csv.gz").read_bytes()


def generated(rows: int, *words: str) -> bytes:
    argv = [sys.executable, "-m", "workflows.pipelines.classify.generate", str(rows), *words]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, check=True).stdout


def run_script(
    name: str, *words: str, data: bytes, cwd: pathlib.Path, site: bool = True
) -> "subprocess.CompletedProcess[bytes]":
    argv = [sys.executable, *([] if site else ["-S"]), "-m", name, *words]
    environ = {"PYTHONPATH": ":".join(map(str, SCRIPTS)), "WORKFLOWS_KEY": "k"}
    return subprocess.run(argv, input=data, cwd=cwd, capture_output=True, env=environ)


def test_the_readme_shows_what_comes_out(tmp_path: pathlib.Path) -> None:
    (tmp_path / "here").mkdir()

    Checkout(tmp_path / "here").follow(FOLDER / "README.md")


def test_every_real_row_has_the_class_that_an_independent_program_gives_it(taxi: "Place") -> None:
    done = classify(taxi)

    assert gzip.decompress(result(done)).decode() == expected(sorted(SAMPLES.glob("*.csv")))


def test_the_result_is_the_same_bytes_on_any_number_of_nodes(place: "Place") -> None:
    place.key("rides.csv", generated(900))

    results = {
        result(classify(place, "--fleet", fleet, "--piece-rows", "200"))
        for fleet in ("local:1", "local:2", "local:5")
    }

    assert len(results) == 1
    assert gzip.decompress(results.pop()).count(b"\n") == 901


def test_the_rows_are_the_same_however_they_are_cut(place: "Place") -> None:
    place.key("rides.csv", generated(700))

    results = {
        gzip.decompress(result(classify(place, "--piece-rows", rows, "--frame-rows", frame)))
        for rows, frame in (("100", "100"), ("300", "100"), ("10000", "10"))
    }

    assert len(results) == 1


def test_all_slots_have_their_share_of_the_pieces(place: "Place") -> None:
    place.key("rides.csv", generated(1200))

    classify(place, "--fleet", "local:4", "--piece-rows", "100")

    slots = [line["slot"] for line in place.ledger("Classify")]
    assert [slots.count(slot) for slot in range(4)] == [3, 3, 3, 3]


def test_a_file_with_a_header_alone_comes_out_as_one(place: "Place") -> None:
    place.key("rides.csv", generated(0))

    done = classify(place)

    assert gzip.decompress(result(done)) == generated(0).rstrip() + b",CLASSIFICATION\n"


def test_files_with_different_headers_are_not_joined(place: "Place") -> None:
    place.key("a.csv", generated(5))
    place.key("b.csv", generated(5).replace(b"vendor_id", b"vendor"))

    done = classify(place)

    assert done.code == 30
    assert "merge_compressed: the header of " in done.err


def test_frames_may_not_depend_on_pieces(place: "Place") -> None:
    place.key("rides.csv", generated(5))

    done = classify(place, "--piece-rows", "250")

    assert done.code != 0
    assert "--piece-rows 250 must be a multiple of --frame-rows 100" in done.err


def test_a_node_without_pandas_says_so(tmp_path: pathlib.Path) -> None:
    done = run_script(
        "classify_rows", "100", "classifier", "f", data=generated(5), cwd=tmp_path, site=False
    )

    assert done.returncode == 3
    assert b"is not installed on this node: python3 -m pip install" in done.stderr


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"a,b\n1,2\n1,2,3\n", b"not a table"),
        (b'a,b\n1,"2\n', b"a quote is never closed"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: pathlib.Path, data: bytes, said: bytes) -> None:
    (tmp_path / "same.py").write_text("def classify(frame):\n    return frame.iloc[:, 0]\n")

    done = run_script("classify_rows", "100", "same", "f", data=data, cwd=tmp_path)

    assert done.returncode == 4
    assert said in done.stderr


def test_a_classifier_that_loses_rows_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "half.py").write_text("def classify(frame):\n    return frame['a'][1:]\n")

    done = run_script("classify_rows", "100", "half", "f", data=b"a\n1\n2\n", cwd=tmp_path)

    assert done.returncode == 4
    assert b"the classifier gave 1 classes for 2 rows" in done.stderr


def test_rows_pass_through_byte_for_byte(tmp_path: pathlib.Path) -> None:
    (tmp_path / "same.py").write_text("def classify(frame):\n    return frame.iloc[:, 1]\n")
    rows = b'\xef\xbb\xbfa,"b"\r\n1.50,"x,""y""\nz"\r\n\xff,NA\r\n\r\n 007 ,""\r\n8,cut'

    done = run_script("classify_rows", "2", "same", "f", data=rows, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert gzip.decompress((tmp_path / "f").read_bytes()) == (
        b'\xef\xbb\xbfa,"b",CLASSIFICATION\r\n1.50,"x,""y""\nz","x,""y""\nz"\r\n'
        b'\xff,NA,NA\r\n 007 ,"",""\r\n8,cut,cut\n'
    )


def test_the_generator_is_the_same_in_every_process_and_more_rows_begin_with_fewer() -> None:
    few, again, more, other = (
        generated(50),
        generated(50),
        generated(90),
        generated(50, "--seed", "2"),
    )

    assert few == again == b"".join(more.splitlines(keepends=True)[:51])
    assert few != other
    assert few.count(b"\n") == 51
