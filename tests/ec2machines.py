"""The machines of the instances in a test's VPC: a real sshd and the agent, made of user data."""

import base64
import contextlib
import itertools
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import yaml
from sshd import OWN_LIMITS, SSHD, USER, descendants, sshd_config

if TYPE_CHECKING:
    from ec2cloud import Cloud

_numbers = itertools.count(os.getpid())
_IN_HOME = 'ForceCommand cd "$HOME"; exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"'
# What is not to happen on this machine. `poweroff` ends the instance, as EC2 does.
_FAKES = {
    "sudo": "while case ${1-} in *=*) ;; *) false;; esac; do shift; done\n"
    "program=$1; shift\ncase $program in /usr/local/sbin/*) program=${program##*/};; esac\n"
    'exec "$program" "$@"',
    "systemctl": 'case $1 in reload) kill -HUP "$(cat {home}/pid)";;'
    " poweroff) touch {home}/off;; esac",
    "poweroff": "touch {home}/off",
    "reboot": "touch {home}/reboot",
    "cloud-init": "echo status: done",
    "apt-get": 'echo "apt-get $*" >> {home}/log',
    "dnf": 'echo "dnf $*" >> {home}/log',
    "lsblk": "cat {home}/disks 2>/dev/null",
    **dict.fromkeys(("iptables", "nft", "ip"), 'echo "${0##*/} $*" >> {home}/rules'),
}


class Ec2Node:
    """One instance: an sshd and the agent, made of the instance's user data."""

    def __init__(
        self, cloud: "Cloud", home: pathlib.Path, name: str, address: str, port: int
    ) -> None:
        self.cloud, self.home, self.id, self.address, self.port = cloud, home, name, address, port
        self.processes: list[subprocess.Popen[bytes]] = []
        self.pam = False
        self.programs: dict[str, str] = {}

    def boot(self, user_data: str) -> None:
        """Do what cloud-init would."""
        home = self.home
        (home / "home").mkdir(parents=True)
        (home / "bin").mkdir()
        for old, new in (
            (f"/home/{USER}", f"{home}/home"),
            ("/etc/ssh/", f"{home}/"),
            ("http://169.254.169.254/latest/", f"{self.cloud.url}/imds/{self.id}/"),
            ("169.254.169.254", "127.0.0.254"),  # here a real one may answer
            ("--poll 2", "--poll 0.2"),
        ):
            user_data = user_data.replace(old, new)
        config = yaml.safe_load(user_data)
        for name, script in {**_FAKES, **self.programs}.items():
            self._program(name, "#!/bin/sh\n" + script.replace("{home}", str(home)))
        files = {file["path"]: file["content"] for file in config["write_files"]}
        program = files["/usr/local/sbin/workflows-node"]
        self._program("workflows-node", program.replace("/usr/bin/env python3", sys.executable, 1))
        key = home / "ssh_host_ed25519_key"
        key.write_text(config["ssh_keys"]["ed25519_private"])
        key.chmod(0o600)
        key.with_suffix(".pub").write_text(config["ssh_keys"]["ed25519_public"])
        (home / "authorized_keys").write_text(config["users"][1]["ssh_authorized_keys"][0])
        own = home / "sshd_config.d/10-workflows.conf"
        own.parent.mkdir()
        own.write_text(files[str(own)])
        self._agent = files["/etc/systemd/system/workflows-node.service"]
        self._configure()
        self.power_on()

    def power_on(self) -> None:
        """Start the agent and the sshd."""
        (line,) = re.findall(r"^ExecStart=.*workflows-node (agent .*)$", self._agent, re.MULTILINE)
        home = self.home
        for before in re.findall(r"^ExecStartPre=-.*workflows-node (.*)$", self._agent, re.M):
            self._start([str(home / "bin/workflows-node"), *before.split()]).wait()
        self._start([str(home / "bin/workflows-node"), *line.split()])
        prefix = OWN_LIMITS if self.pam else []
        sshd = self._start([*prefix, SSHD or "sshd", "-D", "-e", "-f", str(home / "sshd_config")])
        (home / "pid").write_text(str(sshd.pid))

    def reboot(self) -> None:
        """End all that runs, and start again from the same disk."""
        self.kill()
        self.processes.clear()
        self.power_on()

    def _configure(self) -> None:
        home, key = self.home, self.home / "ssh_host_ed25519_key"
        env = {
            "HOME": home / "home",
            "PATH": f"{home}/bin:{os.environ['PATH']}",
            "WORKFLOWS_TEST_NODE": self.id,
        }
        text = sshd_config((self.address, self.port), key, home, env, _IN_HOME, pam=self.pam)
        (home / "sshd_config").write_text(text)

    def _program(self, name: str, text: str) -> None:
        path = self.home / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    def _start(self, words: list[str]) -> subprocess.Popen[bytes]:
        with (self.home / "log").open("ab") as log:
            process = subprocess.Popen(
                words,
                cwd=self.home / "home",
                env={"PATH": f"{self.home}/bin:{os.environ['PATH']}", "HOME": f"{self.home}/home"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def signal(self, number: int) -> None:
        """Send a signal to every process of the node."""
        for process in self.processes:
            for pid in descendants(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def kill(self) -> None:
        """Kill every process of the node at once, and what its sessions left behind."""
        for number in (signal.SIGSTOP, signal.SIGKILL):
            self.signal(number)
        mark = f"WORKFLOWS_TEST_NODE={self.id}".encode()
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError):
                    if mark in pathlib.Path("/proc", name, "environ").read_bytes().split(b"\0"):
                        os.kill(int(name), signal.SIGKILL)
        for process in self.processes:
            process.wait()


class Region:
    """A VPC of addresses in 127/8 for one test, and the machines of the instances in it."""

    def __init__(self, cloud: "Cloud", path: pathlib.Path) -> None:
        self.cloud, self.path = cloud, path
        self.ec2: Any = cloud.ec2
        number = next(_numbers)
        self.network = f"127.{2 + number % 250}"
        self.vpc: str = self.ec2.create_vpc(CidrBlock=f"{self.network}.0.0/16")["Vpc"]["VpcId"]
        self.subnets = [
            self.ec2.create_subnet(
                VpcId=self.vpc,
                CidrBlock=f"{self.network}.{zone}.0/24",
                AvailabilityZone=f"us-east-1{letter}",
            )["Subnet"]["SubnetId"]
            for zone, letter in enumerate("abc")
        ]
        gateway = self.ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
        self.ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=self.vpc)
        self.ec2.create_route(
            RouteTableId=self.route_table(), DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway
        )
        with socket.socket() as probe:
            probe.bind((f"{self.network}.0.4", 0))
            self.port = int(probe.getsockname()[1])
        self.nodes: dict[str, Ec2Node] = {}
        self.boots = True
        self.programs: dict[str, str] = {}  # name -> shell text of what the nodes have besides
        self.pam = False  # whether limits are in effect on the nodes; they need root
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        os.makedirs("/run/sshd", exist_ok=True)
        self._thread.start()

    def route_table(self) -> str:
        """Return the VPC's main route table."""
        rows = self.ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [self.vpc]}])
        return str(rows["RouteTables"][0]["RouteTableId"])

    def image(self, architecture: str) -> str:
        """Return an image for an architecture."""
        filters = [{"Name": "architecture", "Values": [architecture]}]
        return str(self.ec2.describe_images(Filters=filters)["Images"][0]["ImageId"])

    def described(self, fleet: str, *states: str) -> list[dict[str, Any]]:
        """Return the instances that are tagged with a fleet's name, as EC2 describes them."""
        filters = [
            {"Name": "tag:workflows:fleet", "Values": [fleet]},
            {"Name": "instance-state-name", "Values": list(states or ("pending", "running"))},
        ]
        found = self.ec2.describe_instances(Filters=filters)["Reservations"]
        return [one for each in found for one in each["Instances"]]

    def _run(self) -> None:
        while not self._ended.wait(0.05):
            rows = self.ec2.describe_instances(Filters=[{"Name": "vpc-id", "Values": [self.vpc]}])
            found = {
                one["InstanceId"]: one for each in rows["Reservations"] for one in each["Instances"]
            }
            for name, node in list(self.nodes.items()):
                state = found[name]["State"]["Name"] if name in found else "terminated"
                if state == "running" and (node.home / "off").exists():
                    self.ec2.terminate_instances(InstanceIds=[name])
                    state = "terminated"
                if state == "running" and (node.home / "reboot").exists():
                    (node.home / "reboot").unlink()
                    node.reboot()
                if state != "running":
                    self.nodes.pop(name).kill()
            for name, one in found.items():
                is_new = self.boots and not (self.path / name).exists()
                if is_new and one["State"]["Name"] == "running":
                    self._boot(name, one["PrivateIpAddress"])

    def _boot(self, name: str, address: str) -> None:
        about = self.ec2.describe_instance_attribute(InstanceId=name, Attribute="userData")
        text = base64.b64decode(about["UserData"]["Value"]).decode()
        node = Ec2Node(self.cloud, self.path / name, name, address, self.port)
        self.nodes[name] = node
        node.pam, node.programs = self.pam, self.programs
        node.boot(text)

    def reclaim(self, name: str) -> None:
        """Take an instance back, as EC2 does at the end of its notice."""
        self.nodes[name].kill()
        self.ec2.terminate_instances(InstanceIds=[name])

    def close(self) -> None:
        """Kill all nodes and end their instances, which count against the account's quotas."""
        self._ended.set()
        self._thread.join(10)
        for node in self.nodes.values():
            node.kill()
        rows = self.ec2.describe_instances(Filters=[{"Name": "vpc-id", "Values": [self.vpc]}])
        ids = [one["InstanceId"] for each in rows["Reservations"] for one in each["Instances"]]
        if ids:
            self.ec2.terminate_instances(InstanceIds=ids)
