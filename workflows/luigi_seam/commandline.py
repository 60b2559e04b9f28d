"""The parsers of Luigi's command line, made once: in a run Luigi parses the same line three times.

Each time it makes three parsers, of all parameters of all tasks that are known: 40 ms of each run.
"""

import functools
from typing import Any

import luigi
from luigi.cmdline_parser import CmdlineParser
from luigi.task_register import Register

_make = CmdlineParser._build_parser


def keep_parsers() -> None:
    """Let Luigi use a parser again, as long as it knows of no other task or parameter."""
    CmdlineParser._build_parser = staticmethod(_parser)  # type: ignore[method-assign]


def _parser(root_task: str | None = None, help_all: bool = False) -> Any:
    return _made(root_task, help_all, tuple(Register._reg), luigi.Parameter._counter)


@functools.lru_cache(maxsize=2)
def _made(root_task: str | None, help_all: bool, _tasks: tuple[type, ...], _count: int) -> Any:
    return _make(root_task, help_all)  # type: ignore[no-untyped-call]
