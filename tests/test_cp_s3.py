"""`workflows cp` to and from a real S3 server."""

import os
import secrets
from typing import TYPE_CHECKING, Any

import pytest
from s3_servers import READER, Weed, environ_of

if TYPE_CHECKING:
    from conftest import Done, Keys
    from sshd import Hosts

NAMES = ["a b.txt", "100%.txt", "c+d.txt", "é.txt", "deep/q'\".txt", "deep/er/&=?#.txt"]


class Copies:
    """A bucket, and a fleet to copy to and from."""

    def __init__(self, weed: Weed, keys: "Keys") -> None:
        self.weed, self.keys = weed, keys
        self.bucket = "b" + secrets.token_hex(8)
        self.client = weed.bucket(self.bucket)

    def put(self, name: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=name, Body=data)

    def get(self, name: str) -> bytes:
        body: bytes = self.client.get_object(Bucket=self.bucket, Key=name)["Body"].read()
        return body

    def names(self) -> list[str]:
        found = self.client.list_objects_v2(Bucket=self.bucket).get("Contents", ())
        return [item["Key"] for item in found]

    def cp(self, *words: str, **env: str) -> "Done":
        asked: dict[str, Any] = {**self.weed.environ, **env}
        return self.keys.run("cp", *(w.replace("BUCKET", self.bucket) for w in words), **asked)


@pytest.fixture
def copies(weed: Weed, keys: "Keys") -> Copies:
    return Copies(weed, keys)


def test_a_key_goes_to_s3_and_back_under_its_name_or_another(copies: Copies) -> None:
    data = os.urandom(3_000_000)
    (copies.keys.place.path / "big").write_bytes(data)

    done = [
        copies.cp("big", "fleet://in/big"),
        copies.cp("fleet://in/big", "s3://BUCKET/a dir/"),
        copies.cp("fleet://in/big", "s3://BUCKET"),
        copies.cp("fleet://in/big", "s3://BUCKET/other name"),
        copies.cp("s3://BUCKET/a dir/big", "fleet://back/"),
        copies.cp("s3://BUCKET/other name", "fleet://back/deep/again"),
    ]

    assert [one.code for one in done] == [0] * 6, done
    assert copies.names() == ["a dir/big", "big", "other name"]
    assert copies.get("a dir/big") == copies.get("other name") == data
    assert copies.keys.names("back") == ["big", "deep/again"]
    assert copies.keys.file("back/big").read_bytes() == data
    assert copies.keys.file("back/deep/again").read_bytes() == data


def test_a_whole_prefix_goes_to_the_fleet_and_back_whatever_its_names(copies: Copies) -> None:
    for name in NAMES:
        copies.put(f"trip data/{name}", name.encode())
    copies.put("trip data/", b"")  # a folder, as the console of S3 makes them
    copies.put("trip data of another/x", b"")

    there = copies.cp("-r", "s3://BUCKET/trip data", "fleet://in/2018")
    back = copies.cp("-r", "fleet://in", "s3://BUCKET/out")

    assert (there.code, back.code) == (0, 0), (there, back)
    assert sorted(copies.keys.names("in")) == sorted(f"2018/{name}" for name in NAMES)
    found = {name: copies.get(name) for name in copies.names() if name.startswith("out/")}
    assert found == {f"out/2018/{name}": name.encode() for name in NAMES}


def test_what_exists_is_not_replaced_on_either_side(copies: Copies) -> None:
    copies.keys.give("in", a="new\n")
    copies.put("a", b"old\n")

    to_s3 = copies.cp("fleet://in/a", "s3://BUCKET/a")
    to_fleet = copies.cp("s3://BUCKET/a", "fleet://in/a")

    assert (to_s3.code, to_fleet.code) == (2, 2)
    assert f"s3://{copies.bucket}/a exists already, and is not replaced" in to_s3.err
    assert "in/a exists already; to replace it: workflows rm in/a" in to_fleet.err
    assert (copies.get("a"), copies.keys.read("in/a")) == (b"old\n", "new\n")


@pytest.mark.parametrize(
    ("words", "env", "said"),
    [
        (["s3://BUCKET/none", "fleet://in/x"], {}, "GetObject of s3://BUCKET/none: NoSuchKey"),
        (["s3://nowhere/x", "fleet://in/x"], {}, "there is no such bucket at http://127.0.0.1"),
        (["-r", "s3://BUCKET/none", "fleet://in"], {}, "there is nothing below s3://BUCKET/none"),
        (["fleet://in/a", "s3://BUCKET/a"], environ_of("", READER), "grant s3:PutObject"),
        (["s3:///a", "fleet://in/x"], {}, "s3:///a is not an S3 URL"),
    ],
)
def test_what_cannot_be_copied_is_named_with_a_remedy_and_leaves_nothing(
    copies: Copies, words: list[str], env: dict[str, str], said: str
) -> None:
    copies.keys.give("in", a="1\n")
    env = {k: v for k, v in env.items() if v and "ENDPOINT" not in k}

    done = copies.cp(*words, **env)

    assert done.code in (1, 2), done
    assert said.replace("BUCKET", copies.bucket) in done.err
    assert copies.keys.names("in") == ["a"]
    assert copies.names() == []


def test_nodes_behind_ssh_need_no_way_to_s3(copies: Copies, hosts: "Hosts") -> None:
    hosts.add(2)
    copies.put("dir/1", b"one\n")
    copies.put("dir/2", b"two\n")

    there = copies.cp("-r", "s3://BUCKET/dir", "fleet://in", "--fleet", hosts.spec)
    back = copies.cp("-r", "fleet://in", "s3://BUCKET/out", "--fleet", hosts.spec)

    assert (there.code, back.code) == (0, 0), (there, back)
    assert hosts.outputs("in") == {"1": b"one\n", "2": b"two\n"}
    assert (copies.get("out/1"), copies.get("out/2")) == (b"one\n", b"two\n")
