"""Where keys come from: list a source once, place its keys, remember both.

A dataset is an immutable listing: name, URL, size, ETag and slot of each key. It is named by the
digest of its content, and kept beside the checkpoints so that the next run places its keys alike.
"""

import dataclasses
import functools
import json
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from workflows.errors import CheckpointError
from workflows.gather import joined_by_prefix
from workflows.keys import digest_of, group_of, numeric_prefix
from workflows.source import SourceKey, look_at
from workflows.store import Store

IMBALANCE = 1.1
UNEVEN = 1.5  # times what could be: worth a warning


@dataclasses.dataclass(frozen=True)
class Dataset:
    """An immutable listing, each key with its slot."""

    source: str
    pattern: str
    slots: int
    keys: tuple[SourceKey, ...]
    placed: tuple[int, ...]
    # Why it could not be kept: no trouble to who finds that all is done.
    trouble: CheckpointError | None = dataclasses.field(default=None, compare=False)
    # What a user must know of how it was listed: what was left out, what was read to compare it.
    notes: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    @functools.cached_property
    def digest(self) -> str:
        """Return the name of this dataset: what was listed, not where it was placed."""
        return digest_of([[key.name, key.identity] for key in self.keys])

    @functools.cached_property
    def joined_by_prefix(self) -> str:
        """Return a digest of the keys that earlier versions joined by their numeric prefixes."""
        return joined_by_prefix(key.name for key in self.keys)

    def require_kept(self) -> None:
        """Check that it is kept, and so that what is made of it can be.

        Raises:
            CheckpointError: it could not be.
        """
        if self.trouble is not None:
            raise self.trouble

    @property
    def skew(self) -> float:
        """Return the largest slot's bytes over the mean; 1.0 is even."""
        return _skew(_slot_loads(self.keys, self.placed, self.slots))

    def warning(self) -> str:
        """Return what to say of keys that are placed unevenly by their names, or nothing."""
        return prefix_warning(self.source, self.keys, self.placed, self.slots)


def prefix_warning(what: str, keys: Sequence[SourceKey], placed: Sequence[int], slots: int) -> str:
    """Say so if numeric prefixes leave the slots much less even than the sizes would; or nothing.

    Nothing of fewer than two keys a slot: those are even by chance alone.
    """
    loads = _slot_loads(keys, placed, slots)
    if slots < 2 or len(keys) < 2 * slots or _skew(loads) < UNEVEN:
        return ""
    weight: dict[str, int] = {}
    for key in keys:
        base = posixpath.basename(key.name)
        weight[base] = weight.get(base, 0) + _weight(key)
    could = _skew(_loads(weight, _spread(weight, {}, slots), slots))
    fullest = loads.index(max(loads))
    there = [key for key, slot in zip(keys, placed, strict=True) if slot == fullest]
    numbered = sorted(
        {posixpath.basename(k.name) for k in there if numeric_prefix(k.name) is not None}
    )
    if _skew(loads) < UNEVEN * could or not numbered:
        return ""
    shown = ", ".join(numbered[:3]) + (", ..." if numbered[3:] else "")
    return (
        f"{what}: node {fullest} has {len(there)} of {len(keys)} keys, {_skew(loads):.2f} of the"
        f" mean in bytes, where {could:.2f} could be: the number before the first underscore of a"
        f" name, modulo {slots} nodes, decides on its node ({shown}). Names without one, such as"
        f" 2018-01.csv, are spread by size"
    )


def load(url: str, pattern: str, slots: int, store: Store) -> Dataset:
    """List a source, place its keys as the last time where that is still even, and remember it.

    Raises:
        SourceError: the source cannot be listed.
    """
    found = look_at(url, pattern, store.url)
    keys = found.keys
    folder = f"datasets/{digest_of([url, pattern, slots])}"
    before = _latest(store, folder)
    placed = tuple(place(keys, slots, before))
    dataset = Dataset(url, pattern, slots, tuple(keys), placed, notes=tuple(found.notes))
    name = f"{folder}/{dataset.digest}.json"
    kept = store.read(name)
    if _lines(kept) is None:
        lines = [
            [*key._replace(url=key.shown), slot]
            for key, slot in zip(keys, dataset.placed, strict=True)
        ]
        text = json.dumps({"source": url, "pattern": pattern, "slots": slots, "keys": lines})
        try:
            if kept is not None:
                store.discard([name])
            # The first keys wait for this. It can be made again, and a disk may be busy for long.
            store.create(name, [text.encode("ascii")], lasting=False)
        except CheckpointError as error:
            return dataclasses.replace(dataset, trouble=error)
    return dataset


def place(keys: Iterable[SourceKey], slots: int, before: Mapping[str, int]) -> list[int]:
    """Return the slot of each key: by numeric prefix, else where it was before, else the lightest.

    Equal basenames stay together. Keys without a numeric prefix are spread by size, the largest
    first, so that no slot has more than 1.1 times the mean where the keys allow it.
    """
    keys = list(keys)
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(group_of(key.name), []).append(index)
    weight = {name: sum(_weight(keys[i]) for i in indexes) for name, indexes in groups.items()}
    fixed = {}
    for name, indexes in groups.items():
        number = numeric_prefix(keys[indexes[0]].name)
        if number is not None:
            fixed[name] = number % slots
    # Few or uneven keys cannot be as even as that: then, what would come of placing them afresh.
    loads = _loads(weight, _spread(weight, fixed, slots), slots)
    limit = max(IMBALANCE * sum(loads) / slots, *loads)
    loads = _loads(weight, fixed, slots)
    chosen = dict(fixed)
    for name in _heavy_first(weight):
        slot = before.get(keys[groups[name][0]].name, slots)
        if name not in chosen and slot < slots and loads[slot] + weight[name] <= limit:
            chosen[name] = slot
            loads[slot] += weight[name]
    chosen = _spread(weight, chosen, slots)
    return [chosen[group_of(key.name)] for key in keys]


def _spread(weight: Mapping[str, int], chosen: Mapping[str, int], slots: int) -> dict[str, int]:
    """Return the slot of each group: the one chosen already, else the lightest, heaviest first."""
    spread = dict(chosen)
    loads = _loads(weight, chosen, slots)
    for name in _heavy_first(weight):
        if name not in spread:
            spread[name] = loads.index(min(loads))
            loads[spread[name]] += weight[name]
    return spread


def _slot_loads(keys: Iterable[SourceKey], placed: Iterable[int], slots: int) -> list[int]:
    loads = [0] * slots
    for key, slot in zip(keys, placed, strict=True):
        loads[slot] += _weight(key)
    return loads


def _skew(loads: Sequence[int]) -> float:
    return max(loads) * len(loads) / sum(loads) if any(loads) else 1.0


def _loads(weight: Mapping[str, int], chosen: Mapping[str, int], slots: int) -> list[int]:
    loads = [0] * slots
    for name, slot in chosen.items():
        loads[slot] += weight[name]
    return loads


def _heavy_first(weight: Mapping[str, int]) -> list[str]:
    return sorted(weight, key=lambda name: (-weight[name], name))


def _weight(key: SourceKey) -> int:
    return (key.size or 0) + 1  # an empty key is still work


def _latest(store: Store, folder: str) -> dict[str, int]:
    """Return name -> slot of the newest dataset in `folder`."""
    for stored in sorted(store.list(folder), key=lambda item: item.modified, reverse=True):
        lines = _lines(store.read(stored.name))
        if lines is not None:
            return {line[0]: line[-1] for line in lines}
    return {}


def _lines(text: bytes | None) -> list[Any] | None:
    """Return the lines of a dataset's text, or None if there is none, or only a part of it."""
    try:
        lines: list[Any] = json.loads(text or b"")["keys"]
    except ValueError:
        return None
    return lines
