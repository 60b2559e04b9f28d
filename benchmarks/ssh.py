"""ssh nodes beside local ones: overhead per key, the price of a session, fifty nodes at once.

``python -m benchmarks.ssh``; try it small with ``--keys 100 --nodes 10``. The nodes are sshd
processes on loopback addresses of this machine, so that both kinds share its cores.
"""

import argparse
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from benchmarks import data, measure, table
from benchmarks.jobs import NODES, ROOT
from workflows.fleets.fleet import open_fleet
from workflows.node.work import BASH

sys.path.append(str(ROOT / "tests"))

from sshd import Hosts

OVERHEAD_BAR, TYPED_BAR_S, FIFTY_BAR_S = 1.5, 0.4, 10.0
_RUNS, _TYPED, _FEW = 5, 10, 3
_HERE = {"PYTHONPATH": str(ROOT), "LUIGI_CONFIG_PATH": str(ROOT / "luigi.cfg")}
_COMMAND = 'IFS= read -r path; cat "$path"'
_MODULE = f"from workflows.steps import Map\n\n\nclass Copy(Map):\n    command = {_COMMAND!r}\n"


def flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ssh", description=__doc__)
    parser.add_argument("--keys", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--results", type=type(table.RESULTS), default=table.RESULTS)
    return parser.parse_args()


def step(folder: pathlib.Path, source: str, fleet: str, workers: int = 8) -> measure.Took:
    """Run the step from nothing and return what that took; nodes' own CPU is not in it."""
    folder.mkdir(parents=True)
    (folder / "copying.py").write_text(_MODULE)
    (folder / ".workflows").mkdir()
    argv = [sys.executable, "-m", "luigi", "--module", "copying", "Copy", "--fleet", fleet]
    argv += ["--source", source, "--pattern", "*", "--workers", str(workers)]
    argv += ["--checkpoint", ".workflows/checkpoint"]
    environ = {name: v for name, v in os.environ.items() if not name.startswith("WORKFLOWS_")}
    environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(folder)])
    environ["LUIGI_CONFIG_PATH"] = str(ROOT / "luigi.cfg")
    return measure.run(argv, cwd=str(folder), env=environ)


def floor(folder: pathlib.Path, source: str) -> measure.Took:
    """Run the same command on the same keys under xargs, as many at once as there are slots."""
    folder.mkdir(parents=True)
    one = f'{{ {_COMMAND}; }} <<< "$PWD/$1" > "$0/$1"'
    argv = ["bash", "--norc", "-c", 'cd "$1"; ls | xargs -P "$2" -n 1 "${@:3}"', "floor"]
    argv += [source, str(NODES), *BASH, one, str(folder)]
    return measure.run(argv, cwd=str(folder.parent), env=dict(os.environ))


def overhead(work: pathlib.Path, keys: int) -> dict[str, list[measure.Took]]:
    """Run local nodes, ssh nodes and the floor in turn: over all keys, and over a few."""
    source, few = str(work / "source"), str(work / "few")
    data.warm(data.write_tiny_keys(source, keys))
    data.warm(data.write_tiny_keys(few, _FEW))
    took: dict[str, list[measure.Took]] = {}
    for number in range(_RUNS):
        folder = work / str(number)
        for name, given in (("", source), (f", {_FEW} keys", few)):
            here = folder / ("few" if name else "all")
            here.mkdir(parents=True)
            hosts = Hosts(here / "hosts")
            try:
                hosts.add(NODES).write(slots=1)  # as many as local nodes have on a small machine
                near = step(here / "local", given, f"local:{NODES}")
                far = step(here / "ssh", given, hosts.spec)
            finally:
                hosts.close()
            took.setdefault(f"local{name}", []).append(near)
            took.setdefault(f"ssh{name}", []).append(far)
        took.setdefault("floor", []).append(floor(folder / "floor", source))
    return took


def sessions(work: pathlib.Path) -> dict[str, float]:
    """Return the seconds that a task waits for its session, through the hub and with a login."""
    from workflows.fleets import shell
    from workflows.fleets.hosts import read_hosts
    from workflows.fleets.ssh import connect

    hosts = Hosts(work / "sessions")
    try:
        hosts.add(1)
        fleet = open_fleet(hosts.spec, state=str(work), slots=0)
        fleet.start()
        fleet.channel(0)
        (host,) = read_hosts(str(hosts.file)).hosts

        def through_hub() -> None:
            fleet.drop(0)
            fleet.channel(0)

        def with_login() -> None:
            with connect("node 0", host) as connection:
                line = shell.attach(host, "nobody-listens")
                connection.command(line).recv(100)

        result = {"hub": _median(through_hub), "login": _median(with_login)}
        fleet.close()
        return result
    finally:
        hosts.close()


def _median(work: Callable[[], None]) -> float:
    took = []
    for _ in range(20):
        started = time.perf_counter()
        work()
        took.append(time.perf_counter() - started)
    return statistics.median(took)


def many(work: pathlib.Path, nodes: int) -> tuple[float, float, float]:
    """Return the seconds until all nodes have said what they have, of health, and of a step."""
    source = work / "numbers"
    source.mkdir()
    for number in range(nodes):
        (source / f"{number:04d}_key").write_text("x\n")
    hosts = Hosts(work / "many")
    try:
        hosts.add(nodes).write(slots=1)
        started = time.perf_counter()
        fleet = open_fleet(hosts.spec, state=str(work), slots=0)
        fleet.start()
        ask = {"op": "list", "steps": ["Copy"]}
        fleet.each(range(nodes), lambda slot: fleet.channel(slot).one(ask, "listing"))
        listed = time.perf_counter() - started
        fleet.close()
        argv = [sys.executable, "-m", "workflows", "health", "--fleet", hosts.spec]
        healthy = measure.run(argv, cwd=str(work), env={**os.environ, **_HERE}).wall_s
        whole = step(work / "step", str(source), hosts.spec, workers=16).wall_s
        return listed, healthy, whole
    finally:
        hosts.close()


def typed(work: pathlib.Path) -> dict[str, float]:
    """Return the seconds of verbs that a person types, each a process of its own that logs in."""
    folder = work / "typed"
    folder.mkdir()
    (folder / "text").write_text("x\n")
    hosts = Hosts(work / "typing")
    environ = {**os.environ, **_HERE}

    def verb(*words: str) -> float:
        argv = [sys.executable, "-m", "workflows", *words, "--fleet", hosts.spec]
        return measure.run(argv, cwd=str(folder), env=environ).wall_s

    try:
        hosts.add(NODES)
        verb("cp", "text", "fleet://texts/text")
        return {
            "eval": statistics.median(verb("eval", "texts/text", "cat") for _ in range(_TYPED)),
            "health": statistics.median(verb("health") for _ in range(_TYPED)),
        }
    finally:
        hosts.close()


def measured(keys: int, nodes: int, work: pathlib.Path) -> dict[str, Any]:
    """Run all and return the results."""
    before = table.machine()
    took = overhead(work, keys)
    wall = {name: statistics.median(one.wall_s for one in runs) for name, runs in took.items()}
    per_key = {
        name: (wall[name] - wall[f"{name}, {_FEW} keys"]) / (keys - _FEW) * 1e3
        for name in ("local", "ssh")
    }
    above = {name: (wall[name] - wall["floor"]) / keys * 1e3 for name in per_key}
    listed, healthy, whole = many(work, nodes)
    session, verbs = sessions(work), typed(work)
    return {
        "name": "ssh",
        "title": "ssh nodes",
        "about": f"One 1:1 step over {keys} tiny keys on {NODES} nodes with one slot each: sshd"
        " processes on loopback addresses, or local directories; the floor is the same commands"
        " under xargs. Wall times are from the start of luigi to its end, medians of"
        f" {_RUNS} runs in turn. Overhead is the time above the floor, start-up included;"
        f" 'without the start' is the time above a run over {_FEW} keys.",
        "run": table.command("ssh", sys.argv[1:]),
        "machine": before,
        "tables": [
            {
                "columns": [
                    *("nodes", "wall s", "overhead ms per key", "ms per key without the start"),
                    "all runs, wall s",
                ],
                "rows": [
                    [
                        name,
                        f"{wall[name]:.2f}",
                        f"{above[name]:.2f}" if name in above else "",
                        f"{per_key[name]:.2f}" if name in per_key else "",
                        ", ".join(f"{one.wall_s:.2f}" for one in runs),
                    ]
                    for name, runs in took.items()
                ],
            },
            {
                "title": "A task's session on a node",
                "columns": ["", "ms"],
                "rows": [
                    [
                        "a session through the hub, its relay running already",
                        f"{session['hub'] * 1e3:.0f}",
                    ],
                    ["a login of its own", f"{session['login'] * 1e3:.0f}"],
                ],
            },
            {
                "title": f"Verbs on {NODES} nodes, from a cold start, median of {_TYPED}",
                "columns": ["", "s"],
                "rows": [[name, f"{wall_s:.3f}"] for name, wall_s in verbs.items()],
            },
            {
                "title": f"{nodes} nodes",
                "columns": ["", "s"],
                "rows": [
                    ["connect, ship, start the runtimes, ask each what it has", f"{listed:.2f}"],
                    ["health of all, from a cold start", f"{healthy:.2f}"],
                    [
                        "connect, start, list, a step of one key a node: all of a luigi",
                        f"{whole:.2f}",
                    ],
                ],
            },
        ],
        "bars": [
            table.bar(
                "overhead per key, of local nodes'",
                OVERHEAD_BAR,
                above["ssh"] / above["local"],
                "x",
            ),
            *[table.bar(f"{name}, wall", TYPED_BAR_S, verbs[name], "s") for name in verbs],
            table.bar(f"{nodes} nodes: health, then a step", FIFTY_BAR_S, healthy + whole, "s"),
        ],
    }


def main() -> int:
    """Measure, print, write the results file; 1 if a bar was missed."""
    chosen = flags()
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as work:
        result = measured(chosen.keys, chosen.nodes, pathlib.Path(work))
        return 0 if table.publish(result, chosen.results) else 1


if __name__ == "__main__":
    sys.exit(main())
