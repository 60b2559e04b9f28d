"""During a run: renew the leases, read EC2's notices, fill slots whose node is gone.

A thread of the run's hub. Every few seconds it asks each node, on the connection that is there: the
question renews the node's lease, the answer is EC2's notice if there is one. A node that EC2 takes
back (two minutes' notice) starts no more keys; its slot is filled by a new node, and only then is
what still runs on the old one given up.
"""

import concurrent.futures
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from workflows.ec2.api import LEAVING, READY, Aws, Instance, set_tags
from workflows.ec2.config import Spec, find_spec, has_spec
from workflows.ec2.raising import bring_up, dismiss_leaving, present
from workflows.ec2.sessions import RENEW, host_of, name_of
from workflows.errors import NodeLost, WorkflowsError
from workflows.fleets.remote import Remote
from workflows.reporting.messages import unfailing
from workflows.reporting.runlog import append

BEAT_S = 3.0
BEAT = f"{RENEW}; cat .workflows/notice 2>/dev/null"
_TAKEN = "spot/instance-action"
_ANSWER_S = 10.0
_LOOK_S = 10.0  # how often EC2 is asked about nodes that do not answer
_AGAIN_S = 30.0  # how long after a refill that failed


class Keeper:
    """Keeps the nodes of one run; constructing it does nothing."""

    def __init__(self, remotes: Sequence[Remote], name: str, log: str) -> None:
        self.remotes, self.log = remotes, log
        self.spec: Spec = find_spec(name)
        self.is_described = has_spec(name)
        self.aws = Aws(self.spec.region)
        self._at: dict[int, Instance] = {}
        self._leaving: set[str] = set()
        self._told: set[tuple[str, str]] = set()
        self._looked = self._tried = float("-inf")

    def __call__(self) -> None:
        """Keep the fleet until the process ends."""
        while True:
            started = time.monotonic()
            with concurrent.futures.ThreadPoolExecutor(len(self.remotes)) as pool:
                answers = list(pool.map(self._beat, self.remotes))
            try:
                self._look(answers)
            except Exception as error:  # noqa: BLE001 - the leases are renewed, whatever happens
                known = isinstance(error, WorkflowsError)
                self._say(str(error) if known else f"{type(error).__name__}: {error}")
                self._tried = time.monotonic()
            time.sleep(max(0.0, BEAT_S - (time.monotonic() - started)))

    def _beat(self, remote: Remote) -> dict[str, Any] | None:
        """Return a node's notice; empty if it has none, None if it does not answer."""
        try:
            text = remote.run(BEAT, _ANSWER_S)
            found = json.loads(text) if text.strip() else {}
        except (NodeLost, ValueError):
            return None
        return found if isinstance(found, dict) else {}

    def _look(self, answers: Sequence[dict[str, Any] | None]) -> None:
        """Do what the answers call for: tell, tag and drain; fill slots."""
        if not self._at or (None in answers and time.monotonic() - self._looked > _LOOK_S):
            self._looked = time.monotonic()
            self._at = {one.slot: one for one in present(self.aws, self.spec.name)}
            self._follow()
        for remote, answer in zip(self.remotes, answers, strict=True):
            one = self._at.get(remote.slot)
            if one is not None and answer:
                self._noticed(remote, one, str(answer.get("what")), str(answer.get("says")))
        may_try = self.log and self.is_described and time.monotonic() - self._tried > _AGAIN_S
        if self._has_empty() and may_try:
            self._fill()
            if self._has_empty():
                self._tried = time.monotonic()

    def _has_empty(self) -> bool:
        return any(self._is_empty(self._at.get(remote.slot)) for remote in self.remotes)

    def _is_empty(self, one: Instance | None) -> bool:
        return one is None or one.id in self._leaving or READY not in one.tags

    def _noticed(self, remote: Remote, one: Instance, what: str, says: str) -> None:
        if (one.id, what) in self._told:
            return
        self._told.add((one.id, what))
        self._say(f"{name_of(one)}: EC2 says {what}: {says}")
        if what != _TAKEN:
            return  # a recommendation: nothing is taken away yet
        self._leaving.add(one.id)
        remote.drain()
        set_tags(self.aws, [one.id], {LEAVING: f"{time.time():.0f}"})

    def _fill(self) -> None:
        started = time.monotonic()
        # Somebody may have made it larger since the run began.
        live = present(self.aws, self.spec.name)
        most = max((one.slot + 1 for one in live if not one.is_results), default=0)
        nodes = max(len(self.remotes), most)
        spec = dataclasses.replace(self.spec, nodes=nodes, min_nodes=1)
        _, ready = bring_up(self.aws, spec, say=self._say)
        self._at = {one.slot: one for one in ready}
        took = time.monotonic() - started
        for one in self._follow():
            self._say(f"slot {one.slot} is filled by {one.id} after {took:.0f} s")
            append(self.log, what="refilled", slot=one.slot, id=one.id, seconds=round(took, 1))
        if not self._has_empty():
            dismiss_leaving(self.aws, self.spec.name)

    def _follow(self) -> list[Instance]:
        """Tell the hub where its slots are now; return those that have moved.

        Not only after a refill: the hub may have been restarted, or somebody typed `replace`.
        """
        moved = []
        for remote in self.remotes:
            one = self._at.get(remote.slot)
            if one is None or READY not in one.tags:
                continue
            host = dataclasses.replace(host_of(self.spec, one), slots=remote.host.slots)
            if host != remote.host:
                remote.move(host)
                moved.append(one)
        return moved

    def _say(self, text: str) -> None:
        _print(f"fleet {self.spec.name}: {text}")


@unfailing  # or a full disk, or a terminal that was closed, would end the renewal of leases
def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def keep(remotes: list[Remote], name: str, log: str) -> None:
    """Keep the fleet `name` for as long as the hub lives; `log` is the run's log."""
    try:
        kept = Keeper(remotes, name, log)
    except WorkflowsError as error:
        _print(f"fleet {name}: {error}")
        return
    kept()
