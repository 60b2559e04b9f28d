"""The classes that pipelines are written in: `Map` 1:1, `MapToN` 1:n, `MapFromN` n:1.

A step states its command, the files it ships, what it reads, and what must hold of it::

    class Words(Map):
        upstream = Fetch
        command = "python3 words.py"
        files = ("words.py",)

As a Luigi task a step without a shard is the whole step; it requires its shards. A shard is some
keys of one slot, run on the node that owns them. What is done is never run again, one bad key fails
its shard only after all its other keys are done, and nothing is ever overwritten.
"""

import functools
import os
import sys
from collections.abc import Iterator
from typing import Any, ClassVar

import luigi
from luigi.task_register import Register

from workflows.luigi_seam import early

early.begin(sys.argv)

from workflows.config import passed, settings
from workflows.errors import UsageError, WorkflowsError
from workflows.fleets.fleet import Fleet
from workflows.luigi_seam import commandline, localscheduler
from workflows.luigi_seam.install import install
from workflows.luigi_seam.taskthreads import run_on_threads
from workflows.node.keys import PIECES, digest_of
from workflows.planning import tolerance
from workflows.planning.dataset import Dataset
from workflows.planning.definition import Definition
from workflows.planning.gather import Basename, Gather, Prefix, are_all_alone
from workflows.planning.lineage import (
    Key,
    Piece,
    Shard,
    mapped_keys,
    merged_keys,
    pieces_of,
    shards_of,
    slot_shards,
    source_keys,
)
from workflows.running import barriers, checkpoints, execution, gathered, results, run
from workflows.running.taskreport import log_path
from workflows.targets import CheckpointTarget, NodeTarget

__all__ = ["Basename", "Map", "MapFromN", "MapToN", "Prefix", "Step"]


def _is_shipped(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "workflows"


class Step(Definition):
    """What all steps have in common. Use `Map`, `MapToN` or `MapFromN`."""

    _is_base_of_steps = True
    upstream: ClassVar["type[Step] | None"] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check what the class states, and let it have its name.

        To import a shipped pipeline's step must not make a step of one's own ambiguous to Luigi
        that is called like another one of that pipeline.

        Raises:
            UsageError: an attribute is misspelt, or of the wrong type.
        """
        super().__init_subclass__(**kwargs)
        if not _is_shipped(cls):
            cls._visible_in_registry = True  # not as the shipped step that it may be made from
            for other in Register._reg:
                if other.__name__ == cls.__name__ and _is_shipped(other):
                    other._visible_in_registry = False

    @classmethod
    @functools.cache
    def get_params(cls) -> list[tuple[str, luigi.Parameter]]:
        """Return the parameters, found once: Luigi would search the class for every task made."""
        found: list[tuple[str, luigi.Parameter]] = super().get_params()
        return found

    # -- what it is ----------------------------------------------------------------------------

    @property
    def identity(self) -> str:
        """Return what the whole step's result is made of, down to the source."""
        known = tolerance.known(self)
        if "identity" not in known:
            before = self.listed.digest if self.before is None else self.before.identity
            further = [*self._further_identity(), *tolerance.identities(self)]
            known["identity"] = digest_of([self.spec, before, *further])
        return str(known["identity"])

    def _further_identity(self) -> list[str]:
        """Return what else the whole step's result is made of."""
        return []

    @functools.cached_property
    def whole(self) -> "Step":
        """Return the whole step that this shard belongs to, pinned to the dataset."""
        whole: Step = self.clone(shard="", dataset=self.listed.digest)
        return whole

    @functools.cached_property
    def before(self) -> "Step | None":
        """Return the whole upstream step, or None for a step that reads the source.

        Raises:
            UsageError: a parameter does not get to a step before it.
        """
        if self.upstream is None:
            return None
        before: Step = self.clone(self.upstream, shard="", dataset=self.listed.digest)
        self.refuse_gap(before, before.lineage[:-1])
        return before

    @property
    def lineage(self) -> "list[Step]":
        """Return the steps up to this one, the first one first."""
        before = self.before
        return [*(before.lineage if before is not None else []), self.whole]

    @property
    def listed(self) -> Dataset:
        """Return what the source holds, listed once in this run."""
        return run.dataset(self.source, self.pattern, len(self.nodes), self.checkpoint)

    @property
    def nodes(self) -> Fleet:
        """Return the fleet this step runs on."""
        return run.fleet(self.fleet)

    # -- its keys ------------------------------------------------------------------------------

    @property
    def is_static(self) -> bool:
        """Tell whether the keys are known before anything has run: no 1:n step is upstream."""
        before = self.before
        return before is None or (before.is_static and not before.is_barrier)

    @property
    def is_tolerant(self) -> bool:
        """Tell whether a run goes on without keys of this step that failed."""
        return self.max_failed not in (0, "0%", None)

    @property
    def is_barrier(self) -> bool:
        """Tell whether the keys behind this step are not known before all of its own have ended."""
        return self.mode == "to_n" or self.is_tolerant

    def keys(self) -> list[Key] | None:
        """Return the keys of the whole step, or None while a 1:n step has yet to tell."""
        known = tolerance.known(self)
        if "keys" not in known:
            keys = self.whole._find_keys()
            if keys is None:
                return None
            known["keys"] = keys
        found: list[Key] = known["keys"]
        return found

    def outputs(self) -> list[Key] | None:
        """Return what the next step reads: the keys, or for 1:n what they made."""
        keys = self.keys()
        if keys is None or not self.is_tolerant:
            return keys
        is_known = tolerance.is_decided(self) or self._is_all_done()
        return tolerance.without_failed(self, keys) if is_known else None

    def _is_all_done(self) -> bool:
        missing = [key for shard in self.shards() for key in self._missing(shard)]
        return not missing and not tolerance.is_open(self)

    def _missing(self, shard: Shard) -> list[Key]:
        """Return the keys of a shard that are not done, but those that this run does without."""
        missing = self._on_node(shard).missing()
        return tolerance.without_failed(self, missing) if self.is_tolerant else missing

    def _find_keys(self) -> list[Key] | None:
        spec, before = self.spec, self.before  # what is wrong is said before anything has run
        if before is None:
            return source_keys(spec, self.listed)
        upstream = before.outputs()
        if upstream is None:
            return None
        return self._planned_from(spec, before, upstream)

    def _planned_from(self, spec: str, before: "Step", upstream: list[Key]) -> list[Key]:
        return mapped_keys(spec, before.ledger, upstream)

    def shards(self) -> list[Shard]:
        """Return how the step is cut into tasks; the same for every task of a run."""
        known = tolerance.known(self)
        if "shards" not in known:
            keys, nodes, chosen = self.keys(), len(self.nodes), settings()
            if keys is None:
                return slot_shards(None, nodes)
            known["shards"] = (
                shards_of(keys, nodes, key_tasks=chosen.key_tasks, shards=chosen.shards)
                if self.is_static
                else slot_shards(keys, nodes)
            )
        found: list[Shard] = known["shards"]
        return found

    def this_shard(self) -> Shard:
        """Return the shard that this task is.

        Raises:
            UsageError: there is none of that name.
        """
        for shard in self.shards():
            if shard.label == self.shard:
                return shard
        raise UsageError(f"{self.name} has no shard {self.shard!r}; leave --shard out")

    def chain(self) -> "list[Step]":
        """Return the steps that run as one pipe, this one last; only this one if not fused."""
        before = self.before
        if self.fuse and self.mode == "map" and before is not None and before.can_fuse:
            return [*before.chain(), self.whole]
        return [self.whole]

    @property
    def can_fuse(self) -> bool:
        """Tell whether a 1:1 step downstream may take this one into its pipe."""
        return self.mode == "map" and not self.durable and not self.is_tolerant

    # -- Luigi ---------------------------------------------------------------------------------

    def requires(self) -> "list[Step]":
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
            return self._on_node(self.this_shard())
        if self.durable:
            return self.checkpointed
        return [self._on_node(shard) for shard in self.shards()]

    def complete(self) -> bool:
        """Tell whether all is done; a node that cannot be reached only makes its keys missing."""
        if not self.shard and self.durable:
            return self.checkpointed.is_whole()
        if self.keys() is None:
            return False
        if self.shard:
            missing = self._missing(self.this_shard())
            execution.plan(self, missing)
            return not missing
        return self._is_all_done()

    def run(self) -> "Iterator[list[Step]] | None":
        """Run the shard's missing keys, or make the whole step durable.

        Where a lost node took what is read with it, the tasks that make it are required anew:
        Luigi runs them, then this one again.

        Raises:
            KeysFailed: some keys failed; all others of the shard are done.
            NodeLost: the node was lost more often than is retried.
            LawBroken: the step as a whole lost or made up rows.
        """
        absent = execution.run_shard(self) if self.shard else execution.run_whole(self)
        return self._again_after(absent) if absent else None

    def _again_after(self, absent: "list[Step]") -> "Iterator[list[Step]]":
        yield absent
        yield from self.run() or ()

    def finish(self) -> None:
        """Do what is left once all shards are done: commit the checkpoint of a durable step."""
        if self.durable:
            checkpoints.commit(self)

    @property
    def resources(self) -> dict[str, float]:  # type: ignore[override]
        """Return the share of its node that a shard takes, so that no worker waits in vain.

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
        run.log().add(what="failed", step=self.name, shard=self.shard, why=repr(exception)[:500])
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
                run.logger.warning("%s", sentence)

    @property
    def _is_result(self) -> bool:
        return self.durable and not self.shard and run.is_result(self)

    def _announce(self) -> None:
        about = {"identity": self.identity, "checkpoint": self.checkpoint}
        run.log().add(what="result", step=self.name, **about)
        results.announce(self.name, self.show)

    # -- targets -------------------------------------------------------------------------------

    @property
    def checkpointed(self) -> CheckpointTarget:
        """Return the durable copy of the whole step."""
        known = tolerance.known(self)
        if "checkpointed" not in known:
            store = run.store(self.checkpoint)
            known["checkpointed"] = CheckpointTarget(store, self.name, self.identity)
        found: CheckpointTarget = known["checkpointed"]
        return found

    @property
    def is_restorable(self) -> bool:
        """Tell whether the outputs can be brought back from a checkpoint instead of made again."""
        return self.durable and self.checkpointed.exists()

    def _on_node(self, shard: Shard) -> NodeTarget:
        return NodeTarget(run.listings(self.fleet), self.ledger, shard.slot, shard.keys)


install()
run_on_threads(Step)
commandline.keep_parsers()
localscheduler.look_seldom()


@Step.event_handler(luigi.Event.DEPENDENCY_PRESENT)  # type: ignore[untyped-decorator]
def _already_done(step: Step) -> None:
    """Print the result of a run that found it done already."""
    run.note_asked(step)
    if step._is_result:
        try:
            step.warn_again()
            step._announce()
        except WorkflowsError as error:
            run.fail(error)


class Map(Step):
    """1:1. The command reads a key on stdin and writes the key of the same name to stdout.

    A first step (without `upstream`) reads the URL or path of its source key, one line.
    """

    _is_base_of_steps = True
    mode = "map"


_BY_DEFAULT = Basename()


class MapFromN(Step):
    """n:1. The command reads the paths of all keys of one name on stdin, and writes one key.

    Keys of the same basename make one key, whatever their directories, unless `gather` is another
    rule: with ``gather = Prefix()``, keys of the same numeric prefix.
    """

    _is_base_of_steps = True
    mode = "from_n"
    gather: ClassVar[Gather] = _BY_DEFAULT

    def complete(self) -> bool:
        """Tell whether all is done.

        Raises:
            UsageError: the checkpoint is of a version that joined numeric prefixes untold.
        """
        is_done = super().complete()
        if is_done and self.durable and not self.shard:
            gathered.refuse_joined(self)
        return is_done

    def _further_spec(self) -> list[str]:
        return [self.gather.identity] if self.gather.identity else []

    def _further_identity(self) -> list[str]:
        if self.gather.identity or not self.is_static or not self.listed.joined_by_prefix:
            return []
        return ["basename", self.listed.joined_by_prefix]  # or what such versions made would count

    def _planned_from(self, spec: str, before: Step, upstream: list[Key]) -> list[Key]:
        names = [key.name for key in upstream]
        if self.gather is _BY_DEFAULT and are_all_alone(self.gather, names):
            gathered.refuse_lone(self, before, names)
        return merged_keys(spec, before.ledger, upstream, self.gather)


class MapToN(Step):
    """1:n. The command reads a key on stdin, writes files, and prints their names, one a line.

    Each file becomes a key ``<input>/<file>`` on the node that owns its name. The command must make
    the same files again when it is run again. As a Luigi task the whole step is the barrier: it
    moves the files from node to node once all are made.

    `balanced` spreads the files by size: the few names that a partition makes would fall on few
    nodes by their hashes. A numeric prefix still decides alone.
    """

    _is_base_of_steps = True
    mode = "to_n"
    balanced: ClassVar[bool] = False

    @property
    def ledger(self) -> str:
        """Return the name of the ledger of the delivered files."""
        return self.name + PIECES

    def manifest(self) -> dict[str, Any] | None:
        """Return what all keys made, once they all have."""
        return barriers.read_manifest(self)

    def pieces(self) -> list[Piece] | None:
        """Return every file that was made, with the slot that owns it, or None before that."""
        known = tolerance.known(self)
        if "pieces" not in known:
            manifest = self.manifest()
            if manifest is None:
                return None
            known["pieces"] = pieces_of(
                manifest, self.name, len(self.nodes), balanced=self.balanced
            )
        found: list[Piece] = known["pieces"]
        return found

    def outputs(self) -> list[Key] | None:
        """Return the files as keys of their own."""
        pieces = self.pieces()
        return None if pieces is None else [piece.key for piece in pieces]

    def complete(self) -> bool:
        """Tell whether the shard has made its files, or all files are where they belong."""
        if self.shard:
            return bool(super().complete())
        return self.outputs() is not None and all(target.exists() for target in self._delivered())

    def output(self) -> "luigi.Target | list[luigi.Target]":
        """Return the keys made on their nodes, or for the whole step the files delivered."""
        if self.shard:
            shard = self.this_shard()
            return NodeTarget(run.listings(self.fleet), self.name, shard.slot, shard.keys)
        return list(self._delivered())

    def finish(self) -> None:
        """Move the files to the nodes that own their names."""
        barriers.deliver(self)

    def _delivered(self) -> list[NodeTarget]:
        listings = run.listings(self.fleet)
        shards = slot_shards(self.outputs(), len(self.nodes))
        return [NodeTarget(listings, self.ledger, shard.slot, shard.keys) for shard in shards]

    def _on_node(self, shard: Shard) -> NodeTarget:
        return NodeTarget(run.listings(self.fleet), self.name, shard.slot, shard.keys)
