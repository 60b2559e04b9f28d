"""The hub of a run on an EC2 fleet; it is told the fleet's name and the run's log too."""

from workflows.ec2.lease import keep
from workflows.fleets import hub


def start() -> None:
    """Be a hub that keeps its fleet."""
    hub.start(keep)
