"""The keys of a step, the inputs of each, and the keys of each shard. Pure: no I/O.

A step's keys follow from its upstream's: 1:1 keeps them, n:1 groups them by name. Only the keys
that a 1:n step makes are not known before it has run; they come from its manifest.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from workflows.model import Input, Key, Piece, Shard, SourceKey
from workflows.node.keys import digest_of, identity_of, node_for
from workflows.planning.dataset import Dataset, place
from workflows.planning.gather import Gather


def source_keys(spec: str, dataset: Dataset) -> list[Key]:
    """Return the keys of a step that reads the source itself."""
    return [
        Key(key.name, identity_of(spec, key.name, [key.identity]), slot, (), key)
        for key, slot in zip(dataset.keys, dataset.placed, strict=True)
    ]


def mapped_keys(spec: str, ledger: str, upstream: Iterable[Key]) -> list[Key]:
    """Return the keys of a 1:1 or 1:n step: one for each of upstream's, on the same slot."""
    return [
        Key(
            key.name,
            identity_of(spec, key.name, [key.identity]),
            key.slot,
            (Input(ledger, key.identity, key.name),),
        )
        for key in upstream
    ]


def merged_keys(spec: str, ledger: str, upstream: Iterable[Key], rule: Gather) -> list[Key]:
    """Return the keys of an n:1 step: those of one slot that `rule` puts together make one.

    Placement keeps equal basenames and equal numeric prefixes on one slot, whatever the rule is.
    """
    groups: dict[tuple[int, str], list[Key]] = {}
    for key in upstream:
        groups.setdefault((key.slot, rule.group(key.name)), []).append(key)
    merged = []
    for (slot, _), members in groups.items():
        members.sort()
        name = rule.name(member.name for member in members)
        identity = identity_of(spec, name, [member.identity for member in members])
        inputs = tuple(Input(ledger, member.identity, member.name) for member in members)
        merged.append(Key(name, identity, slot, inputs))
    return sorted(merged)


def pieces_of(
    manifest: dict[str, Any], step: str, slots: int, *, balanced: bool = False
) -> list[Piece]:
    """Return the pieces that a 1:n step's manifest lists, each with the slot that owns its name.

    With `balanced` the names are spread by what they weigh, all pieces of a name together. From
    manifests of version 2 on, what is in a piece is part of its identity: nothing that was made of
    other pieces is ever taken for what would be made of these.
    """
    by_content = manifest.get("v", 1) >= 2
    pieces = []
    for name, identity, _, parts in manifest["keys"]:
        proof = proof_of(parts)
        for part, size, crc in parts:
            full = f"{name}/{part}"
            made_of = [identity, part, size, crc] if by_content else [identity, part]
            key = Key(full, digest_of(made_of), node_for(part, slots))
            pieces.append(Piece(key, size, crc, Input(step, identity, name), proof))
    if not balanced:
        return pieces
    placed = place([SourceKey(p.key.name, "", p.size, p.crc) for p in pieces], slots, {})
    return [
        piece._replace(key=piece.key._replace(slot=slot))
        for piece, slot in zip(pieces, placed, strict=True)
    ]


def proof_of(parts: Iterable[Sequence[Any]]) -> str:
    """Return what stands for all files that a 1:n key made: their names, bytes and checksums."""
    return digest_of(sorted(parts))


def shards_of(keys: Sequence[Key], slots: int, *, key_tasks: int, shards: int) -> list[Shard]:
    """Cut a step's keys into shards: one key each while there are few, else a few for each slot.

    Up to `key_tasks` keys have a shard each, called by the key's name. Beyond, there are about
    `shards` of them, or one a slot if there are more slots. The cut depends on names and slots
    alone, so that all 1:1 steps of a pipeline are cut alike.
    """
    if len(keys) <= key_tasks:
        return [Shard(key.name, key.slot, (key,)) for key in sorted(keys)]
    per_slot = max(1, shards // slots)
    cut = []
    for slot, own in enumerate(_by_slot(keys, slots)):
        parts = min(per_slot, len(own))
        for part in range(parts):
            chosen = tuple(own[part::parts])
            label = f"node {slot}" if parts == 1 else f"node {slot} part {part + 1} of {parts}"
            cut.append(Shard(label, slot, chosen))
    return cut


def slot_shards(keys: Sequence[Key] | None, slots: int) -> list[Shard]:
    """Return one shard a slot, for a step whose keys are not known before it can run."""
    return [
        Shard(f"node {slot}", slot, tuple(own))
        for slot, own in enumerate(_by_slot(keys or (), slots))
    ]


def _by_slot(keys: Iterable[Key], slots: int) -> list[list[Key]]:
    """Return the keys of each slot, sorted."""
    found: list[list[Key]] = [[] for _ in range(slots)]
    for key in keys:
        found[key.slot].append(key)
    for own in found:
        own.sort()
    return found
