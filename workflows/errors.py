"""Every error a user can meet. Nothing else in the package raises a bare ``Exception``.

::

    WorkflowsError
    ├── UsageError            what was asked for cannot be done as written
    │   ├── ConfigError       luigi.cfg, the environment or a flag holds a bad value
    │   └── KeyNameError      a name that cannot be a key
    ├── SourceError           the source cannot be listed or read
    ├── NodeLost              a node died, hangs or is cut off: retried, never the command's fault
    ├── NodeRefused           a node answers, but cannot work (no Python, read-only scratch, ...)
    ├── KeysFailed            some keys of a shard failed; all the others are done
    ├── LawBroken             rows were lost or made up between two steps
    ├── CheckpointError       a durable copy is missing, damaged or cannot be written
    └── FleetError            EC2 refused, or a fleet is not as it should be
        ├── NoCapacity        EC2 has too few instances of these types in these zones now
        ├── OverQuota         the account's quota is too small
        ├── NotAllowed        the credentials are missing, wrong, or lack a permission
        └── Rejected          EC2 does not take the request as it stands; waiting does not help
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Exit code of eval and exec where it is not their command that failed; as in ssh.
OWN_FAILURE = 255
_FEW = 12
# As the AWS CLI and boto3 say it, and the SDK for Go, with which s5cmd and rclone are made.
_NO_CREDENTIALS = (
    r"Unable to locate credentials|NoCredential|no EC2 IMDS role found"
    r"|config profile \(.*\) could not be found"
)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return how a message goes on that says there is no `word`: with what was meant, or all.

    >>> did_you_mean("Selct", ["Select", "Fetch"]), did_you_mean("x", ["Select", "Fetch"])
    ("; did you mean 'Select'?", '; there are Fetch, Select')
    >>> did_you_mean("x", [])
    '; there are none'
    """
    import difflib

    names = sorted(set(known))
    near = difflib.get_close_matches(word, names, 1)
    if near:
        return f"; did you mean {near[0]!r}?"
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return f"; there are {', '.join(names[:_FEW]) + more if names else 'none'}"


class WorkflowsError(Exception):
    """The root of the tree: everything here prints as one message that says what to type next."""


class UsageError(WorkflowsError):
    """Invalid request."""


class ConfigError(UsageError):
    """One or more settings are wrong; all of them are named at once."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(list(problems))
        self.problems: list[str] = list(problems)

    def __str__(self) -> str:
        return "bad settings:\n" + "\n".join("  " + problem for problem in self.problems)


class KeyNameError(UsageError):
    """A name that cannot be a key."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(name, why)
        self.name, self.why = name, why

    def __str__(self) -> str:
        return f"{self.name!r} cannot be a key: {self.why}"


class SourceError(WorkflowsError):
    """The source cannot be listed or read."""


class NodeLost(WorkflowsError):
    """A node died, hangs or is cut off; its keys are retried, and no command is to blame."""

    def __init__(self, node: str, why: str) -> None:
        super().__init__(node, why)
        self.node, self.why = node, why

    def __str__(self) -> str:
        return f"{self.node} is lost: {self.why}"


class NodeRefused(WorkflowsError):
    """A node answers but cannot do the work."""

    def __init__(self, node: str, why: str) -> None:
        super().__init__(node, why)
        self.node, self.why = node, why

    def __str__(self) -> str:
        return f"{self.node} cannot work: {self.why}"


class KeysFailed(WorkflowsError):
    """Some keys of a shard failed; every other key of it is done and stays done.

    ``failures`` holds the node's ``failed`` events: key, step, status, why, stderr.
    """

    SHOWN = 5
    FEW = 3  # that failed in the same way are shown one by one

    def __init__(self, node: str, done: int, failures: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(node, done, list(failures))
        self.node, self.done, self.failures = node, done, list(failures)

    def __str__(self) -> str:
        total = self.done + len(self.failures)
        lines = [f"{len(self.failures)} of {total} keys failed on {self.node}"] if total > 1 else []
        shown = []
        groups: dict[Any, list[Mapping[str, Any]]] = {}
        for failure in self.failures:
            groups.setdefault(likeness(failure), []).append(failure)
        for alike in groups.values():
            is_one = len(alike) > self.FEW or "hint" in alike[0]
            shown += [describe_failure(self.node, one) for one in alike[: 1 if is_one else None]]
            if is_one and alike[1:]:
                shown[-1] += f"\n{describe_alike(alike[1:])}"
        lines += shown[: self.SHOWN]
        if shown[self.SHOWN :]:
            lines.append(f"... and {len(shown) - self.SHOWN} more")
        return "\n".join(lines)


def describe_failure(node: str, failure: Mapping[str, Any]) -> str:
    r"""Say which key failed where and how, with the end of its stderr and the line that repeats it.

    >>> event = {"step": "Select", "key": "a.csv", "why": "exited 3", "stderr": "no column\n"}
    >>> print(describe_failure("node 1", event))
    Select of a.csv on node 1: exited 3
        no column
      to see it again: workflows repro Select a.csv
    """
    step, key = failure["step"], failure["key"]
    stderr = str(failure.get("stderr", "")).rstrip("\n")
    what = f"{step}/{key}" if failure.get("by_name") else f"{step} of {key}"
    lines = [f"{what} on {node}: {failure['why']}"]
    lines += ["    " + line for line in stderr.split("\n") if line]
    if cause := failure.get("cause"):
        lines.append(f"  {cause}")
    if failure.get("hint"):
        lines.append(f"  {failure['hint']}")
    lines += [f"  {hint}" for hint in credentials_hint(stderr)]
    if not failure.get("was_restored"):  # no command of its failed
        lines.append(f"  to see it again: workflows repro {step} {_typed(key)}")
    return "\n".join(lines)


def likeness(failure: Mapping[str, Any]) -> "tuple[str, str, str]":
    """Return what two failures have in common of which it is enough to show one.

    That is the step, why it failed and its stderr, but for the name of the key in it.

    >>> one, two = (
    ...     {"step": "S", "why": "exited 1", "stderr": f"cat: x/{key}: no", "key": f"d/{key}"}
    ...     for key in ("a", "b")
    ... )
    >>> likeness(one) == likeness(two)
    True
    """
    import re
    from urllib.parse import quote

    key, stderr = str(failure["key"]), str(failure.get("stderr", ""))
    base = key.rsplit("/", 1)[-1]
    for name in (key, base, quote(base, errors="surrogateescape")):
        stderr = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "\0", stderr)
    return str(failure["step"]), str(failure["why"]), stderr


def describe_alike(failures: Sequence[Mapping[str, Any]]) -> str:
    """Say which other keys failed as the one did that was shown.

    >>> print(describe_alike([{"key": key} for key in "abcdef"]))
      and 6 more in the same way: a, b, c, d, ...
    """
    names = sorted(str(failure["key"]) for failure in failures)
    named = KeysFailed.SHOWN - 1  # beside the one that was shown
    shown = ", ".join(names[:named]) + (", ..." if names[named:] else "")
    return f"  and {len(names)} more in the same way: {shown}"


def credentials_hint(stderr: str) -> list[str]:
    """Return what to do, in a line, where a command has found no credentials; else nothing.

    >>> credentials_hint("aws: Unable to locate credentials")[0][:33]
    'commands get none of the AWS_* va'
    """
    import re

    if not re.search(_NO_CREDENTIALS, stderr):
        return []
    text = (
        "commands get none of the AWS_* variables of the machine that starts the run; name those"
        " they need in luigi.cfg: [node] pass_env = AWS_PROFILE, AWS_REGION, and [node] secrets ="
        " AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN"
    )
    return [text]


def _typed(key: str) -> str:
    r"""Return `key` as one types it in a shell: quoted, escaped where terminals cannot show it.

    >>> print(_typed("a b"), _typed("-rf"), _typed("\udcff\t"))
    'a b' -- -rf $'\xff\x09'
    """
    import shlex

    dashes = "-- " if key.startswith("-") else ""
    if key.isprintable():
        return dashes + shlex.quote(key)
    escaped = [
        chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f"\\x{byte:02x}"
        for byte in key.encode("utf-8", "surrogateescape")
    ]
    return f"{dashes}$'{''.join(escaped)}'"


class LawBroken(WorkflowsError):
    """Rows were lost or made up between two steps; nothing was checkpointed."""


class CheckpointError(WorkflowsError):
    """A durable copy is missing, damaged or cannot be written."""


class FleetError(WorkflowsError):
    """EC2 refused something, or a fleet is not as it should be; `code` is what EC2 calls it."""

    exit_code = 1

    def __init__(self, why: str, code: str = "") -> None:
        super().__init__(why, code)
        self.why, self.code = why, code

    def __str__(self) -> str:
        return self.why


class NoCapacity(FleetError):
    """EC2 has too few instances of the allowed types in the allowed zones right now."""

    exit_code = 4


class OverQuota(FleetError):
    """The account's quota is too small for that many instances."""

    exit_code = 5


class NotAllowed(FleetError):
    """The credentials are missing, wrong, or lack a permission."""

    exit_code = 6


class Rejected(FleetError):
    """EC2 does not take the request as it stands: a bad value, a broken key; waiting is no use."""

    exit_code = 7
