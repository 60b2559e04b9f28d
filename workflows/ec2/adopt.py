"""From launched to ready: wait for the first contact, change the host key, pin it, bootstrap.

Host keys are strict from the first packet. A launch's user data holds a key that only serves the
first contact; in it the node makes a key of its own, which is written into its tag before it is put
in use. Cut off anywhere, the tags say which keys a node may show and what is left to do.
"""

import dataclasses
import threading
import time
from collections.abc import Sequence

from workflows.ec2.api import (
    BOOT_KEY,
    ENDED,
    HOST_KEY,
    LIVE,
    REACHED,
    READY,
    Aws,
    Instance,
    instances,
    set_tags,
)
from workflows.ec2.bootstrap import Recipe, check_limits, make_ready
from workflows.ec2.config import Spec
from workflows.ec2.launch import Say
from workflows.ec2.sessions import RENEW, each, host_of, name_of, renewing
from workflows.errors import NodeLost, NodeRefused, Rejected
from workflows.fleets.ssh import Connection, connect_watched

_LOOK_S = 3.0
_ABSENCES = 2
# How an instance ends that had been started.
_BY_USERS = ("Client.UserInitiatedShutdown", "Client.InstanceInitiatedShutdown")
_REBOOTS = 3
_NODE = "sudo /usr/local/sbin/workflows-node"
_PAUSE_S = 0.3
_NEW_KEY_S = 20.0


class Watched:
    """The fleet's instances as EC2 describes them, asked again when older than a few seconds.

    EC2 may leave out what it has shown already. That an instance is gone is believed when EC2 shows
    that it has ended, which it does for an hour, or when it was left out again and again.
    """

    def __init__(self, aws: Aws, fleet: str) -> None:
        self._aws, self._fleet = aws, fleet
        self._mutex = threading.Lock()
        self._at = 0.0
        self._found: dict[str, Instance] = {}
        self._missed: dict[str, tuple[int, float]] = {}  # how often in a row, and since when

    def look(self, one: Instance, *, within_s: float = _LOOK_S) -> Instance:
        """Return the instance as it is now, or was when EC2 showed it last.

        Raises:
            NodeLost: EC2 has taken it back, or it ended itself.
            Rejected: EC2 has ended it, since it could not be started as it was asked for.
        """
        with self._mutex:
            if time.monotonic() - self._at > within_s:
                self._ask(one)
            found = self._found.get(one.id)
            times, since = self._missed.get(one.id, (0, 0.0))
        if found is None:
            if times >= _ABSENCES and time.monotonic() - since > self._aws.settle_s:
                raise NodeLost(name_of(one), "EC2 no longer shows it")
            return one
        if found.state in ENDED:
            raise _ended(found, name_of(one))
        return dataclasses.replace(found, tags={**one.tags, **found.tags})

    def _ask(self, one: Instance) -> None:
        states = (*LIVE, *ENDED)
        self._found = {each.id: each for each in instances(self._aws, self._fleet, states=states)}
        self._at = time.monotonic()
        for known in {one.id, *self._missed} - set(self._found):
            times, since = self._missed.get(known, (0, self._at))
            self._missed[known] = (times + 1, since)
        for shown in self._found:
            self._missed.pop(shown, None)


def _ended(one: Instance, name: str) -> Exception:
    """Return the error of an instance that has ended, by EC2's reason."""
    code, _, text = one.reason.partition(": ")
    if code.startswith("Client.") and code not in _BY_USERS:
        return Rejected(
            f"{name}: EC2 could not start it: {text or code} ({code}); waiting does not"
            " help: look for a key (KMS) that may not be used, or a volume, image or limit of the"
            " account; workflows fleet down takes away what came",
            code,
        )
    why = "" if code in _BY_USERS else f": {one.reason}" if one.reason else ""
    return NodeLost(name, f"EC2 has terminated it{why}")


def adopt(
    aws: Aws, spec: Spec, found: Sequence[Instance], recipe: Recipe, say: Say
) -> dict[int, "Instance | NodeLost | NodeRefused"]:
    """Make instances ready, side by side; return slot -> it, ready, or how it failed to become so.

    Raises:
        Rejected: EC2 could not start one of them as it was asked for.
    """
    watched = Watched(aws, spec.name)

    def one_node(one: Instance) -> Instance:
        for _ in range(_REBOOTS):
            with first_contact(aws, spec, one, watched) as connection:
                say(f"{name_of(one)} is reached")
                one = _pinned(one, connection)
                try:
                    _set_up(spec, one, connection, recipe, say)
                    break
                except NodeLost as error:  # its own script may have rebooted it
                    say(f"{error.node} hung up within its set-up; waiting for it to come back")
        else:
            raise NodeLost(name_of(one), f"it hung up {_REBOOTS} times within its set-up")
        one = watched.look(one)
        host = host_of(spec, one, one.tags[HOST_KEY])
        check_limits(lambda: connect_watched(name_of(one), host), name_of(one), spec.limits)
        ready = f"{recipe.digest} {time.time():.0f}"
        set_tags(aws, [one.id], {READY: ready})
        say(f"{name_of(one)} is ready")
        return dataclasses.replace(one, tags={**one.tags, READY: ready})

    return each(found, one_node)


def _set_up(spec: Spec, one: Instance, connection: Connection, recipe: Recipe, say: Say) -> None:
    with renewing(spec, connection):
        if not spec.profile:
            _check_metadata(one, connection)
        make_ready(connection, name_of(one), recipe, lambda text: say(f"{name_of(one)}: {text}"))
        _run(connection, one, RENEW)


def _check_metadata(one: Instance, connection: Connection) -> None:
    """Make sure that the node has closed its metadata service to all but root.

    Raises:
        NodeRefused: it could not.
        NodeLost: the connection broke.
    """
    said = _run(connection, one, "cat .workflows/imds 2>/dev/null || :").strip()
    if not said.startswith("closed"):
        raise NodeRefused(
            name_of(one),
            f"its metadata service is open to every job ({said or 'nothing was noted'}): take an"
            " ami that has iptables, nft or ip (iproute2), or name a profile, which opens it",
        )


def _pinned(one: Instance, connection: Connection) -> Instance:
    """Return an instance as its tags are after the first contact."""
    tags = {name: value for name, value in one.tags.items() if name != BOOT_KEY}
    return dataclasses.replace(one, tags={**tags, HOST_KEY: connection.host_key})


def first_contact(aws: Aws, spec: Spec, one: Instance, watched: Watched) -> Connection:
    """Return a connection to a node whose host key is its own, and pinned in its tag.

    Raises:
        NodeLost: it ended, or it was not reached in time with a key that it may show.
        NodeRefused: it was reached, but could not be set up.
    """
    deadline = time.monotonic() + spec.boot_timeout
    one = _with_address(spec, one, watched, deadline)
    if HOST_KEY in one.tags and BOOT_KEY not in one.tags:
        return _patiently(spec, one, watched, deadline, one.tags[HOST_KEY])
    allowed = [one.tags[tag] for tag in (HOST_KEY, BOOT_KEY) if tag in one.tags]
    if not allowed:
        raise NodeRefused(name_of(one), "it has no host key in its tags; it is not ours")
    with _patiently(spec, one, watched, deadline, *allowed) as connection:
        _await_cloud_init(spec, one, connection, deadline)
        made = _run(connection, one, f"{_NODE} newkey").strip()
        set_tags(aws, [one.id], {HOST_KEY: made, REACHED: f"{time.time():.0f}"})
        _run(connection, one, f"{_NODE} usekey")
    until = min(deadline, time.monotonic() + _NEW_KEY_S)
    connection = _patiently(spec, one, watched, until, made)
    aws.call("delete_tags", settles=True, Resources=[one.id], Tags=[{"Key": BOOT_KEY}])
    return connection


def _await_cloud_init(spec: Spec, one: Instance, connection: Connection, deadline: float) -> None:
    """Wait until the node's first boot is done. How it ended does not matter: not every image says.

    Raises:
        NodeLost: it takes too long, or the connection broke.
    """
    try:
        connection.run("cloud-init status --wait", timeout_s=max(1.0, deadline - time.monotonic()))
    except TimeoutError as error:
        why = f"cloud-init is not done after {spec.boot_timeout} s"
        raise NodeLost(name_of(one), why) from error
    except OSError as error:
        raise NodeLost(name_of(one), str(error) or type(error).__name__) from error


def _with_address(spec: Spec, one: Instance, watched: Watched, deadline: float) -> Instance:
    while True:
        one = watched.look(one, within_s=_LOOK_S if one.state == "running" else 1.0)
        if one.state == "running" and one.address(spec.access.address):
            return one
        if time.monotonic() > deadline:
            raise NodeLost(name_of(one), f"still {one.state} after {spec.boot_timeout} s")
        time.sleep(_PAUSE_S)


def _patiently(
    spec: Spec, one: Instance, watched: Watched, deadline: float, *keys: str
) -> Connection:
    """Log in; before cloud-init is done a node shows other keys or lets nobody in: try again."""
    while True:
        try:
            return connect_watched(name_of(one), host_of(spec, one, *keys))
        except (NodeLost, NodeRefused) as error:
            if time.monotonic() > deadline:
                raise NodeLost(name_of(one), f"not reached in time: {error.why}") from error
        watched.look(one)
        time.sleep(_PAUSE_S)


def _run(connection: Connection, one: Instance, line: str) -> str:
    try:
        ran = connection.run(line)
    except OSError as error:
        raise NodeLost(name_of(one), str(error) or type(error).__name__) from error
    if ran.status < 0:
        raise NodeLost(name_of(one), "it hung up during its set-up")
    if ran.status:
        raise NodeRefused(name_of(one), f"{line}: {ran.err.decode('utf-8', 'replace').strip()}")
    return ran.out.decode("ascii", "replace")
