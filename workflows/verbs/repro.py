"""``workflows repro STEP KEY``: one step's command on one key, here, with what it reads."""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile

from workflows import s3
from workflows.config import passed, settings
from workflows.errors import KeysFailed, UsageError, WorkflowsError
from workflows.lineage import Input, Key
from workflows.node.environment import environment, of_source
from workflows.node.work import BASH
from workflows.steps import Step
from workflows.verbs.pipeline import step_of_last_run


def add(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("step", metavar="STEP", help="the step, as of the last run that had it")
    parser.add_argument("key", metavar="KEY", help="the key's name")
    parser.add_argument("--keep", action="store_true", help="keep the directory, and print it")


def run(arguments: argparse.Namespace) -> int:
    """Run the command with this terminal as its stdout and stderr; return its exit status."""
    step = step_of_last_run(arguments.step).whole
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
        print(f"{step.name} of {key.name}: exited {done.returncode}", file=sys.stderr)
        return done.returncode
    finally:
        if arguments.keep:
            print(f"kept: {folder}; to run it again there: bash {again}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _write_again(path: str, step: Step, environment: dict[str, str]) -> None:
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


def find(step: Step, name: str) -> Key:
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
    raise UsageError(f"{step.name} has no key {name!r}; it has {len(keys)}, such as {keys[0].name}")


def _write_input(step: Step, key: Key, path: str) -> None:
    """Write what the command reads on stdin; what its nodes no longer have is made again, here."""
    if key.source is not None:
        text = s3.signed(key.source.url) + "\n"
    elif step.mode == "from_n":
        parts = []
        for number, given in enumerate(key.inputs):
            parts.append(f"{path}.{number:06d}")
            _save(step, given, key.slot, parts[-1])
        text = "".join(part + "\n" for part in parts)
    else:
        given = key.inputs[0]
        try:
            _save(step, given, key.slot, path)
        except WorkflowsError:
            before = step.before
            if before is None or before.mode != "map":
                raise
            _make(before, find(before, given.name), path)
        return
    with open(path, "wb") as file:
        file.write(text.encode("utf-8", "surrogateescape"))


def _save(step: Step, given: Input, slot: int, path: str) -> None:
    with open(path, "wb") as file:
        for chunk in step.nodes.channel(slot).read(given.step, given.identity, given.name):
            file.write(chunk)


def _make(step: Step, key: Key, path: str) -> None:
    """Make an output of an earlier step again, without publishing it: a fused run keeps none."""
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
        event = {"step": step.name, "key": key.name, "why": f"exited {done.returncode}"}
        raise KeysFailed("this machine", 0, [event])


def _ship(step: Step, cwd: str) -> None:
    os.mkdir(cwd)
    for name, (_, data) in step.shipped.items():
        with open(os.path.join(cwd, name), "wb") as file:
            file.write(data)
        os.chmod(file.name, 0o755)  # noqa: S103 - scripts must be runnable


def _environment(step: Step, key: Key, cwd: str, metrics: str) -> dict[str, str]:
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
