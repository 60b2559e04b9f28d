"""Making a node ready over ssh: scratch disk, packages, pip, limits, then the user's own script.

It needs a connection and a recipe: hosts of a static ssh fleet are made ready the same way. Each
stage is known by the digest of its content and of the stages before it: what is unchanged is not
run again, and a node whose digest is right is not even asked.
"""

import base64
import dataclasses
import hashlib
import shlex
from collections.abc import Callable

from workflows.ec2.config import Spec
from workflows.ec2.sessions import OnLine, streamed
from workflows.errors import NodeLost, NodeRefused, UsageError
from workflows.fleets.hosts import Host, Limits
from workflows.fleets.ssh import Connection

_KEPT_LINES = 15
# Package managers are busy for a while after a first boot: they are waited for, not fought.
# A static host may have no sudo, if one logs in as root. `command`: `install` is a function here.
_INSTALL = """\
command -v sudo >/dev/null || [ "$(id -u)" != 0 ] || sudo() { command "$@"; }
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
  sudo mkdir -p {mount}
  if ! sudo mount -o noatime LABEL=workflows {mount} 2>/dev/null; then
    set -- $disks
    disk=$1
    command -v mkfs.xfs >/dev/null || install xfsprogs
    if [ $# -gt 1 ]; then
      command -v mdadm >/dev/null || install mdadm
      disk=/dev/md/scratch
      [ -e $disk ] || sudo mdadm --create $disk --run --level=0 --raid-devices=$# "$@"
    fi
    sudo mkfs.xfs -q -f -K -L workflows "$disk"
    sudo mount -o noatime "$disk" {mount}
  fi
fi
"""
# A node that has rebooted has its disks, but nobody has mounted them.
_MOUNTED = (
    "{{ mountpoint -q {mount} ||"
    " [ -z \"$(lsblk -dno MODEL 2>/dev/null | grep 'Instance Storage')\" ]; }}"
)

_LIMITS_FILE = '"/etc/security/limits.d/90-workflows-$(id -un).conf"'
# More than the kernel allows would be refused at every login: nobody could undo it.
_OPEN_FILES = """\
most=$(cat /proc/sys/fs/nr_open)
[ {count} -le "$most" ] || {{
  echo "open_files {count} is more than this host allows: fs.nr_open is $most (sysctl raises it)"
  exit 1
}}
"""
# PAM's limit of processes is for each user; systemd has another one, of processes and threads.
_PROCESSES = """\
if [ -d /run/systemd/system ]; then
  unit="/etc/systemd/system/user-$(id -u).slice.d"
  sudo mkdir -p "$unit"
  printf '[Slice]\\nTasksMax={count}\\n' | sudo tee "$unit/90-workflows.conf" >/dev/null
  sudo systemctl daemon-reload
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
    """The stages that make a node ready, in order."""

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
    """Return what a fleet's nodes are made ready with: packages, pip, limits, then post_init."""
    mount = spec.scratch.rstrip("/") or "/"
    holds = _MOUNTED.format(mount=mount) if mount.startswith("/") else "true"
    return _recipe(_scratch(mount), holds, spec)


def host_recipe(host: Host) -> Recipe:
    """Return what a host of a hosts.yaml is made ready with; its disks are left as they are.

    Raises:
        UsageError: a file that it names cannot be read.
    """
    scratch = shlex.quote(host.scratch)
    made = f'mkdir -p {scratch} 2>/dev/null || sudo install -d -o "$(id -un)" {scratch}'
    return _recipe(made, f"[ -d {scratch} ]", host)


def _recipe(scratch: str, holds: str, what: Spec | Host) -> Recipe:
    scripts = [("scratch", scratch, holds)]
    if what.packages:
        scripts.append(("packages", "install " + shlex.join(what.packages), "true"))
    if what.pip:
        scripts.append(("pip", _pip(_content(what.pip)), "true"))
    if what.limits != Limits():
        scripts.append(("limits", _limits(what.limits), f"[ -e {_LIMITS_FILE} ]"))
    if what.post_init:
        own = f"{_decoded(_content(what.post_init))} | sudo bash -eu"
        scripts.append(("post_init", own, "true"))
    stages: list[Stage] = []
    for name, script, still in scripts:
        before = stages[-1].digest if stages else ""
        digest = hashlib.sha256(f"{before}\n{name}\n{script}".encode()).hexdigest()[:16]
        stages.append(Stage(name, script, digest, still))
    return Recipe(tuple(stages))


def make_ready(
    connection: Connection, name: str, what: Recipe, on_line: OnLine, *, repeats: bool = True
) -> list[str]:
    """Run what a node has not had of a recipe; return the names of those stages.

    Raises:
        NodeRefused: a stage failed; if it `repeats`, with its last lines.
        NodeLost: the connection broke.
    """
    said: list[str] = []

    def heard(text: str) -> None:
        said.append(text)
        on_line(text)

    status = streamed(connection, name, "bash -s", heard, what.script().encode())
    if status:
        stage = next((text[3:] for text in reversed(said) if text.startswith("== ")), "bootstrap")
        tail = said[-_KEPT_LINES:] if repeats else []
        raise NodeRefused(name, "\n    ".join([f"{stage} exited {status}", *tail]))
    return [stage.name for stage in what.stages if f"== {stage.name}" in said]


def check_limits(login: Callable[[], Connection], name: str, wanted: Limits) -> None:
    """Make sure that a new login has the limits: those of connections that are open stay.

    Raises:
        NodeRefused: it has others.
        NodeLost: the connection broke.
    """
    if wanted == Limits():
        return
    with login() as connection:
        try:
            ran = connection.run("exec bash -c 'echo; ulimit -Sn; ulimit -Su'")
        except OSError as error:
            raise NodeLost(name, str(error) or type(error).__name__) from error
    if ran.status < 0:
        raise NodeLost(name, "it hung up while its limits were looked at")
    found = ["?", "?", *ran.out.decode("ascii", "replace").split()][-2:]
    for what, has, needs in zip(
        ("open_files", "processes"), found, (wanted.open_files, wanted.processes), strict=True
    ):
        if needs and has != "unlimited" and (not has.isdigit() or int(has) < needs):
            raise NodeRefused(
                name,
                f"limits: a new login has {what} {has}, not {needs}: sshd there needs UsePAM yes,"
                " and pam_limits.so in /etc/pam.d/sshd; or take limits out of the file",
            )


def _limits(limits: Limits) -> str:
    lines = []
    parts = []
    if limits.open_files:
        parts.append(_OPEN_FILES.format(count=limits.open_files))
        lines.append(f"$(id -un) - nofile {limits.open_files}")
    if limits.processes:
        parts.append(_PROCESSES.format(count=limits.processes))
        lines.append(f"$(id -un) - nproc {limits.processes}")
    wanted = " ".join(f'"{line}"' for line in lines)
    return "".join(parts) + f"printf '%s\\n' {wanted} | sudo tee {_LIMITS_FILE} >/dev/null"


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
