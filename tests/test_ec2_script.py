"""run_pipeline.sh --fleet ec2:NAME: up, run, cost, down; down whatever happened."""

import os
import signal

import pytest
from test_run_pipeline import Clone, clone, wait_until

__all__ = ["clone"]  # a fixture


PLAN = "plan --module workflows.tasks MergeCounts"


def stub(clone: Clone, *, up: int = 0, down: int = 0, plan: str = "step keys") -> None:
    """Let `workflows` write down what it is asked, and end as told."""
    path = clone.root / ".venv/bin/workflows"
    path.write_text(
        '#!/bin/bash\necho "$*" >> calls\necho "says $2"\n'
        f"case $1 in plan) echo '{plan}' ;; esac\n"
        f"case $2 in up) exit {up} ;; down) exit {down} ;; esac\n"
    )
    path.chmod(0o755)
    clone.luigi('echo "luigi $*" >> calls; echo result')


def calls(clone: Clone) -> list[str]:
    return (clone.root / "calls").read_text().splitlines()


def test_an_ec2_fleet_is_brought_up_used_and_taken_down(clone: Clone) -> None:
    stub(clone)

    done = clone.run("--fleet", "ec2:crawl", "--source", "x")

    assert done.returncode == 0, done
    assert done.stdout == "result\n"
    assert "says up" in done.stderr
    assert "says down" in done.stderr
    assert calls(clone) == [
        f"{PLAN} --fleet ec2:crawl --source x --fleet local:1",
        "fleet up crawl --yes",
        "luigi --module workflows.tasks MergeCounts --fleet ec2:crawl --source x",
        "fleet down crawl --yes",
    ]


def test_the_environment_names_the_fleet_as_well(clone: Clone) -> None:
    stub(clone)

    clone.run(WORKFLOWS_FLEET="ec2:crawl")

    assert [line.split()[0] for line in calls(clone)] == ["plan", "fleet", "luigi", "fleet"]


def test_for_a_result_that_is_there_no_node_is_launched(clone: Clone) -> None:
    stub(clone, plan="nothing to run: it is there")

    done = clone.run("--fleet", "ec2:crawl")

    assert done.returncode == 0, done
    assert done.stdout == "result\n"
    assert "the result is there already, so no node of crawl is launched" in done.stderr
    assert calls(clone) == [
        f"{PLAN} --fleet ec2:crawl --fleet local:1",
        "luigi --module workflows.tasks MergeCounts --fleet ec2:crawl --fleet local:1",
        "fleet down crawl --yes",
    ]


def test_a_run_that_fails_takes_its_fleet_down_and_keeps_its_exit_code(clone: Clone) -> None:
    stub(clone)
    clone.luigi("exit 30")

    done = clone.run("--fleet=ec2:crawl")

    assert done.returncode == 30
    assert calls(clone)[-1] == "fleet down crawl --yes"


def test_a_fleet_that_does_not_come_up_is_taken_down_and_luigi_is_not_run(clone: Clone) -> None:
    stub(clone, up=4)

    done = clone.run("--fleet", "ec2:crawl")

    assert done.returncode == 4
    assert calls(clone)[1:] == ["fleet up crawl --yes", "fleet down crawl --yes"]


def test_a_fleet_that_does_not_go_down_is_an_error_that_says_what_to_type(clone: Clone) -> None:
    stub(clone, down=1)

    done = clone.run("--fleet", "ec2:crawl")

    assert done.returncode == 1
    assert "may still be up; type: workflows fleet down crawl" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_stopped_takes_its_fleet_down(clone: Clone, number: int, code: int) -> None:
    stub(clone)
    clone.luigi("touch started; sleep 300")
    process = clone.start("--fleet", "ec2:crawl", WORKFLOWS_GRACE="1")
    wait_until((clone.root / "started").exists)

    os.kill(process.pid, number)
    process.communicate(timeout=60)

    assert process.returncode == code
    assert calls(clone)[-1] == "fleet down crawl --yes"


def test_a_run_over_its_time_takes_its_fleet_down(clone: Clone) -> None:
    stub(clone)
    clone.luigi("sleep 300")

    done = clone.run("--fleet", "ec2:crawl", "--timeout", "1", WORKFLOWS_GRACE="1")

    assert done.returncode == 124
    assert calls(clone)[-1] == "fleet down crawl --yes"


def test_a_fleet_that_is_to_be_kept_is_only_accounted_for(clone: Clone) -> None:
    stub(clone)

    clone.run("--fleet", "ec2:crawl", "--keep-fleet")

    assert calls(clone)[-1] == "fleet cost crawl"


def test_other_fleets_are_passed_on_as_they_are(clone: Clone) -> None:
    stub(clone)

    clone.run("--fleet", "local:2")

    assert calls(clone) == ["luigi --module workflows.tasks MergeCounts --fleet local:2"]
