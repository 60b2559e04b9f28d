"""A cloud without AWS: moto answers as EC2, and each instance is a real sshd made of its user data.

What moto does not do is done here: ClientToken, spot prices, price lists, quotas, and faults. Every
request is kept, since moto accepts anything.
"""

import base64
import contextlib
import itertools
import json
import logging
import os
import pathlib
import pwd
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable
from typing import Any

import yaml
from sshd import SSHD, descendants

_HARNESS = "made-by-the-tests"
USER = pwd.getpwuid(os.getuid()).pw_name
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
TYPES = ["m7i.large", "m6i.large"]
_numbers = itertools.count(os.getpid())
Fault = Callable[["Request"], "bytes | None"]

_SSHD_CONFIG = """\
Port {port}
ListenAddress {address}
HostKey {home}/ssh_host_ed25519_key
PidFile none
AuthorizedKeysFile {home}/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AllowUsers {user}
UseDNS no
PrintMotd no
SetEnv HOME={home}/home PATH={home}/bin:{path} WORKFLOWS_TEST_NODE={id}
ForceCommand cd "$HOME"; exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"
"""
# What is not to happen on this machine. `poweroff` ends the instance, as EC2 does.
_FAKES = {
    "sudo": "while case ${1-} in *=*) ;; *) false;; esac; do shift; done\n"
    "program=$1; shift\ncase $program in /usr/local/sbin/*) program=${program##*/};; esac\n"
    'exec "$program" "$@"',
    "systemctl": 'case $1 in reload) kill -HUP "$(cat {home}/pid)";; poweroff) touch {home}/off;; esac',
    "poweroff": "touch {home}/off",
    "cloud-init": "echo status: done",
    "apt-get": 'echo "apt-get $*" >> {home}/log',
    "dnf": 'echo "dnf $*" >> {home}/log',
    "lsblk": "cat {home}/disks 2>/dev/null",
}


class Request:
    """One request to AWS, as it came."""

    def __init__(self, environ: dict[str, Any]) -> None:
        size = int(environ.get("CONTENT_LENGTH") or 0)
        self.raw = environ["wsgi.input"].read(size)
        target = environ.get("HTTP_X_AMZ_TARGET", "")
        self.region = environ.get("HTTP_AUTHORIZATION", "//us-east-1").split("/")[2]
        if target:
            self.action = target.rpartition(".")[2]
            self.body: dict[str, Any] = json.loads(self.raw or b"{}")
        else:
            pairs = urllib.parse.parse_qsl(self.raw.decode("utf-8", "replace"))
            self.body = dict(pairs)
            self.action = self.body.get("Action", environ["PATH_INFO"])

    def listed(self, prefix: str) -> list[str]:
        """Return the values of the fields that begin with `prefix`."""
        return [value for name, value in self.body.items() if re.match(prefix, name)]


class Cloud:
    """moto behind a real port, and what the tests put in its way. One for a test process."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.answered: list[Callable[[Request], None]] = []
        self.notices: dict[str, str] = {}
        self.spot: dict[tuple[str, str], float] = {}
        self.caller = "127.0.0.1"
        self._tokens: dict[str, bytes] = {}
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def reset(self) -> None:
        """Forget what a test has set up; moto keeps what there is, in VPCs of its own."""
        self.requests, self.faults, self.answered = [], [], []
        self.notices, self.spot, self.caller = {}, {}, "127.0.0.1"

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()

    def asked(self, action: str) -> list[Request]:
        """Return the requests for an action."""
        return [request for request in self.requests if request.action == action]

    def refuse(self, action: str, code: str, *, times: int = 1000) -> None:
        """Let EC2 refuse an action with an error code some times."""
        left = itertools.count(1)

        def fault(request: Request) -> bytes | None:
            if request.action == action and next(left) <= times:
                return _error(code, f"{action} is refused")
            return None

        self.faults.append(fault)

    # -- answering -----------------------------------------------------------------------------

    def _serve(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path.startswith("/imds/"):
            return self._imds(environ, start)
        if path == "/checkip":
            start("200 OK", [("Content-Type", "text/plain")])
            return [self.caller.encode() + b"\n"]
        request = Request(environ)
        if _HARNESS in environ.get("HTTP_USER_AGENT", ""):
            status, headers, body = self._by_moto(environ, request)
            start(status, headers)
            return [body]
        self.requests.append(request)
        body = self._own(request)
        status, headers = "200 OK", [("Content-Type", "text/xml")]
        if body is None:
            status, headers, body = self._by_moto(environ, request)
        elif body.startswith(b"<Response><Errors>"):
            status = "503 Slow" if b"RequestLimitExceeded" in body else "400 Bad Request"
        try:
            for answered in self.answered:
                answered(request)
        except ConnectionResetError:  # the answer is lost on its way
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise
        start(status, headers)
        return [body]

    def _own(self, request: Request) -> bytes | None:
        for fault in self.faults:
            body = fault(request)
            if body is not None:
                return body
        token = request.body.get("ClientToken", "")
        if request.action == "CreateFleet" and token in self._tokens:
            return self._tokens[token]
        answer = getattr(self, "_on_" + re.sub(r"\W", "_", request.action), None)
        found: bytes | None = answer(request) if answer is not None else None
        return found

    def _by_moto(self, environ: dict[str, Any], request: Request) -> tuple[str, Any, bytes]:
        import io

        said: list[Any] = []
        environ["wsgi.input"] = io.BytesIO(request.raw)
        body = b"".join(
            self._moto(environ, lambda status, headers, _=None: said.extend((status, headers)))
        )
        if request.action == "CreateFleet":
            self._tokens[request.body["ClientToken"]] = body
        return said[0], said[1], body

    def _imds(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        _, _, name, rest = environ["PATH_INFO"].split("/", 3)
        if environ["REQUEST_METHOD"] == "PUT":
            start("200 OK", [])
            return [b"token"]
        known = "HTTP_X_AWS_EC2_METADATA_TOKEN" in environ
        text = self.notices.get(name) if known and rest.endswith("spot/instance-action") else None
        start("200 OK" if text else "404 Not Found", [])
        return [(text or "").encode()]

    def _on_DescribeSpotPriceHistory(self, request: Request) -> bytes:  # noqa: N802
        types = request.listed(r"InstanceType\.")
        rows = "".join(
            f"<item><instanceType>{name}</instanceType><availabilityZone>{zone}</availabilityZone>"
            f"<productDescription>Linux/UNIX</productDescription><spotPrice>{price:.6f}</spotPrice>"
            "<timestamp>2020-01-01T00:00:00.000Z</timestamp></item>"
            for (name, zone), price in self.prices().items()
            if name in types
        )
        return (
            "<DescribeSpotPriceHistoryResponse xmlns='http://ec2.amazonaws.com/doc/2016-11-15/'>"
            f"<spotPriceHistorySet>{rows}</spotPriceHistorySet></DescribeSpotPriceHistoryResponse>"
        ).encode()

    def prices(self) -> dict[tuple[str, str], float]:
        """Return the spot prices of (type, zone)."""
        zones = [f"us-east-1{letter}" for letter in "abc"]
        return self.spot or {(name, zone): 0.03 for name in TYPES for zone in zones}

    def _on_GetProducts(self, request: Request) -> bytes:  # noqa: N802
        unit = {"pricePerUnit": {"USD": "0.1000"}}
        product = {"terms": {"OnDemand": {"a": {"priceDimensions": {"b": unit}}}}}
        return json.dumps({"FormatVersion": "1", "PriceList": [json.dumps(product)]}).encode()

    def _on_GetServiceQuota(self, request: Request) -> bytes:  # noqa: N802
        return json.dumps({"Quota": {"Value": 64.0}}).encode()


def _error(code: str, message: str) -> bytes:
    return (
        f"<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>"
        "<RequestID>1</RequestID></Response>"
    ).encode()


def fleet_answer(ids: Iterable[str], errors: Iterable[tuple[str, str]]) -> bytes:
    """Return CreateFleet's answer: instances, and (code, type) of what did not come."""
    made = "".join(f"<item>{one}</item>" for one in ids)
    missing = "".join(
        f"<item><errorCode>{code}</errorCode><errorMessage>none left</errorMessage>"
        "<launchTemplateAndOverrides><overrides>"
        f"<instanceType>{name}</instanceType><availabilityZone>us-east-1a</availabilityZone>"
        "</overrides></launchTemplateAndOverrides></item>"
        for code, name in errors
    )
    instances = f"<item><instanceIds>{made}</instanceIds></item>" if made else ""
    return (
        "<CreateFleetResponse xmlns='http://ec2.amazonaws.com/doc/2016-11-15/'>"
        f"<fleetId>fleet-1</fleetId><errorSet>{missing}</errorSet>"
        f"<fleetInstanceSet>{instances}</fleetInstanceSet></CreateFleetResponse>"
    ).encode()


class Ec2Node:
    """One instance: an sshd and the agent, made of the instance's user data."""

    def __init__(
        self, cloud: Cloud, home: pathlib.Path, name: str, address: str, port: int
    ) -> None:
        self.cloud, self.home, self.id, self.address, self.port = cloud, home, name, address, port
        self.processes: list[subprocess.Popen[bytes]] = []

    def boot(self, user_data: str) -> None:
        """Do what cloud-init would."""
        home = self.home
        (home / "home").mkdir(parents=True)
        (home / "bin").mkdir()
        for old, new in (
            (f"/home/{USER}", f"{home}/home"),
            ("/etc/ssh/ssh_host", f"{home}/ssh_host"),
            ("http://169.254.169.254/latest/", f"{self.cloud.url}/imds/{self.id}/"),
            ("--poll 2", "--poll 0.2"),
        ):
            user_data = user_data.replace(old, new)
        config = yaml.safe_load(user_data)
        for name, script in _FAKES.items():
            self._program(name, "#!/bin/sh\n" + script.replace("{home}", str(home)))
        files = {file["path"]: file["content"] for file in config["write_files"]}
        program = files["/usr/local/sbin/workflows-node"]
        self._program("workflows-node", program.replace("/usr/bin/env python3", sys.executable, 1))
        key = home / "ssh_host_ed25519_key"
        key.write_text(config["ssh_keys"]["ed25519_private"])
        key.chmod(0o600)
        key.with_suffix(".pub").write_text(config["ssh_keys"]["ed25519_public"])
        (home / "authorized_keys").write_text(config["users"][1]["ssh_authorized_keys"][0])
        unit = files["/etc/systemd/system/workflows-node.service"]
        (line,) = re.findall(r"^ExecStart=.*workflows-node (agent .*)$", unit, re.MULTILINE)
        self._start([str(home / "bin/workflows-node"), *line.split()])
        path = os.environ["PATH"]
        text = _SSHD_CONFIG.format(
            port=self.port, address=self.address, home=home, user=USER, path=path, id=self.id
        )
        (home / "sshd_config").write_text(text)
        sshd = self._start([SSHD or "sshd", "-D", "-e", "-f", str(home / "sshd_config")])
        (home / "pid").write_text(str(sshd.pid))

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

    def __init__(self, cloud: Cloud, path: pathlib.Path) -> None:
        import boto3
        from botocore.config import Config

        self.cloud, self.path = cloud, path
        session = boto3.session.Session("testing", "testing", region_name="us-east-1")
        self.ec2: Any = session.client(
            "ec2", endpoint_url=cloud.url, config=Config(user_agent_extra=_HARNESS)
        )
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
        with socket.socket() as probe:
            probe.bind((f"{self.network}.0.4", 0))
            self.port = int(probe.getsockname()[1])
        self.nodes: dict[str, Ec2Node] = {}
        self.boots = True
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        os.makedirs("/run/sshd", exist_ok=True)
        self._thread.start()

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
        node.boot(text)

    def reclaim(self, name: str) -> None:
        """Take an instance back, as EC2 does at the end of its notice."""
        self.nodes[name].kill()
        self.ec2.terminate_instances(InstanceIds=[name])

    def close(self) -> None:
        """Kill all nodes."""
        self._ended.set()
        self._thread.join(10)
        for node in self.nodes.values():
            node.kill()


def wait_for(what: Callable[[], object], within_s: float) -> float:
    """Wait until `what` holds; return how long that took."""
    started = time.monotonic()
    while not what():
        assert time.monotonic() - started < within_s, f"not within {within_s} s"
        time.sleep(0.02)
    return time.monotonic() - started
