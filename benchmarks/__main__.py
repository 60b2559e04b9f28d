"""``python -m benchmarks [NAME [ARGUMENT...]]``: run one benchmark, or all and make the page."""

import os
import pathlib
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
# The inodes that one benchmark frees slow down the next on ext4 without a journal: see jobs.py.
SETTLE_S = 65
NAMES = [
    name for name in ("main_job", "scale", "commands", "ssh") if (HERE / f"{name}.py").exists()
]


def main(arguments: list[str]) -> int:
    """Run benchmarks, each in a process of its own; 1 if one of them missed a bar."""
    if arguments and arguments[0] not in NAMES:
        print(f"usage: python -m benchmarks [{'|'.join(NAMES)} [ARGUMENT...]]", file=sys.stderr)
        return 2
    environ = dict(os.environ, PYTHONPATH=str(HERE.parent))
    runs = [arguments] if arguments else [[name] for name in NAMES]
    codes = []
    for number, (name, *flags) in enumerate(runs):
        if number:
            time.sleep(SETTLE_S)
        argv = [sys.executable, "-m", f"benchmarks.{name}", *flags]
        codes.append(subprocess.run(argv, env=environ, check=False).returncode)
    if not arguments:
        codes.append(subprocess.run([sys.executable, HERE / "table.py"], check=False).returncode)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
