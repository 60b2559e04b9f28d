"""Disposable EC2 fleets: up, work, down, and never a forgotten machine.

::

    fleet = Ec2Fleet.load("crawl")  # crawl.yaml, fleet.yaml or luigi.cfg [ec2 crawl]
    print(fleet.plan())  # what would be launched, and dollars an hour
    fleet.up()  # run it as often as you like
    fleet.run("uptime")
    fleet.down()

A fleet's state is in its tags: any machine with the login key can go on. Docs: docs/ec2.md.
"""

import dataclasses
import datetime as dt
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from workflows.ec2 import (
    accounts,
    caller,
    ground,
    loginkey,
    prices,
    provision,
    sessions,
    teardown,
)
from workflows.ec2.api import EXPIRES, READY, Aws, Instance, label_of, set_tags
from workflows.ec2.bootstrap import Recipe, recipe
from workflows.ec2.config import Spec, find_spec, has_spec
from workflows.ec2.launch import pinned_image
from workflows.ec2.raising import bring_up, dismiss_leaving, is_ready, present
from workflows.errors import FleetError, NodeLost, UsageError
from workflows.fleets.fleet import Fleet
from workflows.fleets.hosts import Host
from workflows.reporting.messages import unfailing

logger = logging.getLogger(__name__)
# A node that EC2 takes back is replaced within minutes; whoever needs its slot waits so long.
_PATIENCE_S = 600.0
# Never an address: a slot that nothing fills yet.
_NOWHERE = "nothing-fills-this-slot.invalid"


@dataclasses.dataclass(frozen=True)
class Plan:
    """The actions that `up` would take, and the cost of the fleet afterwards."""

    spec: Spec
    keep: tuple[Instance, ...]
    launch: int
    surplus: tuple[Instance, ...]
    unready: tuple[Instance, ...]
    drift: str
    results: str
    cost: prices.Cost
    network: ground.Network

    def __str__(self) -> str:
        spec, cost = self.spec, self.cost
        rest = [one for one in self.keep if one not in self.unready]
        lines = [f"{spec.name} in {spec.region}: {spec.nodes} nodes"]
        lines += [f"  keep       {len(rest)}"] if rest else []
        if self.unready:
            lines.append(f"  make ready {len(self.unready)}: {_ids(self.unready)}")
        if self.launch:
            kinds = f"{', '.join(spec.types)}; {spec.spot.strategy}"
            lines.append(f"  launch     {self.launch} of {kinds}")
        if self.surplus:
            lines.append(f"  terminate  {len(self.surplus)}: {_ids(self.surplus)}")
        lines += [f"  {self.drift}"] if self.drift else []
        lines += [f"  {self.results}"] if self.results else []
        hosts = spec.nodes + spec.results_host
        each = cost.expected / hosts
        lines.append(f"  {hosts} x ${each:.4f} = ${cost.expected:.4f} an hour expected")
        lines.append(f"  at most ${cost.at_most:.4f} an hour ({cost.worst})")
        lines.append(f"  of that ${cost.beside:.4f} are disks and public addresses")
        lines += self._network_lines()
        if cost.unknown:
            lines.append(f"  not counted: {', '.join(cost.unknown)}, whose price AWS does not tell")
        return "\n".join(lines)

    def _network_lines(self) -> list[str]:
        network = self.network
        lines = []
        if network.left_out:
            lines.append(f"  no internet gateway, left out: {', '.join(network.left_out)}")
        if len(network.subnets) > 1 and self.spec.nodes > 1:
            usd = prices.ZONES_USD_PER_GB
            lines.append(
                f"  {len(network.subnets)} zones: traffic between zones costs"
                f" about ${usd:g} a GB each way; zones: [a] avoids it"
            )
        return lines


class Ec2Fleet:
    """One fleet, by its spec; constructing it asks AWS for nothing."""

    def __init__(
        self, spec: Spec, aws: Aws | None = None, say: Callable[[str], None] = logger.info
    ) -> None:
        self.spec, self.say = spec, unfailing(say)
        self.aws = aws or Aws(spec.region)
        self.is_described = True

    @classmethod
    def load(
        cls, name: str, region: str = "", say: Callable[[str], None] = logger.info
    ) -> "Ec2Fleet":
        """Return the fleet that a file or luigi.cfg describes; see `config.find_spec`.

        Where nothing describes it, it can be looked at, used and taken down, but not brought up.
        """
        fleet = cls(find_spec(name, region), say=say)
        fleet.is_described = has_spec(name)
        return fleet

    @property
    def recipe(self) -> Recipe:
        """Return what its nodes are made ready with."""
        return recipe(self.spec)

    def instances(self) -> list[Instance]:
        """Return its live instances, by slot, without those that EC2 has announced to take back."""
        return present(self.aws, self.spec.name)

    def nodes(self) -> list[Instance]:
        """Return its live instances that are ready to work, by slot.

        Raises:
            UsageError: there are none.
        """
        found = [one for one in self.instances() if READY in one.tags]
        if not found:
            raise UsageError(
                f"{self.spec.name} has no nodes in {self.spec.region}:"
                f" workflows fleet up {self.spec.name}"
            )
        return found

    # -- up and down ---------------------------------------------------------------------------

    def pools(self) -> list[prices.Pool]:
        """Return the prices of the fleet's types in its zones, the cheapest first.

        Raises:
            UsageError: nothing describes the fleet.
        """
        self._check_described()
        return self._priced(self._network())

    def _check_described(self) -> None:
        if not self.is_described:
            name = self.spec.name
            raise UsageError(
                f"nothing describes a fleet {name}: no {name}.yaml, no fleet.yaml of that name, no"
                f" [ec2 {name}] in luigi.cfg; to begin: workflows fleet init > {name}.yaml"
            )

    def _network(self) -> ground.Network:
        """Return where the fleet may be, once its types are known to exist."""
        ground.type_details(self.aws, self.spec.types)
        return ground.network(self.aws, self.spec)

    def _priced(self, network: ground.Network) -> list[prices.Pool]:
        return prices.pools(self.aws, self.spec.types, network.offered)

    def _cost(self, network: ground.Network) -> prices.Cost:
        """Return what the fleet costs an hour.

        Raises:
            FleetError: it may cost more than `max_hourly_cost`.
        """
        found, per_gb_hour = self._priced(network), prices.disk_usd(self.aws)
        cost = prices.hourly(self.spec, found, self.spec.nodes, per_gb_hour)
        cost.check(self.spec)
        return cost

    def plan(self) -> Plan:
        """Return what `up` would do; nothing is changed.

        Raises:
            FleetError: it may cost more than `max_hourly_cost`, or AWS refused.
        """
        everything = self.instances()
        live = [one for one in everything if not one.is_results]
        lacks_host = self.spec.results_host and len(live) == len(everything)
        slots = provision.slots_for(live, self.spec.nodes)
        keep = [one for one in live if slots[one.id] < self.spec.nodes]
        self._check_described()
        network = self._network()
        cost = self._cost(network)
        caller.check(self.aws, self.spec, network.vpc)
        return Plan(
            self.spec,
            tuple(keep),
            self.spec.nodes - len(keep),
            tuple(one for one in live if slots[one.id] >= self.spec.nodes),
            tuple(one for one in keep if not self._is_ready(one)),
            self._drift(live),
            "launch     1 results host, on demand" if lacks_host else "",
            cost,
            network,
        )

    def _is_ready(self, one: Instance) -> bool:
        return is_ready(one, self.recipe)

    def _drift(self, live: Sequence[Instance]) -> str:
        pinned = pinned_image(live)
        if not pinned or self.spec.ami == pinned:
            return ""
        newest = ground.image(self.aws, self.spec).id
        if newest == pinned:
            return ""
        return f"image: {pinned} is in use, {newest} is newer; --refresh-ami for new nodes"

    def up(self, *, refresh_ami: bool = False) -> list[Instance]:
        """Bring the fleet to what its spec says; return its nodes, ready. Run it any time.

        Raises:
            NoCapacity: fewer than `min_nodes` could be launched; these were terminated.
            FleetError: AWS refused, it may cost too much, or nodes could not be made ready.
        """
        self._check_described()
        self._cost(self._network())
        made, ready = bring_up(self.aws, self.spec, say=self.say, refresh_ami=refresh_ami)
        if sum(not one.is_results for one in ready) >= self.spec.nodes:
            dismiss_leaving(self.aws, self.spec.name)
        self._renew([one for one in ready if one not in made])
        return ready

    def _renew(self, found: Sequence[Instance]) -> None:
        """Renew the leases of nodes that were ready already, and say which do not answer."""
        results = sessions.each(found, lambda one: sessions.touch(self.spec, one))
        for error in results.values():
            if isinstance(error, Exception):
                self.say(f"{error}; workflows fleet replace {self.spec.name} puts a new one there")

    def down(self) -> list[Instance]:
        """Remove everything that is tagged with the fleet's name; wait until it is gone.

        The login key's files go too if `up` made them. Return the instances that were terminated.

        Raises:
            FleetError: something could not be removed; whatever can be is.
        """
        found = teardown.tear_down(self.aws, self.spec.name, say=self.say)
        try:
            loginkey.remove(self.spec)
        except OSError as error:
            raise FleetError(
                f"the login key {self.spec.identity} cannot be removed: {error.strerror}; all else"
                f" of {self.spec.name} is gone"
            ) from error
        return found

    def replace(self, slots: Sequence[int] = ()) -> list[Instance]:
        """Terminate the nodes of some slots, or those that do not answer, and fill them again."""
        live = self.instances()
        chosen = [one for one in live if one.slot in slots]
        if not slots:
            ready = [one for one in live if READY in one.tags]
            results = sessions.each(ready, lambda one: sessions.touch(self.spec, one))
            chosen = [one for one in ready if isinstance(results[one.slot], Exception)]
        if chosen:
            teardown.terminate(self.aws, [one.id for one in chosen])
            self.say(f"replacing {_ids(chosen)}")
        # As many as there were: a fleet may have been made larger than its file says.
        host = self.spec.results_host or any(one.is_results for one in live)
        self.spec = dataclasses.replace(self.spec.resized(self.size(live)), results_host=host)
        return self.up()

    @contextmanager
    def running(self) -> Iterator["Ec2Fleet"]:
        """Be up within a ``with``, and down after it, whatever happens."""
        try:
            self.up()
            yield self
        finally:
            self.down()

    def extend(self, seconds: int) -> dt.datetime:
        """Let the nodes live for `seconds` from now, driver or not; return until when.

        Raises:
            NodeLost: one could not be told.
        """
        until = time.time() + seconds
        found = self.nodes()
        # Not the lease itself: renewals go on, also while this is done, and would set it back.
        at = f"{until:.0f}"
        line = f"touch -d @{at} .workflows/extended && echo {at} > .workflows/deadline"
        results = sessions.run_everywhere(self.spec, found, line, lambda *_: None)
        end = dt.datetime.fromtimestamp(until, dt.timezone.utc)
        set_tags(self.aws, [one.id for one in found], {EXPIRES: end.strftime("%Y-%m-%dT%H:%M:%SZ")})
        for result in results:
            if result.status:
                raise NodeLost(
                    f"node {label_of(result.slot)}", result.lost or "it could not be told"
                )
        return end

    def cost(
        self, down_since: float | None = None, before: Sequence[Instance] = ()
    ) -> accounts.Cost:
        """Return what the fleet has cost since it was begun; see `accounts.cost`."""
        return accounts.cost(self.aws, self.spec, down_since, before)

    def size(self, live: Sequence[Instance]) -> int:
        """Return how many slots it has: as it is described, or else those that are filled."""
        least = self.spec.nodes if self.is_described else 0
        return max([least, *[one.slot + 1 for one in live if not one.is_results]])

    # -- for runs ------------------------------------------------------------------------------

    def hosts(self) -> list[Host]:
        """Return how to reach each slot; those that nothing fills cannot be reached yet.

        Slots above `min_nodes` that nothing fills are left out: no key may wait for them.

        Raises:
            UsageError: the fleet has no nodes.
        """
        filled = {one.slot: one for one in self.nodes() if not one.is_results}
        least = self.spec.least if self.is_described else 0
        nowhere = Host(address=_NOWHERE, identity=self.spec.identity, host_key=("none",))
        return [
            sessions.host_of(self.spec, filled[slot]) if slot in filled else nowhere
            for slot in range(max([least, *[slot + 1 for slot in filled]]))
        ]


def open_ec2(spec: str, *, slots: int, log: str) -> Fleet:
    """Return the fleet that ``ec2:NAME`` names, for the run that is logged in the file `log`.

    Without one its nodes are used and their leases renewed, but no slot is filled again.

    Raises:
        UsageError: it has no nodes.
    """
    from workflows.fleets.hubprocess import HUBS
    from workflows.fleets.sshnode import Hub, SshNode

    name = spec.removeprefix("ec2:")
    fleet = Ec2Fleet.load(name)
    hosts = [one.with_slots(slots) for one in fleet.hosts()]
    hub = Hub(hosts, HUBS["ec2"], (name, log))
    nodes = [SshNode(hub, slot, host, _PATIENCE_S) for slot, host in enumerate(hosts)]
    return Fleet(spec, list(nodes), nodes[0].credential)


def _ids(found: Sequence[Instance]) -> str:
    return ", ".join(f"{one.id} (slot {one.label})" for one in found)
