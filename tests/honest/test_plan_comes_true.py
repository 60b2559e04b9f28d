"""`plan` changes nothing, and the run after it runs just what it has said."""

import os
import pathlib
import random
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Done, Place
    from sshd import Hosts

STEPS = """
from workflows.steps import Map


class Copy(Map):
    command = "read -r path; cat < \\"$path\\""


class Upper(Map):
    upstream = Copy
    command = "tr a-z A-Z{more}"


class Both(Map):
    upstream = Upper
    command = "cat"
    durable = True
"""


def seen(*folders: pathlib.Path) -> dict[str, tuple[object, ...]]:
    """Return all there is below folders: its kind, time, and bytes."""
    found: dict[str, tuple[object, ...]] = {}
    for folder in folders:
        for path in [folder, *folder.rglob("*")]:
            if path.exists():
                status = path.lstat()
                data = path.read_bytes() if path.is_file() else b""
                found[str(path)] = (status.st_mode, status.st_mtime_ns, status.st_ino, data)
    return found


def plan(place: "Place", *words: str) -> "Done":
    given = ("--module", "mine", "--source", "source", "--pattern", "*")
    return place.run("workflows", "plan", "Both", *given, *words)


def planned(done: "Done") -> dict[str, int]:
    """Return how many keys each step is to run, by what `plan` prints."""
    assert done.code == 0, done
    rows = re.findall(r"^(Copy|Upper|Both) +(\d+) +(\d+)", done.out, re.M)
    return {step: int(count) for step, _, count in rows if int(count)}


def ran(done: "Done") -> dict[str, int]:
    """Return how many keys each step has run, by the table of the run."""
    assert done.code == 0, done
    return {step: int(n) for step, n in re.findall(r"^(Copy|Upper|Both) +(\d+)", done.err, re.M)}


EXPECTED = [
    ("grow", 1),
    ("new", 1),
    ("gone", 0),
    ("command", None),
    ("grow", 1),
    ("fleet", None),
    ("none", 0),
]


def changed(place: "Place", sizes: dict[str, int], change: str, chance: random.Random) -> None:
    """Do one change to a source or a step."""
    name = chance.choice(sorted(sizes))
    if change in ("grow", "fleet"):
        sizes[name] += 5
        place.key(name, b"x" * sizes[name])
    elif change == "new":
        place.key("another", b"y" * 50_000)
    elif change == "gone":
        (place.source / name).unlink()
        del sizes[name]
    elif change == "command":
        place.module(STEPS.format(more=" | cat"))


def test_what_plan_says_of_random_changes_comes_true_and_it_changes_nothing(place: "Place") -> None:
    chance = random.Random(7)
    place.module(STEPS.format(more=""))
    sizes = {f"k{n}": chance.randint(1_000, 90_000) for n in range(16)}
    for name, size in sizes.items():
        place.key(name, b"x" * size)
    before = seen(place.path)
    first = planned(plan(place))
    assert seen(place.path) == before
    assert first == {"Copy": 16, "Upper": 16, "Both": 16} == ran(place.luigi("Both"))

    for change, expected in EXPECTED:
        changed(place, sizes, change, chance)
        words = ("--fleet", "local:4") if change == "fleet" else ()
        before = seen(place.path)

        said = planned(plan(place, *words))

        assert seen(place.path) == before, change
        done = place.luigi("Both", *words)
        assert said == ran(done), (change, done)
        if expected is not None:
            assert said == dict.fromkeys(said, expected), change
        if change == "fleet":
            assert 2 <= said["Copy"] < 8  # a new node has a fourth of them


def test_a_plan_on_ssh_nodes_leaves_their_results_and_this_machine_as_they_were(
    place: "Place", hosts: "Hosts"
) -> None:
    place.module(STEPS.format(more=""))
    for name in "abcd":
        place.key(name, name.encode())
    hosts.add(2)
    assert place.luigi("Both", "--fleet", hosts.spec).code == 0
    place.key("e", b"e")
    kept = [node.scratch / str(slot) for slot, node in enumerate(hosts.nodes)]
    parts = [folder / name for folder in kept for name in ("data", "ledger", "files", "named")]
    before = seen(place.state, place.source), seen(*parts), [sorted(os.listdir(k)) for k in kept]

    said = planned(plan(place, "--fleet", hosts.spec))

    assert said == {"Copy": 1, "Upper": 1, "Both": 1}
    after = seen(place.state, place.source), seen(*parts), [sorted(os.listdir(k)) for k in kept]
    assert after == before
    assert not [path for folder in kept for path in (folder / "tmp").iterdir()]
