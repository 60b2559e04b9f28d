"""``workflows repro STEP KEY``: one step's command on one key, here, with its input."""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import zlib

from workflows.config import passed, settings
from workflows.errors import KeysFailed, UsageError, WorkflowsError, did_you_mean
from workflows.model import Input, Key
from workflows.node.causes import ended
from workflows.node.environment import environment, of_source
from workflows.node.work import BASH
from workflows.planning import context
from workflows.planning.plan import Plan
from workflows.storage import s3
from workflows.verbs.onfleet import exit_status
from workflows.verbs.pipeline import plan_on_record, step_on_record


def add(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("step", metavar="STEP", help="the step, as of the last run that had it")
    parser.add_argument("key", metavar="KEY", help="the key's name")
    parser.add_argument("--keep", action="store_true", help="keep the directory, and print it")


def run(arguments: argparse.Namespace) -> int:
    """Run the command with this terminal as its stdout and stderr; return its exit status."""
    line = plan_on_record(arguments.step)
    context.look_only(gone=line["nodes"])
    step = step_on_record(arguments.step, line)
    key = find(step, arguments.key)
    folder = tempfile.mkdtemp(prefix="workflows-repro-")
    again = os.path.join(folder, "again.sh")
    try:
        stdin = os.path.join(folder, "stdin")
        _write_input(step, key, stdin)
        cwd = os.path.join(folder, "cwd")
        _ship(step, cwd)
        environment = _environment(step, key, cwd, os.path.join(folder, "metrics"))
        _write_again(again, step, environment)
        with open(stdin, "rb") as file:
            done = subprocess.run(
                [*BASH, step.command], stdin=file, cwd=cwd, env=environment, check=False
            )
        print(f"{step.name} of {key.name}: {ended(done.returncode)}", file=sys.stderr)
        return exit_status(done.returncode)
    finally:
        if arguments.keep:
            print(f"kept: {folder}; to run it again there: bash {again}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _write_again(path: str, step: Plan, environment: dict[str, str]) -> None:
    """Write a script that runs the command in its directory, with what it finds there."""
    here = os.path.dirname(path)
    own = {name: value for name, value in environment.items() if os.environ.get(name) != value}
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in sorted(own.items())]
    gone = [name for name in os.environ if name not in environment and name.isidentifier()]
    cwd, stdin = (shlex.quote(os.path.join(here, name)) for name in ("cwd", "stdin"))
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write("".join(f"unset {name}\n" for name in gone))
        file.writelines([*lines, f"cd {cwd}\n"])
        file.write(f"exec {shlex.join([*BASH, step.command])} < {stdin}\n")


def find(step: Plan, name: str) -> Key:
    """Return the key of a step by its name.

    Raises:
        UsageError: there is none.
    """
    keys = step.keys()
    if keys is None:
        raise UsageError(f"the keys of {step.name} are not known yet: a step before it has not run")
    for key in keys:
        if key.name == name:
            return key
    known = did_you_mean(name, [key.name for key in keys])
    raise UsageError(f"{step.name} has no key {name!r}{known}")


def _write_input(step: Plan, key: Key, path: str) -> None:
    """Write what the command reads on stdin; what its nodes no longer have is brought or remade."""
    if key.source is not None:
        text = s3.signed(key.source.url) + "\n"
    elif step.mode == "from_n":
        parts = []
        for number, given in enumerate(key.inputs):
            parts.append(f"{path}.{number:06d}")
            _bring(step, given, key.slot, parts[-1])
        text = "".join(part + "\n" for part in parts)
    else:
        _bring(step, key.inputs[0], key.slot, path)
        return
    with open(path, "wb") as file:
        file.write(text.encode("utf-8", "surrogateescape"))


def _bring(step: Plan, given: Input, slot: int, path: str) -> None:
    """Write an input: as its node has it, else from its checkpoint, else made again here.

    Raises:
        WorkflowsError: there is no other way to have it.
    """
    try:
        return _save(step, given, slot, path)
    except WorkflowsError as error:
        before, why = step.before, str(error)
        if before is None:  # a key that was put by hand
            raise
    name = f"{before.name}/{given.name}"
    if before.durable and _from_checkpoint(before, given, path):
        _say(f"{name} is read from {before.checkpointed.path}, as {why}")
        return None
    _say(f"{name} is made again here, as {why}")
    if before.mode == "to_n":
        return _make_piece(before, given, path)
    return _make(before, find(before, given.name), path)


def _save(step: Plan, given: Input, slot: int, path: str) -> None:
    """Write an input as its node has it.

    Raises:
        WorkflowsError: the node is lost, or has it no longer, or it is damaged.
    """
    node, channel = step.nodes.nodes[slot].name, step.nodes.channel(slot)
    message = {"op": "records", "step": given.step, "ids": [given.identity]}
    records = channel.one(message, "records")["records"]
    if not records:
        raise WorkflowsError(f"{node} does not have it")
    value = 0
    with open(path, "wb") as file:
        for data in channel.read(given.step, given.identity, given.name):
            value = zlib.crc32(data, value)
            file.write(data)
    if f"{value:08x}" != records[0]["crc"]:
        raise WorkflowsError(f"{node}: its bytes have changed")


def _from_checkpoint(step: Plan, given: Input, path: str) -> bool:
    """Write an output as the checkpoint of its step has it; tell whether there is one."""
    manifest = step.checkpointed.manifest() or {"parts": []}
    if all(part["id"] != given.identity for part in manifest["parts"]):
        return False
    data = step.checkpointed.one(given.identity)
    with open(path, "wb") as file:
        file.write(data)
    return True


def _make_piece(step: Plan, given: Input, path: str) -> None:
    """Make one file of a 1:n step again, with all others of its key."""
    maker, _, part = given.name.rpartition("/")
    _make(step, find(step, maker), path)
    made = os.path.join(path + ".cwd", part)
    if not os.path.isfile(made):
        raise WorkflowsError(f"{step.name} of {maker} makes no {part} now")
    os.replace(made, path)


def _make(step: Plan, key: Key, path: str) -> None:
    """Make an output of an earlier step again, without publishing it."""
    stdin = path + ".in"
    _write_input(step, key, stdin)
    cwd = path + ".cwd"
    _ship(step, cwd)
    with open(stdin, "rb") as source, open(path, "wb") as out:
        done = subprocess.run(
            [*BASH, step.command],
            stdin=source,
            stdout=out,
            cwd=cwd,
            env=_environment(step, key, cwd, path + ".metrics"),
            check=False,
        )
    if done.returncode:
        event = {"step": step.name, "key": key.name, "why": ended(done.returncode)}
        raise KeysFailed("this machine", 0, [event])


def _say(text: str) -> None:
    print(f"workflows: {text}", file=sys.stderr)


def _ship(step: Plan, cwd: str) -> None:
    os.mkdir(cwd)
    for name, (_, data) in step.shipped.items():
        with open(os.path.join(cwd, name), "wb") as file:
            file.write(data)
        os.chmod(file.name, 0o755)  # noqa: S103 - scripts must be runnable


def _environment(step: Plan, key: Key, cwd: str, metrics: str) -> dict[str, str]:
    source = key.source
    return environment(
        str(key.slot),
        str(len(step.nodes)),
        TMPDIR=cwd,
        filename=os.path.basename(key.name),
        WORKFLOWS_KEY=key.name,
        WORKFLOWS_STEP=step.name,
        WORKFLOWS_METRICS=metrics,
        **passed(settings(), os.environ)[0],
        **of_source(*(source.size, source.etag) if source is not None else (None, "")),
    )
