"""``workflows cp``: copy keys to and from a fleet: files of this machine, or objects in S3."""

import argparse
import os
import posixpath
import sys
import tempfile
from collections.abc import Iterator
from typing import IO

from workflows.errors import SourceError, UsageError, WorkflowsError
from workflows.fleets.fleet import Fleet
from workflows.node.keys import check_name, node_for
from workflows.storage import s3
from workflows.storage.place import SCHEME, place_of
from workflows.storage.s3store import S3Store
from workflows.verbs import fleetkeys
from workflows.verbs.fleetkeys import Name, is_on_fleet
from workflows.verbs.onfleet import add_fleet, one_key, say

_CHUNK = 1 << 20


def add(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    where = "fleet://step/dir/name, s3://bucket/name, a path, or - for stdin or stdout"
    parser.add_argument("source", metavar="SRC", help=where)
    parser.add_argument("target", metavar="DST", help=where)
    parser.add_argument("-r", "--recursive", action="store_true", help="a whole directory")
    add_fleet(parser)


def run(arguments: argparse.Namespace) -> int:
    """Copy one key, or all below a directory; nothing is ever replaced on the fleet."""
    source, target = arguments.source, arguments.target
    if is_on_fleet(source) == is_on_fleet(target):
        both = "keys of the fleet; to copy on it: workflows map IN/ OUT/ cat"
        here = "here; write a key as fleet://step/dir/name"
        raise UsageError(f"both {source} and {target} are {both if is_on_fleet(source) else here}")
    if arguments.recursive and "-" in (source, target):
        raise UsageError("- is one key, it cannot be copied with -r")
    upload = _put_tree if arguments.recursive else _put_one
    download = _get_tree if arguments.recursive else _get_one
    with fleetkeys.opened(arguments.fleet) as fleet:
        if is_on_fleet(source):
            download(fleet, source, target)
        else:
            upload(fleet, source, target)
    return 0


# -- to the fleet ----------------------------------------------------------------------------------


def _put_one(fleet: Fleet, source: str, target: str) -> None:
    if target.endswith("/") or not fleetkeys.parse(target).rest:
        if source == "-":
            raise UsageError(f"{target} is a directory; name the key that stdin is to become")
        target = f"{target.rstrip('/')}/{posixpath.basename(source)}"
    name = fleetkeys.parse_key(target)
    _refuse_taken(fleet, [name])
    fleetkeys.put(fleet, name, _read(source))


def _put_tree(fleet: Fleet, source: str, target: str) -> None:
    if not _is_s3(source) and not os.path.isdir(source):
        raise UsageError(f"{source} is not a directory; leave -r out")
    below = f"{target.rstrip('/')}/"
    files = dict(_objects(source) if _is_s3(source) else _files(source))
    if not files and _is_s3(source):
        raise UsageError(f"there is nothing below {source}")
    names = {fleetkeys.parse_key(below + path): full for path, full in files.items()}
    _refuse_taken(fleet, list(names))
    by_slot: dict[int, list[Name]] = {}
    for name in names:
        by_slot.setdefault(node_for(name.rest, len(fleet)), []).append(name)

    def put(slot: int) -> None:
        for name in by_slot[slot]:
            fleetkeys.put(fleet, name, _read(names[name]))

    fleetkeys.all_of(fleet, by_slot, put)


def _files(top: str) -> Iterator[tuple[str, str]]:
    for folder, folders, names in os.walk(top, followlinks=True):
        folders.sort()
        for name in sorted(names):
            full = os.path.join(folder, name)
            yield check_name(os.path.relpath(full, top)), full


def _refuse_taken(fleet: Fleet, names: list[Name]) -> None:
    """Say which names are taken before anything is sent; the node would refuse each of them."""
    held = {
        one.name for step in {n.step for n in names} for one in fleetkeys.every_key(fleet, step)
    }
    taken = sorted(held.intersection(names))
    if taken:
        more = f" and {len(taken) - 1} more exist" if len(taken) > 1 else " exists"
        raise UsageError(f"{taken[0]}{more} already; to replace it: workflows rm {taken[0]}")


def _read(source: str) -> Iterator[bytes]:
    """Yield the bytes of a file, of stdin as they come, or of an S3 object."""
    if _is_s3(source):
        yield from s3.stream(place_of(source), SourceError)
        return
    try:
        with _opened(source) as file:
            while data := file.read1(_CHUNK):  # type: ignore[attr-defined]
                yield data
    except IsADirectoryError as error:
        raise UsageError(f"{source} is a directory; to copy all that is in it, give -r") from error
    except OSError as error:
        raise UsageError(f"cannot read {source}: {error.strerror}") from error


def _opened(source: str) -> IO[bytes]:
    return sys.stdin.buffer if source == "-" else open(source, "rb")


# -- from the fleet --------------------------------------------------------------------------------


def _get_one(fleet: Fleet, source: str, target: str) -> None:
    again = f"workflows cp -r {source} {target}"
    name = one_key(source, again)
    try:
        found, crc = fleetkeys.find(fleet, name)
    except UsageError:
        below = f"{name.rest}/"
        if any(one.name.rest.startswith(below) for one in fleetkeys.every_key(fleet, name.step)):
            one_key(f"{source}/", again)
        raise
    chunks = fleetkeys.get(fleet, found, crc)
    if target == "-":
        for chunk in chunks:
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        return
    if _is_s3(target) and not place_of(target).key:
        target += "/"
    if target.endswith("/") or os.path.isdir(target):
        target = target.rstrip("/") + "/" + posixpath.basename(name.rest)
    _write(target, chunks)


def _get_tree(fleet: Fleet, source: str, target: str) -> None:
    name = fleetkeys.parse(source)
    prefix = name.rest.rstrip("/") + "/" if name.rest else ""
    keys = [
        one for one in fleetkeys.every_key(fleet, name.step) if one.name.rest.startswith(prefix)
    ]
    if not keys:
        raise UsageError(f"there are no keys below {source}; to list what exists: workflows ls")
    if target in (".", "./"):  # as cp -r does: the directory itself, not what is in it
        target = os.path.join(target, posixpath.basename(prefix.rstrip("/")) or name.step)
    by_slot: dict[int, list[fleetkeys.Found]] = {}
    for one in keys:
        by_slot.setdefault(one.slot, []).append(one)

    def get(slot: int) -> None:
        for one in by_slot[slot]:
            message = {"op": "find", "step": one.name.step, "key": one.name.rest}
            record = fleet.channel(slot).one(message, "found")["record"]
            if record is None:
                raise WorkflowsError(f"{one.name} was removed while it was copied")
            path = f"{target.rstrip('/')}/{one.name.rest[len(prefix) :]}"
            _write(path, fleetkeys.get(fleet, one, record["crc"]))

    fleetkeys.all_of(fleet, by_slot, get)


def _write(target: str, chunks: Iterator[bytes]) -> None:
    """Write a file whole or not at all."""
    if _is_s3(target):
        _to_s3(target, chunks)
        return
    folder = os.path.dirname(target) or "."
    tmp = ""
    try:
        os.makedirs(folder, exist_ok=True)
        if os.path.exists(target) and not os.path.isfile(target):  # a pipe, /dev/null
            with open(target, "wb") as file:
                file.writelines(chunks)
            return
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", delete=False) as file:
            tmp = file.name
            file.writelines(chunks)
        os.chmod(tmp, 0o666 & ~_umask())
        os.replace(tmp, target)
        tmp = ""
    except OSError as error:
        raise WorkflowsError(f"cannot write {target}: {error.strerror}") from error
    finally:
        if tmp:
            os.unlink(tmp)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# -- S3 --------------------------------------------------------------------------------------------


def _is_s3(text: str) -> bool:
    return text.startswith(SCHEME)


def _objects(url: str) -> Iterator[tuple[str, str]]:
    """Yield the name and URL of every object below a prefix; those that stand for folders not."""
    top = place_of(url)
    prefix = top.key.rstrip("/") + "/" if top.key.strip("/") else ""
    for item in s3.listing(top._replace(key=prefix), SourceError):
        if not item.name.endswith("/"):
            yield check_name(item.name[len(prefix) :]), top._replace(key=item.name).url


def _to_s3(url: str, chunks: Iterator[bytes]) -> None:
    place = place_of(url)
    if not S3Store(f"{SCHEME}{place.bucket}").create(place.key, chunks):
        raise UsageError(f"{url} exists already, and is not replaced")
    say(f"wrote {url}")
