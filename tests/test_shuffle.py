"""Shuffles between ssh nodes: the local run's bytes, whatever dies, and nothing by the driver."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from workflows.errors import NodeRefused
from workflows.fleets.fleet import open_fleet
from workflows.model import Input, Key, Piece
from workflows.running import shuffle

if TYPE_CHECKING:
    from conftest import Place
    from sshd import Hosts, Sshd

TAXI = "workflows.tasks"
# The golden pipeline of map-to-n and map-from-n: words to the node that owns them, then counted.
GOLDEN = """
from workflows.steps import Basename, Map, MapFromN, MapToN
class Words(Map):
    command = "xargs cat | tr ' ' '\\\\n'"
class ByWord(MapToN):
    upstream = Words
    command = 'while read -r word; do echo "$filename" >> "$word"; done; ls'
class Count(MapFromN):
    upstream = ByWord
    command = "xargs cat | sort | uniq -c"
    durable = True
"""
TEXT = [
    "the fox 006_x the",
    "a dog the 001_y a",
    "it is what it is the fox",
    "na\u00efve the 006_x",
]


def prepare(place: "Place", text: str = GOLDEN) -> None:
    place.module(text)
    for number, line in enumerate(TEXT):
        place.key(f"{number:03d}_key", f"{line}\n".encode())


def on(step: str) -> str:
    """Return a line of bash that waits while there is a file `wait` for this node."""
    return f'touch "AT/{step}.$WORKFLOWS_SLOT"; while test -e AT/wait; do sleep 0.02; done; '


def test_the_whole_taxi_pipeline_equals_the_local_run(taxi: "Place", hosts: "Hosts") -> None:
    hosts.add(3)

    far = taxi.luigi("MergeCounts", "--fleet", hosts.spec, module=TAXI)
    shutil.move(taxi.checkpoint, taxi.path / "far")
    near = taxi.luigi("MergeCounts", "--fleet", "local:3", module=TAXI)

    assert (far.code, near.code) == (0, 0), (far, near)
    for step in ("GroupCount", "Shuffle.pieces", "MergeCounts"):
        assert hosts.outputs(step) == taxi.outputs(step) != {}, step
    one, two = (
        sorted((root / "MergeCounts").glob("*/data/*/results"))
        for root in (taxi.path / "far", taxi.checkpoint)
    )
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two] != []


def test_map_to_n_and_map_from_n_equal_the_local_run(place: "Place", hosts: "Hosts") -> None:
    prepare(place)
    hosts.add(3)

    far = place.luigi("Count", "--fleet", hosts.spec, "--checkpoint", "far")
    near = place.luigi("Count", "--fleet", "local:3")

    assert (far.code, near.code) == (0, 0), (far, near)
    assert len(hosts.outputs("Count")) > 8
    assert hosts.outputs("Count") == place.outputs("Count")
    placed = {(line["key"], line["slot"], line["id"]) for line in hosts.ledger("Count")}
    assert placed == {(line["key"], line["slot"], line["id"]) for line in place.ledger("Count")}


def test_how_even_the_slots_are_is_shown(place: "Place", hosts: "Hosts") -> None:
    prepare(place)
    hosts.add(3)

    done = place.luigi("Count", "--fleet", hosts.spec)
    report = place.run("workflows", "report")

    assert done.code == 0, done
    lines = hosts.ledger("ByWord.pieces")
    sizes = [sum(line["bytes"] for line in lines if line["slot"] == slot) for slot in range(3)]
    ratio = max(sizes) * 3 / sum(sizes)
    told = f"ByWord: {len(lines)} pieces shuffled, 0.0 MB; bytes on the fullest slot: {ratio:.2f}"
    assert told in report.out, report


def test_no_port_is_open_and_nothing_is_left_behind_after_a_shuffle(
    place: "Place", hosts: "Hosts"
) -> None:
    prepare(place)
    hosts.add(3)
    (place.path / "wait").touch()
    wait = on("Count").replace("AT", str(place.path))
    place.module(
        GOLDEN.replace('"xargs cat | sort', f"{wait!r} 'xargs cat | sort").replace(
            'uniq -c"', "uniq -c'"
        )
    )
    arguments = ["--source", "source", "--pattern", "*", "--fleet", hosts.spec]

    with place.start("luigi", "--module", "mine", "Count", *arguments) as run:
        run.wait_for(lambda: list(place.path.glob("Count.*")), 60)
        listening = [address for node in hosts.nodes for address in listeners(node)]
        (place.path / "wait").unlink()
        code = run.end()

    assert code == 0, run.said
    assert listening == []
    for slot, node in enumerate(hosts.nodes):
        assert list((node.scratch / str(slot) / "tmp").iterdir()) == []
        kept = [path for path in node.scratch.rglob("*") if path.is_file()]
        assert not any(
            b"PRIVATE KEY" in path.read_bytes() for path in kept if path.suffix != ".pyz"
        )


def listeners(node: "Sshd") -> list[str]:
    """Return the TCP ports, its sshd's apart, that anything listens on at a node's own address."""
    address = socket.inet_aton(node.address)[::-1].hex().upper()
    with open("/proc/net/tcp") as file:
        rows = [line.split()[1:4] for line in file.readlines()[1:]]
    ports = [local for local, _, state in rows if state == "0A" and local.startswith(address)]
    return [port for port in ports if int(port.split(":")[1], 16) != node.port]


@contextlib.contextmanager
def stalled(node: "Sshd") -> Iterator[None]:
    """Let no more than 4 MB pass that a node sends, but by ssh, until this ends."""
    sent = ["INPUT", "-s", node.address, "-p", "tcp", "!", "--sport", str(node.port)]
    rules = [[*sent, "-m", "quota", "--quota", "4000000", "-j", "ACCEPT"], [*sent, "-j", "DROP"]]
    for rule in rules:
        subprocess.run(["iptables", "-w", "-A", *rule], check=True)
    try:
        yield
    finally:
        for rule in rules:
            subprocess.run(["iptables", "-w", "-D", *rule], check=True)


def has_half_a_piece(node: "Sshd") -> bool:
    return any(path.stat().st_size > 1e6 for path in node.scratch.glob("*/tmp/*/*/*"))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can drop packets")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("role", ["sender", "receiver"])
def test_a_node_that_dies_within_a_shuffle_loses_nothing(
    place: "Place", hosts: "Hosts", role: str, number: int
) -> None:
    # One key of 24 MB on node 0, all of whose pieces belong to node 1; the others have tiny ones.
    make = 'if test "$filename" = 000_key; then for n in 1 4 7; do head -c 8000000 /dev/zero |'
    make += ' tr "\\\\0" x > 00${n}_big; done; else cat > "small.$filename"; fi; ls'
    prepare(
        place,
        GOLDEN.replace(
            """'while read -r word; do echo "$filename" >> "$word"; done; ls'""", f"'''{make}'''"
        ),
    )
    hosts.add(3)
    sender, receiver = hosts.nodes[:2]
    victim = {"sender": sender, "receiver": receiver}[role]
    arguments = ["--source", "source", "--pattern", "*", "--fleet", hosts.spec, "--workers", "4"]

    with place.start("luigi", "--module", "mine", "Count", *arguments) as run:
        with stalled(sender):
            run.wait_for(lambda: has_half_a_piece(receiver), 60)
            hit = [
                pid
                for pid, line in victim.ours().items()
                if ".pyz" in line and "attach" not in line
            ]
            for pid in hit:
                os.kill(pid, number)
        code = run.end(120)

    assert hit
    assert code == 0, run.said
    assert "is lost" in run.said
    near = place.luigi("Count", "--fleet", "local:3", "--checkpoint", "near")
    assert near.code == 0, near
    assert hosts.outputs("Count") == place.outputs("Count") != {}
    delivered = hosts.ledger("ByWord.pieces")
    assert len(delivered) == 6
    for line in delivered:
        assert line["file"].stat().st_size == line["bytes"]


def test_a_node_that_cannot_listen_on_its_address_is_named(place: "Place", hosts: "Hosts") -> None:
    prepare(place)
    hosts.add(2).write(peer="192.0.2.1")

    done = place.luigi("Count", "--fleet", hosts.spec)

    assert done.code != 0
    assert "cannot listen on 192.0.2.1: Cannot assign requested address" in done.err, done
    assert "as peer in hosts.yaml" in done.err


def test_nodes_out_of_each_others_reach_are_both_named(
    place: "Place", hosts: "Hosts", monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts.add(2)
    fleet = open_fleet(hosts.spec, state=str(place.state), slots=0)
    step: Any = SimpleNamespace(nodes=fleet, ledger="Cut.pieces", by_name=False)
    piece = Piece(Key("0_key/1_piece", "0b", 1), 1, "00000000", Input("Cut", "0a", "0_key"))
    with socket.create_server((hosts.nodes[0].address, 0)) as probe:
        port = probe.getsockname()[1]
    # A firewall that refuses, as far as node 1 can tell: nobody listens at that port.
    monkeypatch.setattr(shuffle, "_open", lambda *_: {0: port})

    fleet.start()
    with pytest.raises(NodeRefused) as caught:
        shuffle.move(step, {1: [piece]}, {"0a": 0})
    fleet.close()

    one, two = (node.address for node in hosts.nodes)
    assert str(caught.value).startswith(f"node 1 ({two}:")
    assert f"it cannot reach node 0 ({one}:" in str(caught.value)
    assert f"at {one} port {port}: [Errno 111] Connection refused" in str(caught.value)
    assert "TCP ports 1024-65535 (firewall, security group)" in str(caught.value)


def test_a_directory_checkpoint_is_brought_back_to_empty_nodes(
    place: "Place", hosts: "Hosts"
) -> None:
    last = "class Last(MapFromN):\n    upstream = Count\n    command = 'xargs cat'\n"
    last += "    gather = Basename()\n"
    prepare(place, GOLDEN + last)
    hosts.add(3)
    first = place.luigi("Count", "--fleet", hosts.spec)
    before = hosts.outputs("Count")
    for node in hosts.nodes:
        shutil.rmtree(node.scratch)

    again = place.luigi("Last", "--fleet", hosts.spec)

    assert (first.code, again.code) == (0, 0), again
    assert hosts.outputs("Count") == before != {}
    assert hosts.ledger("ByWord") == []
    assert b"".join(sorted(hosts.outputs("Last").values())) == b"".join(sorted(before.values()))


def test_a_damaged_checkpoint_is_not_brought_back(place: "Place", hosts: "Hosts") -> None:
    last = "class Last(MapFromN):\n    upstream = Count\n    command = 'xargs cat'\n"
    last += "    gather = Basename()\n"
    prepare(place, GOLDEN + last)
    hosts.add(1)
    place.luigi("Count", "--fleet", hosts.spec)
    part = next(path for path in place.checkpoint.glob("Count/*/data/*/*") if path.is_file())
    part.chmod(0o644)
    part.write_bytes(part.read_bytes().swapcase()[::-1])
    shutil.rmtree(hosts.nodes[0].scratch)

    done = place.luigi("Last", "--fleet", hosts.spec)

    assert done.code != 0
    assert "damaged" in done.err, done
