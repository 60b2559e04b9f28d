"""``workflows config``: the settings as they are in effect, and the nodes in their order."""

import argparse

from workflows.config import Settings, settings
from workflows.node.urls import shown
from workflows.planning.opening import open_any
from workflows.verbs.onfleet import add_fleet


def add(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_fleet(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print what luigi.cfg, the environment and the flags come to, as luigi.cfg would say it."""
    chosen, fleet = settings(), open_any(arguments.fleet)
    section = ""
    for (where, key), field in Settings.names().items():
        if where != section:
            section = where
            print(f"[{section}]")
        value: object = arguments.fleet if field.name == "fleet" else getattr(chosen, field.name)
        if field.name == "source":
            value = shown(chosen.source)  # it may hold a password, and this is for a terminal
        if isinstance(value, tuple):
            value = ", ".join(value)
        print(f"{key} = {str(value).lower() if isinstance(value, bool) else value}")
    print(f"# the nodes of {arguments.fleet}; a key's name leads to one of them")
    for node in fleet.nodes:
        print(f"# {node.slot}: {node.name}, {node.slots} slots, {node.root}")
    return 0
