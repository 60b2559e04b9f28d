"""How an n:1 step gathers keys: which of them make one key, and what that is called."""

import posixpath
from collections.abc import Iterable, Sequence

from workflows.node.keys import digest_of, group_name, group_of


class Gather:
    """A rule of an n:1 step's ``gather``; use `Basename` or `Prefix`."""

    # Added to the identity of the step; nothing for the default, which is older than all rules.
    identity: str = ""

    def group(self, name: str) -> str:
        """Return what all keys have in common that make one."""
        raise NotImplementedError

    def name(self, names: Iterable[str]) -> str:
        """Return the name of the key that a group makes."""
        raise NotImplementedError


class Basename(Gather):
    """Keys of equal basenames make one, which has that name: the default.

    >>> Basename().group("2018/rides.csv")
    'rides.csv'
    """

    def group(self, name: str) -> str:
        """Return the basename."""
        return posixpath.basename(name)

    def name(self, names: Iterable[str]) -> str:
        """Return the basename that all have."""
        return posixpath.basename(next(iter(names)))


class Prefix(Gather):
    """Keys of equal numeric prefixes make one, called by it; all others go by their basenames.

    >>> Prefix().name(["2018_01.csv", "2018_02.csv"])
    '2018'
    """

    identity = "prefix"

    def group(self, name: str) -> str:
        """Return the numeric prefix, which no basename equals, else the basename."""
        return group_of(name)

    def name(self, names: Iterable[str]) -> str:
        """Return the name if all have the same, else their prefix."""
        return group_name(names)


def are_all_alone(rule: Gather, names: Sequence[str]) -> bool:
    """Tell whether there are several keys, and none meets another."""
    return len(names) > 1 and len({rule.group(name) for name in names}) == len(names)


def joined_by_prefix(names: Iterable[str]) -> str:
    """Return a digest of the prefixes of keys whose basenames differ, or nothing.

    Versions before `Prefix` joined those everywhere: their outputs are not those of `Basename`.
    """
    groups: dict[str, set[str]] = {}
    for name in names:
        groups.setdefault(group_of(name), set()).add(posixpath.basename(name))
    joined = sorted(group for group, bases in groups.items() if len(bases) > 1)
    return digest_of(joined) if joined else ""
