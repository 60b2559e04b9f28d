"""What is begun before the rest is loaded, which takes as long as a hub or a local runtime does."""

from collections.abc import Sequence

from workflows.fleets import hubprocess
from workflows.reporting import stdio

_HELP = {"-h", "--help", "--help-all"}


def begin(arguments: Sequence[str]) -> None:
    """Begin what the fleet of a command line of Luigi will need; of another program's, nothing.

    Hosts are not reached yet: nobody knows whether Luigi will accept the command line.
    """
    if not arguments[0].endswith(("/luigi", "/luigi/__main__.py")):
        return
    stdio.guard()
    spec = hubprocess.begin(arguments)
    if spec.startswith("local:") and not _HELP.intersection(arguments):
        from workflows.planning import opening

        opening.begin(spec)
