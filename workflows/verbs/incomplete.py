"""Typed maps that have begun but not completed: their output is incomplete.

A map notes on a node what it is to make, and takes the note away once it has. So a map that failed
or was killed is known to the next one, which would work on what there happens to be.
"""

import contextlib
import json
import shlex
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

from workflows.errors import NodeLost, UsageError
from workflows.fleets.fleet import Fleet
from workflows.node.keys import digest_of, node_for
from workflows.verbs.fleetkeys import Found, Name, Pattern, listing, parse_folder

_NAMED = 3
Records = Callable[[Iterable[Found]], dict[str, dict[str, Any]]]


class Note(NamedTuple):
    """One map: how it is typed, and the keys that it is to make, by their names in the step."""

    verb: str
    source: str
    target: str
    command: str
    fleet: str  # the option, if it is not the default
    wanted: list[str]

    @property
    def made(self) -> Name:
        """Return the directory that the keys go into."""
        return parse_folder(self.target)

    @property
    def name(self) -> str:
        """Return what tells this map from others; another command makes it no other one."""
        return name_of(self.verb, self.source, self.target)

    def __str__(self) -> str:
        option = ["--fleet", self.fleet] if self.fleet else []
        return shlex.join(["workflows", self.verb, *option, self.source, self.target, self.command])


def name_of(verb: str, source: str, target: str) -> str:
    """Return the name under which a map is noted."""
    return digest_of([verb, source, target])


def write(fleet: Fleet, note: Note) -> None:
    """Note that a map begins."""
    _send(fleet, note.made.step, note.name, json.dumps(note))


def clear(fleet: Fleet, note: Note) -> None:
    """Take the note of a map away, if there is one; one that stays does no harm."""
    with contextlib.suppress(NodeLost):
        _send(fleet, note.made.step, note.name, "")


def clear_below(fleet: Fleet, prefix: Name) -> None:
    """Take away the notes of all maps into what was removed."""
    for note in _notes(fleet, prefix.step):
        if note.made.rest.startswith(prefix.rest):
            clear(fleet, note)


def refuse(fleet: Fleet, pattern: Pattern, records: Records, own: str) -> None:
    """Refuse to read what a map has yet to make, but for the one that is noted as `own`.

    Raises:
        UsageError: names the keys that are missing, and the command that makes them.
    """
    notes = [note for note in _notes(fleet, pattern.step) if note.name != own]
    if not notes:
        return
    found, errors = listing(fleet, pattern.step)
    if errors:
        raise errors[0]
    for note in notes:
        missing, undelivered = _missing(note, found, records)
        if not missing and not undelivered:
            clear(fleet, note)
        elif any(_may_read(pattern, n, note.verb == "map-to-n") for n in missing + undelivered):
            names = missing or undelivered
            shown = ", ".join(f"{pattern.step}/{name}" for name in names[:_NAMED])
            shown += ", ..." if names[_NAMED:] else ""
            are = "keys are missing" if missing else "keys have files that are not delivered"
            raise UsageError(
                f"{note.target} is not complete: {len(names)} of {len(note.wanted)} {are}"
                f" ({shown}): the {note.verb} that makes them failed or was ended. Run it again:"
                f" {note}\nOr start over: workflows rm -r {note.target}"
            )


def _missing(note: Note, found: Collection[Found], records: Records) -> tuple[list[str], list[str]]:
    """Return the keys that a map has yet to make, and of 1:n those not delivered to the end."""
    there = {one.name.rest for one in found if not one.is_made}
    if note.verb != "map-to-n":
        return [name for name in note.wanted if name not in there], []
    made = {one.name.rest: one for one in found if one.is_made}
    told = records(made[name] for name in note.wanted if name in made)

    def is_delivered(name: str) -> bool:
        pieces = told.get(made[name].identity, {}).get("pieces")
        return pieces is not None and all(f"{name}/{part[0]}" in there for part in pieces)

    missing = [name for name in note.wanted if name not in made]
    return missing, [name for name in note.wanted if name in made and not is_delivered(name)]


def _may_read(pattern: Pattern, name: str, is_folder: bool) -> bool:
    """Tell whether a map over `pattern` would read a key, or any file that a 1:n key may make.

    >>> (
    ...     _may_read(Pattern("out", "", "*/a"), "x", True),
    ...     _may_read(Pattern("out", "", "*"), "x", True),
    ... )
    (True, False)
    >>> (
    ...     _may_read(Pattern("out", "x/", ""), "x", True),
    ...     _may_read(Pattern("out", "y/", ""), "x", True),
    ... )
    (True, False)
    """
    if not is_folder:
        return pattern.relative(name) is not None
    if not pattern.glob:
        return f"{name}/".startswith(pattern.folder) or pattern.folder.startswith(f"{name}/")
    *folders, _ = pattern.glob.split("/")
    return pattern._replace(glob="/".join(folders)).relative(name) is not None if folders else False


def _notes(fleet: Fleet, step: str) -> list[Note]:
    texts = _asked(fleet, step, {"op": "notes"}, "notes")["texts"]
    found = [Note(*json.loads(text)) for text in texts]
    return [note for note in found if note.made.step == step]


def _send(fleet: Fleet, step: str, name: str, text: str) -> None:
    _asked(fleet, step, {"op": "note", "name": name, "text": text}, "noted")


def _asked(fleet: Fleet, step: str, message: dict[str, Any], answer: str) -> dict[str, Any]:
    """Ask the node that keeps the notes of a step; its runtime may have died since it was used."""
    slot = node_for(step, len(fleet))
    try:
        return fleet.channel(slot).one(message, answer)
    except NodeLost:
        fleet.revive(slot, wait=False)
        return fleet.channel(slot).one(message, answer)
    finally:
        fleet.drop(slot)
