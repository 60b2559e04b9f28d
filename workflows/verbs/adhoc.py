"""Steps that are typed instead of written: the maps of the command line, as Luigi tasks.

::

    luigi --module workflows.verbs.adhoc AdhocMap --source rides/ --target counts/ --bash 'wc -l'

They read keys of the fleet and make keys of it. A key's name is taken once: an existing key
is kept, whichever command made it, so that a map that failed for some keys goes on
with those alone once its command is fixed. Keys made from other inputs are refused.
"""

import functools
import posixpath
from collections.abc import Iterable
from typing import Any, ClassVar

import luigi

from workflows.config import settings
from workflows.errors import UsageError
from workflows.fleets.fleet import Fleet
from workflows.luigi_seam.setting import FloatSettingParameter
from workflows.model import Input, Key, SourceKey
from workflows.node.keys import digest_of, group_name, group_of, identity_of
from workflows.planning import context
from workflows.planning.dataset import Dataset
from workflows.planning.plan import Plan
from workflows.steps import Map, MapFromN, MapToN, Step
from workflows.verbs import fleetkeys, incomplete
from workflows.verbs.fleetkeys import Found, Name

_SHOWN = 60


class Adhoc(Step):
    """The common part of the three maps."""

    source = luigi.Parameter(description="step/dir/ or a glob: the keys to read")
    target = luigi.Parameter(description="step/dir/: where the new keys go")
    bash = luigi.Parameter(description="the bash command for each key")
    timeout_s = FloatSettingParameter(
        setting="timeout_s", significant=False, description="seconds for one key; 0: no limit"
    )

    by_name = True
    _is_noted = False
    verb: ClassVar[str]

    @property
    def command(self) -> str:
        """Return the bash command for each key."""
        return str(self.bash)

    @property
    def name(self) -> str:
        """Return the step whose keys are made."""
        return self.made.step

    @property
    def made(self) -> Name:
        """Return the directory that the keys go into."""
        return fleetkeys.parse_folder(self.target)

    @functools.cached_property
    def spec(self) -> str:
        """Return the digest of what is done."""
        return digest_of([self.mode, self.command])

    @functools.cached_property
    def identity(self) -> str:
        """Return what the whole step is made of."""
        return digest_of([self.spec, self.target, self.listed.digest])

    @property
    def listed(self) -> Dataset:
        """Return the keys that are read, listed once in this run."""
        return self._inputs[0]

    @property
    def _inputs(self) -> tuple[Dataset, list[tuple[str, Found]]]:
        own = incomplete.name_of(self.verb, self.source, self.target)
        return _inputs(self.fleet, self.source, own)

    @functools.cached_property
    def kept(self) -> list[Found]:
        """Return the keys that are kept although another command made them; after `keys`."""
        self.keys()
        return self.whole._others

    def requires(self) -> list[Plan]:
        """Note what the map is to make before any of it is made; return the shards."""
        if not self.shard and not self._is_noted:
            self._is_noted = True
            incomplete.write(self.nodes, self._note())
        return super().requires()

    def complete(self) -> bool:
        """Tell whether all is made; then there is nothing to be noted any longer."""
        is_done = super().complete()
        if is_done and not self.shard:
            incomplete.clear(self.nodes, self._note())
        return is_done

    def finish(self) -> None:
        """Take the note away, once all is where it belongs."""
        super().finish()
        incomplete.clear(self.nodes, self._note())

    def _note(self) -> incomplete.Note:
        wanted = [key.name for key in self.keys() or []]
        fleet = self.fleet if self.fleet != settings().fleet else ""
        return incomplete.Note(self.verb, self.source, self.target, self.bash, fleet, wanted)

    @functools.cached_property
    def _others(self) -> list[Found]:
        return []

    def _find_keys(self) -> list[Key]:
        planned = self._planned(self._inputs[1])
        held = self._held()
        others = {
            key: held[key.name]
            for key in planned
            if key.name in held and held[key.name].identity != key.identity
        }
        records = _records(self.nodes, others.values())
        for key, other in others.items():
            made_of = records.get(other.identity, {}).get("inputs", [])
            if made_of != [given.identity for given in key.inputs]:
                raise UsageError(
                    f"{other.name} exists already, made from other inputs than {self.source} has"
                    f" now; to remake it: workflows rm -r {self.target}"
                )
        if planned and len(others) == len(planned):
            raise UsageError(
                f"{self.target} is complete already, by another command;"
                f" to remake it: workflows rm -r {self.target}"
            )
        self._others[:] = others.values()
        return [
            key._replace(identity=others[key].identity) if key in others else key for key in planned
        ]

    def _planned(self, found: Iterable[tuple[str, Found]]) -> list[Key]:
        """Return the keys to make: one for each that is read, of the same name below the target."""
        return [self._key(self.made.rest + relative, [one]) for relative, one in found]

    def _key(self, name: str, inputs: list[Found]) -> Key:
        identity = identity_of(self.spec, name, [one.identity for one in inputs])
        given = tuple(Input(one.ledger, one.identity, one.name.rest) for one in inputs)
        return Key(name, identity, inputs[0].slot, given)

    def _held(self) -> dict[str, Found]:
        """Return the keys of the target step that are there: of 1:n, what is made of each input."""
        found, _ = fleetkeys.listing(self.nodes, self.name)
        wanted = self.mode == "to_n"
        return {one.name.rest: one for one in found if one.is_made == wanted}


class AdhocMap(Adhoc, Map):
    """1:1 over keys of the fleet."""

    verb = "map"


class AdhocToN(Adhoc, MapToN):
    """1:n over keys of the fleet: OUT/<name of the input>/<name of the file>."""

    verb = "map-to-n"

    def _planned(self, found: Iterable[tuple[str, Found]]) -> list[Key]:
        by_name: dict[str, Found] = {}
        for _, one in found:
            name = self.made.rest + posixpath.basename(one.name.rest)
            if name in by_name:
                raise UsageError(
                    f"{by_name[name].name} and {one.name} would both make {self.name}/{name}/;"
                    " map-to-n keeps basenames only: map them into different directories"
                )
            by_name[name] = one
        return [self._key(name, [one]) for name, one in by_name.items()]


class AdhocFromN(Adhoc, MapFromN):
    """n:1 over keys of the fleet: those of equal basenames or numeric prefixes make one."""

    verb = "map-from-n"

    def _planned(self, found: Iterable[tuple[str, Found]]) -> list[Key]:
        groups: dict[tuple[int, str], list[Found]] = {}
        for _, one in found:
            groups.setdefault((one.slot, group_of(one.name.rest)), []).append(one)
        merged = []
        for members in groups.values():
            members.sort(key=lambda one: one.name.rest)
            name = self.made.rest + group_name(one.name.rest for one in members)
            merged.append(self._key(name, members))
        return sorted(merged)


def _records(nodes: Fleet, chosen: Iterable[Found]) -> dict[str, dict[str, Any]]:
    """Return identity -> ledger record of some keys."""
    by_slot: dict[int, list[Found]] = {}
    for one in chosen:
        by_slot.setdefault(one.slot, []).append(one)
    records = {}
    for slot, many in by_slot.items():
        for ledger in {one.ledger for one in many}:
            ids = [one.identity for one in many if one.ledger == ledger]
            message = {"op": "records", "step": ledger, "ids": ids}
            answer = nodes.channel(slot).one(message, "records")
            records.update({record["id"]: record for record in answer["records"]})
    return records


@functools.cache
def _inputs(fleet: str, source: str, own: str) -> tuple[Dataset, list[tuple[str, Found]]]:
    """Return what a map reads: as a dataset, and as keys with their names below the target.

    Raises:
        UsageError: there is nothing, or a map that makes it has not ended; but that noted as `own`.
    """
    pattern = fleetkeys.parse_pattern(source)
    nodes = context.fleet(fleet)
    incomplete.refuse(nodes, pattern, functools.partial(_records, nodes), own)
    found = []
    for one in fleetkeys.every_key(nodes, pattern.step):
        relative = pattern.relative(one.name.rest)
        if relative is not None:
            found.append((relative, one))
    if not found:
        raise UsageError(
            f"nothing matches {source}; to list what exists: workflows ls -r {pattern.step}"
        )
    keys = tuple(SourceKey(name, str(one.name), one.size, one.identity) for name, one in found)
    placed = tuple(one.slot for _, one in found)
    return Dataset(source, "*", len(nodes), keys, placed), found
