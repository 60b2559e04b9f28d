"""The maps of the command line are Luigi tasks: a luigid shows them."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Keys


def test_a_typed_map_shows_in_luigid(six: "Keys") -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = six.place.path / "luigi.cfg"
    text = config.read_text().replace("local_scheduler = true", "local_scheduler = false")
    text = text.replace("scheduler_host = localhost", "scheduler_host = 127.0.0.1")
    config.write_text(text.replace("scheduler_port = 8082", f"scheduler_port = {port}"))
    luigid = subprocess.Popen(
        [
            os.path.join(os.path.dirname(sys.executable), "luigid"),
            *("--address", "127.0.0.1", "--port", str(port)),
            *("--state-path", str(six.place.path / "luigid-state")),
        ],
        cwd=six.place.path,
        env=six.place.environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)

        six.ok("map", "in/", "out/", "cat")

        asked = urllib.parse.urlencode({"data": json.dumps({"status": "", "upstream_status": ""})})
        url = f"http://127.0.0.1:{port}/api/task_list?{asked}"
        with urllib.request.urlopen(url, timeout=20) as answer:
            tasks = json.load(answer)["response"].values()
        assert {(task["name"], task["status"]) for task in tasks} == {("AdhocMap", "DONE")}
        assert len(tasks) == 7  # six keys, and the whole
        assert {task["params"]["bash"] for task in tasks} == {"cat"}
    finally:
        luigid.kill()
        luigid.wait()
