"""fleet.yaml: the description of an EC2 fleet. Only reads and checks it; makes no AWS calls.

The same keys may stand in a section ``[ec2 NAME]`` of luigi.cfg, each value written as YAML.
"""

import configparser
import contextlib
import dataclasses
import difflib
import os
import re
from collections.abc import Mapping
from typing import Any

from workflows.config import duration_s
from workflows.errors import ConfigError, UsageError
from workflows.fleets.hosts import Limits, Login

STRATEGIES = ("price-capacity-optimized", "capacity-optimized", "diversified", "lowest-price")
# Public parameters of Systems Manager; {arch} is as each vendor spells it.
AMIS = {
    "al2023": "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-{arch}",
    "ubuntu-24.04": (
        "/aws/service/canonical/ubuntu/server/24.04/stable/current/{arch}/hvm/ebs-gp3/ami-id"
    ),
    "debian-13": "/aws/service/debian/release/13/latest/{arch}",
}
_MOST_TAGS = 35
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
# Text for a shell on the node, or for a systemd unit: no quoting needed there.
_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./~-]+")


@dataclasses.dataclass(frozen=True)
class Spot:
    """How instances are bought."""

    strategy: str = STRATEGIES[0]
    on_demand_base: int = 0
    fallback: bool = True
    max_price: float | None = None


@dataclasses.dataclass(frozen=True)
class Access:
    """Who may log in, and how."""

    allow: tuple[str, ...] = ("me",)
    address: str = "public"
    ssh_port: int = 22
    user: str = "workflows"
    identity: str = ""
    jump: Login | None = None
    checkip: str = "https://checkip.amazonaws.com"


@dataclasses.dataclass(frozen=True)
class Ttl:
    """Seconds without a driver, and seconds in all, after which a node powers itself off."""

    idle: int = 30 * 60
    max: int = 12 * 3600


@dataclasses.dataclass(frozen=True)
class Spec:
    """The description of a fleet. Docs: docs/ec2.md."""

    name: str
    region: str = "us-east-1"
    nodes: int = 2  # a new account may have 5 vCPUs of spot, and the types have 2 each
    min_nodes: int = 0  # 0: all of them
    results_host: bool = False
    types: tuple[str, ...] = ("m7i.large", "m6i.large", "m7a.large", "m6a.large", "m5.large")
    zones: tuple[str, ...] = ()  # empty: any
    subnets: tuple[str, ...] = ()
    vpc: str = ""
    spot: Spot = Spot()
    ami: str = "ssm:al2023"
    disk_gb: int = 30
    scratch: str = "/mnt"
    packages: tuple[str, ...] = ()
    pip: str = ""
    limits: Limits = dataclasses.field(default_factory=Limits)
    post_init: str = ""
    profile: str = ""
    access: Access = Access()
    ttl: Ttl = Ttl()
    tags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    max_hourly_cost: float | None = None
    slots: int = 0  # 0: by its cores
    slots_per_core: float = 1.0
    boot_timeout: int = 300

    @property
    def least(self) -> int:
        """Return with how many nodes the fleet is of use."""
        return self.min_nodes or self.nodes

    @property
    def identity(self) -> str:
        """Return the file of the fleet's own login key."""
        return self.access.identity or os.path.expanduser(f"~/.ssh/workflows-{self.name}")

    def resized(self, nodes: int) -> "Spec":
        """Return the same fleet with another number of nodes.

        Raises:
            UsageError: there cannot be so many.
        """
        _, least, most = _KINDS["nodes"]
        if not least <= nodes <= most:
            raise UsageError(f"a fleet has {least} to {most} nodes, not {nodes}")
        return dataclasses.replace(self, nodes=nodes, min_nodes=min(self.min_nodes, nodes))


def find_spec(name: str, region: str = "") -> Spec:
    """Return the spec of the fleet `name`, or of the file `name` if it ends with .yaml.

    It is looked for in luigi.cfg ``[ec2 NAME]``, then NAME.yaml, then a fleet.yaml of that name.
    Where there is none, the defaults serve: a fleet's state is in its tags.

    Raises:
        UsageError: there is no name, the file cannot be read, or it says another region.
        ConfigError: names everything in it that is wrong.
    """
    if not name:
        raise UsageError(
            "ec2: names no fleet; write --fleet ec2:NAME, and describe NAME in NAME.yaml:"
            " workflows fleet plan NAME"
        )
    section, path = _luigi_section(name), _file_of(name)
    if section is not None or path:
        where = path if section is None else f"luigi.cfg [ec2 {name}]"
        spec = (
            read_spec(path)
            if section is None
            else parse_spec({"name": name, **section}, where, os.curdir)
        )
        if region not in ("", spec.region):
            raise UsageError(
                f"--region {region}, but {where} says region: {spec.region}; a fleet there, which"
                " this file is not about, is reached from a directory without it"
            )
        return spec
    return parse_spec({"name": name, **({"region": region} if region else {})}, name, os.curdir)


def has_spec(name: str) -> bool:
    """Tell whether `find_spec` finds anything written about the fleet."""
    return _luigi_section(name) is not None or bool(_file_of(name))


def described() -> list[str]:
    """Return the names of the fleets that luigi.cfg and the files of this directory describe."""
    names = set()
    for path in [path for path in os.listdir(os.curdir) if path.endswith(".yaml")]:
        with contextlib.suppress(UsageError):  # whatever it is, it describes no fleet
            found = _loaded(path)
            if isinstance(found, dict) and "hosts" not in found:
                names.add(str(found.get("name", path.removesuffix(".yaml"))))
    return sorted(names | {section.removeprefix("ec2 ") for section in _luigi_sections()})


def _file_of(name: str) -> str:
    if name.endswith((".yaml", ".yml")):
        return name
    for path in (f"{name}.yaml", "fleet.yaml"):
        if os.path.exists(path):
            found = _loaded(path)
            if isinstance(found, dict) and found.get("name", path.removesuffix(".yaml")) == name:
                return path
    return ""


def read_spec(path: str) -> Spec:
    """Read a fleet.yaml; file names in it are relative to its directory.

    Raises:
        UsageError: it cannot be read.
        ConfigError: names everything in it that is wrong.
    """
    name = os.path.splitext(os.path.basename(path))[0]
    found = _loaded(path)
    if isinstance(found, dict):
        found = {"name": name, **found}
    return parse_spec(found, path, os.path.dirname(path) or os.curdir)


def parse_spec(found: Any, where: str, base: str) -> Spec:
    """Make a spec of what a file or section held.

    Raises:
        ConfigError: names every unknown key, with the nearest known one, and every bad value.
    """
    checked = _Checked(base)
    values = checked.fields(Spec, found, where)
    checked.together(values, where)
    if checked.problems:
        raise ConfigError(checked.problems)
    return Spec(**values)


def _loaded(path: str) -> Any:
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            return yaml.safe_load(file)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path} is not YAML: {' '.join(str(error).split())}"]) from error


def _luigi_sections() -> list[str]:
    return [section for section in _luigi().sections() if section.startswith("ec2 ")]


def _luigi() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    paths = ["luigi.cfg", os.environ.get("LUIGI_CONFIG_PATH", "")]
    try:
        parser.read([path for path in paths if path], encoding="utf-8")
    except configparser.Error as error:
        raise ConfigError([f"luigi.cfg: {' '.join(str(error).split())}"]) from error
    return parser


def _luigi_section(name: str) -> dict[str, Any] | None:
    import yaml

    parser, section = _luigi(), f"ec2 {name}"
    if not parser.has_section(section):
        return None
    try:
        return {key: yaml.safe_load(value) for key, value in parser[section].items()}
    except yaml.YAMLError as error:
        raise ConfigError([f"luigi.cfg: {' '.join(str(error).split())}"]) from error


# How each key is checked: its kind, and for numbers the bounds.
_KINDS: dict[str, tuple[Any, ...]] = {
    "nodes": ("number", 1, 1000),
    "min_nodes": ("number", 0, 1000),
    "disk_gb": ("number", 8, 16000),
    "slots": ("number", 0, 4096),
    "slots_per_core": ("ratio", 0.01, 64),
    "boot_timeout": ("seconds", 5, 3600),
    "on_demand_base": ("number", 0, 1000),
    "open_files": ("number", 1024, 1 << 30),
    "processes": ("number", 256, 1 << 22),
    "ssh_port": ("number", 1, 65535),
    "port": ("number", 1, 65535),
    "max_price": ("price",),
    "max_hourly_cost": ("price",),
    "fallback": ("flag",),
    "results_host": ("flag",),
    "idle": ("seconds", 1, 30 * 86400),
    "max": ("seconds", 1, 30 * 86400),
    "types": ("list",),
    "zones": ("list",),
    "subnets": ("list",),
    "packages": ("list",),
    "allow": ("list",),
    "host_key": ("list",),
    "tags": ("tags",),
    "pip": ("file",),
    "post_init": ("file",),
    "identity": ("file",),
    "known_hosts": ("file",),
    "spot": ("part", Spot),
    "access": ("part", Access),
    "ttl": ("part", Ttl),
    "limits": ("part", Limits),
    "jump": ("part", Login),
}
# `from` is a word of Python's; in the file it is what one would write.
_SPELLED = {Access: {"from": "allow"}}


class _Checked:
    """Checks values one by one and collects what is wrong."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.problems: list[str] = []

    def fields(self, kind: Any, found: Any, where: str) -> dict[str, Any]:
        if not isinstance(found, dict):
            self.problems.append(f"{where}: must hold names and values")
            return {}
        spelled = _SPELLED.get(kind, {})
        inner = {field.name for field in dataclasses.fields(kind)}
        known = sorted((inner - set(spelled.values())) | set(spelled))
        values: dict[str, Any] = {}
        for name, value in found.items():
            if name not in known:
                near = difflib.get_close_matches(str(name), known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
                self.problems.append(f"{where}: no such key {name!r}; {hint}")
                continue
            own = str(spelled.get(name, name))
            try:
                values[own] = self.value(own, value, f"{where}: {name}")
            except ValueError as error:
                self.problems.append(f"{where}: {name}: {error}")
        return values

    def value(self, name: str, value: Any, where: str) -> Any:
        kind, *rest = _KINDS.get(name, ("text",))
        return getattr(self, f"_{kind}")(value, where, *rest)

    def _part(self, value: Any, where: str, kind: Any) -> Any:
        given = self.fields(kind, value, where)
        missing = [
            field.name
            for field in dataclasses.fields(kind)
            if field.name not in given
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise ValueError(f"{', '.join(missing)} is missing")
        return kind(**given)

    def _text(self, value: Any, where: str) -> str:
        if not isinstance(value, str) or not value:
            raise ValueError("must be text")
        return value

    def _file(self, value: Any, where: str) -> str:
        return os.path.join(self.base, os.path.expanduser(self._text(value, where)))

    def _flag(self, value: Any, where: str) -> bool:
        if not isinstance(value, bool):
            raise ValueError("must be true or false")
        return value

    def _number(self, value: Any, where: str, low: int, high: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return value

    def _ratio(self, value: Any, where: str, low: float, high: float) -> float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:
            raise ValueError(f"must be a number from {low:g} to {high:g}")
        return float(value)

    def _seconds(self, value: Any, where: str, low: int, high: int) -> int:
        return self._number(duration_s(value), where, low, high)

    def _price(self, value: Any, where: str) -> float | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0.001:
            raise ValueError("must be dollars per hour, at least 0.001, or null")
        return float(value)

    def _list(self, value: Any, where: str) -> tuple[str, ...]:
        if value == "any":
            return ()
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(i, str) and i for i in items):
            raise ValueError("must be a list of texts")
        return tuple(items)

    def _tags(self, value: Any, where: str) -> dict[str, str]:
        if not isinstance(value, dict):
            raise ValueError("must hold names and values")
        for name, text in value.items():
            is_ours = str(name).lower().startswith(("aws:", "workflows:"))
            if not isinstance(name, str) or not 1 <= len(name) <= 127 or is_ours:
                raise ValueError(f"{name!r} cannot be a tag's name")
            if len(str(text)) > 256:
                raise ValueError(f"{name}: EC2 allows 256 characters")
        if len(value) > _MOST_TAGS:
            raise ValueError(
                f"{len(value)} tags: EC2 allows 50, of which {50 - _MOST_TAGS} are ours"
            )
        return {name: str(text) for name, text in value.items()}

    def together(self, values: dict[str, Any], where: str) -> None:
        """Check what the single values do not show."""
        nodes = values.get("nodes", Spec.nodes)
        spot, access = values.get("spot", Spot()), values.get("access", Access())
        ttl, ami = values.get("ttl", Ttl()), values.get("ami", Spec.ami)
        known_ami = ami.startswith(("ami-", "ssm:/")) or ami.removeprefix("ssm:") in AMIS
        names = ", ".join(f"ssm:{name}" for name in AMIS)
        types = values.get("types", Spec.types)
        twice = ", ".join(sorted({one for one in types if types.count(one) > 1}))
        plain = "may hold A-Z a-z 0-9 _@%+=:,./~ - only"
        for holds, problem in (
            (_NAME.fullmatch(str(values.get("name", ""))), "name must be up to 31 of a-z 0-9 -"),
            (values.get("min_nodes", 0) <= nodes, "min_nodes is more than nodes"),
            (spot.strategy in STRATEGIES, f"strategy must be one of {', '.join(STRATEGIES)}"),
            (spot.on_demand_base <= nodes, "on_demand_base is more than nodes"),
            (known_ami, f"ami must be ami-..., ssm:/path, or one of {names}"),
            (access.address in ("public", "private"), "address must be public or private"),
            (_PLAIN.fullmatch(values.get("scratch", Spec.scratch)), f"scratch {plain}"),
            (_PLAIN.fullmatch(access.user), f"user {plain}"),
            (types, "types must name at least one instance type"),
            (not twice, f"types names {twice} twice: CreateFleet takes each pool once"),
            (ttl.idle <= ttl.max, "ttl: idle is more than max"),
        ):
            if not holds:
                self.problems.append(f"{where}: {problem}")
        for name in ("pip", "post_init"):
            if values.get(name) and not os.path.isfile(values[name]):
                self.problems.append(f"{where}: {name}: no file {values[name]}")
