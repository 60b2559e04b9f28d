"""The other pipelines with everything far away: nodes behind ssh, sources and results in S3."""

import gzip
import secrets
import sys
from typing import TYPE_CHECKING, Any

import pytest
from s3_servers import Weed
from test_classify import expected as classes_of
from test_classify import generated
from test_disco import TEXTS, words
from transcripts import SAMPLES

if TYPE_CHECKING:
    from conftest import Done, Place
    from sshd import Hosts

CLASSIFY = "workflows.pipelines.classify.tasks"
DISCO = "workflows.pipelines.disco.tasks"


class Away:
    """A bucket with sources and results, and two nodes behind ssh that have no credentials."""

    def __init__(self, weed: Weed, hosts: "Hosts", place: "Place") -> None:
        self.place, self.hosts = place, hosts
        self.environ: dict[str, Any] = weed.environ
        self.bucket = "b" + secrets.token_hex(8)
        self.client = weed.bucket(self.bucket)
        hosts.add(2)
        hosts.write(python=sys.executable)

    def put(self, name: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=f"in put/{name}", Body=data)

    def run(self, module: str, task: str, *more: str) -> "Done":
        given = ["--source", f"s3://{self.bucket}/in put/", "--pattern", "*"]
        given += ["--checkpoint", f"s3://{self.bucket}/out", "--fleet", self.hosts.spec]
        return self.place.luigi(task, *given, *more, module=module, **self.environ)

    def results(self, done: "Done") -> dict[str, bytes]:
        """Return name -> bytes of what a run says that it made."""
        assert done.code == 0, done
        folder, *lines = done.out.splitlines()
        assert folder.startswith(f"s3://{self.bucket}/out/")
        found = {}
        for name in [line.split(None, 1)[1] for line in lines]:
            key = f"{folder}/{name}".removeprefix(f"s3://{self.bucket}/")
            found[name] = self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return found


@pytest.fixture
def away(weed: Weed, hosts: "Hosts", place: "Place") -> Away:
    return Away(weed, hosts, place)


def test_words_of_gzip_objects_are_counted_on_ssh_nodes_into_gzip_objects(away: Away) -> None:
    for path in TEXTS:
        away.put(f"{path.name}.gz", gzip.compress(path.read_bytes()))
        away.place.key(f"{path.name}.gz", gzip.compress(path.read_bytes()))

    far = away.run(DISCO, "WordCount")
    near = away.place.luigi("WordCount", "--fleet", "local:2", module=DISCO)
    again = away.run(DISCO, "WordCount")

    found = away.results(far)
    lines = [line for data in found.values() for line in gzip.decompress(data).decode().split("\n")]
    assert dict(line.split("\t") for line in lines if line) == words(TEXTS)
    assert sorted(found) == [f"{number:03d}_part.gz" for number in range(10)]
    assert found == away.place.outputs("WordCount")
    assert (near.code, again.code, again.out) == (0, 0, far.out)
    assert "WordCount" not in again.err


def test_a_job_counts_the_records_of_each_hour_with_its_parameters_on_ssh_nodes(away: Away) -> None:
    for path in sorted(SAMPLES.glob("*.csv"))[:3]:
        away.put(path.name, path.read_bytes())

    done = away.run(DISCO, "LogCount", "--params", '{"by": "month"}', "--partitions", "2")

    found = away.results(done)
    counted = b"".join(gzip.decompress(data) for data in found.values()).decode()
    assert sorted(found) == ["000_part.gz", "001_part.gz"]
    months = [path.name[-11:-4] for path in sorted(SAMPLES.glob("*.csv"))[:3]]
    assert [f"{month}\t600" in counted.splitlines() for month in months] == [True] * 3


def test_every_real_row_is_classified_once_and_in_order_on_ssh_nodes(away: Away) -> None:
    pytest.importorskip("pandas", reason="the example classifier needs it: pip install pandas")
    months = sorted(SAMPLES.glob("*.csv"))[:3]
    for path in months:
        away.put(path.name, path.read_bytes())

    done = away.run(CLASSIFY, "ClassifyRows", "--piece-rows", "200")

    found = away.results(done)
    assert list(found) == ["classified.csv.gz"]
    assert gzip.decompress(found["classified.csv.gz"]).decode() == classes_of(months)


def test_generated_rows_give_the_same_bytes_on_ssh_nodes_as_here(away: Away) -> None:
    pytest.importorskip("pandas", reason="the example classifier needs it: pip install pandas")
    away.put("rides.csv", generated(900))
    away.place.key("rides.csv", generated(900))

    far = away.run(CLASSIFY, "ClassifyRows", "--piece-rows", "200")
    near = away.place.luigi("ClassifyRows", "--piece-rows", "200", module=CLASSIFY)

    assert near.code == 0, near
    assert away.results(far) == away.place.outputs("ClassifyRows")
