"""The command line of `workflows cron`: some words are its own, all others are Luigi's."""

import fcntl
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from workflows.unattended.refusal import Refused

_VALUED = ("--task", "--module", "--timeout", "--notify", "--to", "--fleet")
_FLAGS = ("--keep-fleet", "--help", "-h")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_DURATION = re.compile(r"([0-9]{1,9})([smhd]?)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_GRACE = re.compile(r"[0-9]{1,9}")


class Options(NamedTuple):
    """One run. `fleet` is the name of an EC2 fleet or empty; 0 as `timeout_s` is no limit."""

    module: str
    task: str
    fleet: str
    keep_fleet: bool
    to: str
    timeout_s: int
    grace_s: int
    notify: str
    luigi: tuple[str, ...]


def split(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return option -> value of what is meant for this verb, and the words that Luigi gets.

    Both get `--fleet`. Everything after `--` is Luigi's.

    >>> split(["--to=x", "--source", "y", "--", "--to", "z"])
    ({'--to': 'x'}, ['--source', 'y', '--to', 'z'])

    Raises:
        Refused: an option needs a value.
    """
    own: dict[str, str] = {}
    luigi: list[str] = []
    left = iter(words)
    for word in left:
        option, equals, value = word.partition("=")
        if word == "--":
            luigi += left
        elif option in _VALUED:
            given = [word]
            if not equals:
                value = _next(left, option)
                given.append(value)
            own[option] = value
            luigi += given if option == "--fleet" else []
        elif word in _FLAGS:
            own[word] = "yes"
        else:
            luigi.append(word)
    return own, luigi


def _next(left: Iterator[str], option: str) -> str:
    value = next(left, None)
    if value is None:
        raise Refused(f"{option} needs a value; see --help")
    return value


def asks_for_help(words: Sequence[str]) -> bool:
    """Tell whether `--help` is among the words, and no value of an option, nor Luigi's."""
    try:
        own, _ = split(words)
    except Refused:
        return False
    return not own.keys().isdisjoint(("--help", "-h"))


def read(words: Sequence[str], environ: Mapping[str, str], directory: str) -> Options:
    """Return what the words and the environment ask for; a relative `--to` is below `directory`.

    Raises:
        Refused: a value is wrong, or the file of `--to` cannot be replaced.
    """
    own, luigi = split(words)

    def value(option: str, default: str = "") -> str:
        variable = "WORKFLOWS_" + option.removeprefix("--").upper()
        return own.get(option, environ.get(variable, default))

    fleet = value("--fleet")
    return Options(
        module=_name(own.get("--module", "workflows.tasks"), "--module", "a module"),
        task=_name(own.get("--task", "MergeCounts"), "--task", "a task"),
        fleet=fleet.removeprefix("ec2:") if fleet.startswith("ec2:") else "",
        keep_fleet="--keep-fleet" in own,
        to=_replaceable(own["--to"], directory) if "--to" in own else "",
        timeout_s=_seconds(value("--timeout")),
        grace_s=_grace(environ.get("WORKFLOWS_GRACE", "")),
        notify=value("--notify"),
        luigi=tuple(luigi),
    )


def _name(text: str, option: str, kind: str) -> str:
    if _NAME.fullmatch(text) is None:
        raise Refused(f"{option} '{text}' is not the name of {kind}")
    return text


def _seconds(text: str) -> int:
    match = _DURATION.fullmatch(text or "0")
    if match is None:
        raise Refused(f"--timeout '{text}' is not a duration; write 90, 90s, 30m, 2h or 1d")
    return int(match[1]) * _UNITS[match[2]]


def _grace(text: str) -> int:
    if _GRACE.fullmatch(text or "30") is None:
        raise Refused(f"WORKFLOWS_GRACE '{text}' is not a number of seconds; write 30, say")
    return int(text or "30")


def _replaceable(to: str, directory: str) -> str:
    """Return the file that `--to` means, where a link leads.

    Raises:
        Refused: it cannot be replaced: better now than after hours of work.
    """
    if not to:
        raise Refused("--to needs the name of a file")
    path = os.path.realpath(os.path.join(directory, to))
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise Refused(f"--to {to}: there is no such directory")
    if os.path.lexists(path) and not os.path.isfile(path):
        raise Refused(f"--to {path} is not a regular file")
    if not os.access(folder, os.W_OK):
        raise Refused(f"--to {path}: {folder}/ cannot be written to")
    return path


def require_reader(options: Options) -> None:
    """See to it that the result has somewhere to go.

    Raises:
        Refused: stdout is closed, and no file is named.
    """
    try:
        is_open = fcntl.fcntl(1, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
    except OSError:
        is_open = False
    if not is_open and not options.to:
        raise Refused(
            "stdout is closed, so the result would be lost; add --to FILE, or >/dev/null if you do"
            " not want it"
        )


def configuration(environ: Mapping[str, str], directory: str) -> str:
    """Return the file whose values win over the luigi.cfg here: that of the environment, or it.

    Raises:
        Refused: the file that the environment names cannot be read.
    """
    named = environ.get("LUIGI_CONFIG_PATH", "")
    path = os.path.realpath(os.path.join(directory, named or os.path.abspath("luigi.cfg")))
    if named and not os.access(path, os.R_OK):
        raise Refused(f"LUIGI_CONFIG_PATH={named} cannot be read")
    return path
