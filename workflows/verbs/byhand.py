"""``workflows fleet`` on nodes by hand: exec, put, get, ssh, rsync."""

import argparse
import difflib
import os
import shlex
from collections.abc import Callable, Sequence

from workflows.config import settings
from workflows.ec2 import sessions
from workflows.ec2.api import Instance, label_of
from workflows.ec2.config import described
from workflows.ec2_fleet import Ec2Fleet
from workflows.errors import UsageError
from workflows.fleets.openssh import NODE, write_config
from workflows.reporting.messages import say

FAILED = 1
_LOST = 3


def load(arguments: argparse.Namespace) -> Ec2Fleet:
    """Return the fleet that the command line names.

    Raises:
        UsageError: nothing describes it, nothing of it is there, and one of nearly that name is.
    """
    fleet = Ec2Fleet.load(arguments.name, arguments.region, say=say)
    if not fleet.is_described:
        near = difflib.get_close_matches(fleet.spec.name, described(), 1)
        if near and not fleet.instances():
            raise UsageError(
                f"nothing describes a fleet {fleet.spec.name}, and none of its nodes is in"
                f" {fleet.spec.region}; did you mean {near[0]!r}?"
            )
    return fleet


def chosen(found: Sequence[Instance], on: str) -> list[Instance]:
    """Return the instances that ``--on 0,2,i-0abc`` names; all of them if it names none."""
    if not on:
        return list(found)
    chosen = []
    for word in on.split(","):
        match = [one for one in found if word in (one.label, one.id)]
        if not match:
            there = ", ".join(f"{one.label} {one.id}" for one in found)
            raise UsageError(f"--on: no node {word!r}; there are {there}")
        chosen += match
    return chosen


def execute(arguments: argparse.Namespace) -> int:
    """Run a command on the nodes, and print what each says line by line."""
    line = " ".join(_command(arguments))
    if not line.strip():
        raise UsageError(f"there is no command: workflows fleet exec {arguments.name} CMD")
    fleet = load(arguments)
    found = chosen(fleet.nodes(), arguments.on)
    results = sessions.run_everywhere(
        fleet.spec, found, line, lambda label, text: print(f"{label}: {text}", flush=True)
    )
    return _summary(results)


def put(arguments: argparse.Namespace) -> int:
    """Copy a file to the nodes."""
    fleet = load(arguments)
    target = arguments.target or os.path.basename(arguments.source)
    if not os.path.isfile(arguments.source):
        raise UsageError(f"no file {arguments.source}; workflows fleet rsync copies directories")
    return _copied(
        fleet, arguments, lambda one: sessions.put(fleet.spec, one, arguments.source, target)
    )


def get(arguments: argparse.Namespace) -> int:
    """Copy a file from the nodes, each under a name of its own."""
    fleet = load(arguments)
    folder = arguments.target or os.curdir
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}") from error

    def one_node(one: Instance) -> int:
        target = os.path.join(folder, f"{one.label}-{os.path.basename(arguments.source)}")
        return sessions.get(fleet.spec, one, arguments.source, target)

    return _copied(fleet, arguments, one_node)


def _copied(fleet: Ec2Fleet, arguments: argparse.Namespace, copy: Callable[[Instance], int]) -> int:
    found = chosen(fleet.nodes(), arguments.on)
    return _summary(sessions.outcomes(sessions.each(found, copy)))


def _summary(results: Sequence[sessions.Outcome]) -> int:
    lost = [one for one in results if one.lost]
    failed = [one for one in results if one.status > 0]
    for one in lost:
        say(one.lost)
    for one in failed:
        say(f"node {label_of(one.slot)}: exited {one.status}")
    good = len(results) - len(lost) - len(failed)
    say(f"{good} of {len(results)} ok, {len(failed)} failed, {len(lost)} lost")
    return _LOST if lost else FAILED if failed else 0


def ssh(arguments: argparse.Namespace) -> int:
    """Run the system's ssh for one node."""
    fleet = load(arguments)
    command = _command(arguments)
    (one,) = chosen(fleet.nodes(), arguments.on or "0")[:1]
    with sessions.used_by_others(fleet.spec, one):
        return _system(["ssh", "-F", _ssh_config(fleet, one), NODE, *command])


def rsync(arguments: argparse.Namespace) -> int:
    """Run the system's rsync for each node; ``:path`` is the node's side."""
    fleet = load(arguments)
    both = [arguments.source, arguments.target]
    if not any(word.startswith(":") for word in both):
        raise UsageError("write the nodes' side as :PATH")
    code = 0
    for one in chosen(fleet.nodes(), arguments.on):
        sides = [
            NODE + word if word.startswith(":") else word.replace("{slot}", one.label)
            for word in both
        ]
        ssh = shlex.join(["ssh", "-F", _ssh_config(fleet, one)])  # rsync takes quotes as a shell
        with sessions.used_by_others(fleet.spec, one):
            code = max(code, _system(["rsync", "-a", "-e", ssh, *sides]))
    return code


def _ssh_config(fleet: Ec2Fleet, one: Instance) -> str:
    """Return the configuration with which the system's ssh is as strict as our own logins."""
    folder = os.path.abspath(os.path.join(settings().state, "ssh"))
    return write_config(sessions.name_of(one), sessions.host_of(fleet.spec, one), folder)


def _system(words: Sequence[str]) -> int:
    import subprocess

    try:
        return subprocess.run(words, check=False).returncode
    except FileNotFoundError as error:
        raise UsageError(f"there is no {words[0]} here: install it (apt-get, dnf)") from error


def _command(arguments: argparse.Namespace) -> list[str]:
    """Return what is to run on the nodes; an option right before it is still for us."""
    words = list(arguments.command)
    while words and words[0].startswith("--"):
        name, has_value, value = words.pop(0).partition("=")
        if name == "--":
            break
        if name != "--on" or not (has_value or words):
            raise UsageError(f"{name} is not an option of {arguments.action}; write -- before CMD")
        arguments.on = value if has_value else words.pop(0)
    return words
