"""The child that brings the fleet up and then becomes Luigi; its process group ends as one."""

import contextlib
import os
import subprocess
import sys
from typing import NoReturn

from workflows.unattended.guard import Guard
from workflows.unattended.options import Options
from workflows.unattended.processes import Signals, close_others, read_nothing, status

_CANNOT_RUN = 127


def program(name: str) -> str:
    """Return a program of this Python's environment, or the name alone if it is not there."""
    path = os.path.join(os.path.dirname(sys.executable), name)
    return path if os.access(path, os.X_OK) else name


def start(options: Options, output: int, guard: Guard, signals: Signals, name: str) -> int:
    """Fork the child, which prints its result into the file `output`; return its pid and group.

    This process must have no threads.
    """
    pid = os.fork()
    if pid == 0:
        try:
            _run(options, output, guard, signals, name)
        except BaseException as error:  # noqa: BLE001 - nothing may return into the parent's code
            os.write(2, f"{name}: {str(error) or type(error).__name__}\n".encode())
        finally:
            os._exit(1)
    with contextlib.suppress(OSError):  # it has done so itself
        os.setpgid(pid, pid)
    return pid


def _run(options: Options, output: int, guard: Guard, signals: Signals, name: str) -> NoReturn:
    os.setpgid(0, 0)
    guard.watch()  # by itself, and first: there is no moment when nobody watches it
    signals.restore()
    read_nothing()
    os.dup2(output, 1)
    close_others()  # what outlives the run must hold no lock
    words = ["--module", options.module, options.task, *options.luigi]
    if options.fleet:
        if _is_done(words):
            text = f"the result is there already, so no node of {options.fleet} is launched"
            os.write(2, f"{name}: {text}\n".encode())
            words += ["--fleet", "local:1"]
        else:
            _bring_up(options.fleet)
    luigi = program("luigi")
    try:
        os.execvp(luigi, [luigi, *words])  # noqa: S606 - no shell is wanted
    except OSError as error:
        os.write(2, f"{name}: cannot run {luigi}: {error.strerror}\n".encode())
        os._exit(_CANNOT_RUN)


def _is_done(words: list[str]) -> bool:
    """Tell whether the result is there, which depends on no fleet; if in doubt, it is not."""
    command = [program("workflows"), "plan", *words, "--fleet", "local:1"]
    planned = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False
    )
    return planned.returncode == 0 and b"\nnothing to run: " in planned.stdout


def _bring_up(fleet: str) -> None:
    command = [program("workflows"), "fleet", "up", fleet, "--yes"]
    code = status(subprocess.run(command, stdout=2, check=False).returncode)
    if code:
        os._exit(code)
