"""Opening a fleet of any kind by its spec."""

from workflows.config import settings
from workflows.fleets.fleet import Fleet, open_fleet


def open_any(spec: str, log: str = "") -> Fleet:
    """Return the fleet that ``local:N``, ``ssh:FILE`` or ``ec2:NAME`` names.

    `log` is the log of the run that it is for; only a run fills the slots of an EC2 fleet again.

    Raises:
        UsageError: there is no such fleet, or it has no nodes.
    """
    chosen = settings()
    if spec.startswith("ec2:"):
        from workflows.ec2_fleet import open_ec2

        return open_ec2(spec, slots=chosen.slots, log=log)
    return open_fleet(spec, state=chosen.state, slots=chosen.slots, silence_s=chosen.silence_s)


def open_to_look(spec: str) -> Fleet:
    """Return the fleet for who only looks: of local nodes nothing is started or written.

    Raises:
        UsageError: there is no such fleet, or it has no nodes.
    """
    if not spec.startswith("local:"):
        return open_any(spec)
    chosen = settings()
    return open_fleet(
        spec, state=chosen.state, slots=chosen.slots, silence_s=chosen.silence_s, look=True
    )
