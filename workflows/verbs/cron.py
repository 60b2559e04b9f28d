"""``workflows cron``: run a pipeline that nobody watches, as ``run_pipeline.sh`` does.

Who holds what while a pipeline runs:

- this process: the lock; it takes the signals, and decides the exit code;
- the guard: the lock too, and one end of a pipe: when this process dies, even by SIGKILL, it kills
  the pipeline;
- Luigi: a process group of its own, and neither: what outlives it blocks nobody.
"""

import argparse
import os
import signal
import time

from workflows.reporting import messages, stdio
from workflows.unattended import closing, lock, processes
from workflows.unattended.child import start
from workflows.unattended.guard import Guard
from workflows.unattended.log import DatedLog
from workflows.unattended.options import (
    Options,
    asks_for_help,
    configuration,
    read,
    require_reader,
)
from workflows.unattended.processes import Signals
from workflows.unattended.refusal import CANNOT_LOCK, RESULT_LOST, Refused, cannot_write
from workflows.unattended.watch import Watch

__all__ = ["add", "asks_for_help", "run"]
_STATE = ".workflows"
# run_pipeline.sh says here where its user is; it speaks by its own name.
_CALLED_FROM = "WORKFLOWS_CALLED_FROM"


def add(parser: argparse.ArgumentParser) -> None:
    """Add what the help shows; `options.split` reads the words."""
    for option, value, about in (
        ("--task", "NAME", "run this task instead of MergeCounts"),
        ("--module", "MODULE", "find it in this module instead of workflows.tasks"),
        ("--fleet", "SPEC", "bring ec2:NAME up first and down afterwards; Luigi gets it too"),
        ("--to", "FILE", "replace FILE by the result of a run that succeeded"),
        ("--timeout", "DURATION", "stop the run after 90, 90s, 30m, 2h, 1d"),
        ("--notify", "COMMAND", "run this by bash afterwards, the end of the log on its stdin"),
    ):
        parser.add_argument(option, metavar=value, help=about)
    parser.add_argument("--keep-fleet", action="store_true", help="leave the fleet up")
    parser.usage = "workflows cron [options] [arguments for luigi]"


def run(arguments: argparse.Namespace) -> int:
    """Run Luigi; return its exit code, or why there is none: 10, 73, 74, 124, 129, 130, 143."""
    called_from = os.environ.pop(_CALLED_FROM, "")
    stdio.missing.discard(2)  # a stderr that is closed is a wish for silence
    unattended = _Unattended("run_pipeline.sh" if called_from else "workflows cron", Signals())
    try:
        return unattended.run(arguments.words, called_from or os.getcwd())
    except Refused as error:
        unattended.say(str(error))
        return error.exit_code


class _Unattended:
    """One run, from its command line to its end."""

    def __init__(self, name: str, signals: Signals) -> None:
        self._name, self._signals = name, signals
        self._started = time.monotonic()
        self._verdict = 0
        self._output = -1
        self._guard: Guard | None = None

    def say(self, text: str) -> None:
        messages.say(f"{self._name}: {text}")

    def run(self, words: list[str], directory: str) -> int:
        """Run what the words ask for.

        Raises:
            Refused: nothing was run.
        """
        options = read(words, os.environ, directory)
        require_reader(options)
        configured = configuration(os.environ, directory)
        state = os.path.abspath(_STATE)
        folders = [os.path.join(state, name) for name in ("lock", "logs")]
        try:
            for folder in folders:
                os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise cannot_write(state, error) from error
        locked = os.path.join(folders[0], f"{options.module}.{options.task}")
        held = lock.take(locked, options.task)
        log = DatedLog(folders[1], self._name)
        os.environ.update(LUIGI_CONFIG_PATH=configured, WORKFLOWS_LOG=log.path)
        code = 1
        try:
            code = self._run(options, f"{locked}.out", held, log)
        except Refused as error:
            self.say(str(error))
            code = error.exit_code
        finally:  # whatever went wrong, the fleet goes down
            code = self._end(code, options, held, log)
        return code

    def _run(self, options: Options, output: str, held: int, log: DatedLog) -> int:
        words = ["--module", options.module, options.task, *options.luigi]
        log.note(f"luigi {' '.join(words)}")
        # With the lock the name is this run's own, but what outlived another may hold the old file.
        try:
            if os.path.lexists(output):
                os.unlink(output)
            self._output = os.open(output, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            os.unlink(output)
        except OSError as error:
            raise Refused(
                f"cannot write {output}: {error.strerror}; nothing was run", CANNOT_LOCK
            ) from error
        try:
            self._guard = Guard(held)
            child = start(options, self._output, self._guard, self._signals, self._name)
        except OSError as error:
            raise Refused(
                f"cannot start a process: {error.strerror}; nothing was run", 1
            ) from error
        watch = Watch(child, options.grace_s, self._signals)
        try:
            return watch.wait(options.timeout_s)
        except BaseException:
            processes.kill(child, signal.SIGKILL)
            raise
        finally:
            self._verdict = watch.verdict

    def _end(self, code: int, options: Options, held: int, log: DatedLog) -> int:
        """Take the fleet down, before a word is printed; then deliver. Return the exit code."""
        self._signals.ignore()
        fleet = closing.FleetEnd(options, log, held, self.say) if options.fleet else None
        closing.say_verdict(self._verdict, options, self._name)
        if self._output >= 0 and not closing.deliver(self._output, code, options, log, self.say):
            code = code or RESULT_LOST
        if fleet is not None and not fleet.wait():
            code = code or 1
        if self._guard is not None:
            self._guard.dismiss()
        seconds = int(time.monotonic() - self._started)
        log.note(f"exit {code} after {seconds} s")
        if options.notify:
            closing.notify(code, seconds, options, log, self._name)
        return code
