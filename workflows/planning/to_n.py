"""The result of a 1:n step: the files that its keys made, once all are done."""

import json
from typing import Any, ClassVar

from workflows.errors import CheckpointError
from workflows.model import Key, Piece
from workflows.node.keys import PIECES
from workflows.planning import context
from workflows.planning.lineage import pieces_of, slot_shards
from workflows.planning.plan import Plan
from workflows.targets import NodeTarget


class PlanToN(Plan):
    """A 1:n step as it is planned: its keys are known before it has run, its outputs are not."""

    _is_base_of_steps = True
    mode = "to_n"
    # Spread the files over the nodes by size instead of by the hash of their names.
    balanced: ClassVar[bool] = False

    @property
    def ledger(self) -> str:
        """Return the name of the ledger of the delivered files."""
        return self.name + PIECES

    @property
    def manifest_name(self) -> str:
        """Return the name of the step's manifest in the store of its checkpoint."""
        return f"barriers/{self.name}/{self.identity}.json"

    @property
    def manifest_path(self) -> str:
        """Return where the step's manifest is, for people."""
        return context.store(self.checkpoint).locate(self.manifest_name)

    def manifest(self) -> dict[str, Any] | None:
        """Return what all keys made, or None if some have yet to.

        Raises:
            CheckpointError: it was written down, but that is damaged.
        """
        found = self.found
        if found.manifest is None:
            text = context.store(self.checkpoint).read(self.manifest_name)
            if text is None:
                return None
            try:
                found.manifest = json.loads(text)
            except ValueError as error:
                raise CheckpointError(
                    f"{self.manifest_path} is damaged; remove it and run the pipeline"
                ) from error
        return found.manifest

    def pieces(self) -> list[Piece] | None:
        """Return every file that was made, with the slot that owns it, or None before that."""
        found = self.found
        if found.pieces is None:
            manifest = self.manifest()
            if manifest is None:
                return None
            found.pieces = pieces_of(manifest, self.name, len(self.nodes), balanced=self.balanced)
        return found.pieces

    def outputs(self) -> list[Key] | None:
        """Return the files as keys of their own."""
        pieces = self.pieces()
        return None if pieces is None else [piece.key for piece in pieces]

    def delivered(self) -> list[NodeTarget]:
        """Return the files on the nodes that own their names."""
        listings = context.listings(self.fleet)
        shards = slot_shards(self.outputs(), len(self.nodes))
        return [NodeTarget(listings, self.ledger, shard.slot, shard.keys) for shard in shards]
