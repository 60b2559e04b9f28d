"""Make docs/benchmarks.md from benchmarks/results/*.json, and the tables that benchmarks print.

A results file is one JSON object: ``name``, ``title``, ``about`` (a paragraph), ``run`` (the
command), ``machine`` (name -> text), ``tables`` (each ``title``, ``columns``, ``rows``) and
``bars`` (each ``what``, ``bar``, ``measured``, ``unit``). What else is in it is for machines.
"""

import json
import os
import pathlib
import platform
import sys
import time
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
RESULTS = HERE / "results"
PAGE = HERE.parent / "docs" / "benchmarks.md"
_INTRO = """\
# Benchmarks

Made by `python benchmarks/table.py` from `benchmarks/results/*.json`; do not edit. The floor is the
cost of the same commands without this project: on the same files, writing the same files, under
`xargs -P`. Runs of ours and of the floor alternate, each from an empty state, with the inputs in
the page cache; tables show medians.

`make bench` reruns all, and each command below reruns one; `--help` lists flags for small runs.
"""


def machine() -> dict[str, str]:
    """Return what this machine is, and when that was."""
    from workflows.node.crc import quickest  # here, as the page is made without the project

    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    return {
        "CPU": _cpu_model(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory:.0f} GB",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_version()} ({os.path.realpath(sys.executable)})",
        "large checksums by": "zlib" if quickest() is zlib.crc32 else "libdeflate",
        "date": time.strftime("%Y-%m-%d"),
        "load before": f"{os.getloadavg()[0]:.2f}",
    }


def command(name: str, words: Sequence[str]) -> str:
    """Return how a benchmark was started; where things are on this machine is left out.

    >>> command("disco", ["--rounds", "3", "--mrjob", "/opt/bin/python"])
    'python -m benchmarks.disco --rounds 3 --mrjob .../python'
    """
    shown = [".../" + os.path.basename(word) if os.path.isabs(word) else word for word in words]
    return " ".join(["python -m", f"benchmarks.{name}", *shown])


def bar(what: str, limit: float, measured: float, unit: str) -> dict[str, Any]:
    """Return one line of the bars: `measured` must not be above `limit`."""
    return {"what": what, "bar": limit, "measured": round(measured, 3), "unit": unit}


def publish(result: dict[str, Any], folder: pathlib.Path = RESULTS) -> bool:
    """Write the results file, print its tables; tell whether every bar held."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['name']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(_section(result)))
    print(f"{path} written", file=sys.stderr)
    return all(one["measured"] <= one["bar"] for one in result.get("bars", ()))


def markdown(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a markdown table.

    >>> print(markdown(["job", "s"], [["ours", 1.5]]))
    | job | s |
    |---|---|
    | ours | 1.5 |
    """
    lines = [columns, ["---"] * len(columns), *rows]
    text = ["| " + " | ".join(map(str, line)) + " |" for line in lines]
    text[1] = text[1].replace(" ", "")
    return "\n".join(text)


def page(results: Iterable[dict[str, Any]]) -> str:
    """Return the whole page."""
    parts = [_INTRO]
    for result in results:
        parts += _section(result)
    return "\n".join(parts).rstrip() + "\n"


def _section(result: dict[str, Any]) -> list[str]:
    lines = [f"## {result.get('title', result['name'])}", ""]
    if result.get("about"):
        lines += [result["about"], ""]
    if result.get("run"):
        lines += [f"    {result['run']}", ""]
    if result.get("machine"):
        lines += ["; ".join(f"{name} {text}" for name, text in result["machine"].items()), ""]
    for table in result.get("tables", ()):
        if table.get("title"):
            lines += [f"**{table['title']}**", ""]
        lines += [markdown(table["columns"], table["rows"]), ""]
    if result.get("bars"):
        lines += [markdown(["bar", "at most", "measured", ""], map(_bar_row, result["bars"])), ""]
    return lines


def _bar_row(one: dict[str, Any]) -> list[str]:
    held = "held" if one["measured"] <= one["bar"] else "**missed**"
    return [
        one["what"],
        f"{one['bar']:g} {one['unit']}",
        f"{one['measured']:g} {one['unit']}",
        held,
    ]


def _cpu_model() -> str:
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def main() -> int:
    """Write the page."""
    paths = sorted(RESULTS.glob("*.json"))
    if not paths:
        print(f"no results in {RESULTS}; run one: python -m benchmarks main_job", file=sys.stderr)
        return 1
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(json.loads(path.read_text()) for path in paths))
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
