"""The ``workflows`` command: finds the verb, runs it, turns errors into messages and exit codes.

Exit codes: 0 done or nothing to do, 1 failed, 2 usage, 3 nodes lost, 4 no capacity, 5 over quota,
6 not allowed, 130 interrupted, 141 the reader of stdout left. `eval` and `exec` exit as their
command does, and with 255 where it is not the command that failed.
"""

import argparse
import difflib
import errno
import importlib
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from workflows.errors import OWN_FAILURE, FleetError, NodeLost, UsageError, WorkflowsError
from workflows.fleets import hubprocess
from workflows.reporting import messages
from workflows.reporting.stdio import OutputLost, discard, guard

_USAGE = 2
_READER_LEFT = 141  # what a shell says of a command that SIGPIPE ended
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EPIPE)
# Those that ask nodes: an ssh fleet's hub is begun before their own modules are loaded.
ON_NODES = ("ls", "cp", "rm", "eval", "map", "map-to-n", "map-from-n", "health")
# Most words of these are Luigi's, so they read their command lines themselves.
_READS_ITSELF = ("cron",)
# A verb's module is imported when it is used: Luigi alone would take 0.1 s of every start.
VERBS = {
    "ls": "list keys on the fleet",
    "cp": "copy keys to the fleet, or from it",
    "rm": "remove keys, so that they can be remade",
    "eval": "run a command on one key, on its node, and print its output",
    "map": "run a command over many keys: each makes one key of the same name",
    "map-to-n": "run a command over many keys: each makes the files whose names it prints",
    "map-from-n": "run a command over the keys of equal names, or equal numeric prefixes",
    "up": "prepare the hosts of an ssh fleet: packages, pip, limits, your own script",
    "ssh": "log in to a node with the system's ssh, or run a command there",
    "health": "check that every node can work",
    "status": "print the nodes and what they store",
    "exec": "run a command on every node",
    "put": "copy a file to every node",
    "get": "copy a file from every node",
    "config": "print the settings in effect and the nodes",
    "results": "print the last result as a table",
    "cron": "run a pipeline that nobody watches: one at a time, with a log, a timeout, its fleet",
    "plan": "show what would run: how many keys, where and why; runs nothing",
    "verify": "recount the source with an independent program and compare",
    "report": "print what a run did: keys, seconds and bytes of each step",
    "fsck": "read every output on the nodes; the next run remakes damaged ones",
    "repro": "run one step's command on one key, here, with its input",
    "why": "print the origin of a checkpointed object: inputs, commands, code, place and time",
    "fleet": "prices, up, status, exec, down, sweep, ... of disposable EC2 fleets",
    "gc": "list, and remove, what no recent pipeline references",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit code, which is not 0 if anything it printed was lost."""
    guard()
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    if arguments and arguments[0] in ON_NODES:
        hubprocess.begin(arguments)
    try:
        return messages.finish(_run(arguments))
    except KeyboardInterrupt:
        return messages.finish(130)


def _run(arguments: list[str]) -> int:
    try:
        return _verb(arguments)
    except WorkflowsError as error:
        messages.say(f"workflows: {error}")
        return _failed(arguments) or _exit_code(error)
    except OSError as error:
        if not isinstance(error, OutputLost) and error.errno not in _FULL:
            raise
        discard()
        if isinstance(error, OutputLost) and error.errno == errno.EPIPE:
            return _READER_LEFT  # `| head`, or a pager that was quit: who did that knows it
        why = error if isinstance(error, OutputLost) else error.strerror
        messages.say(f"workflows: not all could be written: {why}")
        return 1


def _verb(arguments: list[str]) -> int:
    verb = arguments[0] if arguments else ""
    if verb in _READS_ITSELF:
        if not _module(verb).asks_for_help(arguments[1:]):
            parsed = argparse.Namespace(words=arguments[1:])
            return int(_module(verb).run(parsed))
        arguments = [verb, "--help"]
    try:
        parsed = _parser(verb).parse_args(arguments)
    except SystemExit:
        sys.stdout.flush()  # the help
        raise
    code: int = _module(parsed.verb).run(parsed)
    sys.stdout.flush()
    return code


class Parser(argparse.ArgumentParser):
    """A parser that takes no abbreviations, and says which word was meant by a misspelt one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self.failed = _USAGE  # what it exits with where the command line is wrong

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the command line, and leave with 2."""
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if choice:
            near = difflib.get_close_matches(choice[1], re.findall(r"[\w-]+", choice[2]), 1)
            message += f"; did you mean {near[0]!r}?" if near else ""
        elif message.startswith("unrecognized arguments: "):
            message += "".join(self._meant(message.split(": ", 1)[1].split()))
        self.print_usage(sys.stderr)
        self.exit(self.failed, f"{self.prog}: error: {message}\n")

    def _meant(self, words: Sequence[str]) -> Iterator[str]:
        """Yield what was meant by each option that there is not, on this level or below."""
        known = [*self._options()]
        if any(action.dest == "parameters" for action in self._below()):
            yield "; the parameters of a task follow its name"
        for word in (word.partition("=")[0] for word in words if word.startswith("-")):
            for near in difflib.get_close_matches(word, known, 1):
                yield f"; for {word}, did you mean {near}?"

    def _options(self) -> Iterator[str]:
        for action in self._below():
            yield from action.option_strings

    def _below(self) -> Iterator[argparse.Action]:
        """Yield what this parser takes, and those below it."""
        for action in self._actions:
            yield action
            if isinstance(action, argparse._SubParsersAction):
                for below in action.choices.values():
                    yield from below._below()


def _failed(arguments: Sequence[str]) -> int:
    """Return what a verb that exits as its command does says of its own failures; 0 for others."""
    return OWN_FAILURE if arguments and arguments[0] in ("eval", "exec") else 0


def _exit_code(error: WorkflowsError) -> int:
    if isinstance(error, FleetError):
        return error.exit_code
    return 2 if isinstance(error, UsageError) else 3 if isinstance(error, NodeLost) else 1


def _parser(verb: str) -> argparse.ArgumentParser:
    """Return a parser that knows all verbs, and the arguments of the one that is asked for."""
    from workflows import __version__

    parser = Parser(
        prog="workflows", description="Batch pipelines over many files, on the nodes that own them."
    )
    parser.add_argument("--version", action="version", version=f"workflows {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, summary in VERBS.items():
        own = verbs.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
        if name == verb:
            parser.failed = own.failed = _failed([verb]) or _USAGE
            _module(name).add(own)
    return parser


def _module(verb: str) -> Any:
    return importlib.import_module(f"workflows.verbs.{verb.replace('-', '_')}")
