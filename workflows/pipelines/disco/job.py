"""`Job`: a mapper, a combiner and a reducer as plain Python functions on a class.

The convention is that of luigi.contrib.hadoop, the words are Disco's::

    class WordCount(Job):
        def mapper(self, line):
            for word in line.split():
                yield word, 1

        def combiner(self, key, values):
            yield key, sum(values)

        reducer = combiner

    luigi --module mine WordCount --source texts --pattern '*.gz' --partitions 10

The module that the class is in is shipped to the nodes as it stands. Its imports there are the
standard library, `required_files` and what `pip` names; luigi and workflows are left out of it.
"""

import json
import os
import re
import shlex
import sys
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import luigi

from workflows.errors import UsageError
from workflows.pipelines.listing import ListsItsFiles
from workflows.steps import MapFromN, MapToN, Step

_HERE = os.path.dirname(os.path.abspath(__file__))
_RUNNER = os.path.join(_HERE, "scripts", "mapreduce.py")
_FETCH = os.path.join(_HERE, "..", "..", "scripts", "fetch.sh")
_SECRET = re.compile(r"secret|passw|token|credential|private|aws_?(access|key)|api_?key", re.I)
# Sets of texts would be walked in another order by every process; what a retry makes would differ.
_PYTHON = "PYTHONHASHSEED=0 python3 mapreduce.py"
# Of a pipe that failed: exit as fetch.sh did if it asks for another try, else as bash would.
_FETCH_FIRST = '{ was=($? "${PIPESTATUS[@]}"); exit $((was[1] == 75 ? 75 : was[0])); }'
Pairs = Iterable[tuple[Any, Any]]


class _Halves(Step):
    """The common part of both halves of a job: its parameters, its files and its code."""

    partitions = luigi.IntParameter(default=10, description="outputs; keys are spread over them")
    params: Any = luigi.DictParameter(
        default={}, description="for the job's own use, as JSON; never secrets"
    )
    compressed = luigi.BoolParameter(
        default=True,
        parsing=luigi.BoolParameter.EXPLICIT_PARSING,
        description="write the outputs with gzip",
    )
    _job: ClassVar[type["Job"]]

    @property
    def files(self) -> Sequence[str]:  # type: ignore[override]
        """Return what is shipped: the runner, the job's own module, and what that requires.

        Raises:
            UsageError: two of them have the same name.
        """
        module = os.path.abspath(str(sys.modules[self._job.__module__].__file__))
        files = [_FETCH, _RUNNER, module, *self._job.required_files]
        names = [os.path.basename(path) for path in files]
        twins = sorted({name for name in names if names.count(name) > 1})
        if twins:
            raise UsageError(f"{self._job.__name__} ships two files called {twins[0]}; rename one")
        return files

    def runner(self, half: str) -> str:
        """Return the command of one half of the job.

        Raises:
            UsageError: a parameter is a secret, or is nothing that JSON can hold.
        """
        own = {name: getattr(self, name) for name in _own_params(type(self))}
        secrets = sorted(name for name in [*own, *own["params"]] if _SECRET.search(name))
        if secrets:
            raise UsageError(
                f"{self._job.__name__} has the parameter {secrets[0]}: parameters are shown in logs"
                " and in luigid; leave it out, nodes get signed URLs or have a role of their own"
            )
        if own["partitions"] < 1:
            raise UsageError(f"--partitions {own['partitions']} must be at least 1")
        try:
            told = json.dumps(own, sort_keys=True, default=dict)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"{self._job.__name__} cannot tell nodes its parameters: {error}"
            ) from error
        module = os.path.basename(str(sys.modules[self._job.__module__].__file__))
        return f"{_PYTHON} {half} {shlex.join([module, self._job.__name__, told])}"


class MapInputs(_Halves, MapToN):
    """The first half of a job: each input, mapped and combined, in a file per partition."""

    @property
    def command(self) -> str:
        """Return the command: inputs may be compressed, whose names say so."""
        unpack = "case $filename in *.gz) exec gzip -dc ;; *) exec cat ;; esac"
        return f"bash fetch.sh | ({unpack}) | {self.runner('map')} || {_FETCH_FIRST}"


class Job(_Halves, ListsItsFiles, MapFromN):
    """A job, and its second half: each partition, sorted, reduced. Durable.

    Keys and values are what JSON can hold; a tuple comes back as a tuple in keys, as a list in
    values. All values of a key meet in one call of `reducer`; keys come in the order of their JSON.
    """

    required_files: ClassVar[Sequence[str]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make the first half: a step of its own, called after the job."""
        super().__init_subclass__(**kwargs)
        cls._job = cls
        name = f"{cls.__name__}Map"
        body = {**_own_params(cls), "_job": cls, "__module__": cls.__module__}
        body["__doc__"] = f"The inputs of {cls.__name__}, mapped."
        if hasattr(cls, "pip"):
            body["pip"] = cls.pip
        cls.upstream = types.new_class(name, (MapInputs,), exec_body=lambda own: own.update(body))
        # Where whoever looks for the step by its name finds it.
        setattr(sys.modules[cls.__module__], name, cls.upstream)
        cls.total_laws = (f"pairs_in = {name}.pairs_out",)

    @property
    def command(self) -> str:
        """Return the command. The sort is stable and external: it needs little memory."""
        sort = "sort -s -S 128M -t $'\\t' -k 1,1"
        pack = " | gzip -n" if self.compressed else ""
        return f"xargs cat | {sort} | {self.runner('reduce')}{pack}"

    # -- what a job says -----------------------------------------------------------------------

    def mapper(self, line: str) -> Pairs:
        """Yield (key, value) for a line of the input, which comes without its newline."""
        raise UsageError(f"{type(self).__name__} has no mapper")

    def combiner(self, key: Any, values: Iterator[Any]) -> Pairs:
        """Yield fewer pairs for many of one key, before they travel; leave it out if none can be.

        It is called any number of times for a key, so it must yield what it can be given again.
        """
        raise NotImplementedError

    def reducer(self, key: Any, values: Iterator[Any]) -> Pairs:
        """Yield what is written for a key and all its values: fields of one line, in a tuple."""
        for value in values:
            yield key, value


def _own_params(kind: type[Step]) -> dict[str, luigi.Parameter]:
    """Return the parameters that a job has and a step has not.

    Not by `get_params`, which works only once the class is finished.
    """
    common = {name for name, _ in Step.get_params()}
    return {
        name: value
        for each in reversed(kind.__mro__)
        for name, value in vars(each).items()
        if isinstance(value, luigi.Parameter) and name not in common
    }
