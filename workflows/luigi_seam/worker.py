"""Tasks of steps run on threads: all they do is wait for their node, and a process costs 9 ms.

Luigi starts a process for each task, and would run tasks in its own only one after the other. Here
its worker is given a thread that looks like such a process. Tasks that are no steps are left as
Luigi has them. See docs/adr/0013.
"""

import collections
import contextvars
import multiprocessing
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import luigi
import luigi.interface
from luigi.interface import _WorkerSchedulerFactory
from luigi.task_status import PENDING
from luigi.worker import TaskProcess, Worker

from workflows.fleets.channel import Conversations
from workflows.luigi_seam import retries

_END_S = 5.0
_LOOK_S = 0.05
_HEARD_S = 2.0  # after it all has been read that a process said before it died
_patience_until = [-_END_S]
# Called with a worker that has run all it could, before it is gone.
at_end: "list[Callable[[Worker], None]]" = []


class TaskThread:
    """A running task, as Luigi's worker sees one: the part of `TaskProcess` that it uses."""

    exitcode = 0  # a thread does not die without a word

    def __init__(self, process: TaskProcess) -> None:
        self._process, self._results = process, process.result_queue
        process.result_queue = self
        self.task, self.status_reporter = process.task, process.status_reporter
        self.worker_timeout, self.timeout_time = process.worker_timeout, process.timeout_time
        self.use_multiprocessing = process.use_multiprocessing  # or it runs before Luigi goes on
        self._conversations = Conversations()
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run,), daemon=True)

    def start(self) -> None:
        """Run the task, without waiting for its end."""
        self._thread.start()

    def run(self) -> None:
        """Run the task to its end."""
        contextvars.copy_context().run(self._run)

    def is_alive(self) -> bool:
        """Tell whether it has yet to end."""
        return self._thread.is_alive()

    def terminate(self) -> None:
        """Let it go no further: its conversations end, and with them what it runs on its node."""
        self._conversations.interrupt()
        # Those of a run are terminated one after the other, and end side by side.
        now = time.monotonic()
        if now > _patience_until[0] + _END_S:
            _patience_until[0] = now + _END_S
        self._thread.join(max(0.0, _patience_until[0] - now))

    def put(self, result: Any) -> None:
        """Take what came of it for the worker, who asks no more of a task that it terminated."""
        if not self._conversations.is_over:
            self._results.put_here(result)

    def _run(self) -> None:
        with self._conversations:
            try:
                self._process.run()
            except BaseException as error:
                was_ended = self._conversations.is_over or not threading.main_thread().is_alive()
                if not self.use_multiprocessing:
                    raise
                if not isinstance(error, KeyboardInterrupt) and not was_ended:
                    raise
                # Terminated, or the process ends: Luigi knows that, and the one who did it too.


class Results:
    """Results of tasks: of threads directly, of processes by Luigi's own queue.

    That is a pipe, and a thread that writes to it: 0.2 ms of CPU a task.
    """

    def __init__(self, others: Any) -> None:
        self.others = others
        self._all: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.put_here = self._all.put
        self._verdicts: collections.deque[tuple[float, Any]] = collections.deque()
        self._judged: set[str] = set()
        self._reader: threading.Thread | None = None
        self._is_closed = False

    def put(self, verdict: Any) -> None:
        """Take the worker's word that a task is dead, once; what it said itself comes first."""
        if verdict[0] not in self._judged:
            self._judged.add(verdict[0])
            self._verdicts.append((time.monotonic() + _HEARD_S, verdict))

    def get(self, timeout: float) -> Any:
        """Return the next result.

        Raises:
            queue.Empty: there is none for `timeout` seconds.
        """
        if self._verdicts and time.monotonic() >= self._verdicts[0][0]:
            return self._verdicts.popleft()[1]
        result = self._all.get(timeout=timeout)
        if isinstance(result, BaseException):
            raise result
        return result

    def begin(self, task_id: str) -> None:
        """Know that a task runs, for the first time or again."""
        self._judged.discard(task_id)

    def read_others(self) -> None:
        """Take in what comes of processes, from now on."""
        if self._reader is None:
            self._reader = threading.Thread(target=self._read, daemon=True)
            self._reader.start()

    def _read(self) -> None:
        while not self._is_closed:
            try:
                self.put_here(self.others.get(timeout=_LOOK_S))
            except queue.Empty:
                continue
            except Exception as error:  # noqa: BLE001 - what is no result is for the worker to see
                self.put_here(error)

    def close(self) -> None:
        """Accept nothing more."""
        self._is_closed = True
        if self._reader is not None:
            self._reader.join(_END_S)
            if self._reader.is_alive():
                return  # it waits for the rest of what a process said that was killed meanwhile
        self.others.close()


class StepWorker(Worker):
    """Luigi's worker, which runs steps on threads and every other task as Luigi does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._results = Results(self._task_result_queue)
        self._task_result_queue: Any = self._results
        self._known = 0  # tasks, when the number of processes was last looked at

    def _create_task_process(self, task: luigi.Task) -> Any:
        self._results.begin(task.task_id)
        process = super()._create_task_process(task)  # type: ignore[no-untyped-call]
        if not is_step(task):
            process.result_queue = self._results.others
            self._results.read_others()
            return process
        if len(self._scheduled_tasks) != self._known:
            self._known = len(self._scheduled_tasks)
            if all(is_step(scheduled) for scheduled in self._scheduled_tasks.values()):
                # With more it would ask after each task for one that no node has room for.
                self.worker_processes = min(self.worker_processes, task.most_at_once)  # type: ignore[attr-defined]
        return TaskThread(process)

    def _get_work(self) -> Any:
        for task_id in retries.due():
            task = self._scheduled_tasks.get(task_id)
            if task is not None:
                self._add_task(  # type: ignore[no-untyped-call]
                    worker=self._id,
                    task_id=task_id,
                    status=PENDING,
                    runnable=True,
                    params=task.to_str_params(),
                    resources=task.process_resources(),
                    family=task.task_family,
                    module=task.task_module,
                )
        return super()._get_work()  # type: ignore[no-untyped-call]

    def __exit__(self, kind: object, value: object, trace: object) -> Any:
        if kind is None:
            for tell in at_end:
                tell(self)
        return super().__exit__(kind, value, trace)  # type: ignore[no-untyped-call]


class StepWorkerFactory(_WorkerSchedulerFactory):
    """Makes what a run needs, as Luigi does, but with a `StepWorker`."""

    def create_worker(
        self, scheduler: Any, worker_processes: int, assistant: bool = False
    ) -> StepWorker:
        """Return the worker of a run."""
        return StepWorker(
            scheduler=scheduler, worker_processes=worker_processes, assistant=assistant
        )


def is_step(task: luigi.Task) -> bool:
    """Tell whether a task is a step: those say how many of them their nodes take at once."""
    return hasattr(task, "most_at_once")


def use_step_workers() -> None:
    """Let `luigi`, `luigi.run` and `luigi.build` run steps on threads; may be called again.

    Luigi has a parameter for the factory, but none of its command line.
    """
    luigi.interface._WorkerSchedulerFactory = StepWorkerFactory  # type: ignore[misc]
    # For tasks that are no steps Luigi forks; from 3.14 on Python's default is to start afresh.
    if multiprocessing.get_start_method(allow_none=True) is None:
        multiprocessing.set_start_method("fork")
