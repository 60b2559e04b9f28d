"""A fleet in a test's VPC: its fleet.yaml, and the `workflows fleet` commands over it."""

import os
import pathlib
from typing import TYPE_CHECKING, Any

import yaml
from ec2cloud import KEYS, TYPES
from ec2machines import Region
from sshd import USER

from workflows.ec2 import provision
from workflows.ec2.api import Aws
from workflows.ec2.config import Spec, read_spec
from workflows.ec2_fleet import Ec2Fleet

if TYPE_CHECKING:
    from conftest import Done, Place


class Ec2:
    """One fleet of real sshds."""

    def __init__(self, region: Region, place: "Place") -> None:
        self.region, self.cloud, self.place = region, region.cloud, place
        # Fleets are found by their names, and moto is shared by the tests of a process.
        self.name = f"crawl-{os.path.basename(region.vpc)[-12:]}"
        self.file = place.path / f"{self.name}.yaml"
        home = place.path / "home"
        home.mkdir()
        place.more = {
            **KEYS,
            "AWS_ENDPOINT_URL": self.cloud.url,
            "AWS_EC2_METADATA_DISABLED": "true",
            "HOME": str(home),
        }
        self.top: dict[str, Any] = {
            "region": "us-east-1",
            "nodes": 2,
            "types": TYPES,
            "vpc": region.vpc,
            "scratch": "~/scratch",
            "slots": 2,
            "boot_timeout": "40s",
            "access": {
                "from": ["127.0.0.1/32"],  # `me` is another address than private nodes see
                "checkip": f"{self.cloud.url}/checkip",
                "address": "private",
                "ssh_port": region.port,
                "user": USER,
                "identity": str(home / "login"),
            },
        }
        self.write()

    def write(self, **changes: Any) -> None:
        """Write the fleet's file; None takes a key out."""
        self.top.update(changes)
        kept = {name: value for name, value in self.top.items() if value is not None}
        self.file.write_text(yaml.safe_dump(kept, sort_keys=False))

    @property
    def spec(self) -> Spec:
        """Return what the file says."""
        return read_spec(str(self.file))

    @property
    def fleet(self) -> Ec2Fleet:
        """Return the fleet, for use in this process."""
        return Ec2Fleet(self.spec, say=print)

    def converge(self) -> list[str]:
        """Launch what is missing without making it ready; return the ids."""
        live = provision.converge(Aws("us-east-1"), self.spec, say=print)
        return [one.id for one in live]

    def run(self, action: str, *words: str, **kwargs: Any) -> "Done":
        """Run `workflows fleet ACTION NAME WORDS` to its end."""
        return self.place.run("workflows", "fleet", action, self.name, *words, **kwargs)

    def run_any(self, action: str, *words: str) -> "Done":
        """Run `workflows fleet ACTION WORDS`, which is about no single fleet."""
        return self.place.run("workflows", "fleet", action, *words)

    def live(self) -> list[dict[str, Any]]:
        """Return the fleet's instances that are not terminated."""
        return self.region.described(self.name)

    def tags(self) -> dict[str, dict[str, str]]:
        """Return instance -> its tags."""
        return {
            one["InstanceId"]: {tag["Key"]: tag["Value"] for tag in one["Tags"]}
            for one in self.live()
        }

    def slots(self) -> list[str]:
        """Return the slots of the live instances, in order."""
        return sorted(tags.get("workflows:slot", "-") for tags in self.tags().values())

    def node_home(self, name: str) -> pathlib.Path:
        """Return the home of an instance's user."""
        return self.region.path / name / "home"
