"""Making a node ready over ssh: scratch disk, packages, pip, then the user's own script as root.

It needs a connection and a recipe: hosts of a static ssh fleet are made ready the same way. Each
stage is known by the digest of its content and of the stages before it: what is unchanged is not
run again, and a node whose digest is right is not even asked.
"""

import base64
import dataclasses
import hashlib
import shlex

from workflows.ec2.config import Spec
from workflows.ec2.sessions import OnLine, streamed
from workflows.errors import NodeRefused, UsageError
from workflows.hosts import Host
from workflows.transports.ssh import Connection

_KEPT_LINES = 15
# Package managers are busy for a while after a first boot: they are waited for, not fought.
# A static host may have no sudo, if one logs in as root.
_INSTALL = """\
command -v sudo >/dev/null || [ "$(id -u)" != 0 ] || sudo() { "$@"; }
install() {
  if command -v apt-get >/dev/null; then
    sudo env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -qq update
    sudo env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -qq -y install "$@"
  else
    sudo dnf -q -y install "$@"
  fi
}
"""
# Instance-store disks are known by their model: names and numbers of NVMe disks are in no order.
_SCRATCH = """\
disks=$(lsblk -dnpo NAME,MODEL 2>/dev/null | awk '/Instance Storage/ {{print $1}}')
if [ -n "$disks" ] && ! mountpoint -q {mount}; then
  set -- $disks
  disk=$1
  command -v mkfs.xfs >/dev/null || install xfsprogs
  if [ $# -gt 1 ]; then
    command -v mdadm >/dev/null || install mdadm
    disk=/dev/md/scratch
    [ -e $disk ] || sudo mdadm --create $disk --run --level=0 --raid-devices=$# "$@"
  fi
  sudo mkfs.xfs -q -f -K "$disk"
  sudo mkdir -p {mount}
  sudo mount -o noatime "$disk" {mount}
fi
"""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One part of a recipe: bash, and the digest of it and of all before it."""

    name: str
    script: str
    digest: str
    holds: str = "true"  # what has to be true of a node, besides, that has had it


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What makes a node ready, in order."""

    stages: tuple[Stage, ...]

    @property
    def digest(self) -> str:
        """Return what the whole recipe is known by."""
        return self.stages[-1].digest

    def script(self) -> str:
        """Return the bash that runs the stages a node has not had, and stops at the first error."""
        parts = ["set -euo pipefail", "cd", "mkdir -p .workflows", _INSTALL]
        for stage in self.stages:
            # Several hosts may share one home directory.
            marker = f'".workflows/did-{stage.name}-$(uname -n)"'
            parts.append(
                f'if [ "$(cat {marker} 2>/dev/null || :)" != {stage.digest} ] || ! {stage.holds};'
                " then\n"
                f"echo '== {stage.name}'\n{stage.script}\necho {stage.digest} > {marker}\nfi"
            )
        return "\n".join(parts) + "\n"


def recipe(spec: Spec) -> Recipe:
    """Return what a fleet's nodes are made ready with: packages, then pip, then post_init."""
    return _recipe(_scratch(spec.scratch), "true", spec)


def host_recipe(host: Host) -> Recipe:
    """Return what a host of a hosts.yaml is made ready with; its disks are left as they are.

    Raises:
        UsageError: a file that it names cannot be read.
    """
    scratch = shlex.quote(host.scratch)
    made = f'mkdir -p {scratch} 2>/dev/null || sudo install -d -o "$(id -un)" {scratch}'
    return _recipe(made, f"[ -d {scratch} ]", host)


def _recipe(scratch: str, holds: str, what: Spec | Host) -> Recipe:
    scripts = [("scratch", scratch)]
    if what.packages:
        scripts.append(("packages", "install " + shlex.join(what.packages)))
    if what.pip:
        scripts.append(("pip", _pip(_content(what.pip))))
    if what.post_init:
        scripts.append(("post_init", f"{_decoded(_content(what.post_init))} | sudo bash -eu"))
    stages: list[Stage] = []
    for name, script in scripts:
        before = stages[-1].digest if stages else ""
        digest = hashlib.sha256(f"{before}\n{name}\n{script}".encode()).hexdigest()[:16]
        stages.append(Stage(name, script, digest, "true" if stages else holds))
    return Recipe(tuple(stages))


def make_ready(
    connection: Connection, name: str, what: Recipe, on_line: OnLine | None = None
) -> list[str]:
    """Run what a node has not had of a recipe; return the names of those stages.

    Raises:
        NodeRefused: a stage failed; its last lines say how.
        NodeLost: the connection broke.
    """
    said: list[str] = []

    def heard(text: str) -> None:
        said.append(text)
        if on_line is not None:
            on_line(text)

    status = streamed(connection, name, "bash -s", heard, what.script().encode())
    if status:
        stage = next((text[3:] for text in reversed(said) if text.startswith("== ")), "bootstrap")
        tail = "\n    ".join(said[-_KEPT_LINES:])
        raise NodeRefused(name, f"{stage} exited {status}\n    {tail}")
    return [stage.name for stage in what.stages if f"== {stage.name}" in said]


def _scratch(scratch: str) -> str:
    if not scratch.startswith("/"):
        return f"mkdir -p {scratch.removeprefix('~/')}/workflows"
    own = f'sudo install -d -o "$(id -un)" {scratch}/workflows'
    return _SCRATCH.format(mount=scratch) + own


def _pip(requirements: str) -> str:
    keep = "f=$(mktemp); " + _decoded(requirements) + ' > "$f"'
    pip = "sudo env PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore python3 -m pip"
    return (
        f"{keep}\npython3 -m pip --version >/dev/null 2>&1 || install python3-pip\n"
        f'{pip} install -q --disable-pip-version-check -r "$f"\nrm -f "$f"'
    )


def _decoded(text: str) -> str:
    return f"echo {base64.b64encode(text.encode()).decode()} | base64 -d"


def _content(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from error
