"""The end of a run, however it came: the fleet goes down, the result and the news go out.

The fleet is first: it costs money, and a terminal or a reader may take no word ever.
"""

import os
import select
import subprocess
import threading
from collections.abc import Callable, Iterator

from workflows.reporting import messages
from workflows.unattended.child import program
from workflows.unattended.log import DatedLog
from workflows.unattended.options import Options
from workflows.unattended.processes import status
from workflows.unattended.refusal import TIMEOUT

NOTIFY_S = 60
_CHUNK = 1 << 16
_NOT_STARTED = 127
Say = Callable[[str], None]


class FleetEnd:
    """`workflows fleet down`, or `cost` for a fleet that is kept, as a child beside this process.

    Its lines go to stderr and into the log. It inherits every lock: if this process is killed, it
    goes on, and no other run begins meanwhile.
    """

    def __init__(self, options: Options, log: DatedLog, lock: int, say: Say) -> None:
        self._fleet, self._log, self._say = options.fleet, log, say
        action = ["cost", options.fleet] if options.keep_fleet else ["down", options.fleet, "--yes"]
        self._action = " ".join(action)
        self._code = _NOT_STARTED
        os.set_inheritable(lock, True)
        self._work = threading.Thread(target=self._run, args=action, daemon=True)
        self._work.start()

    def _run(self, *action: str) -> None:
        try:
            process = subprocess.Popen(
                [program("workflows"), "fleet", *action],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                close_fds=False,
            )
        except OSError as error:
            self._say(f"workflows fleet {self._action} cannot be run: {error.strerror}")
            return
        for line in process.stdout or ():
            self._log.add(line)
            messages.say(line.rstrip(b"\n").decode("utf-8", "replace"))
        self._code = status(process.wait())

    def wait(self) -> bool:
        """Wait for it; tell whether it did what it should, and stderr took every line."""
        self._work.join()
        self._log.note(f"workflows fleet {self._action}: exit {self._code}")
        if self._code:
            self._say(
                f"the fleet {self._fleet} may still be up; type: workflows fleet down {self._fleet}"
            )
        return not self._code and not messages.err.flush()


def say_verdict(verdict: int, options: Options, name: str) -> None:
    """Say why the run was ended, if it was."""
    if not verdict:
        return
    if verdict == TIMEOUT:
        text = f"stopped: {options.task} ran longer than {options.timeout_s} s (--timeout)"
    else:
        text = "interrupted: finished work is kept, run the same again to continue"
    clear = ""
    if os.isatty(2):
        from workflows.reporting.progress import CLEAR

        clear = CLEAR  # of the progress: Luigi had no time for that
    messages.say(f"{clear}{name}: {text}")


def deliver(output: int, code: int, options: Options, log: DatedLog, say: Say) -> bool:
    """Bring what Luigi printed into the log, and to stdout or the file of `--to`.

    Return whether it got there. The file is replaced only by the result of a run that succeeded.
    """
    for data in _chunks(output):
        log.add(data)
    if not options.to:
        try:
            _print(output)
        except OSError as error:
            say(
                f"the result could not be written to stdout: {error.strerror}. It is kept: see"
                f" {log.path}"
            )
            return False
        return True
    if code:
        return True
    if not os.fstat(output).st_size:
        say(f"{options.task} printed no result, so {options.to} is left as it was")
        return False
    from workflows.storage import replacing

    try:
        replacing.put(options.to, _chunks(output))
    except OSError as error:
        say(
            f"the result could not be written to {options.to}: {error.strerror}. {options.to} is"
            f" left as it was; the result is kept: see {log.path}"
        )
        return False
    return True


def _chunks(file: int) -> Iterator[bytes]:
    at = 0
    while data := os.pread(file, _CHUNK, at):
        at += len(data)
        yield data


def _print(output: int) -> None:
    """Copy a file to stdout, as slowly as its reader reads."""
    for chunk in _chunks(output):
        left = chunk
        while left:
            try:
                left = left[os.write(1, left) :]
            except BlockingIOError:  # whoever shares the pipe has set it so
                select.select([], [1], [])


def notify(code: int, seconds: int, options: Options, log: DatedLog, name: str) -> None:
    """Run the user's command with the end of the log; its outcome changes nothing."""
    told = messages.Stream(2)  # apart from the lines that decide the exit code
    environ = os.environ | {
        "WORKFLOWS_EXIT": str(code),
        "WORKFLOWS_TASK": options.task,
        "WORKFLOWS_SECONDS": str(seconds),
        "WORKFLOWS_LOG": log.path,
    }
    command = ["timeout", "-k", "5", str(NOTIFY_S), "bash", "-c", options.notify]
    end = os.memfd_create("log")  # not a pipe: nobody may read it
    try:
        os.write(end, log.tail(20))
        os.lseek(end, 0, os.SEEK_SET)
        failed = status(
            subprocess.run(command, stdin=end, stdout=2, env=environ, check=False).returncode
        )
        if failed:
            told.print(f"{name}: --notify exited {failed}: {options.notify}")
    except OSError as error:
        told.print(f"{name}: --notify could not be run: {error.strerror}")
    finally:
        os.close(end)
    told.flush()
