"""The attributes of a step's class, compared with those that steps know when the class is made.

A misspelt attribute would be ignored without a word, and a text in place of a tuple read letter by
letter.
"""

import difflib
import inspect
import math
import os
import re
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import luigi

from workflows.errors import KeyNameError, UsageError
from workflows.node.keys import check_name
from workflows.planning.gather import Gather

_ALIKE = 0.8  # difflib's ratio from which on a name counts as misspelt
_OTHERS = {"cmd": "command", "law": "laws"}
_SHORTEST = 4  # one letter makes another word of a shorter name: pipe is not pip
# Of every step, and a class may state them all the same.
_OPEN = ("name", "ledger", "resources")
_ONLY = {"balanced": ("to_n", "MapToN"), "gather": ("from_n", "MapFromN")}
# How else one may call the step that a step reads.
_UPSTREAM = (
    *("parent", "parents", "previous", "prev", "predecessor", "inputs", "reads", "reads_from"),
    *("depends", "depends_on", "dependency", "dependencies", "after", "up", "require", "required"),
)
# Luigi's methods that steps have already, and how a step states what others write there.
_LUIGI = {
    "requires": "write upstream = ... for the step that it reads",
    "run": "write command = ... for the work",
    "output": "a step keeps its outputs itself",
    "complete": "a step finds out itself what is done",
    "input": "a command reads its input on stdin",
}


def check(kind: type, root: type) -> None:
    """Check what a new class of steps states; `root` is the class in which all steps begin.

    A mixin is checked with the first step that has it. Not looked at: names that begin with an
    underscore, constants in capitals, Luigi parameters, classes that are no steps, and methods but
    those of Luigi's by which steps work.

    Raises:
        UsageError: an attribute is misspelt, of the wrong type, or hides something of every step.
    """
    for name, rule in _RULES.items():
        value = inspect.getattr_static(kind, name, None)
        wrong = "" if _is_computed(value) or value is None else rule(value)
        if isinstance(value, FunctionType):
            wrong = "is a method: write @property above it"
        if wrong:
            raise UsageError(f"{name} of {_called(kind)} {wrong}")
    _check_kind(kind)
    _check_name(kind)
    mixins = [one for one in kind.__mro__ if not issubclass(one, root) and one not in root.__mro__]
    for owner in [kind, *mixins]:
        for name, value in vars(owner).items():
            if not name.startswith("_"):
                _check_own(kind, owner, root, name, value)


def check_value(step: str, name: str, value: Any) -> None:
    """Check what a property of a step returned.

    Raises:
        UsageError: it is of the wrong type.
    """
    if wrong := _RULES[name](value):
        raise UsageError(f"{name} of {step} {wrong}")


def _check_kind(kind: type) -> None:
    mode = getattr(kind, "mode", None)
    for name, (wanted, called) in _ONLY.items():
        if mode not in (None, wanted) and inspect.getattr_static(kind, name, None):
            raise UsageError(
                f"{name} is of a {called} alone; {_called(kind)} is another: remove it"
            )


def _check_name(kind: type) -> None:
    """Check that a stated name can be that of a ledger and of a directory of a checkpoint."""
    name = inspect.getattr_static(kind, "name", "")
    if _is_computed(name):
        return
    try:
        check_name(name if isinstance(name, str) else "")
        is_one = "/" not in name
    except KeyNameError:
        is_one = False
    if not is_one:
        raise UsageError(
            f"name of {_called(kind)} must be a text that can name a directory, not {_shown(name)}"
        )


def _check_own(kind: type, owner: type, root: type, name: str, value: Any) -> None:
    hidden = _hidden(kind, owner, name)
    if name in _LUIGI and not _is_ours(owner):
        _check_method(kind, name, value)
    if hidden is None:
        _check_spelling(kind, root, name, value)
    elif isinstance(hidden[1], luigi.Parameter) and hidden[0] in root.__mro__:
        if not isinstance(value, luigi.Parameter):
            raise UsageError(
                f"{name} of {_called(kind)} is a parameter of every step, and a plain attribute"
                f" would not get to the steps before it: give --{name}, or write"
                f" {name} = luigi.Parameter(default=...)"
            )
    elif name not in (*_RULES, *_OPEN) and _is_plain(value) and _is_used(*hidden):
        raise UsageError(
            f"{name} of {_called(kind)} hides what every step has under that name; begin a name"
            f" of your own with an underscore: _{name}"
        )


def _hidden(kind: type, owner: type, name: str) -> "tuple[type, Any] | None":
    """Return what a class's attribute takes the place of, and whose that is."""
    later = kind.__mro__[kind.__mro__.index(owner) + 1 :]
    return next(((one, vars(one)[name]) for one in later if name in vars(one)), None)


def _is_used(owner: type, hidden: Any) -> bool:
    """Tell whether it is a method or property by which steps work."""
    return _is_ours(owner) and (isinstance(hidden, FunctionType) or _is_computed(hidden))


def check_decorated(kind: type, root: type) -> None:
    """Check what a decorator, as Luigi's `requires` is one, made of a class that was checked.

    Raises:
        UsageError: a method by which steps work is another one.
    """
    for name in _LUIGI:
        owner = next(one for one in kind.__mro__ if name in vars(one))
        if not _is_ours(owner) and owner not in root.__mro__:
            _check_method(kind, name, vars(owner)[name])


def _check_method(kind: type, name: str, value: Any) -> None:
    """Check that what stands for one of Luigi's methods goes on to that of steps."""
    if not (isinstance(value, FunctionType) and "super" in value.__code__.co_names):
        raise UsageError(
            f"{name} of {_called(kind)} takes the place of what every step has under that name:"
            f" {_LUIGI[name]}; to add to it, call super().{name}()"
        )


def _check_spelling(kind: type, root: type, name: str, value: Any) -> None:
    if name in _RULES or name.isupper() or isinstance(value, luigi.Parameter):
        return
    is_step = _are_steps(value, root)
    if not (_is_plain(value) or _is_computed(value) or is_step):
        return
    meant = _meant(name)
    if is_step and name.lower() in _UPSTREAM:
        meant = "upstream"  # a step without one would read URLs in place of outputs
    if meant and not _is_stated(kind, meant):
        raise UsageError(
            f"{_called(kind)} states {name}, which no step has: did you mean {meant}? Begin a name"
            f" of your own with an underscore: _{name}"
        )


def _are_steps(value: Any, root: type) -> bool:
    """Tell whether a value is a step's class, or several."""
    some = value if isinstance(value, list | tuple) else (value,)
    return bool(some) and all(isinstance(one, type) and issubclass(one, root) for one in some)


def _meant(name: str) -> str:
    """Return the attribute that a misspelt name is for, or nothing.

    >>> _meant("durabel"), _meant("timeout"), _meant("file"), _meant("pips"), _meant("pipe")
    ('durable', 'timeout_s', 'files', 'pip', '')
    """
    if name in _OTHERS:
        return _OTHERS[name]
    if name.replace("_", "").startswith("timeout"):
        return "timeout_s"
    if name[-1:].isdigit():
        return ""  # command1, command2: parts of a command
    if name in (f"{short}s" for short in _RULES if len(short) < _SHORTEST):
        return name[:-1]
    known = [known for known in _RULES if len(known) >= _SHORTEST]
    return "".join(difflib.get_close_matches(name.lower(), known, 1, _ALIKE))


def _is_stated(kind: type, name: str) -> bool:
    """Tell whether a class of the user's own states an attribute: then another is none misspelt."""
    return any(name in vars(one) for one in kind.__mro__ if not _is_ours(one))


def _is_ours(kind: type) -> bool:
    return "_is_base_of_steps" in vars(kind)


def _is_computed(value: Any) -> bool:
    """Tell whether a class holds what makes a value, not the value: a property or a parameter."""
    return isinstance(value, luigi.Parameter) or (
        hasattr(type(value), "__get__") and not isinstance(value, FunctionType)
    )


def _is_plain(value: Any) -> bool:
    return not callable(value) and not _is_computed(value)


def _called(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


# -- one rule an attribute: what is wrong with a value, or nothing ---------------------------------


def _upstream(value: Any) -> str:
    if isinstance(value, type) and hasattr(value, "shards"):
        return ""
    named = value if isinstance(value, str) else type(value).__name__
    hint = f"write upstream = {named}" if str(named).isidentifier() else "write the class's name"
    return f"must be a step's class, not {_shown(value)}: {hint}, without quotes or parentheses"


def _command(value: Any) -> str:
    if not isinstance(value, str):
        return f"must be a text, what bash runs, not {_shown(value)}"
    if "\0" in value:
        return "holds a NUL, which no command can"
    return "" if value.strip() else "is empty: every output would be"


def _texts(value: Any) -> str:
    if isinstance(value, str | bytes | os.PathLike):
        return f"must be a tuple of texts, not one text: write ({os.fspath(value)!r},)"
    if not isinstance(value, Sequence):
        return f"must be a tuple of texts, not {_shown(value)}"
    odd = [one for one in value if not isinstance(one, str | os.PathLike)]
    return f"must hold texts alone, not {_shown(odd[0])}" if odd else ""


def _switch(value: Any) -> str:
    return "" if isinstance(value, bool) else f"must be True or False, not {_shown(value)}"


def _seconds(value: Any) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and math.isfinite(value) and value >= 0:
        return ""
    return f"must be a number of seconds, 0 for no limit, not {_shown(value)}"


def _limit(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return ""
    if isinstance(value, str) and re.fullmatch(r"\d{1,3}(\.\d+)?%", value):
        return "" if float(value[:-1]) <= 100 else f"must be at most 100%, not {value}"
    return f"must be a number of keys, or a part of them such as '5%', not {_shown(value)}"


def _rule(value: Any) -> str:
    if isinstance(value, Gather):
        return ""
    is_class = isinstance(value, type) and issubclass(value, Gather)
    example = f"{value.__name__}()" if is_class else "Prefix()"
    return f"must be a rule of workflows.steps, not {_shown(value)}: write gather = {example}"


def _shown(value: Any) -> str:
    text = value.__name__ if isinstance(value, type) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_RULES: dict[str, Callable[[Any], str]] = {
    "upstream": _upstream,
    "command": _command,
    "files": _texts,
    "laws": _texts,
    "total_laws": _texts,
    "pip": _texts,
    "durable": _switch,
    "allow_empty": _switch,
    "max_failed": _limit,
    "balanced": _switch,
    "gather": _rule,
    "timeout_s": _seconds,
}
