"""``workflows map-from-n IN OUT CMD``: a command over keys; those of equal names make one key."""

import argparse

from workflows.verbs.mapping import add_map, run_map


def add(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_map(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the map as a Luigi task."""
    return run_map("AdhocFromN", arguments)
