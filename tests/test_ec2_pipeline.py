"""The taxi pipeline on an EC2 fleet of real sshds, from up to down."""

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from botocore.config import Config
from conftest import ROOT, SAMPLES
from test_run_pipeline import Clone, clone, plain_environment

from workflows.ec2.api import Aws
from workflows.ec2.regions import far

if TYPE_CHECKING:
    from conftest import Done
    from ec2fleets import Ec2

__all__ = ["clone"]  # a fixture
ARGUMENTS = ["--source", "source", "--pattern", "*", "--workers", "4"]


def run_taxi(ec2: "Ec2", task: str, fleet: str) -> "Done":
    return ec2.place.run(
        "luigi", "--module", "workflows.tasks", task, *ARGUMENTS, "--fleet", fleet, timeout=280
    )


def months(ec2: "Ec2", count: int) -> None:
    for path in sorted(SAMPLES.glob("*.csv"))[:count]:
        ec2.place.key(path.name, path.read_bytes())


def outputs(ec2: "Ec2", step: str) -> dict[str, bytes]:
    found = {}
    for name in ec2.tags():
        for path in (ec2.node_home(name) / "scratch/workflows").glob(f"*/data/{step}/*/*"):
            found[path.name] = path.read_bytes()
    return found


def test_rides_are_counted_per_month_on_spot_nodes_as_on_this_machine(ec2: "Ec2") -> None:
    months(ec2, 4)
    ec2.fleet.up()

    here = run_taxi(ec2, "GroupCount", "local:2")
    there = run_taxi(ec2, "GroupCount", f"ec2:{ec2.name}")
    cost = ec2.run("cost")

    assert here.code == there.code == 0, (here, there)
    assert outputs(ec2, "GroupCount") == ec2.place.outputs("GroupCount")
    assert len(outputs(ec2, "GroupCount")) == 4
    assert "\ncompute " in cost.out
    assert ec2.fleet.cost().phases["compute"].usd > 0  # as text a short run may be 0.0 minutes


def test_the_whole_taxi_pipeline_gives_the_same_result_on_spot_nodes(ec2: "Ec2") -> None:
    months(ec2, 4)
    ec2.fleet.up()

    here = run_taxi(ec2, "MergeCounts", "local:2")
    result = here.out
    for path in (ec2.place.checkpoint / "MergeCounts").rglob("_SUCCESS"):
        path.unlink()
    there = run_taxi(ec2, "MergeCounts", f"ec2:{ec2.name}")

    assert there.code == 0
    assert there.out.splitlines()[1:] == result.splitlines()[1:] != []


def test_nodes_run_as_many_keys_for_each_core_as_the_fleet_says(ec2: "Ec2") -> None:
    ec2.write(nodes=1, slots=0, slots_per_core=2.5)
    ec2.fleet.up()

    done = ec2.place.run("workflows", "health", "--fleet", f"ec2:{ec2.name}")

    assert done.code == 0, done
    assert f", {round(2.5 * len(os.sched_getaffinity(0)))} slots" in done.out


def test_every_verb_about_keys_and_nodes_takes_an_ec2_fleet(ec2: "Ec2") -> None:
    ec2.fleet.up()
    spec = ("--fleet", f"ec2:{ec2.name}")
    (ec2.place.path / "000_a").write_text("one\n")

    def said(*words: str) -> str:
        done = ec2.place.run("workflows", words[0], *spec, *words[1:])
        assert done.code == 0, done
        return done.out

    said("cp", "000_a", "fleet://in/")
    said("map", "in/", "out/", "tr a-z A-Z")

    assert said("cp", "fleet://out/000_a", "-") == said("eval", "out/000_a", "cat") == "ONE\n"
    assert said("ls", "-r", "out").split()[-1] == "000_a"
    assert [line.split(":")[0] for line in said("health").splitlines()] == ["healthy"] * 2
    assert said("exec", "echo $WORKFLOWS_SLOT").count("\n") == 2
    assert len(said("status").splitlines()) == 3
    assert f"# the nodes of ec2:{ec2.name}" in said("config")
    ec2.run("replace", "--on", "0", "--yes")
    (ec2.place.path / "001_b").write_text("two\n")
    said("cp", "001_b", "fleet://in/")
    assert said("ls", "-r", "in").split()[-1] == "001_b"
    assert len(ec2.live()) == 2


def test_a_fleet_that_is_not_up_is_named_with_what_to_type(ec2: "Ec2") -> None:
    months(ec2, 1)

    done = run_taxi(ec2, "GroupCount", f"ec2:{ec2.name}")

    assert done.code != 0
    assert f"workflows fleet up {ec2.name}" in done.err
    assert "Traceback" not in done.err


def reported(clone: Clone, *words: str) -> str:
    """Return what `workflows report` says in a clone."""
    done = subprocess.run(
        [sys.executable, "-m", "workflows", "report", *words],
        cwd=clone.root,
        env=plain_environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout


@pytest.mark.parametrize("task", ["GroupCount", "NoSuchTask"])
def test_one_command_brings_nodes_up_runs_says_the_cost_and_leaves_nothing(
    ec2: "Ec2", clone: Clone, task: str
) -> None:
    months(ec2, 2)
    shutil.copy(ec2.file, clone.root)
    shutil.copy(ROOT / "luigi.cfg", clone.root)
    for name in ("luigi", "workflows"):
        program = clone.root / ".venv/bin" / name
        program.write_text(f'#!/bin/bash\nexec {sys.executable} -m {name} "$@"\n')
        program.chmod(0o755)
    words = ["--source", str(ec2.place.source), "--pattern", "*", "--fleet", f"ec2:{ec2.name}"]

    done = clone.run("--task", task, *words, PYTHONPATH=str(ROOT), **ec2.place.more)

    assert (done.returncode == 0) == (task == "GroupCount"), done
    assert "EC2 launched 2 spot" in done.stderr
    assert "node hours: $" in done.stderr
    table = done.stderr[done.stderr.index("phase ") :].splitlines()
    phases = ["provisioning", "bootstrap", "compute", "idle", "teardown", "total"]
    assert [line.split()[0] for line in table[1:7]] == phases
    assert f"nothing of {ec2.name} is left" in done.stderr
    assert ec2.live() == []
    if task == "GroupCount":
        assert "\n".join(table[:7]) in reported(clone)
        (compared,) = reported(clone, "--compare").splitlines()[1:]
        assert compared.split()[1] == f"ec2:{ec2.name}"
        assert compared.split()[-1] == table[6].split()[-1]


# -- buckets ---------------------------------------------------------------------------------------


def test_a_bucket_in_another_region_is_warned_about_in_dollars_and_refused_if_strict(
    ec2: "Ec2",
) -> None:
    import boto3

    path = Config(s3={"addressing_style": "path"})
    made: Any = boto3.client("s3", "eu-west-1", endpoint_url=ec2.cloud.url, config=path)
    bucket = f"far-{ec2.name}"
    where = {"LocationConstraint": "eu-west-1"}
    made.create_bucket(Bucket=bucket, CreateBucketConfiguration=where)
    made.put_object(Bucket=bucket, Key="rides/000_a", Body=b"one\n")
    ec2.place.module(
        "from workflows.steps import Map\nclass Read(Map):\n"
        "    command = 'read -r url; curl -fsS \"$url\"'\n"
    )
    ec2.write(nodes=1)
    ec2.fleet.up()
    words = ["Read", "--source", f"s3://{bucket}/rides/", "--pattern", "*"]
    words += ["--fleet", f"ec2:{ec2.name}"]

    refused = ec2.place.luigi(*words, "--strict")
    ran = outputs(ec2, "Read")
    warned = ec2.place.luigi(*words)

    sentence = f"the source s3://{bucket}/rides/ is in eu-west-1, the fleet in us-east-1: to read"
    assert refused.code != 0
    assert sentence in refused.err
    assert ran == {}
    assert warned.code == 0, warned
    assert warned.err.count(sentence) == 1
    assert outputs(ec2, "Read") == {"000_a": b"one\n"}


def test_what_is_read_from_another_region_is_estimated() -> None:
    class Far(Aws):
        def call(self, operation: str, **given: Any) -> Any:
            return {"BucketRegion": "eu-west-1", "ResponseMetadata": {"HTTPHeaders": {}}}

    source, checkpoint = far(Far("us-east-1"), "s3://b/trip data/", 270 * 10**9, "s3://b/results")

    assert source.startswith("the source s3://b/trip data/ is in eu-west-1, the fleet in us-east")
    assert "to read its 270.0 GB costs about $5.40 each time; a fleet with region: eu-w" in source
    assert checkpoint.startswith("the checkpoint s3://b/results is in eu-west-1")
    assert "what is committed costs about $0.02 a GB" in checkpoint
    assert far(Far("eu-west-1"), "s3://b/x", 1, "/results") == []
