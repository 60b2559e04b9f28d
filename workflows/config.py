"""Settings: a flag beats ``WORKFLOWS_*`` in the environment, which beats luigi.cfg, then defaults.

Read once per process; every bad value is reported together. The sections and keys are those of the
dataclass below; luigi.cfg holds Luigi's own sections beside them.
"""

import configparser
import dataclasses
import difflib
import functools
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping

from workflows.errors import ConfigError, UsageError

# Where Luigi looks, in its order: a later file wins.
_PATHS = ("/etc/luigi/client.cfg", "/etc/luigi/luigi.cfg", "client.cfg", "luigi.cfg")
_ADDRESSING = ("auto", "path", "virtual")
_COMPRESS = ("none", "zstd", "gzip")
_NODES = ("signed", "role")
_HTTP = ("http://", "https://")
_DURATION = re.compile(r"(\d{1,6})([smhd]?)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
# Variables that are no settings: of run_pipeline.sh and what it starts, and of what fetches.
_OTHER_VARIABLES = frozenset(
    "WORKFLOWS_" + name
    for name in (
        *("LOG", "TIMEOUT", "NOTIFY", "GRACE", "EXIT", "TASK", "SECONDS"),
        *("FETCH_ATTEMPTS", "FETCH_BACKOFF_S"),
    )
)
# Variables in a command's environment; a command may well run a verb. Elsewhere WORKFLOWS_SLOT
# is a misspelt WORKFLOWS_SLOTS.
_IN_A_COMMAND = ("WORKFLOWS_RUNTIME", "WORKFLOWS_KEY")
_OF_COMMANDS = frozenset(
    "WORKFLOWS_" + name
    for name in (
        *("RUNTIME", "KEY", "STEP", "SLOT", "NODES", "METRICS", "ETAG", "SIZE", "RUN", "ROOT"),
    )
)
_PREFIX = "WORKFLOWS_"
_NEAR_SECTION = 0.75
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\*?")
_NEVER_PASSED = {"filename", "TMPDIR", "PATH", "LC_ALL", "BASH_ENV", "ENV", "PYTHONHOME"}
_SECRET = re.compile(r"SECRET|TOKEN|PASS|KEY|CREDENTIAL", re.IGNORECASE)
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


class Duration(int):
    """Seconds, written as `duration_s` reads them."""


def _setting(  # noqa: PLR0913 - all that there is to say about one
    section: str,
    key: str,
    default: object,
    *,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] = (),
) -> object:
    about = {"section": section, "key": key, "least": least, "most": most, "choices": choices}
    return dataclasses.field(default=default, metadata=about)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every setting there is; docs/reference.md and luigi.cfg explain each."""

    source: str = _setting("source", "url", "samples/taxi")  # type: ignore[assignment]
    pattern: str = _setting("source", "pattern", "*")  # type: ignore[assignment]
    fleet: str = _setting("fleet", "spec", "local:3")  # type: ignore[assignment]
    checkpoint: str = _setting("checkpoint", "url", ".workflows/checkpoint")  # type: ignore[assignment]
    fuse: bool = _setting("run", "fuse", default=False)  # type: ignore[assignment]
    state: str = _setting("run", "state", ".workflows")  # type: ignore[assignment]
    key_tasks: int = _setting("run", "key_tasks", 32, least=0)  # type: ignore[assignment]
    shards: int = _setting("run", "shards", 12, least=1)  # type: ignore[assignment]
    deadline_s: int = _setting("run", "deadline", Duration(0))  # type: ignore[assignment]
    strict: bool = _setting("run", "strict", default=False)  # type: ignore[assignment]
    retries: int = _setting("run", "retries", 2, least=0)  # type: ignore[assignment]
    log_url: str = _setting("run", "log_url", "")  # type: ignore[assignment]
    slots: int = _setting("node", "slots", 0, least=0)  # type: ignore[assignment]
    timeout_s: float = _setting("node", "timeout", 0.0, least=0)  # type: ignore[assignment]
    silence_s: float = _setting("node", "silence", 20.0, least=1)  # type: ignore[assignment]
    pass_env: tuple[str, ...] = _setting("node", "pass_env", ())  # type: ignore[assignment]
    secrets: tuple[str, ...] = _setting("node", "secrets", ())  # type: ignore[assignment]
    s3_endpoint_url: str = _setting("s3", "endpoint_url", "")  # type: ignore[assignment]
    s3_region: str = _setting("s3", "region", "")  # type: ignore[assignment]
    s3_addressing: str = _setting("s3", "addressing", "auto", choices=_ADDRESSING)  # type: ignore[assignment]
    s3_profile: str = _setting("s3", "profile", "")  # type: ignore[assignment]
    s3_nodes: str = _setting("s3", "nodes", "signed", choices=_NODES)  # type: ignore[assignment]
    # S3 takes no signature (version 4) for more than a week.
    s3_signature_s: int = _setting("s3", "signature", 6 * 3600, least=1, most=604800)  # type: ignore[assignment]
    s3_multipart_mb: int = _setting("s3", "multipart_mb", 256, least=5)  # type: ignore[assignment]
    s3_compress: str = _setting("s3", "compress", "none", choices=_COMPRESS)  # type: ignore[assignment]

    @classmethod
    def names(cls) -> dict[tuple[str, str], dataclasses.Field[object]]:
        """Return (section, key) -> field."""
        fields = dataclasses.fields(cls)
        return {(field.metadata["section"], field.metadata["key"]): field for field in fields}


def parse(sections: Mapping[str, Mapping[str, str]], environ: Mapping[str, str]) -> Settings:
    """Build settings from the sections of a configuration and the environment.

    Raises:
        ConfigError: names every unknown key, with the nearest known one, and every bad value.
    """
    problems: list[str] = []
    values: dict[str, object] = {}
    names = Settings.names()
    known = {section for section, _ in names}
    for section, entries in sections.items():
        if section not in known:
            problems += _misspelt_section(section, entries, names)
            continue
        for key, text in entries.items():
            field = names.get((section, key))
            if field is None:
                problems.append(_unknown(section, key, [k for s, k in names if s == section]))
            else:
                _take(values, problems, field, text, f"[{section}] {key}")
    variables = {"WORKFLOWS_" + field.name.upper(): field for field in names.values()}
    for variable in variables.keys() & environ.keys():
        _take(values, problems, variables[variable], environ[variable], variable)
    problems += _unknown_variables(environ.keys() - variables.keys(), sorted(variables))
    if problems:
        raise ConfigError(problems)
    return Settings(**values)  # type: ignore[arg-type]


@functools.lru_cache(maxsize=1)
def settings() -> Settings:
    """Return this process's settings, read from where Luigi reads its own."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    paths = [*_PATHS, os.environ.get("LUIGI_CONFIG_PATH", "")]
    try:
        parser.read([path for path in paths if path], encoding="utf-8")
    except configparser.Error as error:
        raise ConfigError([str(error)]) from error
    sections = {name: dict(parser[name]) for name in parser.sections()}
    return parse(sections, os.environ)


def _unknown(section: str, key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, 1) or sorted(known)
    return f"[{section}] {key}: no such setting; did you mean {near[0]!r}?"


def _misspelt_section(
    section: str, entries: Iterable[str], names: Iterable[tuple[str, str]]
) -> Iterator[str]:
    """Yield what is wrong with a section that is called nearly as one of ours, and has its keys.

    Other sections are Luigi's, or those of tasks.
    """
    known = sorted({ours for ours, _ in names})
    for near in difflib.get_close_matches(section.lower(), known, 1, _NEAR_SECTION):
        keys = [key for ours, key in names if ours == near]
        if any(difflib.get_close_matches(key, keys, 1, _NEAR_SECTION) for key in entries):
            yield f"[{section}]: no such section; did you mean [{near}]?"


def _unknown_variables(names: Iterable[str], known: list[str]) -> Iterator[str]:
    """Yield what is wrong with variables that are called as settings are."""
    found = {name for name in names if name.startswith(_PREFIX)} - _OTHER_VARIABLES
    if found.intersection(_IN_A_COMMAND):
        found -= _OF_COMMANDS
    for name in sorted(found):
        bare = [one.removeprefix(_PREFIX) for one in known]
        near = difflib.get_close_matches(name.removeprefix(_PREFIX), bare, 1)
        hint = f"did you mean {_PREFIX + near[0]!r}?" if near else "rename it, or unset it"
        yield f"{name}: no such setting; {hint}"


def _take(
    values: dict[str, object],
    problems: list[str],
    field: dataclasses.Field[object],
    text: str,
    where: str,
) -> None:
    try:
        values[field.name] = _converted(field, text.strip())
    except ValueError as error:
        problems.append(f"{where} = {text}: {error}")


def _converted(field: dataclasses.Field[object], text: str) -> object:
    kind = type(field.default)
    if kind is Duration:
        return Duration(duration_s(text))
    if kind is bool:
        return _flag(text)
    if kind is str:
        return _text(field, text)
    if kind is tuple:
        return _variables(text)
    try:
        value: int | float = kind(text)  # type: ignore[call-arg,assignment]
    except ValueError:
        raise ValueError(f"must be {'a whole number' if kind is int else 'a number'}") from None
    if not math.isfinite(value):
        raise ValueError("must be a number")
    _check_bounds(value, field.metadata["least"], field.metadata["most"])
    return value


def _check_bounds(value: float, least: float, most: float | None) -> None:
    if value < least:
        raise ValueError(f"must be at least {least}")
    if most is not None and value > most:
        raise ValueError(f"must be at most {most}")


def _text(field: dataclasses.Field[object], text: str) -> str:
    choices = field.metadata["choices"]
    if field.name == "s3_compress" and text.lower() in _TRUE + _FALSE:
        return "zstd" if _flag(text) else "none"
    if choices and text not in choices:
        raise ValueError(f"must be one of {', '.join(choices)}")
    if text and field.name == "s3_endpoint_url" and not text.startswith(_HTTP):
        raise ValueError("must begin with http:// or https://")
    return text


def _variables(text: str) -> tuple[str, ...]:
    """Return the names of variables, some with a ``*`` at their end, that a setting lists."""
    names = tuple(name for name in re.split(r"[,\s]+", text) if name)
    for name in names:
        if not _VARIABLE.fullmatch(name):
            raise ValueError(
                f"{name} is not a variable's name; write AWS_PROFILE, or AWS_* for all"
            )
        if name.startswith("WORKFLOWS_") or name in _NEVER_PASSED:
            raise ValueError(f"{name} is set for commands by workflows itself, or never")
    return names


def passed(chosen: Settings, environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the variables of this machine that commands on nodes get, and values never to show.

    Of `[node] pass_env` those values are hidden whose names say that they are secret.

    >>> passed(
    ...     Settings(pass_env=("AWS_*",)),
    ...     {"AWS_REGION": "eu-west-1", "AWS_SESSION_TOKEN": "abcdef"},
    ... )
    ({'AWS_REGION': 'eu-west-1', 'AWS_SESSION_TOKEN': 'abcdef'}, ['abcdef'])

    Raises:
        UsageError: a variable that is named there is not set.
    """
    values: dict[str, str] = {}
    hidden: set[str] = set()
    for key, names in (("pass_env", chosen.pass_env), ("secrets", chosen.secrets)):
        for name in names:
            found = [one for one in environ if one == name or _matches(one, name)]
            if not found and not name.endswith("*"):
                raise UsageError(
                    f"[node] {key} names {name}, which is not set here: export {name}=..., or take"
                    f" it out of [node] {key}"
                )
            values.update((one, environ[one]) for one in found)
            hidden.update(environ[one] for one in found if key == "secrets" or _SECRET.search(one))
    return values, sorted(hidden, key=len, reverse=True)


def _matches(name: str, wanted: str) -> bool:
    is_own = name.startswith("WORKFLOWS_") or name in _NEVER_PASSED
    return wanted.endswith("*") and name.startswith(wanted[:-1]) and not is_own


def _flag(text: str) -> bool:
    if text.lower() not in _TRUE + _FALSE:
        raise ValueError("must be true or false")
    return text.lower() in _TRUE


def duration_s(text: object) -> int:
    """Return the seconds of ``90``, ``90s``, ``30m``, ``2h`` or ``1d``.

    >>> duration_s("2h"), duration_s(90)
    (7200, 90)

    Raises:
        ValueError: it is no duration.
    """
    match = _DURATION.fullmatch(str(text))
    if match is None or isinstance(text, bool):
        raise ValueError("must be a duration: 90, 90s, 30m, 2h or 1d")
    return int(match[1]) * _UNITS[match[2]]
