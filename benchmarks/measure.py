"""Run a command and say what it took: wall and CPU seconds of it and all it started, and memory."""

import dataclasses
import mmap
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence

# A virtual machine gives freed memory back to its host within seconds, and a first write into
# memory that it has to get again is ten times slower (measured: 1.6 GB of cat, 0.5 or 4.8 CPU s).
# To wait until all is given back does not make runs alike: some of it stays, for whoever comes
# after the run that freed most. So each begins with memory that the machine surely has: so many
# times what it writes.
_AMPLE = 3
_SAMPLE_S = 0.1
_LAST_WORDS = 2000


@dataclasses.dataclass
class Took:
    """What one run took. `rss_mb` is the high-water mark by role; empty unless it was watched."""

    wall_s: float
    user_s: float
    sys_s: float
    rss_mb: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def cpu_s(self) -> float:
        """Return user and system seconds together."""
        return self.user_s + self.sys_s


class RunFailed(Exception):
    """What was to be measured did not work."""


def level(written: int) -> None:
    """Let a run that writes so many bytes begin as all others do.

    Nothing is left to be written to the disk. Memory is at hand: what is taken here is freed at
    once, and given out first.
    """
    os.sync()
    half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    now = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0x8000)
    mmap.mmap(-1, min(_AMPLE * max(written, 1 << 20), half), flags=now).close()


def run(
    argv: Sequence[str], *, cwd: str, env: Mapping[str, str], watch_memory: bool = False
) -> Took:
    """Run `argv` to its end and return what it took, with all its descendants that were waited for.

    Python may keep what it compiles, as on a user's machine.

    Raises:
        RunFailed: it exited non-zero; shows the end of what it said.
    """
    env = {name: value for name, value in env.items() if name != "PYTHONDONTWRITEBYTECODE"}
    output = os.path.join(cwd, "output.log")
    with open(output, "wb") as log:
        started = time.perf_counter()
        process = subprocess.Popen(
            argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        memory = _Memory(process.pid) if watch_memory else None
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    rss = memory.stop() if memory is not None else {}
    if process.returncode:
        with open(output, "rb") as log:
            said = log.read()[-_LAST_WORDS:].decode("utf-8", "replace")
        raise RunFailed(f"{' '.join(argv)}\nexited {process.returncode}:\n{said}")
    return Took(round(wall, 4), round(usage.ru_utime, 3), round(usage.ru_stime, 3), rss)


class _Memory:
    """Samples the high-water mark of the driver, of what it forked, and of the nodes' runtimes."""

    def __init__(self, driver: int) -> None:
        self._driver = driver
        self._peak: dict[str, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, float]:
        """Return the peaks in MB by role."""
        self._over.set()
        self._thread.join()
        return {role: round(peak, 1) for role, peak in self._peak.items()}

    def _sample(self) -> None:
        while not self._over.wait(_SAMPLE_S):
            self._take("driver", self._driver)
            for pid in _children(self._driver):
                self._take("runtime" if b".pyz" in _read(pid, "cmdline") else "task", pid)

    def _take(self, role: str, pid: int) -> None:
        for line in _read(pid, "status").splitlines():
            if line.startswith(b"VmHWM:"):
                self._peak[role] = max(self._peak.get(role, 0.0), int(line.split()[1]) / 1e3)


def _children(pid: int) -> list[int]:
    return [int(child) for child in _read(pid, f"task/{pid}/children").split()]


def _read(pid: int, name: str) -> bytes:
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError:
        return b""  # it has ended meanwhile
