"""The main pipeline as a user runs it, over the bundled taxi rides: answers, reruns, verbs."""

import collections
import csv
import json
import os
import pathlib
import re
import shutil
import subprocess
import zlib
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Done, Place

MODULE = "workflows.tasks"
STEPS = ("Fetch", "Select", "GroupCount", "Shuffle", "MergeCounts")
MONTH = "yellow_tripdata_2018-01.csv"
NEW_MONTH = "yellow_tripdata_2021-01.csv"
ROWS = b"vendor_id,passenger_count\n1,2\n1,9\n1,2\n"


def pipeline(
    place: "Place", *words: str, step: str = "MergeCounts", source: str = "source"
) -> "Done":
    return place.luigi(step, "--source", source, "--pattern", "*", *words, module=MODULE)


def plan(place: "Place", *words: str, source: str = "source") -> "Done":
    return place.run(
        "workflows", "plan", "MergeCounts", "--source", source, "--pattern", "*", *words
    )


def done(place: "Place") -> dict[str, int]:
    """Return step -> number of ledger lines of keys that were done."""
    return {s: len([line for line in place.ledger(s) if "gone" not in line]) for s in STEPS}


def ran(place: "Place", before: dict[str, int]) -> dict[str, int]:
    """Return step -> number of keys that were done since `before`."""
    return {step: n - before[step] for step, n in done(place).items() if n != before[step]}


def counts_of(text: str) -> dict[str, int]:
    """Return what a printed result says: its path is the first line, its table the rest."""
    path, *table = text.splitlines()
    assert pathlib.Path(path).is_file()
    rows = [line.rsplit(None, 1) for line in table]
    return {"" if value == "(blank)" else value: int(count) for value, count in rows}


def count_csv(source: pathlib.Path) -> dict[str, int]:
    """Count with Python's csv module, which knows nothing of the pipeline."""
    counts: collections.Counter[str] = collections.Counter()
    for path in source.rglob("*"):
        if path.is_file():
            with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
                for row in csv.DictReader(file):
                    counts[row["passenger_count"].strip()] += 1
    return dict(counts)


def result(place: "Place") -> bytes:
    """Return the one committed result of this place."""
    (manifest,) = place.checkpoint.glob("MergeCounts/*/_SUCCESS")
    (part,) = json.loads(manifest.read_text())["parts"]
    return (place.checkpoint / str(part["object"])).read_bytes()


def everything(place: "Place") -> dict[str, bytes]:
    """Return path -> bytes of all that nodes keep, without what a runtime writes of itself."""
    nodes = place.state / "nodes"
    return {
        str(path.relative_to(nodes)): path.read_bytes()
        for part in ("data", "ledger", "files")
        for path in nodes.glob(f"*/{part}/**/*")
        if path.is_file()
    }


# -- the answer ------------------------------------------------------------------------------------


def test_the_rides_are_counted_as_csv_and_duckdb_count_them(taxi: "Place") -> None:
    duckdb = pytest.importorskip("duckdb")
    rows = duckdb.read_csv(f"{taxi.source}/*.csv", all_varchar=True, header=True)
    value = "coalesce(passenger_count, '')"
    expected = dict(rows.aggregate(f"{value}, count(*)", value).fetchall())

    run = pipeline(taxi)

    assert run.code == 0, run
    assert counts_of(run.out) == expected == count_csv(taxi.source)
    assert sum(expected.values()) == 7200
    assert taxi.leftovers() == []


def test_stdout_is_the_path_and_the_table_and_all_else_is_on_stderr(taxi: "Place") -> None:
    run = pipeline(taxi)

    path, *table = run.out.splitlines()
    assert path.startswith(str(taxi.checkpoint))
    assert [line.split() for line in table] == [
        ["1", "5134"],
        ["2", "961"],
        ["5", "310"],
        ["3", "281"],
        ["6", "174"],
        ["4", "144"],
        ["(blank)", "130"],
        ["0", "66"],
    ]
    told = [line.split()[0] for line in run.err.splitlines() if line]
    assert told[-6:] == [*STEPS, "Shuffle:"]  # the table of steps, then how even the shuffle was


def test_a_task_with_a_typo_is_answered_without_a_traceback(place: "Place") -> None:
    run = pipeline(place, step="MergeCount")

    assert run.code == 1
    assert run.err.splitlines()[:2] == [
        "workflows: No task MergeCount. Did you mean:",
        "MergeCounts",
    ]
    assert "Traceback" not in run.err


def test_a_reader_that_leaves_before_the_result_fails_the_run_in_one_line(taxi: "Place") -> None:
    words = taxi.command("luigi", "--module", MODULE, "MergeCounts", "--source", "source")
    script = 'set -o pipefail; "$@" | :'

    runs = [
        subprocess.run(
            ["bash", "-c", script, "bash", *words],
            cwd=taxi.path,
            env=taxi.environ,
            capture_output=True,
            text=True,
        )
        for _ in range(2)
    ]

    said = (
        "ERROR: the result could not be printed: Broken pipe;"
        " it is kept: workflows results MergeCounts prints it\n"
    )
    assert [run.returncode for run in runs] == [30, 30], runs
    assert runs[0].stderr.count(said) == 1
    assert "Traceback" not in runs[0].stderr
    assert runs[1].stderr == said


def test_a_second_run_runs_nothing_and_prints_the_same(taxi: "Place") -> None:
    first = pipeline(taxi)
    before = everything(taxi)

    second = pipeline(taxi)

    assert (second.code, second.out, second.err) == (0, first.out, "")
    assert everything(taxi) == before


def test_several_columns_are_counted_together(place: "Place") -> None:
    place.key("a", b'b,"a ",c\n1,"x, y",0\n2,z,0\n')
    place.key("b", b'A,B\n"x, y",1\n')

    run = pipeline(place, "--columns", '["a", "b"]')

    assert run.code == 0, run
    assert result(place) == b'"x, y",1,2\nz,2,1\n'


# -- what changed, and nothing else ----------------------------------------------------------------


def test_a_new_month_is_counted_alone_and_merged_again(taxi: "Place") -> None:
    pipeline(taxi)
    before, kept = done(taxi), everything(taxi)
    taxi.key(NEW_MONTH, ROWS)

    planned = plan(taxi)
    run = pipeline(taxi)

    assert ran(taxi, before) == dict.fromkeys(STEPS, 1)
    assert counts_of(run.out) == count_csv(taxi.source)
    assert counts_of(run.out)["9"] == 1
    assert {k: v for k, v in everything(taxi).items() if k in kept and "/data/" in k} == {
        k: v for k, v in kept.items() if "/data/" in k
    }
    rows = {line.split()[0]: line for line in planned.out.splitlines()}
    assert all(re.search(r"13 +1  1 new +1 on node \d$", rows[step]) for step in STEPS[:3]), planned


def test_a_month_changed_in_place_is_noticed_and_its_old_outputs_stay(taxi: "Place") -> None:
    pipeline(taxi)
    before = done(taxi)
    old = {
        step: (taxi.output_path(step, line), taxi.output_path(step, line).read_bytes())
        for step in STEPS[:3]
        for line in taxi.ledger(step)
        if line["key"] == MONTH
    }
    path = taxi.source / MONTH
    path.write_bytes(path.read_bytes().replace(b",1,", b",7,"))

    planned = plan(taxi)
    run = pipeline(taxi)

    assert ran(taxi, before) == dict.fromkeys(STEPS, 1)
    assert counts_of(run.out) == count_csv(taxi.source)
    assert planned.out.count("1 changed input") == 4, planned
    for kept, data in old.values():
        assert kept.read_bytes() == data


def test_other_columns_fetch_nothing_again(taxi: "Place") -> None:
    pipeline(taxi)
    before = done(taxi)

    planned = plan(taxi, "--columns", '["vendor_id"]')
    run = pipeline(taxi, "--columns", '["vendor_id"]')

    assert run.code == 0, run
    assert ran(taxi, before) == {"Select": 12, "GroupCount": 12, "Shuffle": 12, "MergeCounts": 1}
    assert "12 changed command" in planned.out
    assert "Fetch" not in planned.out


def test_outputs_deleted_by_hand_are_made_again_and_no_other(taxi: "Place") -> None:
    pipeline(taxi)
    lines = sorted(taxi.ledger("Select"), key=lambda line: str(line["key"]))
    gone = lines[2:7]
    bytes_before = taxi.outputs("Select")
    for line in gone:
        taxi.output_path("Select", line).unlink()

    planned = taxi.run(
        "workflows", "plan", "--module", MODULE, "Select", "--source", "source", "--pattern", "*"
    )
    run = pipeline(taxi, step="Select")

    assert run.code == 0, run
    again = taxi.ledger("Select")[12:]
    assert {line["key"] for line in again} == {line["key"] for line in gone}
    assert len(again) == 5
    assert taxi.outputs("Select") == bytes_before
    assert len(taxi.ledger("Fetch")) == 12
    assert "5 lost output" in planned.out


def test_what_nobody_needs_is_not_made_again(taxi: "Place") -> None:
    first = pipeline(taxi)
    before = done(taxi)
    for line in taxi.ledger("Select"):
        taxi.output_path("Select", line).unlink()

    run = pipeline(taxi)

    assert (run.code, run.out) == (0, first.out)
    assert ran(taxi, before) == {}


def test_a_byte_that_flipped_is_found_and_its_key_alone_is_made_again(taxi: "Place") -> None:
    pipeline(taxi)
    line = taxi.ledger("Select")[4]
    path = taxi.output_path("Select", line)
    good = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(good[:-3] + b"8" + good[-2:])
    path.chmod(0o444)

    fsck = taxi.run("workflows", "fsck")
    before = done(taxi)
    run = pipeline(taxi, step="Select")
    after = taxi.run("workflows", "fsck")

    assert fsck.code == 1, fsck
    assert f"Select/{line['key']} on node {line['slot']}: its bytes have changed" in fsck.out
    assert fsck.out.count("\n") == 2
    assert run.code == 0, run
    assert ran(taxi, before) == {"Select": 1}
    assert path.read_bytes() == good
    assert (after.code, after.out) == (0, "61 keys read, 0 damaged\n")


# -- ways to run it --------------------------------------------------------------------------------


def test_a_fused_run_gives_the_same_bytes_keeps_nothing_in_between_and_shows_every_stage(
    taxi: "Place",
) -> None:
    pipeline(taxi, "--checkpoint", "unfused")
    unfused = {step: taxi.outputs(step) for step in STEPS[2:]}
    shutil.rmtree(taxi.state)

    run = pipeline(taxi, "--fuse")
    report = taxi.run("workflows", "report")

    assert run.code == 0, run
    assert {step: taxi.outputs(step) for step in STEPS[2:]} == unfused
    assert {path.name for path in (taxi.state / "nodes").glob("*/data/*")} == {
        "GroupCount",
        "Shuffle",
        "Shuffle.pieces",
        "MergeCounts",
    }
    compared = taxi.run("workflows", "report", "--compare").out.splitlines()
    keys = taxi.run("workflows", "report", "--keys").out
    assert [line.split()[:4] for line in compared[1:]] == [
        [report.out.split(":")[0], "local:3", "49", "0"],
    ]
    assert re.search(r"^GroupCount +12 +[\d.]+ +[\d.]+ +[\d.]+ +yellow_tripdata_\S+$", keys, re.M)
    for shown in (run.err, report.out):
        rows = [re.split(r"  +", line) for line in shown.splitlines()]
        stages = {row[0]: row for row in rows if len(row) == 8}
        for step in ("Fetch (fused)", "Select (fused)", "GroupCount (fused)"):
            assert stages[step][1:3] == ["12", "0"]
            assert float(stages[step][4]) > 0, shown
        assert stages["Fetch (fused)"][6] == stages["Select (fused)"][5] == "0.7"


@pytest.mark.parametrize("nodes", [1, 2, 5])
def test_the_result_is_the_same_on_any_number_of_nodes(taxi: "Place", nodes: int) -> None:
    run = pipeline(taxi, "--fleet", f"local:{nodes}")

    assert run.code == 0, run
    assert result(taxi) == b"1,5134\n2,961\n5,310\n3,281\n6,174\n4,144\n,130\n0,66\n"
    assert {path.name for path in (taxi.state / "nodes").iterdir()} == set(map(str, range(nodes)))


def test_many_keys_in_few_shards_give_the_same_result(taxi: "Place") -> None:
    run = taxi.luigi("MergeCounts", module=MODULE, WORKFLOWS_KEY_TASKS="2", WORKFLOWS_SHARDS="6")

    assert run.code == 0, run
    assert counts_of(run.out) == count_csv(taxi.source)


# -- verbs -----------------------------------------------------------------------------------------


def test_plan_says_what_would_run_and_runs_nothing(taxi: "Place") -> None:
    before = plan(taxi)
    ran_nothing = done(taxi) == dict.fromkeys(STEPS, 0)
    pipeline(taxi)
    kept = everything(taxi)
    after = plan(taxi)

    assert (before.code, after.code) == (0, 0), (before, after)
    assert ran_nothing
    assert before.out.startswith("source: 12 keys, 0.7 MB, on 3 nodes of local:3, skew 1.0")
    for step in STEPS[:4]:
        assert re.search(rf"^{step} +12 +12  12 new +4 on each of 3 nodes$", before.out, re.M)
    assert re.search(r"^MergeCounts +\? +\?  known after Shuffle$", before.out, re.M)
    assert "nothing to run" in after.out
    assert everything(taxi) == kept


def test_verify_says_right_of_a_right_result_and_wrong_of_a_wrong_one(taxi: "Place") -> None:
    pipeline(taxi)
    right = [taxi.run("workflows", "verify", "--engine", name) for name in ("csv", "auto")]
    (committed,) = taxi.checkpoint.glob("MergeCounts/*/_SUCCESS")
    manifest = json.loads(committed.read_text())
    part = manifest["parts"][0]
    data = taxi.checkpoint / part["object"]
    fake = data.read_bytes().replace(b"5134", b"5135")
    for path, content in ((data, fake), (committed, b"")):
        path.chmod(0o644)
        path.write_bytes(content)
    part["crc"] = f"{zlib.crc32(fake):08x}"
    committed.write_text(json.dumps(manifest))

    wrong = taxi.run("workflows", "verify", "--engine", "csv")

    for done in right:
        assert done.code == 0, done
        assert done.out.startswith("right: 7200 rows, 8 values, as ")
    assert wrong.code == 1, wrong
    assert wrong.out.startswith("WRONG: 1 was counted 5135 times, Python's csv module counts 5134")


def test_a_result_damaged_behind_its_manifest_is_never_shown(taxi: "Place") -> None:
    pipeline(taxi)
    (data,) = taxi.checkpoint.glob("MergeCounts/*/data/*/results")
    data.chmod(0o644)
    data.write_bytes(data.read_bytes().replace(b"5134", b"5135"))

    shown = taxi.run("workflows", "results")

    assert shown.code == 1, shown
    assert shown.out == ""
    assert f"{data} is damaged" in shown.err


def test_results_shows_the_top_of_the_last_result(taxi: "Place") -> None:
    before = taxi.run("workflows", "results")
    run = pipeline(taxi)

    shown = taxi.run("workflows", "results", "--top", "3")

    assert before.code == 2, before
    assert "MergeCounts has no result" in before.err
    assert shown.code == 0, shown
    assert shown.out.split() == run.out.split()[:7]
    assert shown.out.count("\n") == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda place: place.key(MONTH, ROWS), f"{MONTH} is changed."),
        (lambda place: place.key(NEW_MONTH, ROWS), f"{NEW_MONTH} is new."),
        (lambda place: (place.source / MONTH).unlink(), f"{MONTH} is gone."),
        (
            lambda place: [place.key(name, ROWS) for name in (MONTH, NEW_MONTH)],
            f"{MONTH} is changed (and 1 more).",
        ),
    ],
)
def test_verify_says_that_the_source_changed_and_does_not_blame_the_result(
    taxi: "Place", change: "Callable[[Place], object]", said: str
) -> None:
    pipeline(taxi)
    change(taxi)

    changed = taxi.run("workflows", "verify", "--engine", "csv")
    run = pipeline(taxi)
    verified = taxi.run("workflows", "verify", "--engine", "csv")

    assert (changed.code, changed.out) == (1, ""), changed
    assert f"source has changed since it was made: {said}" in changed.err
    assert (run.code, verified.code) == (0, 0), (run, verified)


def test_gc_shows_then_removes_exactly_what_is_stale(taxi: "Place") -> None:
    pipeline(taxi)
    path = taxi.source / MONTH
    path.write_bytes(path.read_bytes() + b"1,2,3,4,5,6\n")
    stale = {
        str(taxi.output_path(step, line))
        for step in STEPS
        for line in taxi.ledger(step)
        if line["key"] in (MONTH, "results")
    }
    pipeline(taxi)
    kept = everything(taxi)
    words = ["MergeCounts", "--source", "source", "--pattern", "*"]

    shown = taxi.run("workflows", "gc", *words)
    untouched = everything(taxi) == kept
    removed = taxi.run("workflows", "gc", "--yes", *words)
    gone = {str(taxi.state / "nodes" / name) for name in set(kept) - set(everything(taxi))}
    again = taxi.run("workflows", "gc", *words)
    before = done(taxi)
    run = pipeline(taxi)

    assert (shown.code, removed.code, again.code) == (0, 0, 0), (shown, removed, again)
    assert untouched
    assert "nothing was removed" in shown.out
    assert {name for name in gone if "/Shuffle" not in name} == {
        name for name in stale if "/Shuffle" not in name
    }
    assert len([name for name in gone if "/Shuffle.pieces/" in name]) == 1
    assert len([name for name in gone if "/Shuffle/" in name]) == 1
    assert "nothing to remove" in again.out
    assert (run.code, ran(taxi, before)) == (0, {})


def test_after_gc_every_step_of_the_pipeline_is_still_done(taxi: "Place") -> None:
    pipeline(taxi)
    taxi.run("workflows", "gc", "--yes", "MergeCounts", "--source", "source", "--pattern", "*")
    before = done(taxi)

    runs = [pipeline(taxi, step=step) for step in STEPS]

    assert [run.code for run in runs] == [0] * 5
    assert ran(taxi, before) == {}


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--source", "empty"], "nothing in empty matches '*' (0 names were seen)"),
        (["--source", "full", "--pattern", "no*"], "nothing in full matches 'no*' (1 names were"),
        (
            ["--source", "nowhere"],
            "there is no source nowhere: give a directory or s3://BUCKET/PREFIX/, or",
        ),
        (["--source", "full", "--fleet", "moon:3"], "no fleet 'moon:3': write local:N"),
        (["--source", "full", "--fleet", "local:0"], "no fleet 'local:0': write local:N"),
        (["--source", "full", "--shard", "x"], "MergeCounts has no shard 'x'; leave --shard out"),
        (["--source", "full", "--checkpoint", "ftp://x"], "cannot keep checkpoints at ftp://x"),
    ],
)
def test_a_mistake_is_one_clear_line_and_a_non_zero_exit(
    place: "Place", words: list[str], message: str
) -> None:
    (place.path / "empty").mkdir()
    (place.path / "full").mkdir()
    (place.path / "full/x").write_bytes(ROWS)
    given = words if "--pattern" in words else [*words, "--pattern", "*"]

    run = place.luigi("MergeCounts", *given, module=MODULE)
    verb = place.run("workflows", "plan", "MergeCounts", *given)

    assert run.code in (35, 40), run
    assert verb.code == 2, verb
    for done in (run, verb):
        assert done.err.count(message) == 1, done
        assert done.err.count("\n") == 1, done
        assert done.out == ""


def test_bad_settings_are_all_named_and_nothing_runs(taxi: "Place") -> None:
    path = taxi.path / "luigi.cfg"
    text = path.read_text()
    path.write_text(text.replace("\nslots = 0\n", "\nslots = many\nslot = 3\n"))

    run = pipeline(taxi)
    verbs = [plan(taxi), taxi.run("workflows", "results"), taxi.run("workflows", "fsck")]

    assert run.code != 0, run
    assert [verb.code for verb in verbs] == [2, 2, 2]
    for done in (run, *verbs):
        assert "[node] slots = many: must be a whole number" in done.err
        assert "[node] slot: no such setting; did you mean 'slots'?" in done.err
        assert "Traceback" not in done.err
    assert not (taxi.state / "nodes").exists()


def test_a_column_that_is_not_there_fails_the_key_and_says_which_columns_are(
    taxi: "Place",
) -> None:
    run = pipeline(taxi, "--columns", '["passengers"]')

    assert run.code == 30, run
    assert "no column 'passengers' in the header: vendor_id,pickup_datetime" in run.err
    assert "Traceback" not in run.err
    assert list(taxi.checkpoint.glob("MergeCounts/*/_SUCCESS")) == []


# -- hostile names ---------------------------------------------------------------------------------

PREFIX = 'trip data/it\'s "100%";$(x) é #'
HOSTILE = [
    "with space.csv",
    "it's.csv",
    'say "hi".csv',
    "100%.csv",
    "%s%n.csv",
    "a;b.csv",
    "$(touch pwned).csv",
    "`touch pwned`.csv",
    "back\\slash.csv",
    "-rf",
    "--help",
    "é ü 漢字.csv",
    "not \udcff\udcfe utf-8.csv",
    "n" * 196 + ".csv",
    "#0",
    "tab\there.csv",
    "cr\r.csv",
    "a/same.csv",
    "b/same.csv",
    "deep/er/still/x y.csv",
    "[x]*?.csv",
    "~",
    "&|<>!.csv",
    "{a,b}.csv",
    "=.csv",
]


def hostile(place: "Place", header: bytes = b"vendor_id,passenger_count\n") -> str:
    """Fill a source whose folder and keys have awkward names; return the folder."""
    for number, name in enumerate(HOSTILE):
        own = header.replace(b"NUMBER", b"%d" % number)
        place.key(f"{PREFIX}/{name}", own + b"1,%d\n" % (number % 7) * (number + 1))
    return f"source/{PREFIX}"


@pytest.mark.parametrize("fuse", [False, True])
def test_any_name_a_file_can_have_goes_through_the_whole_pipeline(
    place: "Place", fuse: bool
) -> None:
    source = hostile(place)

    planned = plan(place, source=source)
    run = pipeline(place, *(["--fuse"] if fuse else []), source=source)
    again = pipeline(place, source=source)
    fsck = place.run("workflows", "fsck")
    verify = place.run("workflows", "verify", "--engine", "csv")

    assert run.code == 0, run
    assert counts_of(run.out) == count_csv(place.source)
    assert set(place.outputs("GroupCount")) == set(HOSTILE)
    assert planned.out.count(str(len(HOSTILE))) >= 5, planned
    assert (again.out, again.err) == (run.out, "")
    assert (fsck.code, verify.code) == (0, 0), (fsck, verify)
    assert place.leftovers() == []
    assert not list(place.path.rglob("pwned"))


def test_the_line_that_repeats_a_failure_works_in_a_shell_for_any_name(place: "Place") -> None:
    source = hostile(place, header=b"vendor_id,ridesNUMBER\n")  # failures alike are told once
    run = pipeline(place, step="Select", source=source)
    found = re.findall(r"^ *to see it again: (workflows repro .*)$", run.err, re.MULTILINE)
    lines = [line for line in found if re.search(r" -|[$\\`]|it|\[x", line)]  # each takes a while
    script = 'workflows() { "$PYTHON" -m workflows "$@"; }\n' + "".join(
        f"{line} > /dev/null 2> err || echo $?; grep -c 'no column' err\n" for line in lines
    )

    shell = subprocess.run(
        ["bash", "-c", script.encode("utf-8", "surrogateescape")],
        cwd=place.path,
        env=dict(place.environ, PYTHON=place.command("luigi")[0]),
        capture_output=True,
        check=False,
        text=True,
    )

    assert run.code == 30, run
    assert len(found) == len(HOSTILE)
    assert len(lines) >= 9
    assert shell.stdout.split() == ["3", "1"] * len(lines), (lines, shell)
    assert not list(place.path.rglob("pwned"))


def test_damage_to_a_key_of_any_name_is_found_and_named(place: "Place") -> None:
    source = hostile(place)
    pipeline(place, step="Fetch", source=source)
    for line in place.ledger("Fetch"):
        path = os.fsencode(place.output_path("Fetch", line))
        os.chmod(path, 0o644)
        with open(path, "r+b") as file:
            file.write(b"X")

    fsck = place.run("workflows", "fsck", "Fetch")
    run = pipeline(place, step="Fetch", source=source)

    assert fsck.code == 1, fsck
    assert fsck.out.endswith(
        f"{len(HOSTILE)} keys read, {len(HOSTILE)} damaged, to be made again\n"
    )
    assert run.code == 0, run
    assert set(place.outputs("Fetch")) == set(HOSTILE)
