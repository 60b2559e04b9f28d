"""A node's directory for one key, in which a shipped script is run as a node runs it."""

import csv
import io
import os
import pathlib
import shlex
import subprocess

SCRIPTS = pathlib.Path(__file__).resolve().parent.parent / "workflows" / "scripts"
Rows = list[list[str]]


class Done:
    """How a script ended: its output, its message and its metrics."""

    def __init__(self, done: "subprocess.CompletedProcess[bytes]", metrics: str) -> None:
        self.code = done.returncode
        self.out = done.stdout.decode("utf-8", "surrogateescape")
        self.err = done.stderr.decode("utf-8", "surrogateescape")
        self.metrics = {
            name: int(value) for name, value in (line.split("=") for line in metrics.splitlines())
        }

    @property
    def rows(self) -> Rows:
        """Return the output as Python reads CSV."""
        return list(csv.reader(io.StringIO(self.out, newline="")))


class Node:
    """A key's directory on a node, with the shipped scripts in it."""

    def __init__(self, path: pathlib.Path, awk: str = "awk") -> None:
        self.path = path
        self.awk = awk
        for script in SCRIPTS.iterdir():
            (path / script.name).symlink_to(script)

    def run(self, command: str, stdin: str | bytes, **env: str) -> Done:
        """Run a step's command under the shell that nodes use."""
        metrics = self.path / "metrics"
        metrics.write_text("")
        inherited = {k: v for k, v in os.environ.items() if not k.endswith("_proxy")}
        done = subprocess.run(
            ["bash", "--norc", "--noprofile", "-euo", "pipefail", "-c", command],
            input=stdin.encode("utf-8", "surrogateescape") if isinstance(stdin, str) else stdin,
            cwd=self.path,
            env={**inherited, "LC_ALL": "C", "WORKFLOWS_METRICS": str(metrics), **env},
            capture_output=True,
            timeout=60,
        )
        return Done(done, metrics.read_text())

    def select(self, stdin: str | bytes, *names: str) -> Done:
        command = f"{self.awk} -f csv.awk -f select_columns.awk -- {shlex.join(names)}"
        return self.run(command, stdin)

    def count(self, stdin: str | bytes) -> Done:
        return self.run(f"{self.awk} -f csv.awk -f count_rows.awk", stdin)

    def merge(self, stdin: str | bytes) -> Done:
        return self.run(f"{self.awk} -f csv.awk -f merge_counts.awk", stdin)
