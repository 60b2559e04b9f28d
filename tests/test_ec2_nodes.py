"""Nodes made ready and worked with by hand: real sshds, host keys strict from the first packet."""

import concurrent.futures
import os
import pathlib
import shlex
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from ec2cloud import wait_for
from ec2machines import Ec2Node
from sshd import USER

from workflows.ec2 import sessions
from workflows.ec2.api import Aws, instances, set_tags
from workflows.ec2.sessions import host_of
from workflows.errors import FleetError, NodeLost, NodeRefused
from workflows.fleets.ssh import connect

if TYPE_CHECKING:
    from collections.abc import Callable

    from ec2fleets import Ec2
    from sshd import Hosts


def node(ec2: "Ec2", slot: int = 0) -> Ec2Node:
    """Return the machine behind a slot."""
    for name, tags in ec2.tags().items():
        if tags["workflows:slot"] == str(slot):
            return ec2.region.nodes[name]
    raise AssertionError(f"no slot {slot}")


def log_of(one: Ec2Node) -> list[str]:
    """Return what the node's own programs noted."""
    lines = (one.home / "log").read_text().splitlines()
    return [line for line in lines if line.startswith(("apt-get", "dnf", "post_init", "pip"))]


# -- host keys -------------------------------------------------------------------------------------


def test_a_node_has_a_host_key_of_its_own_pinned_in_its_tag(ec2: "Ec2") -> None:
    ec2.fleet.up()

    tags = ec2.tags()
    keys = {each["workflows:hostkey"] for each in tags.values()}
    shown = {
        " ".join((each.home / "ssh_host_ed25519_key.pub").read_text().split()[:2])
        for each in ec2.region.nodes.values()
    }
    assert len(keys) == 2
    assert keys == shown
    assert not any("workflows:bootkey" in each for each in tags.values())


def test_the_key_of_the_first_contact_is_refused_afterwards(ec2: "Ec2") -> None:
    ec2.write(nodes=1)
    ec2.fleet.up()
    (request,) = ec2.cloud.asked("CreateFleet")
    boot_key = next(v for v in request.body.values() if v.startswith("ssh-ed25519 "))
    (one,) = instances(Aws("us-east-1"), ec2.name)

    with pytest.raises(NodeRefused, match="HAS CHANGED"):
        connect("node 0", host_of(ec2.spec, one, boot_key))


def test_a_node_that_shows_another_key_than_its_tag_is_refused(ec2: "Ec2") -> None:
    ec2.write(nodes=1)
    ec2.fleet.up()
    (name,) = ec2.tags()
    other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEY5KXzVCXbF2S0aWNVqRyd0pQwqKxjPK2PIVhPZyF1D"
    set_tags(Aws("us-east-1"), [name], {"workflows:hostkey": other})

    done = ec2.run("exec", "echo must not run")

    assert done.code == 3
    assert "HAS CHANGED" in done.err
    assert done.out == ""


def test_a_node_that_never_answers_is_given_up_replaced_once_and_named(ec2: "Ec2") -> None:
    ec2.write(nodes=1, boot_timeout=5)
    ec2.region.boots = False

    with pytest.raises(FleetError, match="not reached in time: cannot connect to 127"):
        ec2.fleet.up()

    assert len(ec2.cloud.asked("CreateFleet")) == 2


# -- bootstrap -------------------------------------------------------------------------------------


def test_a_node_whose_first_boot_never_ends_is_given_up_and_named(ec2: "Ec2") -> None:
    ec2.region.programs["cloud-init"] = "exec sleep 300"
    ec2.write(nodes=1, boot_timeout="5s")

    done = ec2.run("up", "--yes")

    assert done.code == 1, done
    assert "is lost: cloud-init is not done after 5 s; terminating it" in done.err
    assert "Traceback" not in done.err
    assert ec2.live() == []


def bootstrapped(ec2: "Ec2") -> pathlib.Path:
    """Give the fleet packages and a script; return the script."""
    script = ec2.place.path / "init.sh"
    script.write_text('echo "post_init $(id -un)" >> "$HOME/../log"\necho streamed\n')
    ec2.write(packages=["git", "zstd"], post_init="init.sh")
    return script


def test_packages_then_post_init_as_root_on_all_nodes_and_only_once(ec2: "Ec2") -> None:
    bootstrapped(ec2)

    first = ec2.run("up", "--yes")
    second = ec2.run("up", "--yes")

    assert first.code == second.code == 0, first
    for each in ec2.region.nodes.values():
        assert [line.split()[0] for line in log_of(each)] == ["apt-get", "apt-get", "post_init"]
        assert log_of(each)[1].endswith("install git zstd")
        assert f"node {slot_of(ec2, each)} ({each.id}): streamed" in first.err
    assert "streamed" not in second.err


def slot_of(ec2: "Ec2", one: Ec2Node) -> str:
    return ec2.tags()[one.id]["workflows:slot"]


def test_a_changed_script_runs_again_and_packages_do_not(ec2: "Ec2") -> None:
    script = bootstrapped(ec2)
    ec2.write(nodes=1)
    ec2.fleet.up()
    script.write_text('echo "post_init again" >> "$HOME/../log"\n')

    ec2.fleet.up()

    kinds = [line.split()[0] for line in log_of(node(ec2))]
    assert kinds == ["apt-get", "apt-get", "post_init", "post_init"]
    assert len(ec2.cloud.asked("CreateFleet")) == 1


def test_a_script_that_fails_is_named_with_its_node_and_last_lines_and_goes_on_when_mended(
    ec2: "Ec2",
) -> None:
    script = bootstrapped(ec2)
    ec2.write(nodes=1)
    script.write_text("echo no such bucket >&2\nexit 7\n")

    failed = ec2.run("up", "--yes")

    (name,) = ec2.tags()
    assert failed.code == 1
    assert f"node 0 ({name}) cannot work: post_init exited 7" in failed.err
    assert "    no such bucket" in failed.err
    script.write_text("true\n")
    ec2.fleet.up()
    assert list(ec2.tags()) == [name]


def test_nodes_are_bootstrapped_side_by_side(ec2: "Ec2") -> None:
    """Each waits until all have begun: one after the other would never end."""
    ec2.write(nodes=3, boot_timeout="60s")
    meet = ec2.place.path / "meet"
    meet.mkdir()
    (ec2.place.path / "init.sh").write_text(
        f'touch {meet}/$$; until [ "$(ls {meet} | wc -l)" -ge 3 ]; do sleep 0.05; done\n'
    )
    ec2.write(post_init="init.sh")

    assert len(ec2.fleet.up()) == 3


DISKS = {
    "lsblk": 'cat <<"EOF"\n'
    "/dev/nvme0n1 Amazon Elastic Block Store\n"
    "/dev/nvme2n1 Amazon EC2 NVMe Instance Storage\n"
    "/dev/nvme1n1 Amazon EC2 NVMe Instance Storage\n"
    "EOF",
    "mountpoint": "test -e {home}/mounted",
    "mount": 'echo "disk mount $*" >> {home}/log; case $* in *LABEL=*) test -e {home}/formatted;;'
    " *) touch {home}/mounted;; esac",
    "mdadm": 'echo "disk mdadm $*" >> {home}/log',
    "mkfs.xfs": 'echo "disk mkfs $*" >> {home}/log; touch {home}/formatted',
}


def disks_of(one: Ec2Node) -> list[str]:
    """Return what was done with the node's disks."""
    lines = (one.home / "log").read_text().splitlines()
    return [line.removeprefix("disk ") for line in lines if line.startswith("disk ")]


def test_instance_store_disks_are_found_by_model_striped_formatted_and_mounted_once(
    ec2: "Ec2",
) -> None:
    ec2.region.programs.update(DISKS)
    scratch = ec2.place.path / "disk"
    ec2.write(nodes=1, scratch=str(scratch))
    ec2.fleet.up()
    one = node(ec2)
    first = disks_of(one)
    (one.home / "mounted").unlink()  # as after a reboot
    ec2.write(packages=["git"])
    ec2.fleet.up()

    assert first == [
        f"mount -o noatime LABEL=workflows {scratch}",
        "mdadm --create /dev/md/scratch --run --level=0 --raid-devices=2 /dev/nvme2n1 /dev/nvme1n1",
        "mkfs -q -f -K -L workflows /dev/md/scratch",
        f"mount -o noatime /dev/md/scratch {scratch}",
    ]
    assert disks_of(one)[len(first) :] == [f"mount -o noatime LABEL=workflows {scratch}"]
    assert (scratch / "workflows").is_dir()


def test_a_node_that_its_own_script_reboots_is_waited_for_and_goes_on(ec2: "Ec2") -> None:
    ec2.write(nodes=2, packages=["git"], post_init="init.sh")
    (ec2.place.path / "init.sh").write_text(
        'echo "post_init" >> "$HOME/../log"\n'
        '[ -e "$HOME/again" ] || { touch "$HOME/again"; reboot; sleep 300; }\n'
    )

    done = ec2.run("up", "--yes")

    assert done.code == 0, done
    assert len(ec2.cloud.asked("CreateFleet")) == 1
    assert done.err.count("hung up within its set-up; waiting for it to come back") == 2
    for each in ec2.region.nodes.values():
        kinds = [line.split()[0] for line in log_of(each)]
        assert kinds == ["apt-get", "apt-get", "post_init", "post_init"]


def test_a_node_does_not_end_itself_while_it_is_set_up_or_used_by_hand(ec2: "Ec2") -> None:
    ec2.write(nodes=1, ttl={"idle": "12s", "max": "1h"}, post_init="init.sh")
    (ec2.place.path / "init.sh").write_text("sleep 14\n")
    ec2.fleet.up()
    (before,) = ec2.tags()
    lease = ec2.node_home(before) / ".workflows/lease"

    said = ec2.run("exec", "sleep 14; echo still here")
    lease.touch()  # the committed one is how long it is used, not how long a verb takes to start
    typed = ec2.run("ssh", "sleep 14; echo still here")

    assert said.out == "0: still here\n", said
    assert typed.out == "still here\n", typed
    assert set(ec2.tags()) == {before}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can set limits")
def test_limits_are_those_of_every_login_once_a_node_is_ready(ec2: "Ec2") -> None:
    ec2.region.pam = True
    ec2.write(limits={"open_files": 4321, "processes": 3210})

    up = ec2.run("up", "--yes")
    again = ec2.run("up", "--yes")
    shown = ec2.run("exec", "ulimit -n; bash -c 'ulimit -u'")

    assert up.code == again.code == 0, (up, again)
    assert up.err.count("== limits") == 2
    assert "== limits" not in again.err
    assert sorted(shown.out.splitlines()) == ["0: 3210", "0: 4321", "1: 3210", "1: 4321"]


# -- work by hand ----------------------------------------------------------------------------------


def test_exec_tells_ok_from_failed_from_lost(ec2: "Ec2") -> None:
    ec2.write(nodes=3)
    ec2.fleet.up()
    one = node(ec2, 2)

    failed = ec2.run("exec", 'test "$WORKFLOWS_TEST_NODE" != ' + node(ec2, 1).id)
    one.kill()
    lost = ec2.run("exec", "echo here")

    assert failed.code == 1
    assert "node 1: exited 1" in failed.err
    assert "2 of 3 ok, 1 failed, 0 lost" in failed.err
    assert lost.code == 3
    assert sorted(lost.out.splitlines()) == ["0: here", "1: here"]
    assert f"node 2 ({one.id}) is lost" in lost.err


def test_a_node_that_hangs_is_lost_within_twenty_seconds_and_a_quiet_command_is_not(
    ec2: "Ec2",
) -> None:
    ec2.fleet.up()
    hangs, quiet = ec2.fleet.nodes()
    spec, home, ended = ec2.spec, ec2.node_home(hangs.id), {}
    source, sink = home / "source", home / f"large.{os.getpid()}.part"
    for pipe in (source, sink):
        os.mkfifo(pipe)
    with (ec2.place.path / "large").open("wb") as file:
        file.truncate(1 << 26)
    line = "touch begun; sleep 22"
    works: dict[str, Callable[[], int]] = {
        "exec": lambda: sessions.run_everywhere(spec, [hangs], line, print)[0].status,
        "get": lambda: sessions.get(spec, hangs, "source", str(ec2.place.path / "got")),
        "put": lambda: sessions.put(spec, hangs, str(ec2.place.path / "large"), "large"),
        "quiet": lambda: sessions.run_everywhere(spec, [quiet], line, print)[0].status,
    }

    def watched(name: str) -> object:
        try:
            return works[name]()
        except NodeLost as lost:
            return lost
        finally:
            ended[name] = time.monotonic()

    with concurrent.futures.ThreadPoolExecutor(len(works)) as pool:
        futures = {name: pool.submit(watched, name) for name in works}
        # A pipe opens once the other end does: then both copies are in the middle of it.
        with source.open("wb"), sink.open("rb"):
            wait_for((home / "begun").exists, 60)
            stopped = time.monotonic()
            node(ec2).signal(signal.SIGSTOP)
            found = {name: future.result() for name, future in futures.items()}
    node(ec2).signal(signal.SIGCONT)

    assert found["quiet"] == 0, found
    assert found["exec"] == -1, found
    assert "nothing was heard of it for 15 s" in str(found["get"]), found
    assert isinstance(found["put"], NodeLost), found  # the kernel may know it before
    assert max(ended[name] for name in ("exec", "get", "put")) - stopped < 20


def test_files_go_to_all_nodes_and_come_back_named_by_slot(ec2: "Ec2") -> None:
    ec2.fleet.up()
    data = os.urandom(3_000_000)
    (ec2.place.path / "sent").write_bytes(data)

    put = ec2.run("put", "sent", "kept here")
    got = ec2.run("get", "kept here", "back")

    assert put.code == got.code == 0, (put, got)
    back = {path.name: path.read_bytes() for path in (ec2.place.path / "back").iterdir()}
    assert back == {"0-kept here": data, "1-kept here": data}


def test_a_reader_that_has_had_enough_is_no_lost_node(ec2: "Ec2") -> None:
    ec2.write(nodes=1)
    ec2.fleet.up()
    words = ec2.place.command("workflows", "fleet", "exec", ec2.name, "seq 300000")

    done = subprocess.run(
        ["bash", "-c", f"{shlex.join(words)} | head -1; exit ${{PIPESTATUS[0]}}"],
        cwd=ec2.place.path,
        env=ec2.place.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (141, "0: 1\n", "")


def test_a_file_that_cannot_be_written_here_is_no_lost_node(ec2: "Ec2") -> None:
    ec2.write(nodes=1)
    ec2.fleet.up()
    (ec2.place.path / "out" / "0-hello").mkdir(parents=True)
    ec2.run("exec", "echo hi > hello")

    done = ec2.run("get", "hello", "out")

    assert done.code == 2, done
    assert done.err == "workflows: cannot write out/0-hello: Is a directory\n"
    assert [path.name for path in (ec2.place.path / "out").iterdir()] == ["0-hello"]


def test_one_ctrl_c_is_enough_while_a_command_runs_on_the_nodes(ec2: "Ec2") -> None:
    ec2.write(nodes=1)
    ec2.fleet.up()
    with ec2.place.start("workflows", "fleet", "exec", ec2.name, "echo begun; sleep 300") as run:
        run.wait_for(lambda: "begun" in run.said, 60)
        os.kill(run.process.pid, signal.SIGINT)

        assert run.end(30) == 130
        assert "Traceback" not in run.said


def test_one_ctrl_c_is_enough_while_nodes_are_set_up_and_it_says_that_they_are_there(
    ec2: "Ec2",
) -> None:
    script = ec2.place.path / "init.sh"
    script.write_text("echo begun; sleep 300")
    ec2.write(nodes=1, post_init=str(script))
    with ec2.place.start("workflows", "fleet", "up", ec2.name, "--yes") as run:
        run.wait_for(lambda: "begun" in run.said, 60)
        os.kill(run.process.pid, signal.SIGINT)

        assert run.end(30) == 130
        assert f"workflows fleet down {ec2.name} removes all" in run.said
        assert "Traceback" not in run.said


def test_get_into_what_is_no_directory_is_said_so(ec2: "Ec2") -> None:
    ec2.write(nodes=1)
    (ec2.place.path / "taken").touch()

    done = ec2.run("get", "hello", "taken")

    assert done.code == 2, done
    assert done.err == "workflows: cannot write to taken: File exists\n"


def test_ssh_and_rsync_are_the_systems_own_and_as_strict(ec2: "Ec2") -> None:
    ec2.write(nodes=1)
    ec2.fleet.up()
    (ec2.place.path / "sent").write_text("hello")

    copied = ec2.run("rsync", "sent", ":arrived")
    said = ec2.run("ssh", "cat arrived")
    (name,) = ec2.tags()
    other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEY5KXzVCXbF2S0aWNVqRyd0pQwqKxjPK2PIVhPZyF1D"
    set_tags(Aws("us-east-1"), [name], {"workflows:hostkey": other})
    refused = ec2.run("ssh", "cat arrived")

    assert copied.code == 0, copied
    assert said.out == "hello"
    assert refused.code == 255
    assert refused.out == ""


def test_a_fleet_works_from_another_machine_with_only_its_login_key(ec2: "Ec2") -> None:
    ec2.fleet.up()
    ec2.file.unlink()
    home = pathlib.Path(ec2.place.more["HOME"])
    (home / ".ssh").mkdir()
    (home / "login").rename(home / ".ssh" / f"workflows-{ec2.name}")

    said = ec2.run("exec", "whoami")
    down = ec2.run("down", "--yes")

    assert sorted(said.out.splitlines()) == [f"0: {USER}", f"1: {USER}"]
    assert down.code == 0, down
    assert ec2.live() == []


def test_nodes_behind_one_jump_host_are_made_ready_and_used_through_it(
    ec2: "Ec2", hosts: "Hosts"
) -> None:
    gate = hosts.spare()
    jump = {key: gate.entry[key] for key in ("address", "port", "user", "identity", "host_key")}
    ec2.write(nodes=1, access={**ec2.top["access"], "jump": jump})

    up = ec2.run("up", "--yes")
    said = ec2.run("exec", "echo through")

    assert up.code == 0, up
    assert said.out == "0: through\n"
    log = (gate.home / "sshd.log").read_text()
    assert log.count("Accepted publickey") >= 3  # the first contact, the new key, the command


def test_ssh_and_rsync_refuse_a_jump_host_that_shows_another_key(
    ec2: "Ec2", hosts: "Hosts"
) -> None:
    gate, other = hosts.spare(extra="LogLevel VERBOSE"), hosts.spare()
    jump = {key: gate.entry[key] for key in ("address", "port", "user", "identity", "host_key")}
    ec2.write(nodes=1, access={**ec2.top["access"], "jump": jump})
    ec2.fleet.up()
    (ec2.place.path / "sent").write_text("hello")

    through = ec2.run("ssh", "echo $SSH_CONNECTION")
    copied = ec2.run("rsync", "sent", ":arrived")
    jump["host_key"] = other.entry["host_key"]
    ec2.write(access={**ec2.top["access"], "jump": jump})
    let_in = (gate.home / "sshd.log").read_text().count("Accepted publickey")
    refused = [ec2.run("ssh", "echo reached"), ec2.run("rsync", "sent", ":again")]

    assert through.code == copied.code == 0, (through, copied)
    assert through.out.split()[2] == node(ec2).address
    assert (node(ec2).home / "home/arrived").read_text() == "hello"
    for one in refused:
        assert one.code in (255, 12), one  # ssh's own; rsync has one for a stream that ended
        assert "Host key verification failed" in one.err
        assert one.out == ""
    assert (gate.home / "sshd.log").read_text().count("Accepted publickey") == let_in
    assert not (node(ec2).home / "home/again").exists()


def test_replace_puts_new_nodes_in_the_slots_of_those_that_do_not_answer(ec2: "Ec2") -> None:
    ec2.write(nodes=2)
    ec2.fleet.up()
    before = {tags["workflows:slot"]: name for name, tags in ec2.tags().items()}
    node(ec2, 1).signal(signal.SIGKILL)

    done = ec2.run("replace", "--yes")

    after = {tags["workflows:slot"]: name for name, tags in ec2.tags().items()}
    assert done.code == 0, done
    assert after["0"] == before["0"]
    assert after["1"] != before["1"]
    wait_for(lambda: len(ec2.region.nodes) == 2, 10)


def test_replace_leaves_a_fleet_as_large_as_it_was(ec2: "Ec2") -> None:
    ec2.write(nodes=1)
    up = ec2.run("up", "--nodes", "3", "--yes")
    before = {tags["workflows:slot"]: name for name, tags in ec2.tags().items()}

    done = ec2.run("replace", "--on", "0", "--yes")

    after = {tags["workflows:slot"]: name for name, tags in ec2.tags().items()}
    assert up.code == done.code == 0, (up, done)
    assert after["0"] != before["0"]
    assert (after["1"], after["2"]) == (before["1"], before["2"])
