"""``workflows gc``: remove from the nodes what no current pipeline refers to, after showing it."""

import argparse
import time
from typing import Any

from workflows import run as runs
from workflows.lineage import PIECES
from workflows.runlog import aligned
from workflows.steps import Step
from workflows.targets import CheckpointTarget
from workflows.verbs.pipeline import add_pipeline, step_from


def add(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("--yes", action="store_true", help="remove it; without this it is only shown")
    parser.add_argument(
        "--all-steps", action="store_true", help="also steps that the pipeline does not have"
    )
    parser.add_argument(
        "--age", type=float, default=24.0, help="hours that an unfinished checkpoint is left (24)"
    )
    add_pipeline(parser)


def run(arguments: argparse.Namespace) -> int:
    """Show, or remove, what the pipeline does not refer to as it is now."""
    last = step_from(arguments).whole
    keep = referred(last)
    known = {name for step in last.lineage for name in (step.name, step.name + PIECES)}
    fleet = last.nodes

    def look(slot: int) -> dict[str, Any]:
        steps: dict[str, Any] = fleet.channel(slot).one({"op": "steps"}, "steps")["steps"]
        return steps

    rows: list[tuple[str, ...]] = [("step", "node", "keys", "MB", "unfinished")]
    removals = []
    for slot, steps in fleet.each(range(len(fleet)), look).items():
        for step, held in steps.items():
            if step in known or arguments.all_steps:
                gone = {i: kept for i, kept in held["keys"].items() if i not in keep}
                size = sum(kept[1] for kept in gone.values()) + sum(held["orphans"].values())
                if gone or held["orphans"]:
                    removals.append((slot, step, [*gone, *held["orphans"]]))
                    unfinished = str(len(held["orphans"]))
                    row = (step, str(slot), str(len(gone)), f"{size / 1e6:.1f}", unfinished)
                    rows.append(row)
    abandoned = abandoned_attempts(last, arguments.age)
    if not removals and not abandoned:
        print("nothing to remove: all that is kept is referred to")
        return 0
    if removals:
        print(aligned(rows, left=(0,)))
    for folder in abandoned:
        print(f"unfinished checkpoint {last.checkpointed.store.locate(folder)}")
    if not arguments.yes:
        print("nothing was removed; to remove it: workflows gc --yes")
        return 0
    for slot, step, identities in removals:
        message = {"op": "drop", "step": step, "ids": identities, "why": "gc"}
        fleet.channel(slot).one(message, "dropped")
    for folder in abandoned:
        last.checkpointed.store.remove(folder)
    print("removed")
    return 0


def referred(last: Step) -> set[str]:
    """Return the identities of all outputs that the pipeline is made of, as it is now."""
    keep = set()
    for step in last.lineage:
        keep.update(key.identity for key in step.keys() or [])
        keep.update(key.identity for key in step.outputs() or [])
    return keep


def abandoned_attempts(last: Step, age_h: float) -> list[str]:
    """Return the folders of attempts at a checkpoint that were begun long ago and never committed."""
    store = runs.store(last.checkpoint)
    newest: dict[str, float] = {}
    for step in last.lineage:
        for item in store.list(step.name):
            parts = item.name.split("/")
            if len(parts) > 4 and parts[2] == "data":
                folder = "/".join(parts[:4])
                newest[folder] = max(newest.get(folder, 0.0), item.modified)
    old = [folder for folder, modified in newest.items() if time.time() - modified > age_h * 3600]
    return sorted(folder for folder in old if not _committed(last, folder))


def _committed(last: Step, folder: str) -> bool:
    step, identity = folder.split("/")[:2]
    manifest = CheckpointTarget(runs.store(last.checkpoint), step, identity).manifest()
    return manifest is not None and manifest["attempt"] == folder
