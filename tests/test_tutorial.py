"""The tutorial: what it says to type is typed, what it says one sees is seen."""

import contextlib
import functools
import http.server
import pathlib
import shutil
import sys
import threading
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING

import boto3
import pytest
import yaml
from aws import sigv4
from s3_servers import ADMIN, Weed
from test_run_pipeline import SCRIPT_FILES, make_environment
from transcripts import ROOT, SAMPLES, Checkout, blocks, commands, matches

if TYPE_CHECKING:
    from ec2cloud import Cloud
    from ec2fleets import Ec2
    from sshd import Hosts

PAGE = ROOT / "docs" / "tutorial.md"
MONTHS = sorted(SAMPLES.glob("*2018-0*.csv"))


@pytest.fixture
def checkout(tmp_path: pathlib.Path) -> Checkout:
    here = tmp_path / "here"
    here.mkdir()
    return Checkout(here)


@contextlib.contextmanager
def served(folder: pathlib.Path) -> Iterator[str]:
    """Serve a directory by HTTP, quietly; yield its URL."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
            return

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


def test_every_command_of_the_tutorial_prints_what_it_shows(checkout: Checkout) -> None:
    checkout.follow(PAGE)

    assert len(checkout.ran) > 20


def test_every_command_about_hosts_prints_what_it_shows(
    checkout: Checkout, hosts: "Hosts", tmp_path: pathlib.Path
) -> None:
    hosts.add(2)
    checkout.given["hosts.yaml"] = hosts.file.read_text()
    site = tmp_path / "site"
    site.mkdir()
    for path in MONTHS:
        shutil.copy(path, site)
    (site / "rides.list").write_text("".join(f"{path.name}\n" for path in MONTHS))

    with served(site) as url:
        checkout.replaced["https://example.org/"] = url
        checkout.follow(PAGE, on="ssh")

    assert len(checkout.ran) == 3


@pytest.fixture
def empty_cloud(cloud: "Cloud") -> None:
    """Remove what other tests left: `sweep` shows it all."""
    reset = urllib.request.Request(f"{cloud.url}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset, timeout=30).close()


@pytest.mark.usefixtures("empty_cloud")
def test_every_command_about_spot_nodes_prints_what_it_shows_and_nothing_is_left(
    checkout: Checkout, ec2: "Ec2", weed: Weed
) -> None:
    (about,) = [block.text for block in blocks(PAGE) if block.about == "name=rides.yaml"]
    shown = yaml.safe_load(about)
    checkout.given["rides.yaml"] = yaml.safe_dump({**ec2.top, **shown})
    checkout.environ.update(ec2.place.more, **weed.environ)
    key, secret = ADMIN  # one account, for S3 and EC2
    ec2.cloud.account.keys[key] = sigv4.Credential(secret)
    client = weed.bucket("my-bucket")
    for path in MONTHS:
        client.put_object(Bucket="my-bucket", Key=f"rides/{path.name}", Body=path.read_bytes())
    make_runnable(checkout)
    # Every account that has ever used spot has this.
    iam = boto3.session.Session("testing", "testing", region_name="us-east-1").client(
        "iam", endpoint_url=ec2.cloud.url
    )
    iam.create_role(RoleName="AWSServiceRoleForEC2Spot", AssumeRolePolicyDocument="{}")

    try:
        checkout.follow(PAGE, on="ec2")
    finally:
        iam.delete_role(RoleName="AWSServiceRoleForEC2Spot")

    assert len(checkout.ran) == 10
    assert ec2.region.described(shown["name"]) == []


def make_runnable(checkout: Checkout) -> None:
    """Put run_pipeline.sh into a checkout, with an environment that is ready."""
    for name in SCRIPT_FILES:
        shutil.copy(ROOT / name, checkout.path)
    make_environment(checkout.path)
    for name in ("luigi", "workflows"):
        script = checkout.path / ".venv/bin" / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m {name} "$@"\n')
        script.chmod(0o755)


def test_there_is_no_command_that_none_of_these_runs() -> None:
    kinds = {
        (block.kind, block.about)
        for block in blocks(PAGE)
        if block.kind in ("console", "sh", "bash") and list(commands(block.text))
    }

    assert kinds == {("console", ""), ("console", "on=ssh"), ("console", "on=ec2")}


def test_what_a_page_shows_may_leave_out_what_differs_each_time_but_nothing_else() -> None:
    assert matches("a\n...\nb\n", "a\n1\n2\nb\n")
    assert matches(".../data/... is 5\n", "/x/data/y is 5\n")
    assert not matches("a\nb\n", "a\n")
    assert not matches("a\n", "a\nb\n")
    assert not matches("", "a\n")
