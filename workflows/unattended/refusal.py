"""Why a run is not started, and the exit code that says so."""

from workflows.errors import WorkflowsError

USAGE = 2
ALREADY_RUNNING = 10
CANNOT_LOCK = 73  # EX_CANTCREAT of sysexits.h
RESULT_LOST = 74  # EX_IOERR
TIMEOUT = 124


class Refused(WorkflowsError):
    """Nothing was run; `exit_code` tells a program the reason."""

    def __init__(self, text: str, exit_code: int = USAGE) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def cannot_write(path: str, error: OSError) -> Refused:
    """Return the refusal of a run whose lock or log cannot be written."""
    return Refused(
        f"cannot write {path}: {error.strerror}; nothing was run. Make that possible, then type"
        " this again",
        CANNOT_LOCK,
    )
