"""What a node does at its first boot: sshd's settings, and the metadata service closed to jobs."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from conftest import ROOT
from sshd import SSHD

from workflows.ec2 import agent, sessions

if TYPE_CHECKING:
    from ec2fleets import Ec2

OWN = "MaxSessions 100\nMaxStartups 100:30:300\nPasswordAuthentication no\n"
needs_sshd = pytest.mark.skipif(SSHD is None, reason="no sshd: apt-get install openssh-server")
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root has network namespaces")


# -- sshd ------------------------------------------------------------------------------------------


@pytest.fixture
def sshd(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Return the configuration of an sshd, beside which the user data has written its own."""
    folder = tmp_path / "sshd_config.d"
    folder.mkdir()
    (folder / "10-workflows.conf").write_text(OWN)
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    config = tmp_path / "sshd_config"
    config.write_text(f"HostKey {key}\nPort 2222\n")
    config.chmod(0o600)
    monkeypatch.setattr(agent, "SSHD", str(config))
    monkeypatch.setattr(agent, "OWN", str(folder / "10-workflows.conf"))
    return config


def effective(config: pathlib.Path) -> list[str]:
    told = subprocess.run([SSHD or "", "-T", "-f", str(config)], capture_output=True, check=True)
    return told.stdout.decode().splitlines()


@needs_sshd
@pytest.mark.parametrize(
    "before", ["", "MaxSessions 10\n", "Match User nobody\n  X11Forwarding no\n"]
)
def test_sshd_takes_the_settings_of_the_user_data_whatever_its_configuration_says(
    sshd: pathlib.Path, before: str
) -> None:
    sshd.write_text(sshd.read_text() + before)

    agent.settings()
    once = sshd.read_text()
    agent.settings()

    assert {"maxsessions 100", "port 2222", "maxstartups 100:30:300"} <= set(effective(sshd))
    assert sshd.read_text() == once
    assert sshd.stat().st_mode & 0o777 == 0o600


@needs_sshd
def test_a_configuration_that_includes_the_folder_is_left_as_it_is(sshd: pathlib.Path) -> None:
    text = f"Include {sshd.parent}/sshd_config.d/*.conf\n" + sshd.read_text()
    sshd.write_text(text)

    agent.settings()

    assert sshd.read_text() == text


@needs_sshd
def test_what_sshd_would_not_start_with_is_never_put_in_its_configuration(
    sshd: pathlib.Path,
) -> None:
    before = sshd.read_text()
    pathlib.Path(agent.OWN).write_text("MaxSessions 100\nNoSuchWord yes\n")

    with pytest.raises(SystemExit, match="sshd does not take: MaxSessions 100, NoSuchWord yes"):
        agent.settings()

    assert sshd.read_text() == before


def test_a_node_whose_image_includes_no_folder_takes_more_than_ten_sessions_at_once(
    ec2: "Ec2",
) -> None:
    """The sshd of these nodes has a configuration without Include."""
    ec2.write(nodes=1)
    ec2.fleet.up()
    (one,) = ec2.fleet.nodes()

    with sessions.login(ec2.spec, one) as connection, contextlib.ExitStack() as stack:
        channels = [stack.enter_context(connection.command("read x")) for _ in range(30)]
        assert len(channels) == 30


# -- the metadata service --------------------------------------------------------------------------

# A network namespace with the service in another one behind it, as EC2's is behind the host's.
WORLD = """\
set -e
ip link set lo up
unshare -n sleep 300 & there=$!
trap 'kill $there $server 2>/dev/null' EXIT
until [ "$(readlink /proc/$there/ns/net)" != "$(readlink /proc/$$/ns/net)" ]; do sleep 0.02; done
ip link add v0 type veth peer name v1
ip link set v1 netns $there
ip addr add 169.254.1.1/16 dev v0
ip link set v0 up
nsenter -t $there -n ip addr add 169.254.169.254/16 dev v1
nsenter -t $there -n ip link set v1 up
nsenter -t $there -n "$PYTHON" -m http.server 80 --bind 169.254.169.254 >/dev/null 2>&1 & server=$!
"$PYTHON" "$1"
"""
CHECK = """\
import os, subprocess, sys, time
from workflows.ec2 import agent
agent.ADMIN = os.environ["TOOLS"]
until = time.monotonic() + 20
while not agent.is_open() and time.monotonic() < until:
    time.sleep(0.05)
print("before", agent.is_open())
for _ in range(2):
    try:
        agent.closeimds(os.environ["STATE"])
    except SystemExit as error:
        print(error)
print("after", agent.is_open())
print("root", subprocess.call([sys.executable, "-c", agent.REACH]) == 0)
print(open(os.environ["STATE"] + "/imds").read())
"""


def closed_with(tmp_path: pathlib.Path, *tools: str) -> list[str]:
    """Close the service in a namespace of its own, with some programs alone; return what is so."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in tools:
        (folder / name).symlink_to(shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin") or "")
    (folder / "true").symlink_to("/bin/true")
    (tmp_path / "home").mkdir()
    script = tmp_path / "check.py"
    script.write_text(CHECK)
    done = subprocess.run(
        ["unshare", "-n", "bash", "-c", WORLD, "bash", str(script)],
        env={
            **os.environ,
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "TOOLS": str(folder),
            "STATE": str(tmp_path / "home" / ".workflows"),
        },
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().splitlines()


@needs_root
@pytest.mark.parametrize("tool", ["ip", "iptables", "nft"])
def test_only_root_reaches_the_metadata_service_whatever_the_image_has(
    tmp_path: pathlib.Path, tool: str
) -> None:
    """Amazon Linux 2023 has no iptables."""
    if shutil.which(tool, path="/usr/sbin:/sbin") is None:
        pytest.skip(f"no {tool}")

    said = closed_with(tmp_path, tool)

    assert said == ["before True", "after False", "root True", f"closed by {tool}"]


@needs_root
def test_an_image_with_nothing_to_close_it_by_says_so_loudly(tmp_path: pathlib.Path) -> None:
    said = closed_with(tmp_path)

    why = "there is no iptables, there is no nft, there is no ip"
    assert said == [
        "before True",
        *[f"the metadata service is open to all users: {why}"] * 2,
        "after True",
        "root True",
        f"open: {why}",
    ]


def test_a_node_that_could_not_close_it_is_refused_with_what_to_do(ec2: "Ec2") -> None:
    ec2.write(nodes=1)
    ec2.region.programs.update(dict.fromkeys(("iptables", "nft", "ip"), "exit 1"))

    failed = ec2.run("up", "--yes")
    ec2.write(profile="nodes-s3")
    ec2.run("down", "--yes")
    wanted = ec2.run("up", "--yes")

    assert failed.code == 1, failed
    assert "metadata service is open to every job (open: iptables failed, nft" in failed.err
    assert "or name a profile, which opens it" in failed.err
    assert wanted.code == 0, wanted
