"""The environment of commands: on nodes, and where `workflows repro` runs one again."""

import os
import sys

# What would change, on this machine alone, what bash or Python does; and credentials: what a
# command reads from S3 comes by signed URLs.
_DROPPED = {"BASH_ENV", "ENV", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP"}
_DROPPED_PREFIXES = ("BASH_FUNC_", "AWS_")


def environment(slot: str, nodes: str, **more: str) -> "dict[str, str]":
    """Return what every command of a slot gets: this process's own, cleaned, in the C locale."""
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in _DROPPED and not name.startswith(_DROPPED_PREFIXES)
    }
    own = {"LC_ALL": "C", "PATH": path, "WORKFLOWS_SLOT": slot, "WORKFLOWS_NODES": nodes}
    return {**inherited, **own, **more}
