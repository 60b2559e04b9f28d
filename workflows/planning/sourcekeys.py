"""The keys of a source, and a listing's other findings: names left out, names in error."""

import fnmatch
import itertools
import posixpath

from workflows.errors import KeyNameError, SourceError, UsageError, WorkflowsError
from workflows.model import SourceKey
from workflows.node.keys import check_name
from workflows.node.urls import shown

_SHOWN = 5


class Listing:
    """The findings about one source: only names that match the pattern are judged."""

    def __init__(self, source: str, pattern: str) -> None:
        self.source, self.pattern = source, pattern
        self.keys: list[SourceKey] = []
        self.notes: list[str] = []
        self.seen = 0
        self.hint = ""  # what else may be wrong if it cannot be read or nothing matches
        self.is_given_up = False  # there may be more troubles than were found
        self.troubles: list[WorkflowsError] = []

    def wants(self, name: str) -> bool:
        """Count a name; tell whether it matches the pattern, by its last part or as a whole."""
        self.seen += 1
        return self.matches(name)

    def matches(self, name: str) -> bool:
        """Tell whether a name matches the pattern, by its last part or as a whole."""
        return fnmatch.fnmatchcase(posixpath.basename(name), self.pattern) or fnmatch.fnmatchcase(
            name, self.pattern
        )

    def add(self, key: SourceKey) -> None:
        """Take in an object whose name is wanted."""
        try:
            check_name(key.name)
        except KeyNameError as error:
            self.troubles.append(error)
        else:
            self.keys.append(key)

    def refuse(self, why: str) -> None:
        """Take in what is wrong with something that is wanted."""
        self.troubles.append(SourceError(why))

    def leave_out(self, what: str, names: list[str]) -> None:
        """Note what is left out, if there is any: how many, and the first of them."""
        if names:
            some = ", ".join(map(plain, sorted(names)[:_SHOWN]))
            more = f" and {len(names) - _SHOWN} more" if names[_SHOWN:] else ""
            self.notes.append(f"left out of {plain(shown(self.source))}: {what}: {some}{more}")

    def check(self) -> None:
        """Sort the keys, and refuse a listing that is not one of distinct keys.

        Raises:
            WorkflowsError: something that matches cannot be a key, or two would be the same.
            UsageError: nothing matches.
        """
        if len(self.troubles) == 1:
            error = self.troubles[0]
            raise SourceError(f"{error}{self.hint}") if self.hint else error
        if self.troubles:
            lines = [f"  {error}" for error in self.troubles[:_SHOWN]]
            if self.troubles[_SHOWN:]:
                lines.append(f"  ... and {len(self.troubles) - _SHOWN} more")
            count = f"{'at least ' if self.is_given_up else ''}{len(self.troubles)} names"
            said = f"{count} in {plain(shown(self.source))} cannot be read{self.hint}:"
            raise SourceError("\n".join([said, *lines]))
        if not self.keys:
            raise UsageError(
                f"nothing in {plain(shown(self.source))} matches {self.pattern!r}"
                f" ({self.seen} names were seen){self.hint}{''.join(f'; {n}' for n in self.notes)}"
            )
        self.keys.sort(key=lambda key: (key.name, key.url))
        _refuse_twins(self.keys)


def plain(name: str) -> str:
    r"""Return a name as a terminal can show it: escaped and quoted if it must be.

    >>> print(plain("a b.csv"), plain("a\nb\x1b"))
    a b.csv 'a\nb\x1b'
    """
    return name if name.isprintable() else repr(name)


def _refuse_twins(keys: list[SourceKey]) -> None:
    for one, other in itertools.pairwise(keys):
        if one.name == other.name:
            where = f"{plain(one.shown)} and {plain(other.shown)}"
            if one.shown == other.shown:
                where = (
                    f"{plain(one.shown)} is there twice, or with two queries, which name nothing"
                )
            raise SourceError(f"two keys are called {one.name!r}: {where}")
    names = {key.name for key in keys}
    for name in sorted(names):
        parent = posixpath.dirname(name)
        while parent:
            if parent in names:
                raise SourceError(f"{parent!r} is a key and also a folder of {name!r}")
            parent = posixpath.dirname(parent)
