"""What the verbs say to somebody who typed something that cannot be done."""

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Done, Keys, Place
    from sshd import Hosts


@pytest.mark.parametrize("command", ["", " \n"])
def test_a_command_with_nothing_in_it_is_refused(keys: "Keys", command: str) -> None:
    keys.give("in", **{"000_a": "x\n"})

    for words in (("map", "in/", "out/"), ("eval", "in/000_a"), ("exec",)):
        done = keys.run(*words, command)

        assert done.code == (2 if words[0] == "map" else 255), done
        assert "it is empty; write a bash command" in done.err
    assert keys.names("out") == []


def test_an_ec2_fleet_is_not_asked_to_run_nothing(place: "Place") -> None:
    done = place.run("workflows", "fleet", "exec", "crawl")

    assert done.code == 2
    assert "there is no command: workflows fleet exec crawl CMD" in done.err


def test_config_prints_nothing_of_a_fleet_that_cannot_be(keys: "Keys") -> None:
    done = keys.run("config", "--fleet", "local:-1")

    assert (done.code, done.out) == (2, "")
    assert "no fleet 'local:-1'" in done.err


@pytest.mark.parametrize("verb", ["ls", "up", "health"])
def test_an_ssh_fleet_without_a_file_shows_what_to_write(place: "Place", verb: str) -> None:
    done = place.run("workflows", verb, "--fleet", "ssh:")

    assert done.code == 2
    assert "write --fleet ssh:hosts.yaml" in done.err
    assert "host_key: ssh-ed25519" in done.err


@pytest.mark.parametrize("name", ["in", "in/", "in/deep", "in/deep/"])
def test_a_directory_that_is_copied_or_removed_without_r_is_told_of_it(
    keys: "Keys", name: str
) -> None:
    keys.give("in", deep__000_a="x\n")

    got = keys.run("cp", f"fleet://{name}", "here")
    removed = keys.run("rm", name)

    assert got.code == removed.code == 2, (got, removed)
    assert f"workflows cp -r fleet://{name}" in got.err
    assert f"workflows rm -r {name}" in removed.err
    assert keys.names("in") == ["deep/000_a"]


def test_a_directory_of_this_machine_without_r_is_told_of_it(keys: "Keys") -> None:
    (keys.place.path / "folder").mkdir()

    done = keys.run("cp", "folder", "fleet://in/")

    assert done.code == 2
    assert "folder is a directory; to copy all that is in it, give -r" in done.err


def test_keys_of_another_fleet_are_refused_in_plain_words(keys: "Keys") -> None:
    keys.give("in", **{"000_a": "x\n"})

    for words in (("ls", "in/"), ("cp", "fleet://in/000_a", "-"), ("map", "in/", "out/", "cat")):
        done = keys.run(*words, "--fleet", "local:2")

        assert done.code != 0, done
        assert "belong to a fleet of 3 nodes" in done.err
        assert "Error:" not in done.err, done


def taxi_plan(place: "Place") -> "Done":
    return place.run("workflows", "plan", "MergeCounts", "--source", "source", "--pattern", "*")


def test_a_plan_names_the_barrier_and_the_checkpoint_that_are_all_that_is_left(
    taxi: "Place",
) -> None:
    words = ("--source", "source", "--pattern", "*")
    run = taxi.luigi("MergeCounts", *words, module="workflows.tasks")
    shutil.rmtree(taxi.state / "checkpoint/MergeCounts")
    durable = taxi_plan(taxi)
    shutil.rmtree(taxi.state / "checkpoint/barriers")

    barrier = taxi_plan(taxi)

    assert run.code == 0, run
    (row,) = durable.out.splitlines()[2:]
    assert row.split(None, 3) == ["MergeCounts", "1", "0", "to be made durable"]
    shuffle, merge = barrier.out.splitlines()[2:]
    assert shuffle.split(None, 3) == ["Shuffle", "12", "0", "its files are to be delivered"]
    assert merge.split(None, 3) == ["MergeCounts", "?", "?", "known after Shuffle"]


def test_ssh_to_a_host_whose_key_has_changed_says_what_to_do_with_hosts_yaml(
    place: "Place", hosts: "Hosts"
) -> None:
    first, _ = hosts.add(2).nodes
    hosts.write(host_key=first.public_key)

    wrong = place.run("workflows", "ssh", "--fleet", hosts.spec, "1", "true")
    own = place.run("workflows", "ssh", "--fleet", hosts.spec, "0", "exit 255")

    assert wrong.code == own.code == 255, (wrong, own)
    assert "HAS CHANGED" in wrong.err
    assert "put the new key into hosts.yaml" in wrong.err
    assert own.err == ""


def test_a_full_disk_behind_stdout_is_an_error_in_one_line(keys: "Keys") -> None:
    keys.give("in", **{"000_a": "x\n"})

    for words in (("ls",), ("eval", "in/000_a", "cat"), ("cp", "fleet://in/000_a", "-")):
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                keys.place.command("workflows", *words),
                cwd=keys.place.path,
                env=keys.place.environ,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=60,
            )

        assert done.returncode == 1
        assert done.stderr == "workflows: not all could be written: No space left on device\n"


def test_a_run_without_luigid_names_none(keys: "Keys", place: "Place") -> None:
    keys.give("in", **{"000_a": "x\n"})
    place.module("from workflows.steps import Map\nclass First(Map):\n    command = 'xargs cat'\n")
    place.key("a_key", b"x\n")
    (place.path / "luigi.cfg").write_text("")

    mapped = keys.run("map", "in/", "out/", "cat")
    ran = place.luigi("First", "--local-scheduler")

    assert mapped.code == ran.code == 0, (mapped, ran)
    assert "luigid" not in mapped.err + ran.err
