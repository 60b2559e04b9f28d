"""Two jobs to start from: how often words occur, and how many records a log has.

::

    luigi --module workflows.pipelines.disco.tasks WordCount --source texts --pattern '*.gz'
    luigi --module workflows.pipelines.disco.tasks LogCount --source logs --params '{"by": "day"}'
"""

import re
from collections.abc import Iterator
from typing import Any

import luigi

from workflows.pipelines.disco.job import Job

_WORD = re.compile(r"[a-z']+")


class WordCount(Job):
    """How often each word occurs, whatever its case."""

    def mapper(self, line: str) -> Iterator[tuple[str, int]]:
        for word in _WORD.findall(line.lower()):
            yield word, 1

    def combiner(self, key: str, values: Iterator[int]) -> Iterator[tuple[str, int]]:
        yield key, sum(values)

    reducer = combiner


class LogCount(Job):
    """How many records a log has for each hour of the day, or day, or month; any kind of log."""

    params: Any = luigi.DictParameter(default={"by": "hour"}, description="by: hour, day or month")
    required_files = ("scripts/log_times.py",)

    def mapper(self, line: str) -> Iterator[tuple[str, int]]:
        import log_times

        yield log_times.part_of_time(line, self.params["by"]), 1

    def combiner(self, key: str, values: Iterator[int]) -> Iterator[tuple[str, int]]:
        yield key, sum(values)

    def reducer(self, key: str, values: Iterator[int]) -> Iterator[tuple[Any, ...]]:
        yield key, sum(values)
