"""docs/ec2.md's commands, typed as they stand, behind a stand-in that is as strict as Amazon."""

import subprocess
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import yaml
from conftest import ROOT

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
@pytest.mark.parametrize(
    ("first", "name"),
    [("workflows fleet init > crawl.yaml", "crawl"), ("workflows fleet init > smoke", "smoke")],
)
def test_the_examples_of_the_page_do_what_they_say(ec2: "Ec2", first: str, name: str) -> None:
    for number in range(4):
        ec2.place.key(f"{number:03d}.csv", b"passenger_count,trip_distance\n1,2.0\n")
    made, *rest = commands(first)

    typed(ec2, made)
    here(ec2, name)
    said = [typed(ec2, line) for line in rest]

    assert len(rest) >= 4
    assert f"nothing of {name} is left in us-east-1" in said[-1]
    assert ec2.region.described(name) == []
