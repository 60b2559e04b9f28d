"""The cost of a fleet, split by phase: launch, set-up, compute, idle, end."""

import dataclasses
import datetime as dt
import os
from collections.abc import Sequence
from dataclasses import replace

from workflows.config import settings
from workflows.ec2.api import GROUP, REACHED, READY, Aws, Instance, instances
from workflows.ec2.config import Spec
from workflows.ec2.prices import Spent, spent
from workflows.reporting.runlog import COST, Phase, append, cover, phase_table, read_lines

_ALL = ("pending", "running", "shutting-down", "terminated", "stopping", "stopped")
PHASES = ("provisioning", "bootstrap", "compute", "idle", "teardown")
Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a fleet's instances so far, dollars."""

    rows: tuple[Spent, ...]
    phases: dict[str, Phase]

    @property
    def usd(self) -> float:
        """Return the dollars for instances, their disks and their public addresses."""
        return sum(row.total_usd for row in self.rows)

    def lines(self) -> list[str]:
        """Return it as text."""
        if not self.rows:
            return ["nothing was spent that EC2 still knows of"]
        hours = sum(row.hours for row in self.rows)
        beside = sum(row.beside_usd for row in self.rows)
        text = f"{len(self.rows)} nodes, {hours:.2f} node hours: ${self.usd:.4f}"
        lines = [f"{text} (disks and public addresses: ${beside:.4f}; transfer not counted)"]
        full = [row.on_demand_usd for row in self.rows if row.on_demand_usd is not None]
        if len(full) == len(self.rows) and sum(full) > 0:
            saved = 1 - sum(row.usd for row in self.rows) / sum(full)
            lines[0] += f"; on demand ${sum(full):.4f}, {saved:.0%} saved"
        return [*lines, *phase_table(self.phases).splitlines()]


def known(aws: Aws, fleet: str, before: Sequence[Instance] = ()) -> list[Instance]:
    """Return the instances that a fleet has had since it was begun, as far as EC2 shows them.

    Of a fleet that was taken down and relaunched EC2 still shows the old ones: another fleet,
    which was accounted for. The newest instance tells which; `before`, if given, is newer.
    """
    found = instances(aws, fleet, states=_ALL)
    newest = [*found, *before][-1:]
    return [one for one in found if one.tags.get(GROUP) == newest[0].tags.get(GROUP)]


def cost(
    aws: Aws, spec: Spec, down_since: float | None = None, before: Sequence[Instance] = ()
) -> Cost:
    """Return what a fleet has cost. EC2 forgets instances about an hour after their end.

    `down_since` is when its teardown began, seconds since the epoch; None if it is not torn down.
    `before` are those that were terminated then: EC2 may forget the tags of what has ended at once.
    """
    until = dt.datetime.now(dt.timezone.utc)
    found = {one.id: one if one.ended else replace(one, ended=until) for one in before}
    found |= {one.id: one for one in known(aws, spec.name, before)}
    rows = spent(aws, list(found.values()), spec.disk_gb, until)
    return Cost(tuple(rows), phases(rows, compute_times(spec.name), until.timestamp(), down_since))


def phases(
    rows: Sequence[Spent], runs: Sequence[Interval], until: float, down_since: float | None = None
) -> dict[str, Phase]:
    """Return what instances did until `until`: phase, and `total` -> time, node time, dollars."""
    spans: dict[str, list[Interval]] = {name: [] for name in PHASES}
    seconds, usd = dict.fromkeys(PHASES, 0.0), dict.fromkeys(PHASES, 0.0)
    for row in rows:
        of_node = _phases_of(row, runs, until if down_since is None else down_since)
        life = sum(last - first for found in of_node.values() for first, last in found)
        for name, found in of_node.items():
            for first, last in found:
                cover(spans[name], first, last)
                seconds[name] += last - first
                usd[name] += row.total_usd * (last - first) / life
    if down_since is not None and rows:
        spans["teardown"] = [(down_since, until)]  # nodes cost nothing once they shut down
    spans["total"] = []
    for first, last in [span for name in PHASES for span in spans[name]]:
        cover(spans["total"], first, last)
    seconds["total"], usd["total"] = sum(seconds.values()), sum(usd.values())
    wall = {name: sum(last - first for first, last in found) for name, found in spans.items()}
    return {name: Phase(wall[name] / 60, seconds[name] / 60, usd[name]) for name in spans}


def _phases_of(row: Spent, runs: Sequence[Interval], down: float) -> dict[str, list[Interval]]:
    """Return when one instance did what; `down` is when the fleet began to be torn down."""
    one = row.instance
    start = one.launched.timestamp()
    end = start + row.hours * 3600
    down = min(max(down, start), end)
    reached = min(max(_number(one.tags.get(REACHED, ""), down), start), down)
    ready = min(max(_number(one.tags.get(READY, "").split(" ")[-1], down), reached), down)
    found: dict[str, list[Interval]] = {name: [] for name in PHASES}
    found["provisioning"].append((start, reached))
    found["bootstrap"].append((reached, ready))
    found["teardown"].append((down, end))
    at = ready
    for first, last in runs:
        begins, ends = max(first, at), min(last, down)
        if begins < ends:
            found["idle"].append((at, begins))
            found["compute"].append((begins, ends))
            at = ends
    found["idle"].append((at, down))
    return {name: [each for each in spans if each[0] < each[1]] for name, spans in found.items()}


def compute_times(fleet: str) -> list[Interval]:
    """Return when runs of this state directory used the fleet, without overlaps."""
    merged: list[Interval] = []
    for path in _logs(fleet):
        at = [line["at"] for _, line in read_lines(path) if line["what"] != COST]
        cover(merged, at[0], at[-1])
    return merged


def remember(spec: Spec, spent_on: Cost) -> None:
    """Write what the fleet has cost into the log of the last run on it, if it was since then."""
    launched = min((row.instance.launched.timestamp() for row in spent_on.rows), default=None)
    paths = _logs(spec.name)
    if launched is None or not paths:
        return
    began = next(line["at"] for _, line in read_lines(paths[-1]))
    if began >= launched:
        found = {name: list(phase) for name, phase in spent_on.phases.items()}
        append(paths[-1], what=COST, spec=f"ec2:{spec.name}", phases=found)


def _logs(fleet: str) -> list[str]:
    """Return the logs of the runs of this state directory that used the fleet, oldest first."""
    folder = os.path.join(settings().state, "runs")
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    paths = [os.path.join(folder, name, "log.jsonl") for name in names]
    return [path for path in paths if _used(path, f"ec2:{fleet}")]


def _used(path: str, spec: str) -> bool:
    return any(line["what"] == "fleet" and line["spec"] == spec for _, line in read_lines(path))


def _number(text: str, otherwise: float) -> float:
    return float(text) if text.isdigit() else otherwise
