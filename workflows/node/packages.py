"""Which Python packages the commands of a node can import."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence

_LOOK = """
import importlib.metadata, json, sys
missing = []
for name in json.load(sys.stdin):
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        missing.append(name)
print(json.dumps(missing))
"""


def missing(packages: Sequence[str], env: Mapping[str, str]) -> "list[str]":
    """Return those of `packages` (as pip knows them) that are not installed for commands.

    The runtime itself is isolated from them, so the interpreter that commands get is asked.
    """
    names = {re.split(r"[^A-Za-z0-9._-]", package)[0]: package for package in packages}
    found = subprocess.run(
        [sys.executable, "-c", _LOOK],
        input=json.dumps(sorted(names)).encode("ascii"),
        stdout=subprocess.PIPE,
        env=dict(env),
        check=True,
    )
    return [names[name] for name in json.loads(found.stdout)]
