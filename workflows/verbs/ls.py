"""``workflows ls``: list keys."""

import argparse
import sys
import time

from workflows.verbs import fleetkeys
from workflows.verbs.fleetkeys import Found, Name
from workflows.verbs.onfleet import add_fleet, exit_code, say


def add(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "prefix", nargs="?", default="", metavar="PREFIX", help="step/dir/begin (all steps)"
    )
    parser.add_argument("-r", "--recursive", action="store_true", help="also below directories")
    add_fleet(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print ``date time bytes name`` of every key, or ``PRE name/``; return 1 if there is none."""
    prefix: str = arguments.prefix
    name = fleetkeys.parse(prefix) if prefix else Name("", "")
    with fleetkeys.opened(arguments.fleet) as fleet:
        by_step = "/" not in fleetkeys.bare(prefix) and not arguments.recursive
        every = by_step or not prefix
        found, errors = fleetkeys.listing(fleet, None if every else name.step, same_fleet=True)
    keys = [one for one in found if not one.is_made]
    if by_step:
        steps = sorted({one.name.step for one in keys if one.name.step.startswith(name.step)})
        lines = [_pre(step) for step in steps]
    elif not prefix:
        lines = [_line(one, str(one.name)) for one in keys]
    else:
        matching = [one for one in keys if one.name.rest.startswith(name.rest)]
        level = len(name.rest[: name.rest.rfind("/") + 1])
        lines = (
            [_line(one, one.name.rest) for one in matching]
            if arguments.recursive
            else _one_level(matching, level)
        )
    sys.stdout.write("".join(line + "\n" for line in lines))
    for error in errors:
        say(str(error))
    return exit_code(errors) or (0 if lines else 1)


def _one_level(keys: list[Found], level: int) -> list[str]:
    lines: dict[str, None] = {}
    for one in keys:
        first, slash, _ = one.name.rest[level:].partition("/")
        lines[_pre(first) if slash else _line(one, first)] = None
    return list(lines)


def _pre(name: str) -> str:
    return f"{'PRE':>30} {name}/"


def _line(one: Found, name: str) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(one.modified))
    return f"{when} {one.size:10d} {name}"
