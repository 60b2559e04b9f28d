"""Which Python packages the commands of a node can import."""

import json
import operator
import re
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional

_LOOK = """
import importlib.metadata, json, sys
found = {}
for name in json.load(sys.stdin):
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""
# Installed packages stay while a runtime lives; missing ones may be installed meanwhile.
_there: "set[str]" = set()
_looking = threading.Lock()
_HOLDS: "dict[str, Callable[[Any, Any], bool]]" = {
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


def missing(packages: Sequence[str], env: Mapping[str, str]) -> "list[str]":
    """Return those of `packages` that commands cannot import, or only in another version.

    A package is what pip takes: a name, perhaps with bounds. The runtime itself is isolated from
    them, so the interpreter that commands get is asked, once for each package that is there.
    """
    with _looking:
        asked = [package for package in packages if package not in _there]
        versions = _versions([name_of(package) for package in asked], env) if asked else {}
        gone = [one for one in asked if not is_met(one, versions.get(name_of(one)))]
        _there.update(set(asked) - set(gone))
        return gone


def name_of(package: str) -> str:
    """Return the name of a package alone.

    >>> name_of("pandas[excel] >=2, <3")
    'pandas'
    """
    return re.split(r"[^A-Za-z0-9._-]", package.strip())[0]


def is_met(package: str, version: Optional[str]) -> bool:
    """Tell whether a version, None if there is none, is within the bounds of a package.

    Only the numbers of a release are compared: 2.0rc1 counts as 2.0.

    >>> [is_met("duckdb>=1,<2", version) for version in ("0.10.1", "1.0", "1.4.2", "2.0.0", None)]
    [False, True, True, False, False]
    >>> [is_met("pandas[excel] ~= 2.1; python_version > '3'", v) for v in ("2.0", "2.2.3", "3.0")]
    [False, True, False]
    >>> [is_met("pandas==2.*", version) for version in ("1.9", "2.2")], is_met("pandas", "1")
    ([False, True], True)
    """
    if version is None:
        return False
    bounds = re.findall(r"(~=|==|!=|>=|<=|<|>)\s*([0-9][^,;\s]*)", package.partition(";")[0])
    return all(_holds(version, sign, wanted) for sign, wanted in bounds)


def _holds(version: str, sign: str, wanted: str) -> bool:
    has, limit = _release(version), _release(wanted)
    if sign == "~=":
        return has >= limit and has[: len(limit) - 1] == limit[:-1]
    if wanted.endswith(".*"):
        return _HOLDS[sign](has[: len(limit)], limit)
    size = max(len(has), len(limit))
    return _HOLDS[sign](_filled(has, size), _filled(limit, size))


def _release(version: str) -> "tuple[int, ...]":
    found = re.match(r"v?(?:\d+!)?(\d+(?:\.\d+)*)", version)
    return tuple(map(int, found[1].split("."))) if found else ()


def _filled(release: "tuple[int, ...]", size: int) -> "tuple[int, ...]":
    return release + (0,) * (size - len(release))


def _versions(names: Sequence[str], env: Mapping[str, str]) -> "dict[str, str]":
    found = subprocess.run(
        [sys.executable, "-c", _LOOK],
        input=json.dumps(sorted(names)).encode("ascii"),
        stdout=subprocess.PIPE,
        env=dict(env),
        check=True,
    )
    versions: dict[str, str] = json.loads(found.stdout)
    return versions
