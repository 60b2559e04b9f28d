"""docs/ec2.md's commands, typed as they stand, behind a stand-in that is as strict as Amazon."""

import re
import subprocess
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import yaml
from conftest import ROOT

from workflows.errors import NoCapacity, NotAllowed, OverQuota, Rejected

if TYPE_CHECKING:
    from ec2fleets import Ec2

PAGE = (ROOT / "docs" / "ec2.md").read_text()
# Here nodes are reached on loopback addresses; the rest of what `init` prints stays as it is.
HERE = ("vpc", "scratch", "access", "types")


def commands(first: str) -> list[str]:
    """Return the lines of the indented block that begins with some words."""
    lines = PAGE[PAGE.index(f"    {first}") :].splitlines()
    block = lines[: next(n for n, line in enumerate(lines) if not line.startswith("    "))]
    return [line.strip() for line in block]


@pytest.fixture
def spot_role(ec2: "Ec2") -> Iterator[None]:
    """Give the account the role for spot instances."""
    import boto3

    session = boto3.session.Session("testing", "testing", region_name="us-east-1")
    iam = session.client("iam", endpoint_url=ec2.cloud.url)
    iam.create_role(RoleName="AWSServiceRoleForEC2Spot", AssumeRolePolicyDocument="{}")
    yield
    iam.delete_role(RoleName="AWSServiceRoleForEC2Spot")


def typed(ec2: "Ec2", line: str) -> str:
    """Type a command; return what it says."""
    line = line.replace("...", "--source source --pattern '*' --workers 2")
    for name in ("up", "down"):
        if f"fleet {name} crawl" in line:
            line = f"{line.partition('#')[0]} --yes"
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=ec2.place.path,
        env=ec2.place.environ,
        capture_output=True,
        timeout=300,
        check=False,
    )
    said = done.stdout.decode() + done.stderr.decode()
    assert done.returncode == 0, (line, said)
    return said


def here(ec2: "Ec2", name: str) -> None:
    """Put what is so on this machine alone into the file that was made."""
    path = ec2.place.path / f"{name}.yaml"
    found = yaml.safe_load(path.read_text())
    assert found["name"] == name
    path.write_text(yaml.safe_dump({**found, **{key: ec2.top[key] for key in HERE}}))


@pytest.mark.usefixtures("spot_role")
def test_the_first_example_of_the_page_does_what_it_says(ec2: "Ec2") -> None:
    for number in range(4):
        ec2.place.key(f"{number:03d}.csv", b"passenger_count,trip_distance\n1,2.0\n")
    made, *rest = commands("workflows fleet init > crawl.yaml")

    typed(ec2, made)
    here(ec2, "crawl")
    said = [typed(ec2, line) for line in rest]

    assert len(rest) >= 4
    assert "nothing of crawl is left in us-east-1" in said[-1]
    assert ec2.region.described("crawl") == []


@pytest.mark.usefixtures("spot_role")
def test_the_smoke_run_of_the_page_prints_what_it_says(ec2: "Ec2") -> None:
    for number in range(4):
        ec2.place.key(f"{number:03d}.csv", b"passenger_count,trip_distance\n1,2.0\n")
    (ec2.place.path / "smoke.yaml").write_text("\n".join(commands("name: smoke")))
    here(ec2, "smoke")
    local = {"s3://BUCKET/taxi/": "source", "s3://BUCKET/results": "results"}
    lines = commands("workflows fleet doctor smoke")
    for url, path in local.items():
        lines = [line.replace(url, path) for line in lines]

    doctor, up, ran, result, down = [typed(ec2, line) for line in lines]

    assert all(line.startswith("ok ") for line in doctor.splitlines())
    assert "2 x $" in up
    assert "at most $" in up
    assert "EC2 launched 2 spot" in up
    assert up.count("is reached") == up.count("is ready") == 2
    assert ran.count("status: done") == 2
    assert "2 of 2 ok, 0 failed, 0 lost" in ran
    assert "/results/MergeCounts/" in result
    assert "terminating 2: i-" in down
    assert "nothing of smoke is left in us-east-1" in down
    assert ec2.region.described("smoke") == []


KINDS = {
    NoCapacity: "(too few|lacks? |lack of )",
    OverQuota: "over quota",
    NotAllowed: "not allowed",
    Rejected: "(not take|reject)",
}


@pytest.mark.parametrize("path", ["run_pipeline.sh", "docs/ec2.md", "docs/reference.md"])
def test_every_exit_code_of_a_fleet_is_told_where_cron_jobs_are_written(path: str) -> None:
    text = (ROOT / path).read_text()

    missing = [
        kind.exit_code
        for kind, words in KINDS.items()
        if not re.search(rf"(?<!\d){kind.exit_code}(?!\d).*{words}", text)
    ]

    assert missing == []
    assert [kind.exit_code for kind in KINDS] == [4, 5, 6, 7]


def test_it_is_said_once_what_only_a_real_account_can_show() -> None:
    text = (ROOT / "docs" / "ec2.md").read_text()
    section = text.partition("## What only a real account can show")[2]
    commands = re.findall(r"^    ((?:workflows|luigi) .*)$", section, re.MULTILINE)

    assert text.count("only a real account") == 1
    assert len(commands) == 5
    assert section.count("\n| `") == 5
    assert [line.split()[2] for line in commands if line.startswith("workflows")] == [
        *("doctor", "up", "exec", "down"),
    ]
