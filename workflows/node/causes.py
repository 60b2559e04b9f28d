"""The likely cause of a command's failure, and the remedy, where the command itself says neither.

Shells and kernels end commands in a few ways that tell a reader nothing: a bare exit status, or a
message such as "Argument list too long" that names no argument.
"""

import re
import signal
from collections.abc import Iterator

_SHELL = 128  # a shell adds a signal's number to this


def _word(*names: str) -> str:
    """Return a pattern of commands of these names that are not part of a path or variable."""
    return rf"(?<![\w./$-])(?:{'|'.join(names)})(?![\w=.])"


# Commands that exit with 1, and say nothing, for what is often no error.
_SILENT = {
    _word("[efz]?grep", "xzgrep", "zstdgrep", "rg"): (
        "grep found nothing, and exits with 1 then; where that is no error: grep ... || [ $? = 1 ]"
    ),
    _word("diff", "cmp"): (
        "the files differ, and diff and cmp exit with 1 then; where that is no error:"
        " diff ... || [ $? = 1 ]"
    ),
    _word("read"): (
        "read met the end of its input before a newline; where that is no error: read ... || :"
    ),
    _word("expr", "let") + r"|(?<!\$)\(\(": (
        "the result of expr, let or ((...)) is 0, which they exit with 1 for; where that is no"
        " error: ... || :"
    ),
    r"(?<!\S)\[": (
        "a test was not true, and its result was not used; write: if [[ ... ]]; then ...; fi"
    ),
}
_TOO_LONG = (
    "Linux takes 128 kB in one argument or variable, and 2 MB in all of a command: pass long lists"
    " on stdin (xargs; a while read loop; --files-from=-), not as $(...) or *"
)
_BY_SIGNAL = {
    signal.SIGKILL: "the kernel killed it because memory ran out (see dmesg), or somebody did;"
    " fewer [node] slots leave more memory to each command",
    signal.SIGPIPE: "the next command of the pipe, such as head, stopped reading early, which"
    " pipefail makes a failure; let it read all (sed -n 1,10p), or append: || [ $? = 141 ]",
    signal.SIGSEGV: "a program in it crashed: a bug in it, or a library of another version",
    signal.SIGBUS: "a program in it crashed: a file it maps was cut short, or the disk is full",
    signal.SIGILL: "a program in it was built for another processor than this node has",
    signal.SIGABRT: "a program in it gave up: it ran out of memory, or found a bug in itself",
    signal.SIGXFSZ: "a file became larger than ulimit -f allows on this node",
    signal.SIGXCPU: "it used more CPU seconds than ulimit -t allows on this node",
}


def ended(code: int) -> str:
    """Return how a command ended, of what `subprocess` returns.

    >>> ended(3), ended(-9), ended(-99)
    ('exited 3', 'killed by SIGKILL', 'killed by signal 99')
    """
    if code >= 0:
        return f"exited {code}"
    return f"killed by {signal_name(-code) or f'signal {-code}'}"


def signal_name(number: int) -> str:
    """Return the name of a signal, empty if there is none of that number."""
    names = {known.value: known.name for known in signal.Signals}
    return names.get(number, "")


def likely_cause(command: str, code: int, stderr: str) -> str:
    """Return the likely cause of an exit status, and what to do; nothing if stderr tells enough.

    >>> likely_cause("grep x | sort", 1, "")[:37]
    'likely cause: grep found nothing, and'
    >>> likely_cause("python3 count.py", 1, "Traceback ...")
    ''
    """
    causes = [*_causes(command, code, stderr)]
    return f"likely cause: {causes[0]}" if causes else ""


def _causes(command: str, code: int, stderr: str) -> Iterator[str]:
    if "rgument list too long" in stderr or "rgument line too long" in stderr:
        yield _TOO_LONG
    if code in (126, 127):
        yield from _not_started(code, stderr)
    number = -code if code < 0 else code - _SHELL
    if number in _BY_SIGNAL:
        yield _BY_SIGNAL[signal.Signals(number)]
    by_xargs = code == 123 and re.search(
        _word("xargs"), command
    )  # what it ran exited with 1 to 125
    if (code == 1 or by_xargs) and not stderr.strip():
        yield from (cause for pattern, cause in _SILENT.items() if re.search(pattern, command))
    if code == 124 and re.search(_word("timeout"), command):
        yield "timeout(1) ended it; give it longer"


def _not_started(code: int, stderr: str) -> Iterator[str]:
    named = re.findall(r"(?:line \d+: |^)([^:\n]+): [^:\n]+$", stderr, re.MULTILINE)
    program = named[-1] if named else "a program in it"
    if code == 127:
        yield (
            f"{program} is not installed on this node, or not in its PATH: install it there, or"
            " ship it in the step's `files` and call it as ./NAME"
        )
    else:
        yield (
            f"{program} cannot be executed: it has no execute permission or no #! line, or was"
            " built for another system; call it by its interpreter, as in: bash NAME"
        )
