"""`workflows up` and `workflows ssh` over hosts that one already has."""

import os
import pathlib
import resource
from typing import TYPE_CHECKING, Any

import pytest
from sshd import OWN_LIMITS

if TYPE_CHECKING:
    from conftest import Done, Place
    from sshd import Hosts


def up(place: "Place", hosts: "Hosts") -> "Done":
    return place.run("workflows", "up", "--fleet", hosts.spec)


def scripted(hosts: "Hosts", text: str, **more: Any) -> pathlib.Path:
    """Give the hosts a post_init, by a path relative to hosts.yaml; return the script."""
    script = hosts.path / "init.sh"
    script.write_text(text)
    hosts.top["defaults"] = {"post_init": "init.sh", **more}
    hosts.write()
    return script


def runs(hosts: "Hosts") -> list[int]:
    """Return how often post_init has run on each node."""
    logs = [node.home / "log" for node in hosts.nodes]
    return [len(log.read_text().splitlines()) if log.exists() else 0 for log in logs]


LOG = 'echo "run as $(id -u)" >> "$HOME/log"\n'


def test_up_runs_once_and_not_again_until_the_script_changes(
    place: "Place", hosts: "Hosts"
) -> None:
    hosts.add(3)
    script = scripted(hosts, LOG + "echo streamed\necho an error >&2\n")

    first = up(place, hosts)
    second = up(place, hosts)

    assert first.code == second.code == 0, (first, second)
    assert runs(hosts) == [1, 1, 1]
    for slot, node in enumerate(hosts.nodes):
        assert f"node {slot} ({node.address}:{node.port}): streamed\n" in first.err
        assert f"node {slot} ({node.address}:{node.port}): an error\n" in first.err
        assert (node.home / "log").read_text() == "run as 0\n"
        assert node.scratch.is_dir()
    assert "3 of 3 ready, 0 failed, 0 lost" in first.err
    assert second.err == "workflows: nothing has changed, nothing was run: 3 of 3 ready\n"
    script.write_text(LOG + "true\n")
    assert "3 of 3 ready" in up(place, hosts).err
    assert runs(hosts) == [2, 2, 2]


def test_a_scratch_directory_that_is_gone_is_made_again_and_nothing_else(
    place: "Place", hosts: "Hosts"
) -> None:
    hosts.add(1)
    scripted(hosts, LOG)
    up(place, hosts)
    hosts.nodes[0].scratch.rmdir()

    again = up(place, hosts)

    assert again.code == 0, again
    assert hosts.nodes[0].scratch.is_dir()
    assert runs(hosts) == [1]


def test_a_scratch_directory_that_cannot_be_made_is_named_with_the_reason(
    place: "Place", hosts: "Hosts"
) -> None:
    hosts.add(1)
    hosts.write(scratch="/proc/none/here")

    run = up(place, hosts)

    assert run.code == 1, run
    assert "scratch exited" in run.err
    assert "install: cannot create directory" in run.err


def test_a_script_that_fails_names_its_node_and_the_others_are_done(
    place: "Place", hosts: "Hosts"
) -> None:
    hosts.add(3)
    bad = hosts.nodes[1]
    script = scripted(
        hosts,
        LOG + f'[ "$WORKFLOWS_TEST_NODE" != {bad.address} ] || {{ echo no bucket >&2; exit 7; }}\n',
    )

    failed = up(place, hosts)

    assert failed.code == 1, failed
    assert f"node 1 ({bad.address}:{bad.port}) cannot work: post_init exited 7\n" in failed.err
    assert f"node 1 ({bad.address}:{bad.port}): no bucket\n" in failed.err
    assert failed.err.count("no bucket") == 1  # shown when it came, and not again
    assert "2 of 3 ready, 1 failed, 0 lost" in failed.err
    assert "nothing has changed" not in up(place, hosts).err
    assert runs(hosts) == [1, 2, 1]
    assert script.exists()


def test_a_host_that_its_own_script_reboots_is_waited_for_and_goes_on(
    place: "Place", hosts: "Hosts"
) -> None:
    hosts.add(2)
    scripted(hosts, LOG + '[ -e "$HOME/again" ] || { touch "$HOME/again"; sleep 300; }\n')

    with place.start("workflows", "up", "--fleet", hosts.spec) as run:
        run.wait_for(lambda: all((node.home / "again").exists() for node in hosts.nodes), 60)
        for node in hosts.nodes:
            node.kill()
            node.start()
        code = run.end(60)

    assert code == 0, run.said
    assert run.said.count("hung up; waiting 30 s for it to come back (patience)") == 2
    assert "2 of 2 ready" in run.said
    assert runs(hosts) == [2, 2]


def test_a_host_that_does_not_come_back_is_lost(place: "Place", hosts: "Hosts") -> None:
    hosts.top["patience"] = 1
    hosts.add(1)
    scripted(hosts, LOG + "sleep 300\n")

    with place.start("workflows", "up", "--fleet", hosts.spec) as run:
        run.wait_for(lambda: runs(hosts) == [1], 60)
        hosts.nodes[0].kill()
        code = run.end(60)

    assert code == 3, run.said
    assert "is lost: cannot connect" in run.said


def test_a_dead_host_is_lost_and_the_others_are_done(place: "Place", hosts: "Hosts") -> None:
    hosts.add(3)
    scripted(hosts, LOG)
    dead = hosts.nodes[0]
    dead.kill()

    run = up(place, hosts)

    assert run.code == 3, run
    assert f"node 0 ({dead.address}:{dead.port}) is lost: cannot connect" in run.err
    assert "2 of 3 ready, 0 failed, 1 lost" in run.err
    assert runs(hosts) == [0, 1, 1]


def test_hosts_are_made_ready_side_by_side(place: "Place", hosts: "Hosts") -> None:
    """Each waits until all have begun: one after the other would never end."""
    hosts.add(3)
    meet = hosts.path / "meet"
    meet.mkdir()
    all_there = f'[ "$(ls {meet} | wc -l)" -ge 3 ]'
    scripted(hosts, f"touch {meet}/$WORKFLOWS_TEST_NODE; until {all_there}; do sleep 0.05; done\n")

    assert up(place, hosts).code == 0


def test_up_refuses_what_is_no_ssh_fleet_and_a_script_that_is_not_there(
    place: "Place", hosts: "Hosts"
) -> None:
    hosts.add(1)
    hosts.top["defaults"] = {"post_init": "none.sh"}
    hosts.write()

    missing = up(place, hosts)
    local = place.run("workflows", "up", "--fleet", "local:2")
    ec2 = place.run("workflows", "up", "--fleet", "ec2:mine")

    assert [missing.code, local.code, ec2.code] == [2, 2, 2]
    assert "none.sh: No such file" in missing.err
    assert "local:2 is not an ssh fleet" in local.err
    assert "workflows fleet up mine" in ec2.err


# -- limits ----------------------------------------------------------------------------------------

ROOT_ONLY = pytest.mark.skipif(os.getuid() != 0, reason="only root can set limits")
LIMITS = {"open_files": 4321, "processes": 3210}


@ROOT_ONLY
def test_limits_are_those_of_every_login_after_up_and_are_set_once(
    place: "Place", hosts: "Hosts"
) -> None:
    hosts.add(2, pam=True, prefix=OWN_LIMITS)
    scripted(hosts, LOG, limits=LIMITS)

    first = up(place, hosts)
    second = up(place, hosts)
    shown = place.run("workflows", "exec", "ulimit -n; ulimit -u", "--fleet", hosts.spec)
    scripted(hosts, LOG, limits={**LIMITS, "open_files": 5432})
    third = up(place, hosts)

    assert first.code == second.code == third.code == 0, (first, second, third)
    assert first.err.count("== limits") == 2
    assert "nothing has changed, nothing was run" in second.err
    numbers = sorted(line.split()[-1] for line in shown.out.splitlines())
    assert numbers == ["3210", "3210", "4321", "4321"], shown
    assert third.err.count("== limits") == 2


def test_a_login_that_does_not_get_the_limits_is_named(place: "Place", hosts: "Hosts") -> None:
    """Without PAM nobody reads what was written."""
    hosts.add(1, prefix=OWN_LIMITS if os.getuid() == 0 else [])
    has, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    scripted(hosts, LOG, limits={"open_files": has + 1})
    if has >= int(pathlib.Path("/proc/sys/fs/nr_open").read_text()) or os.getuid() != 0:
        pytest.skip("every login has what the kernel allows")

    run = up(place, hosts)

    assert run.code == 1, run
    assert f"limits: a new login has open_files {has}, not {has + 1}" in run.err
    assert "UsePAM yes" in run.err
    assert "0 of 1 ready, 1 failed, 0 lost" in run.err


@ROOT_ONLY
def test_limits_that_would_lock_everybody_out_are_refused_and_not_written(
    place: "Place", hosts: "Hosts"
) -> None:
    hosts.add(1, pam=True, prefix=OWN_LIMITS)
    scripted(hosts, LOG, limits={"open_files": 1 << 30})

    run = up(place, hosts)
    hosts.top["defaults"] = {}
    hosts.write()
    there = place.run("workflows", "ssh", "--fleet", hosts.spec, "0", "ls /etc/security/limits.d")

    assert run.code == 1, run
    assert "open_files 1073741824 is more than this host allows: fs.nr_open is " in run.err
    assert (there.code, there.out) == (0, ""), there


# -- ssh -------------------------------------------------------------------------------------------


def ssh(place: "Place", hosts: "Hosts", *words: str) -> "Done":
    return place.run("workflows", "ssh", "--fleet", hosts.spec, *words)


def test_ssh_prints_what_a_command_prints_and_ends_as_it_ends(
    place: "Place", hosts: "Hosts"
) -> None:
    hosts.add(2)

    run = ssh(place, hosts, "1", "echo $WORKFLOWS_TEST_NODE; exit 9")

    assert (run.code, run.out) == (9, f"{hosts.nodes[1].address}\n"), run


def test_ssh_trusts_the_pinned_host_key_alone(place: "Place", hosts: "Hosts") -> None:
    first, second = hosts.add(2).nodes
    hosts.write(host_key=first.public_key)

    right = ssh(place, hosts, "0", "true")
    wrong = ssh(place, hosts, "1", "echo reached")

    assert right.code == 0, right
    known = (place.state / "ssh").glob("*.known_hosts")
    assert {path.read_text() for path in known} == {f"node {first.public_key}\n"}
    assert (wrong.code, wrong.out) == (255, ""), wrong
    assert "Host key verification failed" in wrong.err
    assert second.is_clean()


def test_ssh_goes_through_the_jump_host_and_checks_its_key_too(
    place: "Place", hosts: "Hosts"
) -> None:
    gate = hosts.spare()
    entry = {key: gate.entry[key] for key in ("address", "port", "user", "identity", "host_key")}
    node = hosts.add(1).nodes[0]
    hosts.write(jump=entry)

    through = ssh(place, hosts, "0", "echo $SSH_CONNECTION")
    hosts.write(jump={**entry, "host_key": node.public_key})
    wrong = ssh(place, hosts, "0", "echo reached")

    assert through.code == 0, through
    assert through.out.split()[2:] == [node.address, str(node.port)]
    assert (wrong.code, wrong.out) == (255, ""), wrong
    assert "Host key verification failed" in wrong.err


@pytest.mark.parametrize(
    ("words", "said"),
    [(("7",), "there is no node 7"), (("0", "--fleet", "x"), "write --fleet before the node")],
)
def test_ssh_says_what_is_wrong(
    place: "Place", hosts: "Hosts", words: tuple[str, ...], said: str
) -> None:
    hosts.add(1)

    run = ssh(place, hosts, *words)

    assert run.code == 2
    assert said in run.err


def test_ssh_to_a_host_whose_key_nobody_knows_is_refused(place: "Place", hosts: "Hosts") -> None:
    hosts.add(1)
    (hosts.path / "known").write_text("")
    hosts.file.write_text(hosts.file.read_text().replace("host_key:", "known_hosts: known #"))

    run = ssh(place, hosts, "0", "true")

    assert run.code == 1
    assert "is not known; `workflows health` shows what to do" in run.err
