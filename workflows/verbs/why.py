"""``workflows why URL``: the origin of a checkpointed object, from its manifest alone."""

import argparse
import time
from typing import Any

from workflows.errors import UsageError
from workflows.node import urls
from workflows.planning import context
from workflows.reporting.runlog import aligned
from workflows.storage.place import SCHEME
from workflows.storage.s3store import S3Store
from workflows.targets import CheckpointTarget

_SHOWN = 20


def add(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("url", metavar="URL", help="a result, its _SUCCESS, or their folder")
    parser.add_argument(
        "--read", action="store_true", help="read the objects, and compare their checksums"
    )
    parser.add_argument("--all", action="store_true", help="every input, however many")


def run(arguments: argparse.Namespace) -> int:
    """Print what is known of the object; return 1 if it is not what was committed."""
    context.look_only()
    target, name = find(arguments.url)
    manifest = target.manifest() or {}
    parts = manifest["parts"]
    is_object = "/data/" in name and name != manifest["attempt"]
    chosen = [part for part in parts if part["object"] == name] if is_object else parts
    if not chosen:
        raise UsageError(
            f"{arguments.url} belongs to an attempt that was never committed; the committed one is"
            f" {target.store.locate(manifest['attempt'])}. To remove what is left: workflows gc"
        )
    _print_making(target, manifest)
    shown = None if arguments.all else _SHOWN
    _print_inputs(manifest, chosen, shown)
    _print_objects(chosen, shown)
    gone = target.damaged()
    how = _compared(target, parts)
    if arguments.read and not gone:
        gone = target.spoilt()
        how = "their bytes were read, and compared with the checksums"
    print(f"objects    {len(parts) - len(gone)} of {len(parts)} are there; {how}")
    for text in gone[:shown]:
        print(f"  {text}")
    return 1 if gone else 0


def _compared(target: CheckpointTarget, parts: list[dict[str, Any]]) -> str:
    """Say what of the objects was compared with what was committed."""
    has_etags = isinstance(target.store, S3Store) and all("etag" in part for part in parts)
    what = "sizes and ETags" if has_etags else "sizes"
    return f"their {what} were compared, not their bytes (to read these: --read)"


def find(url: str) -> tuple[CheckpointTarget, str]:
    """Return the checkpoint that `url` is in, and the object's name in its store.

    Raises:
        UsageError: it is in none that was committed.
    """
    url = url.removeprefix("file://").rstrip("/")
    parts = url.split("/")
    least = len(SCHEME.split("/")) if url.startswith(SCHEME) else 1
    # <root>/<step>/<identity>[/_SUCCESS | /data/<attempt>/<key>], and a key may hold slashes.
    for end in range(len(parts), least, -1):
        root, folder = "/".join(parts[: end - 2]) or "/", parts[end - 2 : end]
        if len(folder) < 2 or root in (SCHEME, SCHEME[:-1], "s3:"):
            break
        target = CheckpointTarget(context.store(root), *folder)
        if target.exists():
            return target, "/".join(parts[end - 2 :])
    raise UsageError(f"{url} is not part of a committed checkpoint; see: workflows results")


def _print_making(target: CheckpointTarget, manifest: dict[str, Any]) -> None:
    made = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(manifest["created"]))
    print(f"checkpoint {target.path}")
    print(f"made       {made} by run {manifest['run']} on {manifest['fleet']}")
    print(f"identity   {manifest['identity']}, attempt {manifest['attempt'].rsplit('/', 1)[1]}")
    print("parameters " + ", ".join(f"{k}={v}" for k, v in sorted(manifest["params"].items()) if v))
    for step in manifest["steps"]:
        print(f"step       {step['step']} (spec {step['spec']})")
        for line in step["command"].strip().splitlines():
            print(f"             {line.strip()}")
        for name, digest in step["files"].items():
            print(f"             ships {name}, sha256 {digest}")
    for one in manifest.get("left_out", ()):
        print(f"left out   {one['step']} of {one['key']}: {one['why']}")
    rows = {name: n for name, n in manifest["totals"].items() if ".rows" in name}
    if rows:
        print("rows       " + ", ".join(f"{name}={n}" for name, n in sorted(rows.items())))


def _print_inputs(
    manifest: dict[str, Any], chosen: list[dict[str, Any]], shown: int | None
) -> None:
    listed = manifest["dataset"]
    keys = listed["keys"]
    # A part of a 1:1 step comes from the source key of its name; any other from all of them.
    own = [key for key in keys if len(chosen) == 1 and key[0] == chosen[0]["key"]]
    rows: list[tuple[str, ...]] = [("source", "bytes", "ETag")]
    # Earlier versions kept whole URLs.
    rows += [(urls.shown(url), str(size), etag) for _, url, size, etag in own or keys]
    print(f"dataset    {listed['digest']}: {len(keys)} keys of {urls.shown(listed['source'])}")
    _print_table(rows, shown)
    inputs = [given for part in chosen for given in part["inputs"]]
    if inputs:
        rows = [("input", "identity")]
        rows += [(f"{step}/{name}", identity) for step, name, identity in inputs]
        _print_table(rows, shown)


def _print_objects(chosen: list[dict[str, Any]], shown: int | None) -> None:
    rows: list[tuple[str, ...]] = [("key", "slot", "bytes", "crc", "ETag", "wall s", "cpu s")]
    for part in chosen:
        place = (part["key"], str(part["slot"]), str(part["bytes"]), part["crc"])
        took = (part.get("wall"), part.get("cpu"))
        times = tuple("-" if value is None else f"{value:.2f}" for value in took)
        rows.append((*place, part.get("etag", "-"), *times))
    _print_table(rows, shown)


def _print_table(rows: list[tuple[str, ...]], shown: int | None) -> None:
    left = len(rows) - 1 - (shown or len(rows))
    print(aligned(rows[: None if shown is None else shown + 1], left=(0,)))
    if left > 0:
        print(f"... and {left} more; to see them: --all")
