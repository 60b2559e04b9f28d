"""`repro` needs neither the nodes of the run nor any pipeline but that of the step."""

import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Done, Place
    from sshd import Hosts

STEPS = """
from workflows.steps import Map, MapFromN, MapToN


class First(Map):
    command = "read -r path; cat < \\"$path\\""


class Kept(Map):
    upstream = First
    command = "tr a-z A-Z"
    durable = True


class Both(Map):
    upstream = Kept
    command = "cat"


class Split(MapToN):
    upstream = First
    command = "cat > all; cp all other; echo all; echo other"


class Joined(MapFromN):
    upstream = Split
    command = "xargs cat | tr a b"
    durable = True


class Last(Map):
    upstream = Joined
    command = "wc -c"
"""


def prepare(place: "Place") -> None:
    place.module(STEPS)
    for n in range(3):
        place.key(f"{n:03d}_k", f"line {n}\n".encode())


def repro(place: "Place", *words: str) -> "Done":
    done = place.run("workflows", "repro", *words)
    assert "Traceback" not in done.err, done
    return done


def test_repro_works_when_the_directories_of_local_nodes_are_gone_and_says_whence_the_input_is(
    place: "Place",
) -> None:
    prepare(place)
    assert place.luigi("Both").code == 0
    assert place.luigi("Last").code == 0
    here = repro(place, "Both", "001_k")
    assert (here.code, here.out) == (0, "LINE 1\n")
    assert here.err == "Both of 001_k: exited 0\n"

    shutil.rmtree(place.state / "nodes")

    both = repro(place, "Both", "001_k")
    assert (both.code, both.out) == (0, "LINE 1\n"), both
    assert f"Kept/001_k is read from {place.checkpoint}/Kept/" in both.err
    assert "node 1 does not have it" in both.err
    kept = repro(place, "Kept", "001_k")
    assert (kept.code, kept.out) == (0, "LINE 1\n"), kept
    assert "First/001_k is made again here, as node 1 does not have it" in kept.err
    joined = repro(place, "Joined", "all")
    assert joined.code == 0, joined
    assert (joined.code, sorted(joined.out.splitlines())) == (0, ["line 0", "line 1", "line 2"])
    assert "Split/000_k/all is made again here" in joined.err
    assert repro(place, "Last", "all").out.strip() == "21"
    assert not (place.state / "nodes").exists()


def test_repro_works_when_the_hosts_of_an_ssh_fleet_are_dead(
    place: "Place", hosts: "Hosts"
) -> None:
    prepare(place)
    hosts.add(2)
    assert place.luigi("Both", "--fleet", hosts.spec).code == 0
    for node in hosts.nodes:
        node.kill()

    both = repro(place, "Both", "001_k")

    assert (both.code, both.out) == (0, "LINE 1\n"), both
    assert f"Kept/001_k is read from {place.checkpoint}/Kept/" in both.err
    hosts.file.unlink()
    assert repro(place, "Kept", "001_k").out == "LINE 1\n"


def test_repro_works_when_an_ec2_fleet_is_down(place: "Place") -> None:
    prepare(place)
    assert place.luigi("Both", "--fleet", "local:2").code == 0
    for log in (place.state / "runs").glob("*/log.jsonl"):
        log.write_text(log.read_text().replace('"local:2"', '"ec2:gone"'))
    shutil.rmtree(place.state / "nodes")
    place.more = {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(place.path)}

    both = repro(place, "Both", "001_k")

    assert (both.code, both.out) == (0, "LINE 1\n"), both
    assert "Kept/001_k is read from" in both.err


def test_an_input_that_is_damaged_on_its_node_is_not_what_repro_runs_with(place: "Place") -> None:
    prepare(place)
    assert place.luigi("Both").code == 0
    (line,) = [line for line in place.ledger("Kept") if line["key"] == "001_k"]
    path = place.output_path("Kept", line)
    os.chmod(path, 0o644)
    path.write_bytes(b"LINE 7\n")

    both = repro(place, "Both", "001_k")

    assert (both.code, both.out) == (0, "LINE 1\n"), both
    assert "its bytes have changed" in both.err


def test_a_broken_module_of_another_pipeline_breaks_neither_repro_nor_fsck_nor_verify_nor_results(
    taxi: "Place",
) -> None:
    taxi.module(STEPS)
    taxi.module(STEPS.replace("First", "Other").replace("Kept", "Held"), "other")
    counted = taxi.luigi("MergeCounts", module="workflows.tasks")
    assert (counted.code, taxi.luigi("Kept").code) == (0, 0), counted
    assert taxi.luigi("Held", module="other").code == 0
    taxi.module("this is no Python", "other")
    name = sorted(os.listdir(taxi.source))[0]

    for words in (("repro", "Kept", name), ("fsck",), ("verify",), ("results", "--top", "1")):
        done = taxi.run("workflows", *words)
        assert (done.code, "other" in done.err) == (0, False), done
    own = taxi.run("workflows", "repro", "Held", name)
    assert own.code == 2
    assert "cannot import other: SyntaxError" in own.err


def test_a_step_and_a_key_that_there_are_not_are_answered_with_those_that_were_meant(
    place: "Place",
) -> None:
    prepare(place)
    assert place.luigi("Kept").code == 0

    step, key = repro(place, "Kep", "001_k"), repro(place, "Kept", "001k")

    assert (step.code, key.code) == (2, 2)
    assert "no run here had a step 'Kep'; did you mean 'Kept'?" in step.err
    assert "Kept has no key '001k'; did you mean '001_k'?" in key.err
