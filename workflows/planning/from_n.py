"""The plan of an n:1 step: which keys it gathers, and what it refuses as a result."""

import posixpath
from typing import ClassVar

from workflows.errors import UsageError
from workflows.model import Key
from workflows.planning import context
from workflows.planning.gather import Basename, Gather, are_all_alone
from workflows.planning.lineage import merged_keys
from workflows.planning.plan import Plan

_BY_DEFAULT = Basename()
_NAMED = 3


class PlanFromN(Plan):
    """An n:1 step as it is planned."""

    _is_base_of_steps = True
    mode = "from_n"
    gather: ClassVar[Gather] = _BY_DEFAULT

    def _further_spec(self) -> list[str]:
        return [self.gather.identity] if self.gather.identity else []

    def _further_identity(self) -> list[str]:
        if self.gather.identity or not self.is_static or not self.listed.joined_by_prefix:
            return []
        return ["basename", self.listed.joined_by_prefix]  # or what such versions made would count

    def _planned_from(self, spec: str, before: Plan, upstream: list[Key]) -> list[Key]:
        names = [key.name for key in upstream]
        if self.gather is _BY_DEFAULT and are_all_alone(self.gather, names):
            refuse_lone(self, before, names)
        return merged_keys(spec, before.ledger, upstream, self.gather)


def refuse_lone(step: "PlanFromN", before: Plan, names: list[str]) -> None:
    """Refuse to make one output of each key, or warn where those of other runs may meet.

    One key alone may have made all files of a 1:n step: then there was nothing to meet.

    Raises:
        UsageError: keys of these names never meet.
    """
    nearest = before
    while nearest.mode == "map" and nearest.before is not None:
        nearest = nearest.before
    is_made = nearest.mode == "to_n"
    if is_made and len({posixpath.dirname(name) for name in names}) < 2:
        return
    shown = ", ".join(sorted(names)[:_NAMED]) + (", ..." if names[_NAMED:] else "")
    lone = (
        f"{step.name} groups no keys: each of the {len(names)} keys of {before.name} has"
        f" a basename of its own ({shown}), and would make an output of its own."
    )
    if is_made:
        context.warn_once(
            f"{lone} {nearest.name} decides what meets: it must give the files of several keys the"
            f" same name. If that is intended, write gather = Basename() in {step.name}"
        )
        return
    raise UsageError(
        f"{lone} To bring all of them together, put a 1:n step before it: a MapToN with command ="
        f" 'cat > all; echo all'. To join those of one numeric prefix, as of 2018_01.csv and"
        f" 2018_02.csv: gather = Prefix(). If that may be: gather = Basename(). Both are in"
        f" workflows.steps"
    )


def refuse_joined(step: "PlanFromN") -> None:
    """Refuse a result whose keys were joined by prefix, if the step does not say so.

    Raises:
        UsageError: versions before `Prefix` made it.
    """
    if step.gather.identity:
        return
    for part in (step.checkpointed.manifest() or {"parts": []})["parts"]:
        if len({step.gather.group(name) for _, name, _ in part.get("inputs", ())}) > 1:
            raise UsageError(
                f"{part['key']} in {step.checkpointed.path} was made by an earlier version, which"
                f" joined keys of one numeric prefix; write gather = Prefix() in {step.name} to go"
                f" on with that, or remove that folder"
            )
