"""``workflows report``: what a run did, stage by stage."""

import argparse
import os

from workflows.config import settings
from workflows.errors import UsageError
from workflows.runlog import Totals
from workflows.verbs.pipeline import run_logs


def add(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("run", nargs="?", help="name of a run (the last one)")


def run(arguments: argparse.Namespace) -> int:
    """Print the stages of a run, or of the last one that ran anything."""
    paths = list(run_logs())
    if arguments.run:
        paths = [path for path in paths if os.path.basename(os.path.dirname(path)) == arguments.run]
    for path in paths:
        totals = Totals()
        totals.update(path)
        if totals.steps:
            took = totals.last - totals.first
            print(f"{os.path.basename(os.path.dirname(path))}: {took:.1f} s, log {path}")
            print(totals.table())
            return 0
    raise UsageError(f"no such run in {settings().state}/runs")
