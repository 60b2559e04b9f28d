"""Luigi's own messages as a person sees them: each once, short, with the next command."""

import atexit
import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from types import TracebackType

from luigi.parameter import UnconsumedParameterWarning
from luigi.rpc import RPCError
from luigi.task_register import TaskClassException

from workflows.errors import KeysFailed, WorkflowsError, describe_alike, likeness
from workflows.fleets.channel import interrupt_all
from workflows.reporting.progress import CLEAR
from workflows.reporting.runlog import on_terminal

# What Luigi makes of an error in complete() or requires(): text, before a filter sees the error.
_TRACEBACK = re.compile(
    r"(Will not run .* method:\n)?Traceback \(most recent call last\):\n"
    r".*^workflows\.errors\.\w+: ",
    re.DOTALL | re.MULTILINE,
)
_AWAY = re.compile(r"Failed (connecting to remote scheduler|pinging scheduler)")
_BACK = "finished work is kept: run the same again to continue"
_said: set[str] = set()
_errors: list[str] = []
_interrupts: list[int] = []
# Failures that were shown, and for each those in the same way that are held back until the end.
_held: dict[tuple[str, str, str], list[KeysFailed]] = {}
_holding = threading.Lock()
_python_excepthook = [sys.__excepthook__]
_SOON_S = 2.0  # within which an interrupted run usually ends


def has_complained() -> bool:
    """Tell whether this process said what went wrong."""
    return bool(_errors)


def mute(text: str) -> None:
    """Do not say this again: an earlier task of the run has said it."""
    _said.add(text)


def _is_held(error: KeysFailed) -> bool:
    """Hold an error back whose failures are all like some that were shown; note those of others.

    Each key is a task while there are few: one cause would be told as often as there are keys.
    """
    with _holding:
        alike = {likeness(failure) for failure in error.failures}
        if len(alike) == 1 and not alike.isdisjoint(_held):
            _held[alike.pop()].append(error)
            return True
        if not _held:
            atexit.register(tell_held)
        for one in alike:
            _held.setdefault(one, [])
        return False


def tell_held() -> None:
    """Show what was held back: all if it is little, else how many keys, and some of their names."""
    with _holding:
        groups = [errors for errors in _held.values() if errors]
        _held.clear()
    for errors in groups:
        failures = [failure for error in errors for failure in error.failures]
        if len(failures) < KeysFailed.FEW and "hint" not in failures[0]:
            said = [str(error) for error in errors]
        else:
            first = failures[0]
            said = [f"{first['step']}: {first['why']}\n{describe_alike(failures)}"]
        for text in said:
            logging.getLogger("luigi-interface").error("%s", text)


def explain_interrupts() -> None:
    """Let Ctrl-C end in what it means, without the traceback of where Luigi was just waiting.

    Every Ctrl-C ends the run, unless it was started with them ignored, as by nohup.
    """
    sys.excepthook = _interrupted
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_ours and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL:
        for number in (signal.SIGINT, signal.SIGALRM):
            signal.signal(number, _interrupt)
        sys.unraisablehook = _interrupt_again


def _interrupt(*_: object) -> None:
    if multiprocessing.parent_process() is not None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - the driver says it, without a traceback
        raise KeyboardInterrupt
    _errors.append("interrupted")
    interrupt_all()  # at once, though Luigi may still wait for its scheduler
    if not _interrupts:
        later = threading.Timer(_SOON_S, _explain_wait)
        later.daemon = True
        later.start()
    _interrupts.append(1)
    raise KeyboardInterrupt


def _explain_wait() -> None:
    clear_line()
    print("interrupted: waiting for Luigi to end; Ctrl-C again leaves at once", file=sys.stderr)


def _interrupt_again(dropped: "sys.UnraisableHookArgs") -> None:
    """Raise an interrupt once more that Python dropped, as in its callbacks around each fork."""
    if issubclass(dropped.exc_type, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, 0.01)
    else:
        sys.__unraisablehook__(dropped)


def end_interrupts() -> None:
    """Stop raising dropped interrupts: the run has ended anyway."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    if signal.getsignal(signal.SIGALRM) is _interrupt:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)


def _interrupted(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, 0)  # once is enough
        _errors.append("interrupted")
        clear_line()
        print(f"interrupted: {_BACK}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def clear_line(_record: logging.LogRecord | None = None) -> bool:
    """Let a message begin where a person sees the progress, not behind it."""
    if on_terminal():
        os.write(2, CLEAR.encode("ascii"))
    return True


def _brief(record: logging.LogRecord) -> bool:
    """Say what explains itself once, and without Luigi's traceback."""
    if isinstance(record.msg, str) and _AWAY.match(record.msg):
        # All tasks of a run miss luigid at once; what schedules them speaks for them.
        text = "luigid does not answer; trying again for a while"
        return multiprocessing.parent_process() is None and _once(record, text)
    text = _explained(record)
    if not text:
        return True
    record.levelno, record.levelname = logging.ERROR, "ERROR"
    _errors.append(text)
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, KeysFailed) and text not in _said and _is_held(error):
        _said.add(text)
        return False
    return _once(record, text)


def _once(record: logging.LogRecord, text: str) -> bool:
    record.msg, record.args, record.exc_info = "%s", (text,), None
    is_new = text not in _said
    _said.add(text)
    return is_new


def _explained(record: logging.LogRecord) -> str:
    """Return an error in its own words, or nothing if they do not suffice."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, RPCError):
        return (
            f"luigid does not answer: {error}; start it, or set local_scheduler = true in"
            f" luigi.cfg; {_BACK}"
        )
    if isinstance(error, WorkflowsError):
        return str(error)
    if isinstance(error, OSError) and _is_of_lock(error):
        return (
            f"cannot write Luigi's lock {error.filename}: {error.strerror}; nothing was run. Make"
            " that directory writable, or name another: [core] lock_pid_dir in luigi.cfg"
        )
    if isinstance(record.msg, str) and not record.args and _TRACEBACK.match(record.msg):
        return _TRACEBACK.sub("", record.msg).rstrip()
    return ""


def _is_of_lock(error: OSError) -> bool:
    """Tell whether it was raised where Luigi keeps the same command from running twice."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.filename.endswith(os.path.join("luigi", "lock.py")) for frame in frames)


def _excepthook(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Do the same for what comes before Luigi catches any: a bad value in luigi.cfg, a typo."""
    if isinstance(error, WorkflowsError | TaskClassException):
        print(f"workflows: {error}", file=sys.stderr)
    else:
        _python_excepthook[0](kind, error, trace)


def speak_plainly() -> None:
    """Filter Luigi's messages, and those of errors that nobody catches."""
    luigi = logging.getLogger("luigi-interface")
    luigi.addFilter(_brief)
    luigi.addFilter(clear_line)
    if sys.excepthook is not _excepthook:
        _python_excepthook[0], sys.excepthook = sys.excepthook, _excepthook
    # Luigi obeys the rpc_ settings of its [core], and warns that it does not know them.
    warnings.filterwarnings(
        "ignore", "The configuration contains the parameter 'rpc_", UnconsumedParameterWarning
    )
