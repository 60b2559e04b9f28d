"""Shared by ``map``, ``map-to-n`` and ``map-from-n``: a Luigi run of one step of `adhoc`."""

import argparse
import contextlib
import logging
import sys
from typing import TYPE_CHECKING

from workflows.config import settings
from workflows.errors import WorkflowsError
from workflows.fleets.channel import Channel
from workflows.node.keys import node_for
from workflows.verbs import fleetkeys
from workflows.verbs.onfleet import add_fleet, command, say, seconds

if TYPE_CHECKING:
    from workflows.verbs.adhoc import Adhoc


def add_map(parser: argparse.ArgumentParser) -> None:
    """Add a map's arguments."""
    parser.add_argument("source", metavar="IN", help="step/dir/, or a glob: 'step/*/00[12]_*'")
    parser.add_argument("target", metavar="OUT", help="step/dir/")
    parser.add_argument("command", type=command, metavar="CMD", help="the command for each key")
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=settings().timeout_s,
        metavar="SECONDS",
        help="for one key; 0: no limit (luigi.cfg's)",
    )
    add_fleet(parser)


def run_map(kind: str, arguments: argparse.Namespace) -> int:
    """Run a map; return 0 if all is done, 1 if keys failed, 3 if nodes were lost.

    Raises:
        WorkflowsError: another map writes to the same place.
    """
    source, target = fleetkeys.bare(arguments.source), fleetkeys.bare(arguments.target)
    fleetkeys.parse_pattern(source)
    made = fleetkeys.parse_folder(target)
    from workflows.planning import context

    fleet = context.fleet(arguments.fleet)
    # Its session is the lock's alone, kept until the map has ended: a run closes and opens others.
    lock = Channel(fleet.nodes[node_for(made.step, len(fleet))])
    with contextlib.closing(lock):
        if not lock.one({"op": "lock", "name": target}, "locked")["ours"]:
            raise WorkflowsError(f"another map writes to {target} now; wait for it, then try again")
        step = _step(kind, source, target, arguments)
        fleetkeys.join(fleet)
        return _run_step(step)


def _step(kind: str, source: str, target: str, arguments: argparse.Namespace) -> "Adhoc":
    """Return the task; tell what it keeps.

    Raises:
        UsageError: nothing is to be read, or what is there is not to be replaced.
    """
    from workflows.verbs import adhoc

    step: Adhoc = getattr(adhoc, kind)(
        source=source,
        target=target,
        bash=arguments.command,
        fleet=arguments.fleet,
        timeout_s=arguments.timeout,
    )
    if step.kept:
        say(
            f"{len(step.kept)} keys of {target} are there already, by another command, and are"
            f" kept; to remake all: workflows rm -r {target}"
        )
    return step


def _run_step(step: "Adhoc") -> int:
    import luigi
    from luigi.execution_summary import LuigiStatusCode

    from workflows.planning import context
    from workflows.running import lifecycle

    config = luigi.configuration.get_config()
    # The command's own handler prints; Luigi would add another, and every line would come twice.
    config.set("core", "no_configure_logging", "true")
    logging.getLogger("luigi-interface").setLevel(logging.WARNING)
    if not config.has_option("core", "local_scheduler"):
        # Without a luigi.cfg there is no luigid either.
        config.set("core", "local_scheduler", "true")
    try:
        result = luigi.build([step], detailed_summary=True)
    except KeyboardInterrupt:
        print("interrupted: finished work is kept, run the same again to continue", file=sys.stderr)
        return 130
    done = (LuigiStatusCode.SUCCESS, LuigiStatusCode.SUCCESS_WITH_RETRY)
    # Asked here, not only believed: at exit, where a run sums up, no threads can be started.
    context.listings(step.fleet).forget()
    if step.complete() and result.status in done:
        return 0
    return 3 if lifecycle.lost_nodes() else 1
