"""``workflows fleet``: disposable EC2 fleets, from their prices to their end."""

import argparse
import contextlib
import dataclasses
import datetime as dt
import json
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from workflows.config import duration_s
from workflows.ec2 import accounts, api, doctor, policy, prices, shown, sweep
from workflows.ec2.api import LEAVING, Aws, Instance, instances
from workflows.ec2.sample import SAMPLE
from workflows.ec2_fleet import Ec2Fleet
from workflows.errors import FleetError, UsageError
from workflows.reporting import messages
from workflows.reporting.messages import say, show
from workflows.reporting.runlog import aligned
from workflows.verbs import byhand, fleetkeys
from workflows.verbs.byhand import FAILED


def add(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, (_, summary, more) in _ACTIONS.items():
        own = actions.add_parser(name, help=summary, description=f"{summary}.")
        if name not in ("init", "sweep", "policy"):
            own.add_argument("name", metavar="NAME", help="the fleet's name, or its .yaml file")
            own.add_argument("--region", default="", help="the fleet's region, if no file names it")
        for words, options in (_OPTIONS[one] for one in more):
            own.add_argument(*words, **options)  # type: ignore[arg-type]


def run(arguments: argparse.Namespace) -> int:
    """Do one action."""
    try:
        code: int = _ACTIONS[arguments.action][0](arguments)
    except KeyboardInterrupt:
        if arguments.action in ("up", "resize", "replace", "down"):
            name = arguments.name
            say(
                f"interrupted: nodes of {name} may be up and cost money; workflows fleet up {name}"
                f" continues, workflows fleet down {name} removes all"
            )
        raise
    return code


# -- before ----------------------------------------------------------------------------------------


def _init(_: argparse.Namespace) -> int:
    print(SAMPLE, end="")
    return 0


def _prices(arguments: argparse.Namespace) -> int:
    print(prices.table(_fleet(arguments).pools()))
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    print(_fleet(arguments).plan())
    return 0


def _policy(arguments: argparse.Namespace) -> int:
    print(json.dumps(policy.policy(arguments.role, arguments.region), indent=2))
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    fleet = _fleet(arguments)
    found = doctor.examine(fleet.aws, fleet.spec)
    for one in found:
        print(f"{'ok  ' if one.is_well else 'BAD '} {one.what}: {one.says}")
    return 0 if all(one.is_well for one in found) else FAILED


# -- up and down -----------------------------------------------------------------------------------


def _up(arguments: argparse.Namespace) -> int:
    fleet = _fleet(arguments)
    plan = fleet.plan()
    _tell_plan(str(plan))
    if plan.launch or plan.surplus or plan.results:
        _confirm(arguments, "go on")
    _print_nodes(fleet, fleet.up(refresh_ami=arguments.refresh_ami))
    return 0


def _tell_plan(text: str) -> None:
    """Say what would be launched, and for how much.

    Raises:
        FleetError: nobody can read it, so nothing is launched.
    """
    say(text)
    if lost := messages.err.flush():
        raise FleetError(f"the plan could not be printed ({lost}), so nothing was launched")


def _resize(arguments: argparse.Namespace) -> int:
    fleet = _fleet(arguments)
    if arguments.nodes != fleet.size(fleet.instances()):
        _refuse_named(arguments)
    fleet.spec = fleet.spec.resized(arguments.nodes)
    _tell_plan(str(fleet.plan()))
    _confirm(arguments, "go on")
    _print_nodes(fleet, fleet.up())
    say(f"write nodes: {arguments.nodes} into the fleet's file, or the next up undoes this")
    return 0


def _refuse_named(arguments: argparse.Namespace) -> None:
    """Refuse to resize a fleet whose keys are found by name: the names would lead elsewhere.

    Raises:
        UsageError: names the steps, and says how they are moved.
    """
    spec = f"ec2:{arguments.name}"
    try:
        with fleetkeys.opened(spec) as opened:
            steps = fleetkeys.named_steps(opened)
    except UsageError:
        return  # it has no nodes
    if not steps:
        return
    text = (
        f"keys of {', '.join(steps)} were made by verbs, and are placed by name over the current"
        " nodes; after a resize they could not be found. Copy them here, remove them there,"
        " resize, then copy them back:"
    )
    lines = [text]
    for step in steps:
        here, there = shlex.quote(f"moved/{step}"), shlex.quote(f"fleet://{step}/")
        lines += [
            f"  workflows cp -r {there} {here} --fleet {spec}",
            f"  workflows rm -r {shlex.quote(step + '/')} --fleet {spec}",
        ]
    raise UsageError("\n".join(lines))


def _replace(arguments: argparse.Namespace) -> int:
    fleet = _fleet(arguments)
    slots = (
        [one.slot for one in byhand.chosen(fleet.instances(), arguments.on)] if arguments.on else []
    )
    _confirm(arguments, f"replace {arguments.on or 'the nodes that do not answer'}")
    _print_nodes(fleet, fleet.replace(slots))
    return 0


def _down(arguments: argparse.Namespace) -> int:
    """Remove a fleet; what it was and has cost is asked and told once it is gone."""
    fleet = _fleet(arguments)
    is_sure = fleet.is_described or bool(arguments.region)
    if not (arguments.yes and is_sure):
        found = fleet.instances()
        if found:
            _confirm(arguments, f"terminate {len(found)} nodes of {fleet.spec.name}")
        elif not is_sure:
            sweep.look_elsewhere(fleet.aws, fleet.spec.name, say)
    since, before = time.time(), list[Instance]()
    with _surviving_hangup():
        try:
            before = fleet.down()
            say(f"nothing of {fleet.spec.name} is left in {fleet.spec.region}")
        except FleetError:
            _account(fleet, since, before)
            raise
        _account(fleet, since if before else None, before)
    return 0


@contextlib.contextmanager
def _surviving_hangup() -> Iterator[None]:
    """Let a terminal that is closed meanwhile stop nothing."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def _account(fleet: Ec2Fleet, since: float | None, before: Sequence[Instance]) -> None:
    """Say what a fleet that was taken down has cost, and keep it; nothing depends on that."""
    try:
        cost = fleet.cost(since, before)
        accounts.remember(fleet.spec, cost)
    except KeyboardInterrupt:
        say("interrupted: its cost is not known")
    except Exception as error:  # noqa: BLE001 - whatever is wrong with prices or logs of runs
        say(f"its cost is not known: {str(error) or type(error).__name__}")
    else:
        for line in cost.lines():
            say(line)


def _extend(arguments: argparse.Namespace) -> int:
    try:
        seconds = duration_s(arguments.time)
    except ValueError as error:
        raise UsageError(f"{arguments.time} {error}") from error
    until = _fleet(arguments).extend(seconds)
    print(f"{arguments.name} lives until {until:%Y-%m-%d %H:%M:%S} UTC")
    return 0


def _sweep(arguments: argparse.Namespace) -> int:
    asked = arguments.regions.split(",") if arguments.regions else []
    names = asked or sweep.regions(Aws(api.home_region()))
    found, failed = sweep.find(names)
    over = sweep.overdue(found, dt.datetime.now(dt.timezone.utc))
    rows = [("region", "fleet", "kind", "id", "expires", "")]
    for one in found:
        expires = f"{one.expires:%Y-%m-%d %H:%M:%S}" if one.expires else sweep.NO_TIME
        rows.append(
            (one.region, one.fleet, one.kind, one.id, expires, "OVER" if one in over else "")
        )
    show(aligned(rows, left=range(6)))
    for region, why in failed.items():
        say(f"{region} could not be looked at: {why}")
    if over and arguments.yes:
        with _surviving_hangup():
            sweep.remove(over, say)
    elif over:
        say(f"{len(over)} have expired; --yes removes them")
    return FAILED if failed else 0


# -- looking ---------------------------------------------------------------------------------------


def _status(arguments: argparse.Namespace) -> int:
    fleet = _fleet(arguments)
    found = instances(fleet.aws, fleet.spec.name)
    found.sort(key=lambda one: (one.slot, one.id))
    if arguments.json:
        print(json.dumps([shown.as_json(one) for one in found], indent=2))
        return 0
    print(shown.table(found, fleet.spec.access.address))
    slots = {one.slot for one in found if LEAVING not in one.tags}
    missing = [slot for slot in range(fleet.size(found)) if slot not in slots]
    if missing:
        print(f"missing: slots {', '.join(map(str, missing))}; workflows fleet up {arguments.name}")
    if fleet.spec.results_host and not any(one.is_results for one in found):
        print(f"missing: the results host; workflows fleet up {arguments.name}")
    for line in _cost_lines(fleet):
        print(line)
    return 0


def _cost(arguments: argparse.Namespace) -> int:
    for line in _cost_lines(_fleet(arguments)):
        print(line)
    return 0


def _cost_lines(fleet: Ec2Fleet) -> list[str]:
    return fleet.cost().lines()


def _print_nodes(fleet: Ec2Fleet, found: Sequence[Instance]) -> None:
    show(shown.table(found, fleet.spec.access.address))


# -- shared ----------------------------------------------------------------------------------------


def _fleet(arguments: argparse.Namespace) -> Ec2Fleet:
    fleet = byhand.load(arguments)
    if arguments.action == "up":
        if arguments.nodes is not None:
            fleet.spec = fleet.spec.resized(arguments.nodes)
        asked = arguments.results_host or fleet.spec.results_host
        fleet.spec = dataclasses.replace(fleet.spec, results_host=asked)
    return fleet


def _confirm(arguments: argparse.Namespace, what: str) -> None:
    if arguments.yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"to {what} without being asked, give --yes")
    messages.err.flush()  # what the question is about comes before it
    if input(f"{what}? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was done")


_OPTIONS: dict[str, tuple[tuple[str, ...], dict[str, object]]] = {
    "yes": (("--yes",), {"action": "store_true", "help": "do not ask"}),
    "nodes": (
        ("--nodes",),
        {"type": int, "default": None, "help": "instead of the file's number"},
    ),
    "results": (
        ("--results-host",),
        {"action": "store_true", "help": "one more host, without keys; down removes it"},
    ),
    "count": (("nodes",), {"type": int, "metavar": "N", "help": "how many nodes"}),
    "ami": (
        ("--refresh-ami",),
        {"action": "store_true", "help": "new nodes get the newest image, not the others'"},
    ),
    "on": (("--on",), {"default": "", "help": "slots, instance ids, or results: 0,2 (all)"}),
    "json": (("--json",), {"action": "store_true", "help": "as JSON, for other programs"}),
    "command": (("command",), {"nargs": argparse.REMAINDER, "help": "what to run"}),
    "source": (("source",), {"metavar": "SOURCE"}),
    "target": (("target",), {"metavar": "TARGET", "nargs": "?", "default": ""}),
    "time": (("time",), {"metavar": "TIME", "help": "from now: 90s, 30m, 2h or 1d"}),
    "regions": (("--regions",), {"default": "", "help": "such as us-east-1,eu-west-1 (all)"}),
    "partition": (("--region",), {"default": "", "help": "where: China and GovCloud differ"}),
    "role": (("--role",), {"default": "", "help": "ARN of the role of the nodes' profile"}),
}
_Action = tuple[Callable[[argparse.Namespace], int], str, tuple[str, ...]]
_ACTIONS: dict[str, _Action] = {
    "init": (_init, "Print a fleet.yaml to start from", ()),
    "prices": (_prices, "Print what the fleet's types cost in its zones, and what spot saves", ()),
    "plan": (_plan, "Say what up would launch and terminate, and dollars an hour", ()),
    "up": (
        _up,
        "Converge the fleet on its file; safe to repeat",
        ("nodes", "results", "ami", "yes"),
    ),
    "status": (_status, "Print the nodes, what is missing, and the cost so far", ("json",)),
    "ssh": (byhand.ssh, "Log in to a node, or run a command there", ("on", "command")),
    "exec": (byhand.execute, "Run a command on all nodes at once", ("on", "command")),
    "put": (byhand.put, "Copy a file to all nodes", ("on", "source", "target")),
    "get": (byhand.get, "Copy a file from all nodes, as SLOT-NAME", ("on", "source", "target")),
    "rsync": (
        byhand.rsync,
        "Run rsync with all nodes; :PATH is theirs",
        ("on", "source", "target"),
    ),
    "resize": (_resize, "Change the number of nodes", ("count", "yes")),
    "replace": (_replace, "Put new nodes in place of some, or of those lost", ("on", "yes")),
    "extend": (_extend, "Let the nodes live for some time from now", ("time",)),
    "cost": (_cost, "Print what the fleet has cost", ()),
    "down": (_down, "Remove everything that belongs to the fleet", ("yes",)),
    "sweep": (_sweep, "Find leftovers of any fleet, in all regions", ("regions", "yes")),
    "policy": (_policy, "Print the least IAM policy that fleets need", ("role", "partition")),
    "doctor": (_doctor, "Check identity, clock, quotas, subnets, permissions, caller address", ()),
}
