"""Opening a fleet of any kind by its spec."""

import atexit
import contextlib
import os

from workflows.config import settings
from workflows.errors import WorkflowsError
from workflows.fleets.fleet import Fleet, open_fleet

_begun: dict[str, Fleet] = {}


def open_any(spec: str, log: str = "") -> Fleet:
    """Return the fleet that ``local:N``, ``ssh:FILE`` or ``ec2:NAME`` names.

    `log` is the log of the run that it is for; only a run fills the slots of an EC2 fleet again.

    Raises:
        UsageError: there is no such fleet, or it has no nodes.
    """
    begun = _begun.pop(spec, None)
    end_begun()  # others were not meant
    if begun is not None:
        return begun
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


def begin(spec: str) -> None:
    """Start a fleet's nodes before what will use them is loaded: both take as long.

    What is wrong with it is told to whoever opens it then. An EC2 fleet's hub is all that is begun
    early, as the fleet needs the log of its run.
    """
    if spec.startswith("ec2:") or spec in _begun:
        return
    with contextlib.suppress(WorkflowsError, OSError):
        _begun[spec] = opened = open_any(spec)
        opened.start()


@atexit.register
def end_begun() -> None:
    """End the nodes that were begun and that nobody has opened."""
    while _begun:
        _begun.popitem()[1].close()


os.register_at_fork(after_in_child=_begun.clear)  # they are those of the process before it
