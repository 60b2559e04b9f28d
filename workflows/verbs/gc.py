"""``workflows gc``: list, then remove, what no current pipeline references.

Current is every pipeline that was run lately, by the record in ``runs/`` of the state directory,
and the one that is named. It examines outputs, shipped files and runtimes on the nodes of
one fleet; attempts without a commit, listings and pieces in the checkpoints; the runs' records.
Results that were committed are never removed.
"""

import argparse
import sys

from workflows.config import settings
from workflows.errors import UsageError, WorkflowsError
from workflows.planning import context
from workflows.steps import Step
from workflows.verbs import stale
from workflows.verbs.current import Pipeline, Referred, days_old, recorded
from workflows.verbs.pipeline import add_pipeline, step_from
from workflows.verbs.stale import Stale


def add(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("--yes", action="store_true", help="remove it; without this, only list it")
    parser.add_argument(
        "--only",
        action="store_true",
        help="of TASK's steps keep only what TASK references",
    )
    parser.add_argument(
        "--all-steps",
        action="store_true",
        help="also steps that no recorded pipeline has, including keys copied or mapped by name,"
        " and their unfinished checkpoints",
    )
    parser.add_argument(
        "--days",
        type=float,
        default=90.0,
        help="days until a pipeline is not current and its records of runs go (90)",
    )
    parser.add_argument(
        "--age",
        type=float,
        default=24.0,
        help="hours to keep unfinished checkpoints and shipped files (24)",
    )
    parser.add_argument("--fleet", help="whose nodes (TASK's, or luigi.cfg's)")
    add_pipeline(parser)
    parser.set_defaults(task=None)


def run(arguments: argparse.Namespace) -> int:
    """Show, or remove, what no current pipeline refers to as it is now."""
    named = step_from(arguments).whole if arguments.task else None
    if arguments.only and named is None:
        raise UsageError("--only needs a task: workflows gc --only MergeCounts --source rides")
    pipelines = recorded()
    spec = arguments.fleet or (named.fleet if named is not None else settings().fleet)
    kept = _referred(named, [] if arguments.only else pipelines, spec, arguments.days)
    if not arguments.only:
        kept.know(name for one in pipelines for name in one.order)
    if not kept.steps and not kept.spared:
        raise UsageError(
            f"no run is on record in {settings().state}/runs, so nothing would be kept;"
            " name the pipeline to keep: workflows gc MergeCounts --source rides"
        )
    fleet = context.fleet(spec)
    found = [*stale.outputs(fleet, kept, all_steps=arguments.all_steps)]
    if not arguments.only:  # of others it may be said only by one who knows them all
        found += stale.shipped(fleet, kept, arguments.age)
        found += stale.records(pipelines, arguments.days)
    for url, steps in kept.places.items():
        store = context.store(url)
        found += stale.attempts(store, None if arguments.all_steps else steps, arguments.age)
        if not arguments.only:
            found += stale.listings(store, steps, kept, arguments.days)
    return _settle(found, remove=arguments.yes)


def _referred(named: Step | None, pipelines: list[Pipeline], fleet: str, days: float) -> Referred:
    """Return what is kept, and say so; of a pipeline that cannot be asked, all of its steps."""
    kept = Referred()
    if named is not None:
        kept.add(named)
        print(f"kept: everything that {named.name} references, as named here", file=sys.stderr)
    for pipeline in pipelines:
        if days_old(pipeline) > days:
            continue
        try:
            kept.add(pipeline.step(fleet))
            print(f"kept: everything that {pipeline} references", file=sys.stderr)
        except WorkflowsError as error:
            kept.spare(pipeline.order)
            print(
                f"kept: all outputs of {', '.join(pipeline.order)}, because"
                f" {pipeline} cannot be evaluated: {error}",
                file=sys.stderr,
            )
    return kept


def _settle(found: list[Stale], *, remove: bool) -> int:
    if not found:
        print("nothing to remove: everything is referenced")
        return 0
    rows = [one.row for one in found if one.row]
    if rows:
        print(stale.table(rows))
    for one in found:
        if one.text:
            print(one.text)
    if not remove:
        size = sum(one.size for one in found) / 1e6
        print(f"nothing was removed; to remove it ({size:.1f} MB): workflows gc --yes")
        return 0
    for one in found:
        one.remove()
    print("removed")
    return 0
