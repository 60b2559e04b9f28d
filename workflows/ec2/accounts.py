"""What a fleet has cost, split by what its nodes did: launched, made ready, computed, idle."""

import dataclasses
import datetime as dt
import os
from collections.abc import Sequence

from workflows.config import settings
from workflows.ec2.api import REACHED, READY, Aws, instances
from workflows.ec2.config import Spec
from workflows.ec2.prices import Spent, spent
from workflows.runlog import read_lines

_ALL = ("pending", "running", "shutting-down", "terminated", "stopping", "stopped")
PHASES = ("provisioning", "bootstrap", "compute", "idle")
Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Cost:
    """What the instances of a fleet have cost so far, dollars."""

    rows: tuple[Spent, ...]
    phases: dict[str, float]  # node hours of each

    @property
    def usd(self) -> float:
        """Return the dollars for instances and, estimated, their disks."""
        return sum(row.usd + row.ebs_usd for row in self.rows)

    def lines(self) -> list[str]:
        """Return it as text."""
        if not self.rows:
            return ["nothing was spent that EC2 still knows of"]
        hours = sum(row.hours for row in self.rows)
        ebs = sum(row.ebs_usd for row in self.rows)
        text = f"{len(self.rows)} nodes, {hours:.2f} node hours: ${self.usd:.4f}"
        lines = [f"{text} (disks, estimated: ${ebs:.4f}; transfer not counted)"]
        full = [row.on_demand_usd for row in self.rows if row.on_demand_usd is not None]
        if len(full) == len(self.rows) and sum(full) > 0:
            saved = 1 - sum(row.usd for row in self.rows) / sum(full)
            lines[0] += f"; on demand ${sum(full):.4f}, {saved:.0%} saved"
        parts = [
            f"{name} {60 * part:.1f} node minutes ${self.usd * part / hours:.4f}"
            for name, part in self.phases.items()
            if hours
        ]
        return [*lines, *([", ".join(parts)] if parts else [])]


def cost(aws: Aws, spec: Spec, now: dt.datetime | None = None) -> Cost:
    """Return what a fleet has cost. EC2 forgets instances about an hour after their end."""
    until = now or dt.datetime.now(dt.timezone.utc)
    found = instances(aws, spec.name, states=_ALL)
    rows = spent(aws, found, spec.disk_gb, until)
    runs = compute_times(spec.name)
    phases = dict.fromkeys(PHASES, 0.0)
    for row in rows:
        for name, seconds in phases_of(row, runs, until.timestamp()).items():
            phases[name] += seconds / 3600
    return Cost(tuple(rows), phases)


def phases_of(row: Spent, runs: Sequence[Interval], until: float) -> dict[str, float]:
    """Return the seconds of each phase of one instance's life."""
    one = row.instance
    start = one.launched.timestamp()
    end = min(one.ended.timestamp() if one.ended else until, until)
    reached = min(max(_number(one.tags.get(REACHED, ""), end), start), end)
    ready = min(max(_number(one.tags.get(READY, "").split(" ")[-1], end), reached), end)
    compute = sum(max(0.0, min(last, end) - max(first, ready)) for first, last in runs)
    return {
        "provisioning": reached - start,
        "bootstrap": ready - reached,
        "compute": compute,
        "idle": max(0.0, end - ready - compute),
    }


def compute_times(fleet: str) -> list[Interval]:
    """Return when runs of this state directory used the fleet, without overlaps."""
    folder = os.path.join(settings().state, "runs")
    found: list[Interval] = []
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        lines = [line for _, line in read_lines(os.path.join(folder, name, "log.jsonl"))]
        if any(line["what"] == "fleet" and line["spec"] == f"ec2:{fleet}" for line in lines):
            found.append((lines[0]["at"], lines[-1]["at"]))
    merged: list[Interval] = []
    for first, last in sorted(found):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged


def _number(text: str, otherwise: float) -> float:
    return float(text) if text.isdigit() else otherwise
