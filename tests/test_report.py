"""What `workflows report` says of a run's nodes."""

import json
import re
from typing import TYPE_CHECKING

from workflows.reporting.runlog import Totals

if TYPE_CHECKING:
    import pathlib

    from conftest import Place


def test_a_report_says_of_each_node_how_many_rows_and_megabytes_a_second_it_read(
    taxi: "Place",
) -> None:
    words = ("--source", "source", "--pattern", "*", "--fleet", "local:2")
    run = taxi.luigi("MergeCounts", *words, module="workflows.tasks")
    report = taxi.run("workflows", "report")

    assert run.code == 0, run
    _, nodes = report.out.split("\n\n")
    head, *table = [re.split(r"  +", line) for line in nodes.splitlines()]
    assert head == ["node", "keys", "failed", "s", "cpu s", "rows", "MB in", "rows/s", "MB/s in"]
    assert [row[0] for row in table] == ["node 0", "node 1"]
    (path,) = taxi.state.glob("runs/*/log.jsonl")
    logged = [
        line
        for text in path.read_text().splitlines()
        if (line := json.loads(text))["what"] == "keys"
    ]
    for slot, row in enumerate(table):
        stages = [s for line in logged if line["slot"] == slot for s in line["stages"]]
        assert int(row[1]) == sum(stage["keys"] for stage in stages) > 0, report
        assert int(row[5]) == sum(stage["rows"] for stage in stages) > 0, report
        took, rows = float(row[3]), int(row[5])
        # The seconds are shown to a tenth.
        assert rows / (took + 0.06) - 1 <= float(row[7]) <= rows / max(took - 0.06, 1e-3) + 1
    assert sum(int(row[5]) for row in table) > 7200  # each row is read by two steps at least


def test_a_node_that_waits_for_work_is_not_slow(tmp_path: "pathlib.Path") -> None:
    path = tmp_path / "log.jsonl"
    stage = {"step": "Count", "fused": False, "failed": 0, "wall": 1, "cpu": 1, "rss": 0}
    stage.update(keys=1, bytes_in=3_000_000, bytes_out=0, rows=600)
    about = {"what": "keys", "slot": 1, "node": "node 1", "stages": [stage]}
    lines = [{**about, "at": at, "since": at - 1} for at in (100.0, 100.5, 200.0)]  # two overlap
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    totals = Totals()

    totals.update(str(path))

    shown = totals.node_table().splitlines()[1]
    assert shown.split() == ["node", "1", "3", "0", "2.5", "3.00", "1800", "9.0", "720", "3.6"]
