"""The plan of a step before anything runs: its identity, keys, shards, chain and checkpoint.

`Plan` is a step without its Luigi half, which is `steps.Step`. Running a step takes a `Plan`.
"""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, ClassVar

import luigi

from workflows.config import settings
from workflows.errors import UsageError
from workflows.fleets.fleet import Fleet
from workflows.model import Key, Piece, Shard
from workflows.node.keys import digest_of
from workflows.planning import context, tolerance
from workflows.planning.dataset import Dataset
from workflows.planning.definition import Definition
from workflows.planning.lineage import mapped_keys, shards_of, slot_shards, source_keys
from workflows.targets import CheckpointTarget, NodeTarget

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclasses.dataclass
class Found:
    """The known facts about a whole step; None is not known yet.

    `mark` is that of `tolerance` at the time: what was found before keys came to be left out no
    longer holds.
    """

    mark: int
    identity: str | None = None
    keys: list[Key] | None = None
    shards: list[Shard] | None = None
    pieces: list[Piece] | None = None
    manifest: dict[str, Any] | None = None
    checkpointed: CheckpointTarget | None = None


class Plan(Definition):
    """A step as it is planned; the same for every task of a run."""

    _is_base_of_steps = True
    upstream: ClassVar["type[Plan] | None"] = None
    _found: Found | None = None

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
        found = self.found
        if found.identity is None:
            before = self.listed.digest if self.before is None else self.before.identity
            further = [*self._further_identity(), *tolerance.identities(self.whole.task_id)]
            found.identity = digest_of([self.spec, before, *further])
        return found.identity

    def _further_identity(self) -> list[str]:
        """Return what else the whole step's result is made of."""
        return []

    @functools.cached_property
    def whole(self) -> "Self":
        """Return the whole step that this shard belongs to, pinned to the dataset."""
        whole: Self = self.clone(shard="", dataset=self.listed.digest)
        return whole

    @functools.cached_property
    def before(self) -> "Plan | None":
        """Return the whole upstream step, or None for a step that reads the source.

        Raises:
            UsageError: a parameter does not get to a step before it.
        """
        if self.upstream is None:
            return None
        before: Plan = self.clone(self.upstream, shard="", dataset=self.listed.digest)
        self.refuse_gap(before, before.lineage[:-1])
        return before

    @property
    def found(self) -> Found:
        """Return what is known of the whole step so far."""
        whole, mark = self.whole, tolerance.mark()
        if whole._found is None or whole._found.mark != mark:
            whole._found = Found(mark)
        return whole._found

    @property
    def lineage(self) -> "list[Plan]":
        """Return the steps up to this one, the first one first."""
        before = self.before
        return [*(before.lineage if before is not None else []), self.whole]

    @property
    def listed(self) -> Dataset:
        """Return what the source holds, listed once in this run."""
        return context.dataset(
            self.source, self.pattern, len(self.nodes), self.checkpoint, strict=self.strict
        )

    @property
    def nodes(self) -> Fleet:
        """Return the fleet this step runs on."""
        return context.fleet(self.fleet)

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
        found = self.found
        if found.keys is None:
            found.keys = self.whole._find_keys()
        return found.keys

    def outputs(self) -> list[Key] | None:
        """Return what the next step reads: the keys, or for 1:n what they made."""
        keys = self.keys()
        if keys is None or not self.is_tolerant:
            return keys
        is_known = tolerance.is_decided(self.whole.task_id) or self.is_all_done()
        return self.without_failed(keys) if is_known else None

    def is_all_done(self) -> bool:
        """Tell whether no key is missing, and none failed that may yet come to be left out."""
        missing = [key for shard in self.shards() for key in self.missing(shard)]
        return not missing and not tolerance.is_open(self.whole.task_id)

    def missing(self, shard: Shard) -> list[Key]:
        """Return the keys of a shard that are not done, but those that this run does without."""
        missing = self.on_node(shard).missing()
        return self.without_failed(missing) if self.is_tolerant else missing

    def without_failed(self, keys: list[Key]) -> list[Key]:
        """Return those of the step's keys that have not failed in a way that this run tolerates."""
        return tolerance.without_failed(self.whole.task_id, keys)

    def _find_keys(self) -> list[Key] | None:
        spec, before = self.spec, self.before  # what is wrong is said before anything has run
        if before is None:
            return source_keys(spec, self.listed)
        upstream = before.outputs()
        if upstream is None:
            return None
        return self._planned_from(spec, before, upstream)

    def _planned_from(self, spec: str, before: "Plan", upstream: list[Key]) -> list[Key]:
        return mapped_keys(spec, before.ledger, upstream)

    def shards(self) -> list[Shard]:
        """Return how the step is cut into tasks; the same for every task of a run."""
        found = self.found
        if found.shards is None:
            keys, nodes, chosen = self.keys(), len(self.nodes), settings()
            if keys is None:
                return slot_shards(None, nodes)
            found.shards = (
                shards_of(keys, nodes, key_tasks=chosen.key_tasks, shards=chosen.shards)
                if self.is_static
                else slot_shards(keys, nodes)
            )
        return found.shards

    def this_shard(self) -> Shard:
        """Return the shard that this task is.

        Raises:
            UsageError: there is none of that name.
        """
        for shard in self.shards():
            if shard.label == self.shard:
                return shard
        raise UsageError(f"{self.name} has no shard {self.shard!r}; leave --shard out")

    def chain(self) -> "list[Plan]":
        """Return the steps that run as one pipe, this one last; only this one if not fused."""
        before = self.before
        if self.fuse and self.mode == "map" and before is not None and before.can_fuse:
            return [*before.chain(), self.whole]
        return [self.whole]

    @property
    def can_fuse(self) -> bool:
        """Tell whether a 1:1 step downstream may take this one into its pipe."""
        return self.mode == "map" and not self.durable and not self.is_tolerant

    # -- targets -------------------------------------------------------------------------------

    @property
    def checkpointed(self) -> CheckpointTarget:
        """Return the durable copy of the whole step."""
        found = self.found
        if found.checkpointed is None:
            store = context.store(self.checkpoint)
            found.checkpointed = CheckpointTarget(store, self.name, self.identity)
        return found.checkpointed

    @property
    def is_restorable(self) -> bool:
        """Tell whether the outputs can be brought back from a checkpoint instead of made again."""
        return self.durable and self.checkpointed.exists()

    def on_node(self, shard: Shard) -> NodeTarget:
        """Return a shard's keys on their node, as this step makes them."""
        return NodeTarget(context.listings(self.fleet), self.name, shard.slot, shard.keys)
