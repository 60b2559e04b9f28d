"""The files of a fleet's login key: whether `up` made them, and their removal with the fleet.

A key that `up` made is marked in the comment of its public half with the fleet and the region.
Nothing else is ever removed: neither a key of the user's own, nor one that two fleets share.
"""

import contextlib
import os

from workflows.ec2.config import Spec


def mark(spec: Spec) -> str:
    """Return the comment of a key that was made for this fleet.

    >>> mark(Spec("crawl", "us-east-1"))
    'workflows-crawl@us-east-1'
    """
    return f"workflows-{spec.name}@{spec.region}"


def is_ours(spec: Spec) -> bool:
    """Tell whether the login key was made for this fleet, and for no other one since."""
    try:
        with open(spec.identity + ".pub", encoding="utf-8", errors="replace") as file:
            return file.read().split()[2:] == [mark(spec)]
    except OSError:
        return False


def share(spec: Spec) -> None:
    """Take the mark off a key that was made for another fleet: this one uses it too."""
    path = spec.identity + ".pub"
    with contextlib.suppress(OSError):
        with open(path, encoding="utf-8", errors="replace") as file:
            words = file.read().split()
        if words[2:] and words[2].startswith("workflows-") and words[2:] != [mark(spec)]:
            with open(f"{path}.{os.getpid()}", "w", encoding="utf-8") as file:
                file.write(" ".join(words[:2]) + "\n")
            os.replace(f"{path}.{os.getpid()}", path)


def remove(spec: Spec) -> None:
    """Remove the files of a key that was made for this fleet.

    Raises:
        OSError: they cannot be removed.
    """
    if is_ours(spec):
        for path in (spec.identity, spec.identity + ".pub"):  # the mark last
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
