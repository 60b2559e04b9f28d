"""EC2 takes a node back in the middle of the main pipeline: the same result, and what it cost."""

import json
import re
import shutil
from typing import TYPE_CHECKING

import pytest
from conftest import SAMPLES
from ec2cloud import wait_for

if TYPE_CHECKING:
    from ec2fleets import Ec2

NOTICE = json.dumps({"action": "terminate", "time": "2026-11-21T12:02:00Z"})
WORDS = ["--module", "workflows.tasks", "MergeCounts", "--source", "source", "--pattern", "*"]
# The nodes' awk: it waits, over the key in the file HOLD and in the script of that step, for GO.
AWK = """\
case "$* $WORKFLOWS_KEY" in *{script}*{key}*)
  echo "$WORKFLOWS_TEST_NODE" >> {path}/held
  until test -e {path}/go; do sleep 0.05; done;;
esac
exec {awk} "$@"
"""
WITHIN_S = 60.0


@pytest.mark.parametrize(
    ("script", "key"), [("count_rows.awk", "2018-06"), ("merge_counts.awk", "results")]
)
@pytest.mark.parametrize("notice", [True, False], ids=["announced", "unannounced"])
def test_a_node_reclaimed_in_the_middle_of_merge_counts_changes_nothing_but_the_cost(
    ec2: "Ec2", script: str, key: str, notice: bool
) -> None:
    """Within GroupCount, and when all has been shuffled onto the node that goes."""
    place, path = ec2.place, ec2.place.path
    for month in sorted(SAMPLES.glob("*.csv"))[:6]:
        place.key(month.name, month.read_bytes())
    assert any("2018-06" in name.name for name in place.source.iterdir())
    here = place.run("luigi", *WORDS, "--fleet", "local:2")
    for done in (place.checkpoint / "MergeCounts").rglob("_SUCCESS"):
        done.unlink()
    awk = AWK.format(script=script, key=key, path=path, awk=shutil.which("awk"))
    ec2.region.programs["awk"] = awk
    ec2.write(slots=1)
    ec2.fleet.up()

    with place.start("luigi", *WORDS, "--workers", "4", "--fleet", f"ec2:{ec2.name}") as run:
        run.wait_for((path / "held").exists, WITHIN_S)
        old = (path / "held").read_text().split()[0]
        slot = ec2.tags()[old]["workflows:slot"]
        if notice:
            ec2.cloud.notices[old] = NOTICE
            run.wait_for(lambda: "EC2 says spot/instance-action" in run.said, WITHIN_S)
        else:
            ec2.region.reclaim(old)
        run.wait_for(lambda: f"slot {slot} is filled by" in run.said, 2 * WITHIN_S)
        (path / "go").touch()
        code = run.end(2 * WITHIN_S)

    assert (here.code, code) == (0, 0), run.said
    assert result_of(run.said) == result_of(here.out) != []
    wait_for(lambda: old not in ec2.tags(), WITHIN_S)
    assert re.search(rf"^slot {slot} was lost and filled by i-\w+ after \d+\.\d s$", run.said, re.M)
    (again,) = re.findall(r"^keys of lost nodes ran again: (\d+) keys?, ", run.said, re.M)
    assert int(again) >= 2  # what was held there had been fetched and selected
    assert " failed on" not in run.said


def result_of(said: str) -> list[str]:
    """Return the table of results: a count behind a value, or none."""
    return re.findall(r"^(?:\d+|\(blank\)) +\d+$", said, re.M)
