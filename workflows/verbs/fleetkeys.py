"""Keys on a fleet by their names, ``step/dir/name``, as the verbs see them.

A name belongs to one key: it cannot be written again before it is removed. Pure names first, then
what is asked of nodes. Nothing here knows Luigi: these verbs have to start quickly.
"""

import contextlib
import fnmatch
import posixpath
import re
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from workflows.errors import KeyNameError, UsageError, WorkflowsError
from workflows.fleets.fleet import Fleet
from workflows.node.keys import PIECES, check_name, node_for
from workflows.planning.opening import open_any

T = TypeVar("T")
_SCHEME = re.compile(r"(fleet|s4)://")
_STEP_BYTES = 200  # its ledger's file name has to fit into 255
_GLOB = frozenset("*?[")


class Name(NamedTuple):
    """A key, or the beginning of some: a step and what follows its first slash."""

    step: str
    rest: str

    def __str__(self) -> str:
        return f"{self.step}/{self.rest}"


class Found(NamedTuple):
    """One key on a node. `ledger` is the step's own, or that of the files its 1:n commands made."""

    name: Name
    size: int
    modified: float
    identity: str
    ledger: str
    slot: int
    is_made: bool  # no key, but the directory in which a 1:n command's files were made


def is_on_fleet(text: str) -> bool:
    """Tell whether an argument of ``cp`` names a key and not a path of this machine."""
    return _SCHEME.match(text) is not None


def bare(text: str) -> str:
    """Return a name without its scheme: it is the same key, however it is written."""
    return _SCHEME.sub("", text, count=1)


def parse(text: str) -> Name:
    """Return what ``step/dir/name``, with or without ``fleet://`` before it, stands for.

    >>> parse("fleet://rides/2018/000_a"), parse("s4://rides/d/")
    (Name(step='rides', rest='2018/000_a'), Name(step='rides', rest='d/'))
    >>> parse("rides")
    Name(step='rides', rest='')

    Raises:
        KeyNameError: no key can be called that.
    """
    step, _, rest = bare(text).partition("/")
    if not step:
        raise KeyNameError(text, "it has no step; write step/dir/name")
    if step in (".", "..") or step.startswith(("_", "-")) or "\n" in step or "\0" in step:
        raise KeyNameError(text, f"a step cannot be called {step!r}")
    if len(step.encode("utf-8", "surrogateescape")) > _STEP_BYTES or step.endswith(PIECES):
        raise KeyNameError(text, f"a step's name is at most {_STEP_BYTES} bytes, without {PIECES}")
    if rest.rstrip("/") or rest.startswith("/"):
        check_name(rest[:-1] if rest.endswith("/") else rest)
    return Name(step, rest)


def parse_key(text: str) -> Name:
    """Return the one key that is named.

    Raises:
        KeyNameError: it names a step or a directory, or no key can be called that.
    """
    name = parse(text)
    if not name.rest or name.rest.endswith("/"):
        raise KeyNameError(text, "it is a directory, not a key; write step/dir/name")
    return name


def parse_folder(text: str) -> Name:
    """Return the directory that is named; `rest` is empty or ends with a slash.

    Raises:
        UsageError: it does not end with a slash.
    """
    name = parse(text)
    if not text.endswith("/"):
        raise UsageError(f"{text} must be a directory of keys: write {text}/")
    return name


class Pattern(NamedTuple):
    """The input of a map: all keys below a directory, or those that a glob matches."""

    step: str
    folder: str  # without a wildcard; what names are relative to
    glob: str  # empty: all keys below the folder

    def relative(self, rest: str) -> str | None:
        """Return the name that a key gets in the output, or None if it is not meant.

        >>> Pattern("in", "a/", "*/*.txt").relative("a/b/c.txt")
        'b/c.txt'
        >>> Pattern("in", "", "*.txt").relative("b/c.txt") is None
        True
        """
        if not rest.startswith(self.folder):
            return None
        name = rest[len(self.folder) :]
        parts, wanted = name.split("/"), self.glob.split("/")
        if not self.glob:
            return name
        if len(parts) != len(wanted):
            return None  # as in a shell, * does not cross a slash
        both = zip(parts, wanted, strict=True)
        return name if all(fnmatch.fnmatchcase(part, glob) for part, glob in both) else None


def parse_pattern(text: str) -> Pattern:
    """Return what IN of a map means.

    Raises:
        UsageError: it is neither a directory nor a glob.
    """
    name = parse(text)
    if _GLOB.intersection(name.step):
        raise UsageError(f"{text}: wildcards are for keys; the step must be named")
    parts = name.rest.split("/")
    for number, part in enumerate(parts):
        if _GLOB.intersection(part):
            folder = "".join(before + "/" for before in parts[:number])
            return Pattern(name.step, folder, "/".join(parts[number:]))
    parse_folder(text)
    return Pattern(name.step, name.rest, "")


# -- nodes -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(spec: str) -> Iterator[Fleet]:
    """Open a fleet for one verb; nodes are started as they are needed."""
    fleet = open_any(spec)
    try:
        yield fleet
    finally:
        fleet.close()


def outcomes(
    fleet: Fleet, slots: Iterable[int], work: Callable[[int], T]
) -> dict[int, T | WorkflowsError]:
    """Do `work` for several slots at once; return what became of each, errors too."""

    def attempt(slot: int) -> T | WorkflowsError:
        try:
            return work(slot)
        except WorkflowsError as error:
            return error

    chosen = sorted(slots)
    for slot in chosen:
        with contextlib.suppress(WorkflowsError):  # told to whoever uses it
            fleet.nodes[slot].start()
    if len(chosen) < 2:
        return {slot: attempt(slot) for slot in chosen}
    with contextlib.suppress(WorkflowsError):
        fleet.channel(chosen[0])
    return _side_by_side(chosen, attempt)


def _side_by_side(slots: list[int], work: Callable[[int], T]) -> dict[int, T]:
    """Do `work` for each slot in a thread of its own; return slot -> result, in their order."""
    found: dict[int, T] = {}
    crashes: list[BaseException] = []

    def run(slot: int) -> None:
        try:
            found[slot] = work(slot)
        except BaseException as error:  # noqa: BLE001 - raised again below
            crashes.append(error)

    # Daemons, not a pool: Ctrl-C must not wait for those that wait for a node.
    threads = [threading.Thread(target=run, args=(slot,), daemon=True) for slot in slots]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if crashes:
        raise crashes[0]
    return {slot: found[slot] for slot in slots}


def all_of(fleet: Fleet, slots: Iterable[int], work: Callable[[int], T]) -> dict[int, T]:
    """Do `work` for several slots at once; return slot -> result.

    Raises:
        WorkflowsError: that of the first slot that failed, after all have ended; it names others.
    """
    found: dict[int, T] = {}
    errors: list[WorkflowsError] = []
    for slot, outcome in outcomes(fleet, slots, work).items():
        if isinstance(outcome, WorkflowsError):
            errors.append(outcome)
        else:
            found[slot] = outcome
    if len(errors) > 1:
        text = "\n".join(str(error) for error in errors)
        raise type(errors[0])(*errors[0].args[:-1], f"{errors[0].args[-1]}\n{text}")
    if errors:
        raise errors[0]
    return found


def names_of(fleet: Fleet) -> list[str]:
    """Return what tells this fleet from another: what its nodes are called, in order of slots."""
    is_ec2 = fleet.spec.startswith("ec2:")  # other instances fill its slots now and then
    return [f"{fleet.spec} {node.slot}" if is_ec2 else node.name for node in fleet.nodes]


def _asker(fleet: Fleet) -> dict[str, Any]:
    return {"fleet": names_of(fleet), "spec": fleet.spec}


def join(fleet: Fleet) -> None:
    """Let all nodes know that keys are about to be made by name over this fleet.

    Raises:
        WorkflowsError: they have keys that were made by name over another one.
    """
    message = {"op": "join", **_asker(fleet)}
    all_of(fleet, range(len(fleet)), lambda slot: fleet.channel(slot).one(message, "joined"))


def named_steps(fleet: Fleet) -> list[str]:
    """Return the steps that have keys which verbs made, on the nodes that answer."""
    answers = outcomes(
        fleet, range(len(fleet)), lambda slot: fleet.channel(slot).one({"op": "named"}, "named")
    ).values()
    found = [answer["steps"] for answer in answers if not isinstance(answer, WorkflowsError)]
    return sorted({step for steps in found for step in steps})


# -- looking ---------------------------------------------------------------------------------------


def listing(
    fleet: Fleet, step: str | None = None, *, same_fleet: bool = False
) -> tuple[list[Found], list[WorkflowsError]]:
    """Return the keys of a step, or of all, sorted by name; and what nodes could not be asked.

    With `same_fleet` a node whose keys belong to another fleet refuses.
    """
    message: dict[str, Any] = {"op": "keys", "steps": None if step is None else [step]}
    if same_fleet:
        message.update(_asker(fleet))
    answers = outcomes(
        fleet, range(len(fleet)), lambda slot: fleet.channel(slot).one(message, "keys")
    )
    found: dict[tuple[str, str, bool], Found] = {}
    errors = []
    for slot, answer in answers.items():
        if isinstance(answer, WorkflowsError):
            errors.append(answer)
            continue
        for held, rows in answer["steps"].items():
            for key, size, modified, identity, ledger, is_made in rows:
                one = Found(Name(held, key), size, modified, identity, ledger, slot, is_made)
                # A pipeline keeps what older commands made until gc: the newest is what counts.
                other = found.get((held, key, is_made))
                if other is None or other.modified <= modified:
                    found[held, key, is_made] = one
    # Every node of another fleet says so; once is enough to read, and to type what it says.
    others = [error for error in errors if "belong to a fleet of" in str(error)]
    errors = [error for error in errors if error not in others[1:]]
    return sorted(found.values()), errors


def every_key(fleet: Fleet, step: str) -> list[Found]:
    """Return all of a step's keys, those that a person sees.

    Raises:
        WorkflowsError: a node could not be asked.
    """
    found, errors = listing(fleet, step, same_fleet=True)
    if errors:
        raise errors[0]
    return [one for one in found if not one.is_made]


def find(fleet: Fleet, name: Name) -> tuple[Found, str]:
    """Return where a key is, and its checksum; the node that its name leads to is asked first.

    Raises:
        UsageError: there is no such key.
        NodeLost: it is not on the others, and a node could not be asked.
    """
    message = {"op": "find", "step": name.step, "key": name.rest, **_asker(fleet)}

    def look(slot: int) -> dict[str, Any]:
        return fleet.channel(slot).one(message, "found")

    home = node_for(name.rest, len(fleet))
    errors: list[WorkflowsError] = []
    for slots in ([home], [slot for slot in range(len(fleet)) if slot != home]):
        for slot, answer in outcomes(fleet, slots, look).items():
            if isinstance(answer, WorkflowsError):
                errors.append(answer)
            elif answer["record"] is not None:
                kept = answer["record"]
                size, ledger = kept["bytes"], answer["ledger"]
                return Found(name, size, 0.0, kept["id"], ledger, slot, is_made=False), kept["crc"]
        if errors:
            raise errors[0]
    folder = posixpath.dirname(str(name))
    raise UsageError(f"no such key: {name}; to list what exists: workflows ls {folder}/")


# -- moving ----------------------------------------------------------------------------------------


def put(fleet: Fleet, name: Name, chunks: Iterable[bytes]) -> None:
    """Store a new key on the node that its name leads to.

    Raises:
        WorkflowsError: the name is taken, or the node has no space; nothing is stored.
    """
    slot = node_for(name.rest, len(fleet))
    message = {"op": "put", "step": name.step, "key": name.rest, **_asker(fleet)}
    answer = fleet.channel(slot).store(message, chunks)
    if answer["event"] == "failed":
        raise WorkflowsError(f"{name} on {fleet.nodes[slot].name}: {answer['why']}")


def get(fleet: Fleet, found: Found, crc: str) -> Iterator[bytes]:
    """Yield a key's bytes.

    Raises:
        WorkflowsError: at the end, if they are not what was stored.
    """
    value = 0
    for chunk in fleet.channel(found.slot).read(found.ledger, found.identity, found.name.rest):
        value = zlib.crc32(chunk, value)
        yield chunk
    if f"{value:08x}" != crc:
        node = fleet.nodes[found.slot].name
        raise WorkflowsError(f"{found.name} on {node} is damaged: its bytes have changed")


def remove(fleet: Fleet, step: str, chosen: Callable[[str], bool]) -> int:
    """Remove the keys of a step that are `chosen` by name; return how many there were.

    The record of a 1:n command goes with its files, or the next map would only deliver it again.

    Raises:
        WorkflowsError: a node could not be asked; nothing is removed.
    """
    message = {"op": "keys", "steps": [step], **_asker(fleet)}
    answers = all_of(
        fleet, range(len(fleet)), lambda slot: fleet.channel(slot).one(message, "keys")
    )
    rows = [
        (slot, *row) for slot, answer in answers.items() for row in answer["steps"].get(step, ())
    ]
    names = {key for _, key, *_, is_made in rows if not is_made and chosen(key)}
    makers = {posixpath.dirname(key) for key in names}
    drops: dict[int, dict[str, list[str]]] = {}
    for slot, key, _, _, identity, ledger, is_made in rows:
        if (key in makers or chosen(key)) if is_made else key in names:
            drops.setdefault(slot, {}).setdefault(ledger, []).append(identity)

    def drop(slot: int) -> None:
        for ledger, identities in drops[slot].items():
            dropping = {"op": "drop", "step": ledger, "ids": identities, "why": "rm"}
            fleet.channel(slot).one(dropping, "dropped")

    all_of(fleet, drops, drop)
    return len(names)


# -- the nodes themselves --------------------------------------------------------------------------


def chosen_slots(fleet: Fleet, wanted: list[int] | None) -> list[int]:
    """Return the slots that a person named, or all.

    Raises:
        UsageError: there is no such slot.
    """
    for slot in wanted or ():
        if not 0 <= slot < len(fleet):
            raise UsageError(f"there is no node {slot}; {fleet.spec} has 0 to {len(fleet) - 1}")
    return sorted(set(wanted)) if wanted else list(range(len(fleet)))


def printed(fleet: Fleet, slot: int, command: str) -> Iterator[bytes]:
    """Run a command on a node and yield what it prints.

    Raises:
        WorkflowsError: it failed; shows its stderr.
    """
    said = b""
    message = {"op": "exec", "command": command, "timeout_s": 0}
    for event, data in fleet.channel(slot).stream(message, "ended"):
        if data and event["fd"] == 1:
            yield data
        elif data:
            said += data
        elif event.get("status"):
            text = said.decode("utf-8", "replace").strip() or f"exited {event['status']}"
            raise WorkflowsError(f"{fleet.nodes[slot].name}: {text}")
