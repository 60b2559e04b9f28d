"""Requests to EC2 read back by the service's own model: names, kinds, enumerations, patterns.

botocore checks shapes before it sends, but neither enumerations nor patterns, nor what was sent by
anything else. What the model does not say is not checked here.
"""

import datetime as dt
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

from aws.ec2_rules import RULES

# Texts that may be empty.
_MAY_BE_EMPTY = re.compile(r"(Tag\.\d+\.Value|Filter\.\d+\.Value\.\d+|Description|\.Value)$")
_FILTER = re.compile(r"<code>([^<]+)</code>\s*[^a-z<]")


@functools.cache
def model() -> Any:
    """Return botocore's model of EC2."""
    import botocore.session

    return botocore.session.get_session().get_service_model("ec2")


def read(action: str, body: Mapping[str, str]) -> dict[str, Any]:
    """Return the parameters of a request, nested, by their names in the API.

    Raises:
        Refusal: EC2 would not take them.
    """
    if action not in model().operation_names:
        raise RULES["action"].refuse(action=action)
    shape = model().operation_model(action).input_shape
    tree: dict[str, Any] = {}
    for name, value in body.items():
        if name in {"Action", "Version"}:
            continue
        at = tree
        *parts, last = name.split(".")
        for part in parts:
            at = at.setdefault(part, {})
            if not isinstance(at, dict):
                raise RULES["unknown parameter"].refuse(name=name)
        at[last] = value
    found: dict[str, Any] = _value(shape, tree, "")
    _check_filters(shape, found)
    return found


def _value(shape: Any, given: Any, where: str) -> Any:
    if shape.type_name in {"structure", "list"}:
        if not isinstance(given, dict):
            raise RULES["value"].refuse(name=where, value=str(given))
        return (_structure if shape.type_name == "structure" else _list)(shape, given, where)
    if not isinstance(given, str):
        raise RULES["unknown parameter"].refuse(name=f"{where}.{next(iter(given))}")
    if shape.type_name == "string":
        return _text(shape, given, where)
    try:
        return _KINDS[shape.type_name](given)
    except (KeyError, ValueError) as error:
        raise RULES["value"].refuse(name=where, value=given) from error


def _structure(shape: Any, given: dict[str, Any], where: str) -> dict[str, Any]:
    names = {_sent(name, member): (name, member) for name, member in shape.members.items()}
    found = {}
    for sent, value in given.items():
        path = f"{where}.{sent}" if where else sent
        if sent not in names:
            raise RULES["unknown parameter"].refuse(name=path)
        name, member = names[sent]
        found[name] = _value(member, value, path)
    for name in shape.required_members:
        if name not in found:
            raise RULES["missing parameter"].refuse(name=f"{where}.{name}" if where else name)
    return found


def _list(shape: Any, given: dict[str, Any], where: str) -> list[Any]:
    wanted = [str(number + 1) for number in range(len(given))]
    if sorted(given) != sorted(wanted):
        raise RULES["unknown parameter"].refuse(name=f"{where}.{next(iter(given))}")
    most = shape.metadata.get("max")
    if most is not None and len(given) > most:
        raise RULES["value"].refuse(name=where, value=f"{len(given)} items")
    return [_value(shape.member, given[number], f"{where}.{number}") for number in wanted]


def _text(shape: Any, given: str, where: str) -> str:
    about = shape.metadata
    if not given and not _MAY_BE_EMPTY.search(where):
        raise RULES["empty"].refuse(name=where)
    if "enum" in about and given not in about["enum"]:
        raise RULES["value"].refuse(name=where, value=given)
    pattern = about.get("pattern")
    if pattern and not re.fullmatch(pattern, given):
        raise RULES["value"].refuse(name=where, value=given)
    if not about.get("min", 0) <= len(given) <= about.get("max", 1 << 30):
        raise RULES["length"].refuse(name=where, value=given[:60], most=str(about.get("max")))
    return given


def _flag(text: str) -> bool:
    return {"true": True, "false": False}[text]


_KINDS: dict[str, Callable[[str], Any]] = {
    "integer": int,
    "long": int,
    "double": float,
    "float": float,
    "boolean": _flag,
    "timestamp": lambda text: dt.datetime.fromisoformat(text.replace("Z", "+00:00")),
    "blob": str,
}


def _sent(name: str, member: Any) -> str:
    """Return what a member is called on the wire."""
    about = member.serialization
    if "queryName" in about:
        return str(about["queryName"])
    text = str(about.get("name", name))
    return text[0].upper() + text[1:]


def _check_filters(shape: Any, found: Mapping[str, Any]) -> None:
    for name in ("Filters", "Filter"):
        if name not in found:
            continue
        known = set(_FILTER.findall(shape.members[name].documentation))
        for one in found[name]:
            text = one.get("Name", "")
            if known and text not in known and not text.startswith("tag:"):
                raise RULES["filter"].refuse(name=text)
