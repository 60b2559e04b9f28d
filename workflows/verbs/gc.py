"""``workflows gc``: remove from the nodes what no current pipeline refers to, after showing it."""

import argparse
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from workflows import run as runs
from workflows.keys import PIECES
from workflows.runlog import aligned
from workflows.s3 import S3Store, Upload
from workflows.steps import Step
from workflows.targets import CheckpointTarget
from workflows.verbs.pipeline import add_pipeline, step_from


def add(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "--yes", action="store_true", help="remove it; without this it is only shown"
    )
    parser.add_argument(
        "--all-steps", action="store_true", help="also steps that the pipeline does not have"
    )
    parser.add_argument(
        "--age", type=float, default=24.0, help="hours that an unfinished checkpoint is left (24)"
    )
    add_pipeline(parser)


class Removal(NamedTuple):
    """What one node has of one step that nothing refers to."""

    slot: int
    step: str
    identities: list[str]
    unfinished: int
    size: int


def run(arguments: argparse.Namespace) -> int:
    """Show, or remove, what the pipeline does not refer to as it is now."""
    last = step_from(arguments).whole
    removals = unreferred(last, all_steps=arguments.all_steps)
    abandoned = abandoned_attempts(last, arguments.age)
    uploads = open_uploads(last, arguments.age)
    if not removals and not abandoned and not uploads:
        print("nothing to remove: all that is kept is referred to")
        return 0
    _show(last, removals, abandoned)
    for upload in uploads:
        print(f"unfinished upload {last.checkpointed.store.locate(upload.name)}")
    if not arguments.yes:
        print("nothing was removed; to remove it: workflows gc --yes")
        return 0
    for slot, step, identities, *_ in removals:
        message = {"op": "drop", "step": step, "ids": identities, "why": "gc"}
        last.nodes.channel(slot).one(message, "dropped")
    for folder in abandoned:
        last.checkpointed.store.remove(folder)
    store = runs.store(last.checkpoint)
    if isinstance(store, S3Store):
        for upload in uploads:
            store.abort(upload.name, upload.upload_id)
    print("removed")
    return 0


def unreferred(last: Step, *, all_steps: bool) -> list[Removal]:
    """Return what the nodes have of the pipeline's steps, or of all, that it does not refer to."""
    keep = referred(last)
    known = {name for step in last.lineage for name in (step.name, step.name + PIECES)}
    fleet = last.nodes

    def look(slot: int) -> dict[str, Any]:
        steps: dict[str, Any] = fleet.channel(slot).one({"op": "steps"}, "steps")["steps"]
        return steps

    removals = []
    for slot, steps in fleet.each(range(len(fleet)), look).items():
        for step, held in steps.items():
            gone = {i: kept for i, kept in held["keys"].items() if i not in keep}
            orphans = held["orphans"]
            if (gone or orphans) and (step in known or all_steps):
                size = sum(kept[1] for kept in gone.values()) + sum(orphans.values())
                removals.append(Removal(slot, step, [*gone, *orphans], len(orphans), size))
    return removals


def _show(last: Step, removals: list[Removal], abandoned: list[str]) -> None:
    rows: list[tuple[str, ...]] = [("step", "node", "keys", "unfinished", "MB")]
    for removal in removals:
        keys = str(len(removal.identities) - removal.unfinished)
        size = f"{removal.size / 1e6:.1f}"
        rows.append((removal.step, str(removal.slot), keys, str(removal.unfinished), size))
    if removals:
        print(aligned(rows, left=(0,)))
    for folder in abandoned:
        print(f"unfinished checkpoint {last.checkpointed.store.locate(folder)}")


def referred(last: Step) -> set[str]:
    """Return the identities of all outputs that the pipeline is made of, as it is now."""
    keep: set[str] = set()
    for step in last.lineage:
        keep.update(key.identity for key in step.keys() or [])
        keep.update(key.identity for key in step.outputs() or [])
    return keep


def abandoned_attempts(last: Step, age_h: float) -> list[str]:
    """Return the folders of attempts at a checkpoint, begun long ago and never committed."""
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


def open_uploads(last: Step, age_h: float) -> Sequence[Upload]:
    """Return the uploads in parts to the checkpoint, begun long ago, that nobody will finish."""
    store = runs.store(last.checkpoint)
    if not isinstance(store, S3Store):
        return []
    now = time.time()
    steps = {step.name for step in last.lineage}
    return [
        upload
        for upload in store.uploads("")
        if upload.name.split("/")[0] in steps and now - upload.started > age_h * 3600
    ]


def _committed(last: Step, folder: str) -> bool:
    step, identity = folder.split("/")[:2]
    manifest = CheckpointTarget(runs.store(last.checkpoint), step, identity).manifest()
    return manifest is not None and manifest["attempt"] == folder
