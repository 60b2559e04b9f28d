"""Removable data: unreferenced outputs, unfinished checkpoints, old records."""

import functools
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple

from workflows.config import settings
from workflows.fleets.fleet import Fleet
from workflows.reporting.runlog import aligned
from workflows.storage.s3store import S3Store
from workflows.storage.store import Store, Stored
from workflows.targets import CheckpointTarget
from workflows.verbs.current import Pipeline, Referred, started

_DAY_S, _HOUR_S = 86400, 3600
# STEP/IDENTITY/data/ATTEMPT/: as `targets.CheckpointTarget` has them.
_ATTEMPT = re.compile(r"[^/]+/[0-9a-f]{20}/data/[0-9a-f]{12}/")
_HEAD = ("step", "node", "keys", "unfinished", "MB")
Row = tuple[str, ...]


class Stale(NamedTuple):
    """Something that may go: a row of the table or a line that shows it, its bytes, and how."""

    size: int
    remove: Callable[[], object]
    row: Row = ()
    text: str = ""


def table(rows: Iterable[Row]) -> str:
    """Return the rows of outputs as a table."""
    return aligned([_HEAD, *rows], left=(0,))


# -- on nodes ------------------------------------------------------------------------------------


def outputs(fleet: Fleet, kept: Referred, *, all_steps: bool) -> Iterator[Stale]:
    """Yield what the nodes have of known steps, or of all, that is not referred to."""

    def look(slot: int) -> dict[str, Any]:
        steps: dict[str, Any] = fleet.channel(slot).one({"op": "steps"}, "steps")["steps"]
        return steps

    for slot, steps in fleet.each(range(len(fleet)), look).items():
        for step, held in steps.items():
            gone = {i: key for i, key in held["keys"].items() if i not in kept.identities}
            orphans = held["orphans"]
            is_ours = step not in kept.spared and (step in kept.steps or all_steps)
            if not is_ours or not (gone or orphans):
                continue
            size = sum(key[1] for key in gone.values()) + sum(orphans.values())
            message = {"op": "drop", "step": step, "ids": [*gone, *orphans], "why": "gc"}
            row = (step, str(slot), str(len(gone)), str(len(orphans)), f"{size / 1e6:.1f}")
            yield Stale(size, functools.partial(_tell, fleet, slot, message, "dropped"), row)


def shipped(fleet: Fleet, kept: Referred, hours: float) -> Iterator[Stale]:
    """Yield the files on nodes that no current step ships, and runtimes of other versions."""

    def look(slot: int) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = fleet.channel(slot).one({"op": "leftovers"}, "leftovers")[
            "items"
        ]
        return [
            item
            for item in items
            if item["age_s"] >= hours * _HOUR_S
            and not (item["kind"] == "file" and item["name"] in kept.files)
        ]

    for slot, items in fleet.each(range(len(fleet)), look).items():
        for kind, what in (("file", "shipped files"), ("runtime", "runtimes of other versions")):
            chosen = [item for item in items if item["kind"] == kind]
            if chosen:
                size = sum(item["bytes"] for item in chosen)
                text = f"{what} on node {slot}: {len(chosen)}, {size / 1e6:.1f} MB"
                message = {"op": "discard", "names": [item["name"] for item in chosen]}
                remove = functools.partial(_tell, fleet, slot, message, "discarded")
                yield Stale(size, remove, text=text)


def _tell(fleet: Fleet, slot: int, message: dict[str, Any], answer: str) -> None:
    fleet.channel(slot).one(message, answer)


# -- in checkpoints ------------------------------------------------------------------------------


def attempts(store: Store, steps: Collection[str] | None, hours: float) -> Iterator[Stale]:
    """Yield attempts that were begun long ago and never committed, of some steps or of all."""
    before = time.time() - hours * _HOUR_S
    for folder, items in _attempts(store, steps).items():
        if max(item.modified for item in items) < before and not _committed(store, folder):
            size = sum(item.size for item in items)
            text = f"unfinished checkpoint {store.locate(folder)}"
            yield Stale(size, functools.partial(store.remove, folder), text=text)
    if isinstance(store, S3Store):
        yield from _uploads(store, steps, before)


def _uploads(store: S3Store, steps: Collection[str] | None, before: float) -> Iterator[Stale]:
    for upload in store.uploads(""):
        is_wanted = steps is None or upload.name.split("/")[0] in steps
        if is_wanted and _ATTEMPT.match(upload.name) and upload.started < before:
            abort = functools.partial(store.abort, upload.name, upload.upload_id)
            yield Stale(0, abort, text=f"unfinished upload {store.locate(upload.name)}")


def _attempts(store: Store, steps: Collection[str] | None) -> dict[str, list[Stored]]:
    """Return folder -> objects of every attempt at a checkpoint of these steps, or of all."""
    found: dict[str, list[Stored]] = {}
    for step in [""] if steps is None else sorted(steps):
        for item in store.list(step):
            attempt = _ATTEMPT.match(item.name)
            if attempt:
                found.setdefault(attempt[0].rstrip("/"), []).append(item)
    return found


def _committed(store: Store, folder: str) -> bool:
    step, identity = folder.split("/")[:2]
    manifest = CheckpointTarget(store, step, identity).manifest()
    return manifest is not None and manifest["attempt"] == folder


def listings(store: Store, steps: Collection[str], kept: Referred, days: float) -> Iterator[Stale]:
    """Yield old listings of sources but the newest of each, and old lists of pieces."""
    before = time.time() - days * _DAY_S
    newest: dict[str, Stored] = {}
    found = list(store.list("datasets"))
    for item in sorted(found, key=lambda item: item.modified):
        newest[os.path.dirname(item.name)] = item
    old = [item for item in found if item.modified < before and item not in newest.values()]
    yield from _objects(store, "old listings of sources", old)
    old = [
        item
        for step in sorted(steps)
        for item in store.list(f"barriers/{step}")
        if item.modified < before and item.name not in kept.barriers
    ]
    yield from _objects(store, "old lists of pieces", old)


def _objects(store: Store, what: str, old: list[Stored]) -> Iterator[Stale]:
    if old:
        size = sum(item.size for item in old)
        text = f"{what} in {store.url}: {len(old)}, {size / 1e6:.1f} MB"
        yield Stale(size, functools.partial(store.discard, [i.name for i in old]), text=text)


# -- the record ----------------------------------------------------------------------------------


def records(pipelines: Iterable[Pipeline], days: float) -> Iterator[Stale]:
    """Yield the folders of old runs; the newest run of each pipeline is kept, whatever its age."""
    folder = os.path.abspath(os.path.join(settings().state, "runs"))
    wanted = {os.path.abspath(pipeline.log) for pipeline in pipelines}
    before = time.time() - days * _DAY_S
    old = []
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        path, when = os.path.join(folder, name), started(name)
        if when is not None and when < before and path not in wanted:
            old.append(path)
    if old:
        size = sum(map(_size, old))
        text = f"records of old runs in {folder}: {len(old)}, {size / 1e6:.1f} MB"
        yield Stale(size, functools.partial(_remove_all, old), text=text)


def _size(folder: str) -> int:
    return sum(
        os.path.getsize(os.path.join(top, name))
        for top, _, names in os.walk(folder)
        for name in names
    )


def _remove_all(paths: Iterable[str]) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
