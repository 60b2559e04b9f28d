"""One half of a job on a node: the functions of its class over the lines of one input.

    python3 mapreduce.py map MODULE.py CLASS SETTINGS < LINES
    python3 mapreduce.py reduce MODULE.py CLASS SETTINGS < SORTED PAIRS > RESULTS

Promise: `map` writes a plain file NNN_part.gz per partition (also an empty one, and called after
what will come of it) of lines KEY<tab>VALUE, both JSON, and prints their names; which partition a
key is in depends on the key alone. `reduce` is given such lines sorted by KEY, calls the reducer
once for each key, and writes what it yields as lines of fields separated by tabs. Same input, same
bytes.
Metrics: lines_in, pairs_out; pairs_in, lines_out.
"""

import collections
import contextlib
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import json
import os
import sys
import types
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Callable

HELD = 1 << 20  # values held in memory before they are combined, and then written
BLOCK = 1 << 18  # bytes of lines
encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
decode = json.JSONDecoder().decode
Table = collections.defaultdict[Any, list[Any]]
Ones = collections.defaultdict[Any, int]


class Job:
    """What a job class is built on here: its base class on the driver is a Luigi task."""

    def mapper(self, line: str) -> Any:
        raise NotImplementedError

    def reducer(self, key: Any, values: "Iterator[Any]") -> "Iterator[Any]":
        for value in values:
            yield key, value


# -- the job ---------------------------------------------------------------------------------------


class Absent(type):
    """Makes classes that stand for anything of a package which is only on the driver."""

    def __getattr__(cls, name: str) -> Any:
        return absent(name)


def absent(name: str) -> type:
    """Return what stands for a name of such a package."""
    if name.startswith("__"):
        raise AttributeError(name)
    return Job if name == "Job" else Absent(name, (), {"__init__": _take_all, "__call__": _first})


def _take_all(self: Any, *args: Any, **kwargs: Any) -> None:
    pass


def _first(self: Any, *args: Any, **kwargs: Any) -> Any:
    return args[0] if args else self


class Driver(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds luigi and workflows where there are none: jobs name them, but never call them here."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.split(".", maxsplit=1)[0] in ("luigi", "workflows"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__getattr__ = absent  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def job_of(path: str, name: str, settings: "dict[str, Any]") -> Any:
    """Return the job: an object of the class, with its parameters."""
    sys.meta_path.insert(0, Driver())
    sys.path.insert(0, os.getcwd())
    spec = importlib.util.spec_from_file_location(os.path.splitext(path)[0], path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    sys.modules[module.__name__] = module
    try:
        spec.loader.exec_module(module)  # type: ignore[union-attr]
    except ModuleNotFoundError as error:
        fail(f"{path} imports {error.name}, which is not here: name it in required_files or pip")
    job = object.__new__(getattr(module, name))
    for key, value in settings.items():
        setattr(job, key, value)
    if not hasattr(job, "mapper"):
        fail(f"{name} has no mapper here: what it builds on must be in {path} or required_files")
    return job


# -- map -------------------------------------------------------------------------------------------


def run_map(job: Any) -> None:
    mapper, combiner = job.mapper, getattr(job, "combiner", None)
    table: Table = collections.defaultdict(list)
    # Most jobs count. What is 1 (not True, nor 1.0) is counted instead of listed, if it will be
    # combined: a third of the time, and no memory for it.
    ones: Ones = collections.defaultdict(int)
    one = 1 if combiner else object()
    lines_in = pairs_out = 0
    with contextlib.ExitStack() as stack:
        end = ".gz" if job.compressed else ".txt"  # of what it will become
        names = [f"{number:03d}_part{end}" for number in range(job.partitions)]
        parts = [stack.enter_context(open(name, "ab")) for name in names]
        for block in blocks():
            lines_in += len(block)
            for line in block:
                for key, value in mapper(line):
                    if value is one:
                        ones[key] += 1
                    else:
                        table[key].append(value)
            # Counted now and then: to count in the loop would take a tenth of its time.
            if len(ones) + held(table) > HELD:
                table = combined(table, ones, combiner)
                ones.clear()
                if held(table) > HELD // 2:
                    pairs_out += write(table, parts)
                    table.clear()
        pairs_out += write(combined(table, ones, combiner), parts)
    print("\n".join(names))
    metrics(lines_in=lines_in, pairs_out=pairs_out)


def blocks() -> "Iterator[list[str]]":
    """Yield lines, some at a time, without their newlines."""
    with open(0, encoding="utf-8", errors="surrogateescape", newline="\n", closefd=False) as text:
        while True:
            some = text.readlines(BLOCK)
            if not some:
                return
            yield [line[:-1] if line.endswith("\n") else line for line in some]


def lines() -> "Iterator[str]":
    return itertools.chain.from_iterable(blocks())


def held(table: Table) -> int:
    return sum(map(len, table.values()))


def combined(table: Table, ones: Ones, combiner: "Callable[..., Iterable[Any]] | None") -> Table:
    if combiner is None:
        return table
    result: Table = collections.defaultdict(list)
    for key, count in ones.items():
        values = itertools.chain(itertools.repeat(1, count), table.pop(key, ()))
        for new, value in combiner(key, values):
            result[new].append(value)
    for key, some in table.items():
        for new, value in combiner(key, iter(some)):
            result[new].append(value)
    return result


def write(table: Table, parts: "list[Any]") -> int:
    """Append all pairs to the files of their partitions; return how many there were."""
    texts: list[list[str]] = [[] for _ in parts]
    pairs = 0
    for key, values in table.items():
        name = encode(key)
        lines_of = texts[zlib.crc32(name.encode("ascii")) % len(parts)]
        pairs += len(values)
        for value in values:
            lines_of.append(f"{name}\t{encode(value)}\n")
    for part, some in zip(parts, texts):
        part.write("".join(some).encode("ascii"))
    return pairs


# -- reduce ----------------------------------------------------------------------------------------


def run_reduce(job: Any) -> None:
    reducer = job.reducer
    pairs_in = lines_out = 0

    def values(group: "Iterable[tuple[str, str]]") -> "Iterator[Any]":
        nonlocal pairs_in
        for _, value in group:
            pairs_in += 1
            yield decode(value)

    pairs = (line.split("\t") for line in lines())
    with open(
        1, "w", encoding="utf-8", errors="surrogateescape", newline="\n", closefd=False
    ) as out:
        for name, group in itertools.groupby(pairs, first):
            own = values(group)  # type: ignore[arg-type]
            for result in reducer(as_tuple(decode(name)), own):
                out.write("\t".join(map(str, flat(result))) + "\n")
                lines_out += 1
            for _ in own:
                pass  # what the reducer did not care for has been read all the same
    metrics(pairs_in=pairs_in, lines_out=lines_out)


def first(pair: "list[str]") -> str:
    return pair[0]


def as_tuple(value: Any) -> Any:
    """Return a key as the mapper had it: a list cannot have been one."""
    return tuple(map(as_tuple, value)) if isinstance(value, list) else value


def flat(value: Any) -> "Iterator[Any]":
    if isinstance(value, (tuple, list)):
        for each in value:
            yield from flat(each)
    else:
        yield value


# -- both ------------------------------------------------------------------------------------------


def metrics(**numbers: int) -> None:
    path = os.environ.get("WORKFLOWS_METRICS")
    if path:
        with open(path, "a", encoding="ascii") as file:
            file.writelines(f"{name}={number}\n" for name, number in numbers.items())


def fail(message: str) -> None:
    print(f"mapreduce: {message}", file=sys.stderr)
    sys.exit(3)


def main(half: str, path: str, name: str, settings: str) -> None:
    # Much is held and little of it in cycles: to look for those often is a tenth of the time.
    gc.set_threshold(100_000)
    job = job_of(path, name, json.loads(settings))
    (run_map if half == "map" else run_reduce)(job)


if __name__ == "__main__":
    main(*sys.argv[1:])
