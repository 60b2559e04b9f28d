"""Where keys come from: list a source once, place its keys, remember both.

A dataset is an immutable listing: name, URL, size, ETag and slot of each key. It is named by the
digest of its content, and kept beside the checkpoints so that the next run places its keys alike.
"""

import dataclasses
import functools
import heapq
import json
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from workflows.errors import CheckpointError
from workflows.model import SourceKey
from workflows.node.keys import digest_of, group_of, numeric_prefix
from workflows.planning.gather import joined_by_prefix
from workflows.planning.source import look_at
from workflows.storage.store import Store

IMBALANCE = 1.1
UNEVEN = 1.5  # times what could be: worth a warning
_SLACK, _COARSE, _HEAVY = 1.05, 1.25, 0.1
_MOST_SLOTS = 10_000
_FEW = 64  # groups: to look for exchanges among more takes long, and they are even without


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
    # Notes on the listing for the user: names that were left out, bytes read to compare it.
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


def load(url: str, pattern: str, slots: int, store: Store, *, keep: bool = True) -> Dataset:
    """List a source, and place its keys as the last time where that is still even.

    It is remembered, so that the next time can do the same, unless `keep` is false.

    Raises:
        SourceError: the source cannot be listed.
    """
    found = look_at(url, pattern, store.url)
    keys = found.keys
    folder = _folder(url, pattern, slots)
    listed = Dataset(url, pattern, slots, tuple(keys), (), notes=tuple(found.notes))
    name = f"{folder}/{listed.digest}.json"
    kept = store.read(name)
    # A key that was gone for a while comes back to where it was.
    before = {**_slots(kept), **_latest(store, [folder])} or _before_resize(store, url, pattern)
    dataset = dataclasses.replace(listed, placed=tuple(place(keys, slots, before)))
    if not keep:
        return dataset
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

    Keys of equal basename stay together. A key that was placed before stays, unless its slot has
    more than 1.1 times the mean, or more than the sizes of the keys force upon it, or another slot
    has nothing at all. Where single keys weigh more than a tenth of the mean, 1.25 times the mean
    is borne before any is moved. So to place once more what was placed moves nothing.
    """
    keys = list(keys)
    groups: dict[str, list[SourceKey]] = {}
    for key in keys:
        groups.setdefault(group_of(key.name), []).append(key)
    weight = {name: sum(map(_weight, members)) for name, members in groups.items()}
    fixed, kept = {}, {}
    for name, members in groups.items():
        number = numeric_prefix(members[0].name)
        was = [before[key.name] for key in members if before.get(key.name, slots) < slots]
        if number is not None:
            fixed[name] = number % slots
        elif was:
            kept[name] = was[0]
    afresh = _afresh(weight, fixed, slots)
    if not kept:
        return [afresh[group_of(key.name)] for key in keys]
    limit = _limit(weight, afresh, slots)
    chosen = _spread(weight, {**fixed, **kept}, slots)
    _fill_empty(weight, chosen, fixed, slots)
    if _is_uneven(weight, chosen, slots, limit):
        _relieve(weight, chosen, fixed, slots, limit)
        if max(_loads(weight, chosen, slots)) > limit:
            chosen = afresh
    return [chosen[group_of(key.name)] for key in keys]


def _limit(weight: Mapping[str, int], afresh: Mapping[str, int], slots: int) -> float:
    """Return what a slot may have before keys are moved: 1.1 times the mean where keys allow that.

    Few or uneven keys do not. Then it is a little more than they would come to if all were placed
    afresh, so that a key that grows by some bytes moves no other.
    """
    loads = _loads(weight, afresh, slots)
    even = IMBALANCE * sum(loads) / slots
    return even if max(loads) <= even else _SLACK * max(loads)


def _is_uneven(
    weight: Mapping[str, int], chosen: Mapping[str, int], slots: int, limit: float
) -> bool:
    """Tell whether a slot has so much more than `limit` that keys have to move."""
    loads = _loads(weight, chosen, slots)
    mean = sum(loads) / slots
    heaviest = [0] * slots
    for name, slot in chosen.items():
        heaviest[slot] = max(heaviest[slot], weight[name])
    borne = [_COARSE * mean if most > _HEAVY * mean else 0.0 for most in heaviest]
    return any(load > max(limit, least) for load, least in zip(loads, borne, strict=True))


def _fill_empty(
    weight: Mapping[str, int], chosen: dict[str, int], fixed: Mapping[str, int], slots: int
) -> None:
    """Give slots that have nothing, as a new node has, their share of the fullest ones' keys."""
    loads = _loads(weight, chosen, slots)
    mean = sum(loads) / slots
    for slot in [slot for slot in range(slots) if not loads[slot]]:
        for name in _heavy_first(weight):
            giver = chosen[name]
            if name in fixed or loads[giver] <= max(mean, loads[slot] + weight[name]):
                continue
            if loads[slot] and loads[slot] + weight[name] > mean:
                continue
            _move(name, slot, weight, chosen, loads)


def _relieve(
    weight: Mapping[str, int],
    chosen: dict[str, int],
    fixed: Mapping[str, int],
    slots: int,
    limit: float,
) -> None:
    """Move keys from slots that have more than `limit`, the largest that fit elsewhere first."""
    loads = _loads(weight, chosen, slots)
    for name in _heavy_first(weight):
        if name not in fixed and loads[chosen[name]] > limit:
            lightest = loads.index(min(loads))
            if loads[lightest] + weight[name] <= limit:
                _move(name, lightest, weight, chosen, loads)


def _move(
    name: str, slot: int, weight: Mapping[str, int], chosen: dict[str, int], loads: list[int]
) -> None:
    loads[chosen[name]] -= weight[name]
    loads[slot] += weight[name]
    chosen[name] = slot


def _spread(weight: Mapping[str, int], chosen: Mapping[str, int], slots: int) -> dict[str, int]:
    """Return the slot of each group: the one chosen already, else the lightest, heaviest first."""
    spread = dict(chosen)
    lightest = [(load, slot) for slot, load in enumerate(_loads(weight, chosen, slots))]
    heapq.heapify(lightest)
    for name in _heavy_first(weight):
        if name not in spread:
            load, spread[name] = lightest[0]
            heapq.heapreplace(lightest, (load + weight[name], spread[name]))
    return spread


def _slot_loads(keys: Iterable[SourceKey], placed: Iterable[int], slots: int) -> list[int]:
    loads = [0] * slots
    for key, slot in zip(keys, placed, strict=True):
        loads[slot] += _weight(key)
    return loads


def _skew(loads: Sequence[int]) -> float:
    return max(loads) * len(loads) / sum(loads) if any(loads) else 1.0


def _afresh(weight: Mapping[str, int], fixed: Mapping[str, int], slots: int) -> dict[str, int]:
    """Return the slot of each group as if none had been placed before, as even as can be found."""
    spread = _spread(weight, fixed, slots)
    loads = _loads(weight, spread, slots)
    movable = [name for name in _heavy_first(weight) if name not in fixed]
    if len(movable) <= _FEW:
        while max(loads) > IMBALANCE * sum(loads) / slots:
            better = _exchange(movable, weight, spread, loads)
            if better is None:
                break
            for name, slot in better.items():
                _move(name, slot, weight, spread, loads)
    return spread


def _exchange(
    movable: Sequence[str], weight: Mapping[str, int], chosen: Mapping[str, int], loads: list[int]
) -> dict[str, int] | None:
    """Return new slots of one or two groups by which the fullest slot loses most, or None."""
    fullest = loads.index(max(loads))
    best, found = loads[fullest], None
    for one in movable:
        if chosen[one] != fullest:
            continue
        for other, slot in [*((None, slot) for slot in range(len(loads))), *chosen.items()]:
            if slot == fullest or (other is not None and other not in movable):
                continue
            less = weight[one] - (weight[other] if other is not None else 0)
            most = max(loads[fullest] - less, loads[slot] + less)
            if most < best:
                best, found = most, {one: slot, **({other: fullest} if other is not None else {})}
    return found


def _loads(weight: Mapping[str, int], chosen: Mapping[str, int], slots: int) -> list[int]:
    loads = [0] * slots
    for name, slot in chosen.items():
        loads[slot] += weight[name]
    return loads


def _heavy_first(weight: Mapping[str, int]) -> list[str]:
    return sorted(weight, key=lambda name: (-weight[name], name))


def _weight(key: SourceKey) -> int:
    return (key.size or 0) + 1  # an empty key is still work


def _folder(url: str, pattern: str, slots: int) -> str:
    return f"datasets/{digest_of([url, pattern, slots])}"


def _before_resize(store: Store, url: str, pattern: str) -> dict[str, int]:
    """Return name -> slot of the newest dataset of a source on a fleet of any other size."""
    found = set(store.folders("datasets"))
    if not found:
        return {}
    return _latest(store, {_folder(url, pattern, n) for n in range(1, _MOST_SLOTS)} & found)


def _latest(store: Store, folders: Iterable[str]) -> dict[str, int]:
    """Return name -> slot of the newest dataset in `folders`."""
    stored = [item for folder in folders for item in store.list(folder)]
    for item in sorted(stored, key=lambda item: (item.modified, item.name), reverse=True):
        slots = _slots(store.read(item.name))
        if slots:
            return slots
    return {}


def _slots(text: bytes | None) -> dict[str, int]:
    """Return name -> slot of a dataset's text; nothing if there is none, or only a part of it."""
    return {line[0]: line[-1] for line in _lines(text) or ()}


def _lines(text: bytes | None) -> list[Any] | None:
    """Return the lines of a dataset's text, or None if there is none, or only a part of it."""
    try:
        lines: list[Any] = json.loads(text or b"")["keys"]
    except ValueError:
        return None
    return lines
