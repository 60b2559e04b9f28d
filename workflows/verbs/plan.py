"""``workflows plan``: show what would run: how many keys, where and why."""

import argparse
from collections import Counter
from collections.abc import Mapping
from typing import Any

from workflows.errors import NodeLost
from workflows.model import Key
from workflows.planning import context
from workflows.planning.plan import Plan
from workflows.reporting.runlog import aligned
from workflows.verbs.pipeline import add_pipeline, step_from


def add(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_pipeline(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print one line a step; run nothing."""
    context.look_only()
    last = step_from(arguments).whole
    listed = last.listed
    size = sum(key.size or 0 for key in listed.keys)
    print(
        f"{listed.source}: {len(listed.keys)} keys, {size / 1e6:.1f} MB,"
        f" on {len(last.nodes)} nodes of {last.nodes.spec}, skew {listed.skew:.2f}"
    )
    if last.complete():
        print(f"nothing to run: {_where(last)}")
        return 0
    rows: list[tuple[str, ...]] = [("step", "keys", "to run", "why", "where")]
    for step, missing in needed(last).items():
        rows.append(_row(step, missing))
    print(aligned(rows, left=(0, 3, 4)))
    return 0


def needed(last: Plan) -> dict[Plan, list[Key] | None]:
    """Return the steps that have work, the first one first, with the keys that Luigi would run.

    Steps that nobody needs do not run: a missing output matters only if something is to be made
    from it. None stands for keys that are not known before an earlier step has run.
    """
    steps = {step.name: step for step in last.lineage}
    found: dict[str, dict[str, Key] | None] = {}
    stack: list[Plan] = [last]
    seen = set()
    while stack:
        task = stack.pop()
        if task.task_id in seen or task.complete():
            continue
        seen.add(task.task_id)
        stack.extend(task.requires())
        if task.shard:
            _add_missing(found, task)
        elif task.durable or task.mode == "to_n":
            found.setdefault(task.name, {})  # it has work of its own, once its keys are done
    ordered: dict[Plan, list[Key] | None] = {}
    for name, step in steps.items():
        if name in found:
            keys = found[name]
            ordered[step] = None if keys is None else sorted(keys.values())
    return ordered


def _add_missing(found: dict[str, dict[str, Key] | None], shard: Plan) -> None:
    if shard.keys() is None:
        found[shard.name] = None
        return
    keys = found.setdefault(shard.name, {})
    if keys is not None:
        missing = shard.output().missing()
        keys.update({key.identity: key for key in missing})


def _row(step: Plan, missing: list[Key] | None) -> tuple[str, ...]:
    if missing is None or step.keys() is None:
        before = step.before
        return step.name, "?", "?", f"known after {before.name}" if before else "", ""
    if not missing:
        why = "its files are to be delivered" if step.mode == "to_n" else "to be made durable"
        return step.name, str(len(step.keys() or [])), "0", why, ""
    history = {slot: _history(step, slot) for slot in sorted({key.slot for key in missing})}
    reasons = Counter(reason(step, key, history[key.slot]) for key in missing)
    why = ", ".join(f"{count} {text}" for text, count in reasons.most_common())
    slots = Counter(step.nodes.nodes[key.slot].name for key in missing)
    return step.name, str(len(step.keys() or [])), str(len(missing)), why, _spread(slots)


def _spread(counts: Mapping[str, int]) -> str:
    """Say how many keys each node has, in a line that stays short for any number of nodes.

    >>> print(_spread({"node 2": 5}), _spread({"node 0": 5, "node 1": 4, "node 2": 4}), sep="; ")
    5 on node 2; 4 to 5 on each of 3 nodes
    """
    if len(counts) == 1:
        return "".join(f"{count} on {name}" for name, count in counts.items())
    least, most = min(counts.values()), max(counts.values())
    each = f"{least}" if least == most else f"{least} to {most}"
    return f"{each} on each of {len(counts)} nodes"


def _history(step: Plan, slot: int) -> list[dict[str, Any]] | None:
    """Return every ledger line of a step on a node, or None if it cannot be reached."""
    try:
        message = {"op": "history", "step": step.name}
        records: list[dict[str, Any]] = step.nodes.channel(slot).one(message, "history")["records"]
    except NodeLost:
        return None
    return records


def reason(step: Plan, key: Key, history: list[dict[str, Any]] | None) -> str:
    """Say why a key would run, from what its node remembers of that name."""
    if history is None:
        return "lost node"
    same_name = [record for record in history if record["key"] == key.name]
    if any(record["id"] == key.identity for record in same_name):
        return "lost output"
    if not same_name:
        return "new"
    if any(record.get("spec") == step.spec for record in same_name):
        return "changed input"
    return "changed command"


def _where(step: Plan) -> str:
    if step.durable:
        return f"{step.checkpointed.path} is there"
    return f"all keys of {step.name} are on their nodes"
