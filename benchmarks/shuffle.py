"""A shuffle between ssh nodes, beside rsync over ssh of the same bytes.

``python -m benchmarks.shuffle``; try it small with ``--mb 100 --runs 1``. The nodes are sshd
processes on loopback addresses of this machine, which share its cores with each other.
"""

import argparse
import concurrent.futures
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace
from typing import Any, cast

from benchmarks import table
from benchmarks.jobs import NODES, ROOT
from workflows.fleets.fleet import Fleet, open_fleet
from workflows.model import Piece
from workflows.planning.lineage import pieces_of
from workflows.running import shuffle

sys.path.append(str(ROOT / "tests"))

from sshd import USER, Hosts, Sshd

BAR_MB_S = 400.0
_PIECE = 8 << 20
_TICKS = os.sysconf("SC_CLK_TCK")
# Every piece is for another node than the one that makes it, so that all of them are sent.
_COMMAND = (
    "for ((n = 0; n < COUNT; n++)); do if ((n % NODES != WORKFLOWS_SLOT)); then"
    ' printf -v name "%06d_piece" $n; cp DATA "$name"; echo "$name"; fi; done'
)


def flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shuffle", description=__doc__)
    parser.add_argument("--mb", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--results", type=type(table.RESULTS), default=table.RESULTS)
    return parser.parse_args()


def made(fleet: Fleet, work: pathlib.Path, mb: int) -> tuple[list[Piece], dict[str, int]]:
    """Make the pieces on their nodes; return them, and each maker's slot."""
    (work / "data").write_bytes(os.urandom(_PIECE))
    count = max(NODES, round(mb * 1e6 / _PIECE / (NODES - 1)))
    command = _COMMAND.replace("COUNT", str(count)).replace("NODES", str(NODES))
    stage = {"step": "Big", "command": command.replace("DATA", str(work / "data"))}
    stage.update(files={}, laws=[], timeout_s=0)
    doing = {"step": "Big", "mode": "to_n", "spec": "", "env": {}, "stages": [stage]}

    def make(slot: int) -> Any:
        source = {"url": "", "bytes": 0, "id": "", "was": ["", 0, ""]}
        key = {"key": f"key{slot}", "id": f"{slot:08x}", "inputs": [], "source": source}
        events = fleet.channel(slot).ask({"op": "run", "work": doing, "keys": [key]}, "ran")
        (done,) = [event for event in events if "key" in event]
        if done["event"] != "done":
            raise RuntimeError(str(done))
        message = {"op": "records", "step": "Big", "ids": [done["id"]]}
        (record,) = fleet.channel(slot).one(message, "records")["records"]
        return [done["key"], done["id"], slot, record["pieces"]]

    keys = list(fleet.each(range(NODES), make).values())
    makers = {identity: slot for _, identity, slot, _ in keys}
    return pieces_of({"keys": keys}, "Big", NODES), makers


def shuffled(fleet: Fleet, hosts: Hosts, pieces: list[Piece], makers: dict[str, int]) -> Any:
    """Shuffle once; return wall and CPU seconds of it, those of the nodes alone."""
    by_slot: dict[int, list[Piece]] = {}
    for piece in pieces:
        by_slot.setdefault(piece.key.slot, []).append(piece)
    step = cast("Any", SimpleNamespace(nodes=fleet, ledger="Big.pieces", by_name=False))
    before, started = _cpu(hosts, "utime"), time.perf_counter()
    outcomes = shuffle.move(step, by_slot, makers)
    took = time.perf_counter() - started, _cpu(hosts, "utime") - before
    for slot, events in outcomes.items():
        if [event for event in events if event["event"] != "brought"]:
            raise RuntimeError(str(events[0]))
        ids = [event["id"] for event in events]
        message = {"op": "drop", "step": "Big.pieces", "ids": ids, "why": "measured"}
        fleet.channel(slot).one(message, "dropped")
    return took


def _cpu(hosts: Hosts, what: str) -> float:
    """Return the CPU seconds of what runs on the nodes, or (`cutime`) of what has ended there."""
    total = 0
    for node in hosts.nodes:
        pids = list(node.ours()) if what == "utime" else [cast("Any", node.process).pid]
        for pid in pids:
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += sum(map(int, fields[11:13] if what == "utime" else fields[13:15]))
    return total / _TICKS


def rsynced(hosts: Hosts, work: pathlib.Path) -> tuple[float, float]:
    """Let every node pull the same pieces from the others with rsync; all pairs at once."""
    pairs = [(one, two) for one in range(NODES) for two in range(NODES) if one != two]
    before = _cpu(hosts, "cutime") + _children_s()
    started = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(len(pairs)) as pool:
        list(pool.map(lambda pair: _pull(hosts.nodes[pair[0]], pair[0], pair[1], work), pairs))
    took = time.perf_counter() - started
    time.sleep(0.5)  # the sshds wait for what they forked
    return took, _cpu(hosts, "cutime") + _children_s() - before


def _pull(node: Sshd, sender: int, receiver: int, work: pathlib.Path) -> None:
    known = work / f"known.{node.address}"
    known.write_text(f"[{node.address}]:{node.port} {node.public_key}\n")
    ssh = f"ssh -q -p {node.port} -i {node.hosts.path}/login_key -c aes128-gcm@openssh.com"
    ssh += f" -o UserKnownHostsFile={known} -o StrictHostKeyChecking=yes"
    folder = f"{node.scratch}/{sender}/data/Big/{sender:08x}/key{sender}/"
    target = work / "rsync" / f"{receiver}.{sender}"
    target.mkdir(parents=True)
    wanted = "".join(
        f"{n:06d}_piece\n"
        for n in range(receiver, 100000, NODES)
        if os.path.exists(f"{folder}{n:06d}_piece")
    )
    argv = ["rsync", "--whole-file", "--files-from=-", "-e", ssh]
    argv += [f"{USER}@{node.address}:{folder}", str(target)]
    subprocess.run(argv, input=wanted.encode(), check=True)


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measured(mb: int, runs: int, work: pathlib.Path) -> dict[str, Any]:
    """Run both in turn and return the results."""
    before = table.machine()
    hosts = Hosts(work / "hosts")
    took: dict[str, list[tuple[float, float]]] = {"https": [], "rsync": []}
    try:
        hosts.add(NODES)
        fleet = open_fleet(hosts.spec, state=str(work), slots=0)
        fleet.start()
        pieces, makers = made(fleet, work, mb)
        gb = sum(piece.size for piece in pieces) / 1e9
        for _ in range(runs):
            took["https"].append(shuffled(fleet, hosts, pieces, makers))
            took["rsync"].append(rsynced(hosts, work))
            subprocess.run(["rm", "-r", str(work / "rsync")], check=True)
        fleet.close()
    finally:
        hosts.close()
    return _result(before, len(pieces), gb, took)


def _result(
    before: dict[str, str], pieces: int, gb: float, took: dict[str, list[tuple[float, float]]]
) -> dict[str, Any]:
    wall = {name: statistics.median(one for one, _ in runs) for name, runs in took.items()}
    cpu = {name: statistics.median(one for _, one in runs) for name, runs in took.items()}
    titles = {"https": "HTTPS between runtimes", "rsync": "rsync over ssh, aes128-gcm"}
    return {
        "name": "shuffle",
        "title": "A shuffle between ssh nodes",
        "about": f"{gb:.2f} GB in {pieces} pieces, none made on the node that owns"
        f" it, between {NODES} nodes: sshd processes on loopback addresses, two slots each. Ours"
        " compares every piece with its maker's checksum and publishes it; rsync, six pairs at"
        " once, only copies. CPU is that of both ends. Medians.",
        "run": table.command("shuffle", sys.argv[1:]),
        "machine": before,
        "tables": [
            {
                "columns": ["by", "MB/s in all", "CPU s per GB", "all, wall s"],
                "rows": [
                    [
                        titles[name],
                        f"{gb * 1e3 / wall[name]:.0f}",
                        f"{cpu[name] / gb:.2f}",
                        ", ".join(f"{one:.2f}" for one, _ in runs),
                    ]
                    for name, runs in took.items()
                ],
            }
        ],
        "bars": [
            table.bar("seconds per GB shuffled", 1e3 / BAR_MB_S, wall["https"] / gb, "s"),
            table.bar("seconds, of rsync's", 1.0, wall["https"] / wall["rsync"], "x"),
        ],
    }


def main() -> int:
    """Measure, print, write the results file; 1 if a bar was missed."""
    chosen = flags()
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as work:
        result = measured(chosen.mb, chosen.runs, pathlib.Path(work))
        return 0 if table.publish(result, chosen.results) else 1


if __name__ == "__main__":
    sys.exit(main())
