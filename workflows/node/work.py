"""One key's commands: start them, meter what flows between them, wait, measure, publish.

A key of an ordinary step has one stage. A fused key has several, joined by pipes; every stage is a
bash of its own, so its CPU time and memory are its own, and what flows between is counted.
"""

import contextlib
import errno
import functools
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any, NamedTuple

from workflows.node import laws
from workflows.node.causes import ended, likely_cause, signal_name
from workflows.node.environment import of_source, without, without_end
from workflows.node.files import checksum, remove
from workflows.node.keys import digest_of
from workflows.node.ledger import Record, carried
from workflows.node.meter import Meter
from workflows.node.pieces import NoPiece, taken
from workflows.node.processes import Groups, kill_group
from workflows.node.sources import change_of
from workflows.node.strays import Strays
from workflows.node.urls import scrubbed
from workflows.node.workplace import Tampered, Workplaces

BASH = ["bash", "--norc", "--noprofile", "-euo", "pipefail", "-c"]
STDERR_KEPT = 4096
_FULL = 1 << 16  # a disk with less than this is full: even a command's stderr may not fit
_METRICS = "WORKFLOWS_METRICS"  # each stage has a value of its own: it tells whose a process is
_UNSAFE_FOR_XARGS = set(" \t\"'\\")


class Stage(NamedTuple):
    """One command of a key: the step it belongs to, and what that step declares."""

    step: str
    command: str
    files: dict[str, str]
    laws: list[str]
    timeout_s: float


class Work(NamedTuple):
    """The content of one `run` message: the same for all of its keys."""

    step: str
    mode: str
    spec: str
    stages: list[Stage]
    env: dict[str, str]
    hidden: Sequence[str] = ()  # values of `env` that must not be kept


class KeyFailed(Exception):
    """One key failed; the event says what a user needs to know of it."""

    def __init__(self, why: str, step: str, status: int = 0, stderr: str = "") -> None:
        super().__init__(why)
        self.event: dict[str, Any] = {"why": why, "step": step, "status": status, "stderr": stderr}

    def hide(self, hidden: Sequence[str]) -> None:
        """Take values out of what is said that must not be kept."""
        said = without(self.event["why"].encode("utf-8", "surrogateescape"), hidden)
        self.event["why"] = said.decode("utf-8", "surrogateescape")


class InputGone(KeyFailed):
    """An input of a key is no longer here; the event tells the driver."""

    def __init__(self, step: str, gone: str) -> None:
        super().__init__(f"its input {gone} is not here", step)
        self.event["input_gone"] = True


class KeyRun:
    """One key on its way through the stages of `work`; used once."""

    def __init__(
        self, places: Workplaces, work: Work, item: dict[str, Any], groups: Groups
    ) -> None:
        self.storage, self.work, self.item, self.groups = places.storage, work, item, groups
        self.key: str = item["key"]
        self._places, self._shipped = places, [stage.files for stage in work.stages]
        self.place = places.take(self._shipped)
        self.meters: list[Meter] = []
        self.strays: list[Strays] = []
        self.timers: dict[int, threading.Timer] = {}
        self.timed_out = False

    def __call__(self) -> Record:
        """Run the key and publish its output; return its ledger record.

        Raises:
            KeyFailed: a command failed or a law was broken; nothing is published.
        """
        try:
            started = time.time()
            stdin, size_in, inputs = self._input()
            done = self._run_stages(stdin)
            if why := change_of(self.item.get("source", {})):
                raise KeyFailed(why, self.work.stages[0].step)
            self._check_shipped()
            record = self._measured(started, size_in, inputs, done)
            by_name = self.item.get("by_name", False)
            line = self.storage.publish(self.work.step, self._output(), record, by_name=by_name)
            self._places.give_back(self.place, self._shipped)
            return line
        except OSError as error:
            remove(self.place.path)
            raise KeyFailed(f"could not be kept: {error}", self.work.step) from error
        except BaseException:
            with contextlib.suppress(KeyFailed):  # it failed already, but others need the files
                self._check_shipped()
            remove(self.place.path)
            raise

    # -- input ---------------------------------------------------------------------------------

    def _input(self) -> tuple[IO[bytes], int, list[Record]]:
        """Return the first stage's stdin, the bytes behind it, and the records of the inputs."""
        source = self.item.get("source")
        if source is not None:
            text = source["url"].encode("utf-8", "surrogateescape") + b"\n"
            return self._stdin_of(text), source["bytes"] or 0, []
        records, paths = [], []
        for step, identity, name in self.item["inputs"]:
            record = self.storage.ledger(step).record(identity)
            if record is None or not self.storage.is_done(step, identity):
                raise InputGone(self.work.step, f"{step}/{name}")
            records.append(record)
            paths.append(self.storage.path(step, identity, name))
            if self.item.get("by_name") and not self.storage.is_intact(step, record):
                why = f"its input {step}/{name} is damaged: its bytes have changed"
                raise KeyFailed(why, self.work.step)
        size = sum(record["bytes"] for record in records)
        if self.work.mode == "from_n":
            listed = "".join(path + "\n" for path in self._readable(paths))
            return self._stdin_of(listed.encode("utf-8", "surrogateescape")), size, records
        return open(paths[0], "rb"), size, records

    def _stdin_of(self, data: bytes) -> IO[bytes]:
        """Return an open file that holds `data` and has no name: nobody else can read it."""
        stdin = open(os.memfd_create("stdin"), "w+b")  # noqa: SIM115 - handed to the command
        stdin.write(data)
        stdin.seek(0)
        return stdin

    def _readable(self, paths: list[str]) -> list[str]:
        """Return `paths`, with links in place of those that plain ``xargs`` would split."""
        links = self.place.at("in")
        # Absolute where that is safe; a scratch directory with a space in it can only be named from
        # the working directory beside `links`.
        shown = os.path.join("..", "in") if _UNSAFE_FOR_XARGS.intersection(links) else links
        readable = []
        for number, path in enumerate(paths):
            if not _UNSAFE_FOR_XARGS.intersection(path):
                readable.append(path)
                continue
            name = f"{number:06d}"
            os.makedirs(links, exist_ok=True)
            os.symlink(path, os.path.join(links, name))
            readable.append(os.path.join(shown, name))
        return readable

    def _check_shipped(self) -> None:
        for number, stage in enumerate(self.work.stages):
            try:
                self.place.check(number)
            except Tampered as error:
                raise KeyFailed(str(error), stage.step) from error

    # -- run -----------------------------------------------------------------------------------

    def _run_stages(self, stdin: IO[bytes]) -> "list[dict[str, Any]]":
        processes: list[subprocess.Popen[bytes]] = []
        started = time.perf_counter()
        last = len(self.work.stages) - 1
        try:
            upstream: Any = stdin
            for number, stage in enumerate(self.work.stages):
                if number == last:
                    out: Any = open(self._stdout_path(), "wb", 0)  # noqa: SIM115 - closed below
                    reader = None
                else:
                    meter = Meter()
                    self.meters.append(meter)
                    out, reader = meter.writer, meter.reader
                processes.append(self._start(number, stage, upstream, out))
                upstream.close()
                out.close()
                upstream = reader
            for meter in self.meters:
                meter.start()
            return [
                self._wait(number, process, started) for number, process in enumerate(processes)
            ]
        finally:
            for process in processes:
                if process.returncode is None:
                    self.groups.end(process.pid)
                    process.wait()
            for strays in self.strays:
                strays.end()
            for meter in self.meters:
                meter.abandon()

    def _start(
        self, number: int, stage: Stage, stdin: IO[bytes], stdout: IO[bytes]
    ) -> "subprocess.Popen[bytes]":
        try:
            return self._started(number, stage, stdin, stdout)
        except OSError as error:
            if error.errno not in (errno.E2BIG, errno.EAGAIN, errno.ENOMEM):
                raise
            failure = KeyFailed(f"could not be started: {error.strerror}", stage.step)
            said = f"bash: {error.strerror}" if error.errno == errno.E2BIG else ""
            failure.event["cause"] = likely_cause(stage.command, 0, said)
            raise failure from error

    def _started(
        self, number: int, stage: Stage, stdin: IO[bytes], stdout: IO[bytes]
    ) -> "subprocess.Popen[bytes]":
        cwd = self.place.cwd(number)
        environment = dict(
            self.work.env,
            filename=os.path.basename(self.key),
            TMPDIR=cwd,
            WORKFLOWS_KEY=self.key,
            WORKFLOWS_STEP=stage.step,
            **{_METRICS: self.place.metrics(number)},
            **of_source(*self.item["source"]["was"][1:] if "source" in self.item else (None, "")),
        )
        self.strays.append(Strays(f"{_METRICS}={self.place.metrics(number)}"))
        with open(self.place.stderr(number), "wb", 0) as stderr:
            process = subprocess.Popen(
                [_bash(), *BASH[1:], stage.command],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                cwd=cwd,
                env=environment,
                pass_fds=(self.strays[-1].held,),
                start_new_session=True,
            )
        self.groups.add(process.pid)
        if stage.timeout_s:
            timer = threading.Timer(stage.timeout_s, self._time_out, [process.pid])
            timer.daemon = True
            timer.start()
            self.timers[number] = timer
        return process

    def _time_out(self, pid: int) -> None:
        self.timed_out = True
        kill_group(pid)

    def _wait(
        self, number: int, process: "subprocess.Popen[bytes]", started: float
    ) -> dict[str, Any]:
        stage = self.work.stages[number]
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        # Before the process is reaped: from then on another group may have its number.
        if number in self.timers:
            self.timers[number].cancel()
        self.groups.end(process.pid)
        are_gone = self.strays[number].end()  # the next stage may wait for what they hold open
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise self._failure(number, stage, process.returncode)
        if not are_gone:
            raise KeyFailed("left a process behind that cannot be ended", stage.step)
        return {
            "step": stage.step,
            "wall": round(time.perf_counter() - started, 4),
            "cpu": round(usage.ru_utime + usage.ru_stime, 4),
            # A lower bound of about 15 MB: Linux counts the memory of the runtime that forked it.
            "rss": usage.ru_maxrss * 1024,
        }

    def _failure(self, number: int, stage: Stage, code: int) -> KeyFailed:
        stderr = self._stderr(number)
        failure = KeyFailed(self._why(stage, code), stage.step, code, stderr)
        if not self.groups.cancelled and not self.timed_out:
            failure.event["cause"] = likely_cause(stage.command, code, stderr)
        return failure

    def _why(self, stage: Stage, code: int) -> str:
        if self.groups.cancelled:
            return "stopped: the run that asked for it ended"
        if self.timed_out:
            return f"timeout: ran longer than {stage.timeout_s:g} s"
        if code < 0:
            return ended(code)
        disk = os.statvfs(self.storage.root)
        if disk.f_bavail * disk.f_frsize < _FULL:
            return f"exited {code}; no space left on device below {self.storage.root}"
        if code > 128 and signal_name(code - 128):  # a shell's way to say so
            return f"exited {code}, as when something in it is killed by {signal_name(code - 128)}"
        return f"exited {code}"

    # -- measure -------------------------------------------------------------------------------

    def _measured(
        self, started: float, size_in: int, inputs: list[Record], done: list[dict[str, Any]]
    ) -> Record:
        """Check every stage's laws and return the ledger record of the key."""
        record: Record = {
            "key": self.key,
            "id": self.item["id"],
            "spec": self.work.spec,
            "inputs": [identity for _, identity, _ in self.item.get("inputs", [])],
            "at": round(started, 3),
        }
        source = self.item.get("source")
        if source is not None:
            record.update(inputs=[source["id"]], source=source["was"])
        record.update(self._described_output())
        previous, totals = carried(inputs)
        if source is not None and source["bytes"] is not None:
            totals["source.bytes"] = source["bytes"]
        size = size_in
        for number, stage in enumerate(self.work.stages):
            last = number == len(self.work.stages) - 1
            out = record["bytes"] if last else self.meters[number].count()
            numbers = dict(self._metrics(number, stage), bytes_in=size, bytes_out=out)
            self._check(stage, numbers, previous, totals)
            totals.update({f"{stage.step}.{name}": value for name, value in numbers.items()})
            done[number].update(metrics=numbers)
            previous, size = numbers, out
        totals.pop("source.bytes", None)
        record.update(done[-1], totals=totals)
        del record["step"]
        if len(done) > 1:
            record["stages"] = done
            record["cpu"] = round(sum(stage["cpu"] for stage in done), 4)
        return record

    def _check(
        self,
        stage: Stage,
        numbers: Mapping[str, int],
        previous: Mapping[str, int],
        totals: Mapping[str, int],
    ) -> None:
        known = {**totals, **{f"input.{name}": n for name, n in previous.items()}, **numbers}
        for law in stage.laws:
            if self._has_no_size() and "source.bytes" in laws.names(law):
                continue  # a server that does not say how long its answer is cannot be checked
            sentence = laws.broken(law, known)
            if sentence is not None:
                raise KeyFailed(sentence, stage.step)

    def _has_no_size(self) -> bool:
        return "source" in self.item and self.item["source"]["bytes"] is None

    def _metrics(self, number: int, stage: Stage) -> Mapping[str, int]:
        try:
            with open(self.place.metrics(number), encoding="utf-8") as file:
                return laws.parse_metrics(file.read())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise KeyFailed(str(error), stage.step) from error

    def _described_output(self) -> dict[str, Any]:
        if self.work.mode != "to_n":
            path = self._output()
            return {"bytes": os.path.getsize(path), "crc": checksum(path)}
        last = self.work.stages[-1]
        made = self.place.cwd(len(self.work.stages) - 1)
        try:
            pieces = taken(self._stdout_path(), made, self._output(), last.files)
        except NoPiece as error:
            raise KeyFailed(str(error), self.work.step) from error
        proof = digest_of(sorted(pieces))
        earlier = self.storage.ledger(self.work.step).proof(self.item["id"])
        if earlier not in (None, proof):
            raise KeyFailed(
                "not deterministic: it made other pieces than the first time, and some of those"
                " may be merged already; a 1:n command must not use randomness or the clock",
                self.work.step,
            )
        size = sum(piece[1] for piece in pieces)
        return {"bytes": size, "pieces": pieces, "proof": proof}

    # -- names in the workplace ----------------------------------------------------------------

    def _output(self) -> str:
        path = self.place.at("out")
        if self.work.mode == "to_n":
            os.makedirs(path, exist_ok=True)
        return path

    def _stdout_path(self) -> str:
        return self.place.at("names" if self.work.mode == "to_n" else "out")

    def _stderr(self, number: int) -> str:
        longest = max((4 * len(value) for value in self.work.hidden), default=0)
        with open(self.place.stderr(number), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - STDERR_KEPT - longest))
            said = file.read()
            if len(said) < size:  # it may begin within a value
                said = without_end(said, self.work.hidden)
            said = without(said, self.work.hidden)[-STDERR_KEPT:]
            return scrubbed(said.decode("utf-8", "backslashreplace"))


@functools.cache
def _bash() -> str:
    """Return the path of bash: trying each directory of PATH again for every key would show."""
    return shutil.which(BASH[0]) or BASH[0]
