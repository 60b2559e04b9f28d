"""The classes that pipelines are written in: `Map` 1:1, `MapToN` 1:n, `MapFromN` n:1.

A step states its command, the files it ships, what it reads, and what must hold of it::

    class Words(Map):
        upstream = Fetch
        command = "python3 words.py"
        files = ("words.py",)

As a Luigi task a step without a shard is the whole step; it requires its shards. A shard is some
keys of one slot, run on the node that owns them. Finished keys never rerun, one bad key fails
its shard only after all its other keys are done, and nothing is ever overwritten.
"""

import os
from collections.abc import Iterator
from typing import Any

import luigi

from workflows.config import passed, settings
from workflows.errors import WorkflowsError
from workflows.luigi_seam import commandline
from workflows.luigi_seam.install import install
from workflows.planning import context, from_n
from workflows.planning.from_n import PlanFromN
from workflows.planning.gather import Basename, Prefix
from workflows.planning.plan import Plan
from workflows.planning.to_n import PlanToN
from workflows.running import barriers, checkpoints, execution, lifecycle, results
from workflows.running.taskreport import log_path

__all__ = ["Basename", "Map", "MapFromN", "MapToN", "Prefix", "Step"]


class Step(Plan):
    """The common part of all steps. Use `Map`, `MapToN` or `MapFromN`."""

    _is_base_of_steps = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check what the class states, and let it have its name.

        To import a shipped pipeline's step must not make a step of one's own ambiguous to Luigi
        that is called like another one of that pipeline.

        Raises:
            UsageError: an attribute is misspelt, or of the wrong type.
        """
        super().__init_subclass__(**kwargs)
        commandline.give_name(cls)

    # -- Luigi ---------------------------------------------------------------------------------

    def requires(self) -> list[Plan]:
        """Return the shards of a whole step, or the shards of upstream that a shard reads."""
        if not self.shard:
            self.listed.require_kept()
            passed(settings(), os.environ)  # what is not set is said before anything runs
            pinned = self.listed.digest
            own = [self.clone(shard=shard.label, dataset=pinned) for shard in self.shards()]
            before = self.before
            kept = [step for step in (before.lineage if before else []) if step.durable]
            return [*own, *kept] if not self.is_restorable else []
        first = self.chain()[0].before
        if first is None or self.is_restorable:
            return []
        if first.mode == "to_n":
            return [first]
        if first.is_tolerant:  # the whole of it knows which keys there are; the shards bring them
            slot = self.this_shard().slot
            own = [shard for shard in first.shards() if shard.slot == slot]
            return [first, *(first.clone(shard=shard.label) for shard in own)]
        if self.mode != "from_n" or not self.is_static:
            return [first.clone(shard=self.shard)]
        wanted = {given.name for key in self.this_shard().keys for given in key.inputs}
        return [
            first.clone(shard=shard.label)
            for shard in first.shards()
            if any(key.name in wanted for key in shard.keys)
        ]

    def output(self) -> "luigi.Target | list[luigi.Target]":
        """Return the checkpoint of a durable step, else the keys on their nodes."""
        if self.shard:
            return self.on_node(self.this_shard())
        if self.durable:
            return self.checkpointed
        return [self.on_node(shard) for shard in self.shards()]

    def complete(self) -> bool:
        """Tell whether all is done; a node that cannot be reached only makes its keys missing."""
        if not self.shard and self.durable:
            return self.checkpointed.is_whole()
        if self.keys() is None:
            return False
        if self.shard:
            missing = self.missing(self.this_shard())
            execution.plan(self, missing)
            return not missing
        return self.is_all_done()

    def run(self) -> Iterator[list[Plan]] | None:
        """Run the shard's missing keys, or make the whole step durable.

        Where a lost node took what is read with it, the tasks that make it are required again:
        Luigi runs them, then this one again.

        Raises:
            KeysFailed: some keys failed; all others of the shard are done.
            NodeLost: the node was lost more often than is retried.
            LawBroken: the step as a whole lost or made up rows.
        """
        absent = execution.run_shard(self) if self.shard else execution.run_whole(self, self.finish)
        return self._again_after(absent) if absent else None

    def _again_after(self, absent: list[Plan]) -> Iterator[list[Plan]]:
        yield absent
        yield from self.run() or ()

    def finish(self) -> None:
        """Do what is left once all shards are done: commit the checkpoint of a durable step."""
        if self.durable:
            checkpoints.commit(self)

    @property
    def resources(self) -> dict[str, float]:  # type: ignore[override]
        """Return the share of its node that a shard takes, so that no worker waits for nothing.

        The node's slots limit what runs; two tasks a node at least keep them busy in between.
        """
        if not self.shard:
            return {}
        shard = self.this_shard()
        slots = self.nodes.nodes[shard.slot].slots
        return {f"{self.fleet} node {shard.slot}": min(0.5, max(1, len(shard.keys)) / (2 * slots))}

    @property
    def most_at_once(self) -> int:
        """Return how many tasks the nodes take at once: see `resources`."""
        return sum(2 * node.slots for node in self.nodes.nodes)

    def on_failure(self, exception: BaseException) -> str:
        """Return what the visualizer and the mail show: the message alone if it explains itself."""
        context.log().add(
            what="failed", step=self.name, shard=self.shard, why=repr(exception)[:500]
        )
        known = isinstance(exception, WorkflowsError)
        text = str(exception) if known else str(super().on_failure(exception))
        return f"{text}\n  log: {log_path(self, self.shard)}" if self.shard else text

    def on_success(self) -> str | None:
        """Print the result of the run, once all of it is done."""
        if self._is_result:
            self._announce()
        return None

    def show(self) -> None:
        """Print on stdout what a durable step made, at the end of the run that is for it."""
        results.show_plainly(self.checkpointed)

    def warn_again(self) -> None:
        """Repeat what was warned of when a result was committed that a run found there already."""
        manifest = self.checkpointed.manifest() or {}
        if not self.allow_empty:
            for sentence in manifest.get("warnings", ()):
                context.logger.warning("%s", sentence)

    @property
    def _is_result(self) -> bool:
        return self.durable and not self.shard and lifecycle.is_result(self)

    def _announce(self) -> None:
        about = {"identity": self.identity, "checkpoint": self.checkpoint}
        context.log().add(what="result", step=self.name, **about)
        results.announce(self.name, self.show)


install(lifecycle.LISTENERS, lifecycle.note_unfinished, lifecycle.leave)


@Step.event_handler(luigi.Event.DEPENDENCY_PRESENT)  # type: ignore[untyped-decorator]
def _already_done(step: Step) -> None:
    """Print the result of a run that found it done already."""
    lifecycle.note_asked(step)
    if step._is_result:
        try:
            step.warn_again()
            step._announce()
        except WorkflowsError as error:
            lifecycle.fail(error)


class Map(Step):
    """1:1. The command reads a key on stdin and writes the key of the same name to stdout.

    A first step (without `upstream`) reads the URL or path of its source key, one line.
    """

    _is_base_of_steps = True
    mode = "map"


class MapFromN(PlanFromN, Step):
    """n:1. The command reads the paths of all keys of one name on stdin, and writes one key.

    Keys of the same basename make one key, whatever their directories, unless `gather` is another
    rule: with ``gather = Prefix()``, keys of the same numeric prefix.
    """

    _is_base_of_steps = True

    def complete(self) -> bool:
        """Tell whether all is done.

        Raises:
            UsageError: the checkpoint is of a version that joined numeric prefixes untold.
        """
        is_done = super().complete()
        if is_done and self.durable and not self.shard:
            from_n.refuse_joined(self)
        return is_done


class MapToN(PlanToN, Step):
    """1:n. The command reads a key on stdin, writes files, and prints their names, one a line.

    Each file becomes a key ``<input>/<file>`` on the node that owns its name. The command must make
    the same files again when it is run again. As a Luigi task the whole step is the barrier: it
    moves the files from node to node once all are made.

    `balanced` spreads the files by size: the few names that a partition makes would fall on few
    nodes by their hashes. A numeric prefix still decides alone.
    """

    _is_base_of_steps = True

    def complete(self) -> bool:
        """Tell whether the shard has made its files, or all files are where they belong."""
        if self.shard:
            return bool(super().complete())
        return self.outputs() is not None and all(target.exists() for target in self.delivered())

    def output(self) -> "luigi.Target | list[luigi.Target]":
        """Return the keys made on their nodes, or for the whole step the files delivered."""
        if self.shard:
            shard = self.this_shard()
            return self.on_node(shard)
        return list(self.delivered())

    def finish(self) -> None:
        """Move the files to the nodes that own their names."""
        barriers.deliver(self)
