"""``workflows rm``: remove keys, so that they can be remade."""

import argparse

from workflows.config import settings
from workflows.errors import UsageError
from workflows.fleets.fleet import Fleet
from workflows.verbs import fleetkeys, incomplete
from workflows.verbs.fleetkeys import Name
from workflows.verbs.onfleet import add_fleet, one_key, say, store_at


def add(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("names", nargs="+", metavar="KEY", help="step/dir/name; with -r a prefix")
    parser.add_argument(
        "-r",
        "--recursive",
        action="store_true",
        help="all keys with this prefix; or a whole step",
    )
    add_fleet(parser)


def run(arguments: argparse.Namespace) -> int:
    """Remove one key each, or all that begin alike."""
    names = [
        fleetkeys.parse(text) if arguments.recursive else one_key(text, f"workflows rm -r {text}")
        for text in arguments.names
    ]
    with fleetkeys.opened(arguments.fleet) as fleet:
        for name, text in zip(names, arguments.names, strict=True):
            if arguments.recursive:
                _remove_all(fleet, name, whole_step=not text.endswith("/") and not name.rest)
            else:
                _remove_one(fleet, name)
            # The outputs of its 1:n commands are recorded there, and may differ the next time.
            store_at(settings().checkpoint).remove(f"barriers/{name.step}")
    return 0


def _remove_one(fleet: Fleet, name: Name) -> None:
    if not fleetkeys.remove(fleet, name.step, lambda key: key == name.rest):
        raise UsageError(
            f"no such key: {name}; to remove keys with this prefix: workflows rm -r {name}"
        )


def _remove_all(fleet: Fleet, name: Name, *, whole_step: bool) -> None:
    count = fleetkeys.remove(fleet, name.step, lambda key: key.startswith(name.rest))
    incomplete.clear_below(fleet, name)
    if count or not whole_step:
        say(f"removed {count} key{'' if count == 1 else 's'} of {name}")
        return
    # A step is named in full: step1 must not take step10 with it.
    every, _ = fleetkeys.listing(fleet, same_fleet=True)
    alike = sorted({one.name.step for one in every if one.name.step.startswith(name.step)})
    if alike:
        raise UsageError(
            f"there is no step {name.step}; to remove those with this prefix:"
            f" workflows rm -r {' '.join(alike)}"
        )
    raise UsageError(f"there is no step {name.step}; to list what exists: workflows ls")
