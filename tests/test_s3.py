"""Pipelines over a real S3 server: sources, checkpoints, restores, crashes and refusals."""

import json
import os
import pathlib
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from s3_servers import READER, STEPS, Weed, client_of, environ_of, started

from workflows.config import settings
from workflows.errors import CheckpointError
from workflows.storage.s3 import TRIES
from workflows.storage.s3store import S3Store
from workflows.targets import CheckpointTarget

if TYPE_CHECKING:
    from conftest import Done, Place
    from sshd import Hosts

FETCH = pathlib.Path(__file__).parent.parent / "workflows" / "scripts" / "fetch.sh"
CHANGED = """
class Fetch(Map):
    command = "cat > url; printf changed > new; curl -sSf -T new $SIGNED; . ./fetch.sh < url"
    files = ("fetch.sh",)
"""
NAMES = ["a b.txt", "100%.txt", "50%25.txt", "c+d.txt", "é.txt", "deep/q'\".txt", "&=?#.txt"]


class Bucket:
    """A bucket of the running server, and a place whose pipelines use it."""

    def __init__(self, weed: Weed, place: "Place") -> None:
        self.name = "b" + secrets.token_hex(8)
        self.client = weed.bucket(self.name)
        self.place = place
        self.environ: dict[str, Any] = dict(weed.environ)
        shutil.copy(FETCH, place.path)

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=data)

    def keys(self, prefix: str = "") -> dict[str, int]:
        pages = self.client.get_paginator("list_objects_v2")
        return {
            item["Key"]: item["Size"]
            for page in pages.paginate(Bucket=self.name, Prefix=prefix)
            for item in page.get("Contents", ())
        }

    def luigi(self, task: str, *words: str, module: str = "mine", **env: str) -> "Done":
        return self.place.luigi(task, *self.words(*words), module=module, **self.environ | env)

    def words(self, *words: str) -> list[str]:
        source = f"s3://{self.name}/trip data/"
        kept = f"s3://{self.name}/check point"
        pattern = [] if "--pattern" in words else ["--pattern", "*"]
        return ["--source", source, *pattern, "--checkpoint", kept, *words]

    def manifests(self) -> list[dict[str, Any]]:
        names = [key for key in self.keys("check point/") if key.endswith("/_SUCCESS")]
        bodies = [self.client.get_object(Bucket=self.name, Key=name)["Body"] for name in names]
        return [json.loads(body.read()) for body in bodies]


@pytest.fixture
def bucket(weed: Weed, place: "Place") -> Bucket:
    return Bucket(weed, place)


@pytest.fixture
def store(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Store]:
    for name, value in bucket.environ.items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()
    yield S3Store(f"s3://{bucket.name}/check point")
    settings.cache_clear()


def results(store: S3Store, manifests: list[dict[str, Any]], step: str) -> dict[str, bytes]:
    """Return key -> bytes of a committed step, compared with its manifest."""
    (one,) = [manifest for manifest in manifests if manifest["step"] == step]
    return dict(CheckpointTarget(store, step, one["identity"]).read())


def done_keys(place: "Place", step: str) -> int:
    return len([line for line in place.ledger(step) if "wall" in line])


# -- sources and checkpoints -----------------------------------------------------------------------


def test_sources_and_checkpoints_keep_any_name_and_no_secret_is_written_anywhere(
    bucket: Bucket, store: S3Store
) -> None:
    bucket.place.module(STEPS.format(last="sed s/^/x/"))
    for name in NAMES:
        bucket.put(f"trip data/{name}", f"abc {name}\n".encode())
    bucket.put("trip data/folder/", b"")
    bucket.put("trip data, other/x.txt", b"no\n")

    done = bucket.luigi("Last")

    assert done.code == 0, done
    expected = {name: f"xabc {name}\n".replace("a", "b").encode() for name in NAMES}
    assert results(store, bucket.manifests(), "Last") == expected
    lines = {line["key"]: line["source"] for line in bucket.place.ledger("Fetch")}
    assert {name: line[0] for name, line in lines.items()} == {
        name: f"s3://{bucket.name}/trip data/{name}" for name in NAMES
    }
    assert all(size > 0 and len(etag) == 32 for _, size, etag in lines.values())
    assert secrets_in(bucket.place) == []
    assert "X-Amz" not in done.out + done.err
    assert all("X-Amz" not in json.dumps(manifest) for manifest in bucket.manifests())


def secrets_in(place: "Place") -> list[str]:
    """Return the files of a place that hold a signed URL; the program itself may name its parts."""
    return [
        str(path)
        for path in place.path.rglob("*")
        if path.is_file() and path.suffix not in (".pyz", ".sh")
        if b"X-Amz-Signature=" in path.read_bytes() and "files" not in path.parts
    ]


def test_signed_urls_are_in_nobodys_argv(bucket: Bucket, tmp_path: pathlib.Path) -> None:
    bucket.place.module(STEPS.format(last="sed s/^/x/"))
    for number in range(6):
        bucket.put(f"trip data/{number}.txt", b"x" * 4_000_000 + b"\n")
    seen: set[str] = set()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.add(path.read_bytes().decode("utf-8", "replace"))
                except OSError:
                    continue

    thread = threading.Thread(target=look)
    thread.start()
    done = bucket.luigi("Last", WORKFLOWS_S3_COMPRESS="none")
    over.set()
    thread.join()

    assert done.code == 0, done
    assert [argv for argv in seen if "X-Amz-Signature=" in argv] == []
    assert any("--parallel" in argv for argv in seen)


def test_an_empty_fleet_and_an_empty_driver_go_on_from_the_checkpoint(
    bucket: Bucket, store: S3Store
) -> None:
    bucket.place.module(STEPS.format(last="sed s/^/x/"))
    for number in range(5):
        bucket.put(f"trip data/{number}.txt", f"ab{number}\n".encode())
    first = bucket.luigi("Last")
    assert first.code == 0, first
    shutil.rmtree(bucket.place.state)

    again = bucket.luigi("Last")
    bucket.place.module(STEPS.format(last="sed s/^/y/"))
    changed = bucket.luigi("Last", "--fleet", "local:2")

    assert again.code == 0, again
    assert changed.code == 0, changed
    assert bucket.place.ledger("Fetch") == []
    assert done_keys(bucket.place, "Kept") == 0
    assert done_keys(bucket.place, "Last") == 5
    assert bucket.place.outputs("Last") == {f"{n}.txt": f"ybb{n}\n".encode() for n in range(5)}
    assert bucket.place.leftovers() == []


@pytest.mark.parametrize("compress", ["none", "zstd", "gzip"])
def test_large_objects_go_in_parts_and_come_back_whole_and_packed_bytes_are_reproducible(
    bucket: Bucket, store: S3Store, compress: str
) -> None:
    bucket.place.module(STEPS.format(last="sed s/^/x/"))
    data = os.urandom(12_000_000).replace(b"\n", b"") + b"\n"
    bucket.put("trip data/large.txt", data)
    bucket.put("trip data/empty.txt", b"")
    chosen = {"WORKFLOWS_S3_MULTIPART_MB": "5", "WORKFLOWS_S3_COMPRESS": compress}

    first = bucket.luigi("Kept", **chosen)
    assert first.code == 0, first
    (one,) = [manifest for manifest in bucket.manifests() if manifest["step"] == "Kept"]
    before = {part["key"]: part["etag"] for part in one["parts"]}
    kept = {line["key"]: line["crc"] for line in bucket.place.ledger("Kept")}
    shutil.rmtree(bucket.place.state)
    bucket.place.module(STEPS.format(last="sed s/^/y/"))
    restored = bucket.luigi("Last", **chosen)
    assert restored.code == 0, restored
    back = {line["key"]: line["crc"] for line in bucket.place.ledger("Kept")}
    for key in bucket.keys("check point/Kept/"):
        bucket.client.delete_object(Bucket=bucket.name, Key=key)
    second = bucket.luigi("Kept", **chosen)
    assert second.code == 0, second
    (two,) = [manifest for manifest in bucket.manifests() if manifest["step"] == "Kept"]

    assert before["large.txt"].endswith("-3")
    assert back == kept
    assert {part["key"]: part["etag"] for part in two["parts"]} == before
    for part in two["parts"]:
        head = bucket.client.head_object(Bucket=bucket.name, Key=f"check point/{part['object']}")
        assert "ContentEncoding" not in head
        suffix = {"none": "", "zstd": ".zst", "gzip": ".gz"}[compress]
        assert part["object"].endswith(part["key"] + suffix)
    assert store.uploads("") == []


def test_runs_that_overlap_give_one_result_and_no_error(bucket: Bucket, store: S3Store) -> None:
    bucket.place.module(STEPS.format(last="sed s/^/x/"))
    for number in range(4):
        bucket.put(f"trip data/{number}.txt", f"ab{number}\n".encode())
    argv = bucket.place.command("luigi", "--module", "mine", "Last", *bucket.words(), "--no-lock")

    runs = [
        subprocess.Popen(
            argv,
            cwd=bucket.place.path,
            env=bucket.place.environ
            | bucket.environ
            | {"WORKFLOWS_STATE": str(bucket.place.path / f"state-{number}")},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for number in range(3)
    ]
    said = [run.communicate(timeout=120)[1] for run in runs]

    assert [run.returncode for run in runs] == [0, 0, 0], said
    manifests = bucket.manifests()
    assert sorted(manifest["step"] for manifest in manifests) == ["Kept", "Last"]
    for manifest in manifests:
        target = CheckpointTarget(store, manifest["step"], manifest["identity"])
        assert target.damaged() == []
        assert len(dict(target.read())) == 4


# The first key keeps the only slot until what was signed at the start of the shard has expired.
LONG = """
from workflows.steps import Map

class Slow(Map):
    command = ". ./fetch.sh; if mkdir {place}/first; then sleep 11; fi"
    files = ("fetch.sh",)
"""


def test_a_shard_that_lasts_longer_than_a_signature_gets_new_ones(
    bucket: Bucket, hosts: "Hosts"
) -> None:
    hosts.add(1)
    bucket.place.module(LONG.format(place=bucket.place.path))
    for number in range(3):
        bucket.put(f"trip data/{number} é.txt", b"%d\n" % number)
    one_task = {
        "WORKFLOWS_KEY_TASKS": "0",
        "WORKFLOWS_SHARDS": "1",
        "WORKFLOWS_S3_SIGNATURE_S": "10",
    }
    hosts.write(slots=1)

    done = bucket.luigi("Slow", "--fleet", hosts.spec, **one_task)

    assert done.code == 0, done
    assert sorted(hosts.outputs("Slow").values()) == [b"0\n", b"1\n", b"2\n"]


# -- crashes ---------------------------------------------------------------------------------------


def test_a_server_killed_in_the_middle_of_uploads_leaves_nothing_half_written_as_done(
    place: "Place", tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with started(tmp_path / "own weed") as server:
        bucket = Bucket(server, place)
        place.module(STEPS.format(last="sed s/^/x/"))
        for number in range(8):
            bucket.put(f"trip data/{number}.txt", bytes([97 + number]) * 12_000_000 + b"\n")
        env = server.environ | {"WORKFLOWS_S3_MULTIPART_MB": "5"}
        argv = place.command("luigi", "--module", "mine", "Last", *bucket.words())
        run = subprocess.Popen(
            argv, cwd=place.path, env=place.environ | env, stderr=subprocess.PIPE
        )
        deadline = time.monotonic() + 60
        while not any("/data/" in key for key in bucket.keys("check point/")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        server.kill()
        server.start()
        _, said = run.communicate(timeout=240)
        again = bucket.luigi("Last", **env)

        assert again.code == 0, (again, said)
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
        settings.cache_clear()
        store = S3Store(f"s3://{bucket.name}/check point")
        for manifest in bucket.manifests():
            target = CheckpointTarget(store, manifest["step"], manifest["identity"])
            assert target.damaged() == []
            assert {key: len(data) for key, data in target.read()} == {
                f"{n}.txt": 12_000_001 + (manifest["step"] == "Last") for n in range(8)
            }
        settings.cache_clear()


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "words", "said"),
    [
        ({}, ["--checkpoint", "s3://nowhere/x"], "there is no such bucket at http://127.0.0.1"),
        ({}, ["--source", "s3://nowhere/x/"], "ListBucket of s3://nowhere/x/: NoSuchBucket"),
        ({"WORKFLOWS_S3_ENDPOINT_URL": "http://127.0.0.1:1"}, [], "endpoint_url is right (http:"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, [], "does not know these credentials"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, [], "the secret key is not that of the access key"),
        ({"WORKFLOWS_S3_PROFILE": "gone"}, [], "fix [s3] profile"),
        ({"WORKFLOWS_S3_REGION": "eu west"}, [], "fix [s3] region: the name of one is like"),
        ({}, ["--source", "s3://no!bucket/x/"], "fix the URL: s3://BUCKET/PREFIX"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_operation_bucket_and_remedy(
    bucket: Bucket, env: dict[str, str], words: list[str], said: str
) -> None:
    bucket.place.module(STEPS.format(last="sed s/^/x/"))
    bucket.put("trip data/1.txt", b"x\n")

    done = bucket.luigi("Last", *words, AWS_MAX_ATTEMPTS="1", **env)

    assert done.code != 0
    assert said in done.err, done
    assert "Traceback" not in done.err


def test_who_may_only_read_is_told_so_and_still_gets_the_results(bucket: Bucket) -> None:
    bucket.place.module(STEPS.format(last="sed s/^/x/"))
    bucket.put("trip data/1.txt", b"1,2\n")
    assert bucket.luigi("Last").code == 0
    reader = environ_of(bucket.environ["WORKFLOWS_S3_ENDPOINT_URL"], READER)
    shutil.rmtree(bucket.place.state)

    same = bucket.luigi("Last", **reader)
    shown = bucket.place.run(
        *("workflows", "results", "Last"),
        **bucket.environ | reader,
        WORKFLOWS_CHECKPOINT=f"s3://{bucket.name}/check point",
    )
    bucket.put("trip data/2.txt", b"3,4\n")
    more = bucket.luigi("Last", **reader)

    assert same.code == 0, same
    assert (shown.code, "x1  2" in shown.out) == (0, True), shown
    assert more.code != 0
    assert f"PutObject of s3://{bucket.name}/check point/" in more.err
    assert "grant s3:PutObject" in more.err
    assert "workflows results" in more.err


def test_a_source_that_changed_after_it_was_listed_is_noticed(bucket: Bucket) -> None:
    text = STEPS.format(last="sed s/^/x/")
    bucket.place.module(text.replace("from workflows.tasks import Fetch", CHANGED))
    bucket.put("trip data/1.txt", b"x\n")
    signed = bucket.client.generate_presigned_url(
        "put_object", Params={"Bucket": bucket.name, "Key": "trip data/1.txt"}
    )

    done = bucket.luigi("Fetch", SIGNED=signed)

    assert done.code == 30, done
    assert "it has changed since it was listed: run the same again" in done.err


def test_verify_fetches_what_is_in_s3_and_says_so_if_that_has_changed(bucket: Bucket) -> None:
    header = b"vendor_id,passenger_count\n"
    bucket.put("trip data/1.csv", header + b"1,2\n" * 3)
    bucket.put("trip data/2 é.csv", header + b"1,3\n")
    done = bucket.luigi("MergeCounts", module="workflows.tasks")
    asked = {**bucket.environ, "WORKFLOWS_CHECKPOINT": f"s3://{bucket.name}/check point"}

    engines = [
        bucket.place.run("workflows", "verify", "--engine", name, **asked)
        for name in ("csv", "duckdb")
    ]
    bucket.put("trip data/1.csv", header + b"1,2\n" * 4)
    changed = bucket.place.run("workflows", "verify", **asked)

    assert done.code == 0, done
    assert [one.out[:26] for one in engines] == ["right: 4 rows, 2 values, a"] * 2, engines
    assert (changed.code, changed.out) == (1, ""), changed
    assert "has changed since it was made: 1.csv is changed. Run the pipeline again" in changed.err


# -- looking and sweeping --------------------------------------------------------------------------


def test_why_says_what_made_an_object_and_gc_removes_what_was_never_committed(
    bucket: Bucket, store: S3Store
) -> None:
    bucket.place.module(STEPS.format(last="sed s/^/x/"))
    bucket.put("trip data/1.txt", b"ab\n")
    assert bucket.luigi("Last").code == 0
    (one,) = [manifest for manifest in bucket.manifests() if manifest["step"] == "Last"]
    stray = f"Last/{one['identity']}/data/0123456789ab/1.txt"
    store.create(stray, [b"half"])
    store.begin(stray + ".large")
    asked: dict[str, Any] = {**bucket.environ, "WORKFLOWS_CHECKPOINT": store.url}

    why = bucket.place.run("workflows", "why", store.locate(one["parts"][0]["object"]), **asked)
    stray_why = bucket.place.run("workflows", "why", store.locate(stray), **asked)
    words = ["gc", "--age", "0", "--yes", "Last", "--module", "mine"]
    gc = bucket.place.run("workflows", *words, *bucket.words(), **asked)

    assert why.code == 0, why
    for part in ("sed s/^/x/", f"s3://{bucket.name}/trip data/1.txt", "Kept/1.txt", "1 of 1 are"):
        assert part in why.out
    assert (stray_why.code, "never committed" in stray_why.err) == (2, True)
    assert gc.code == 0, gc
    assert f"unfinished checkpoint s3://{bucket.name}" in gc.out
    assert f"unfinished upload s3://{bucket.name}" in gc.out
    assert list(store.list(os.path.dirname(stray))) == []
    assert store.uploads("") == []
    assert CheckpointTarget(store, "Last", one["identity"]).damaged() == []


def test_gc_finds_what_steps_left_that_nobody_here_has_on_record(
    bucket: Bucket, store: S3Store
) -> None:
    bucket.place.module(STEPS.format(last="sed s/^/x/"))
    bucket.put("trip data/1.txt", b"ab\n")
    assert bucket.luigi("Last").code == 0
    strays = [f"Renamed/{'0' * 20}/data/0123456789ab/{name}" for name in ("1.txt", "large")]
    foreign = ["Renamed/notes.txt", "Renamed/x/data/y/z", f"Renamed/{'0' * 20}/data/mine/1.txt"]
    for name in [strays[0], *foreign]:
        store.create(name, [b"half"])
    for name in [strays[1], foreign[1]]:
        store.begin(name)
    words = ["--age", "0", "--yes", "Last", "--module", "mine", *bucket.words()]

    some = bucket.place.run("workflows", "gc", *words, **bucket.environ)
    was_left = [item.name for item in store.list("Renamed")]
    every = bucket.place.run("workflows", "gc", "--all-steps", *words, **bucket.environ)

    assert (some.code, every.code) == (0, 0), (some, every)
    assert was_left == sorted([strays[0], *foreign])
    assert [item.name for item in store.list("Renamed")] == sorted(foreign)
    assert [upload.name for upload in store.uploads("")] == [foreign[1]]
    assert len(bucket.manifests()) == 2, "what was committed stays"


def test_a_node_that_cannot_compress_is_refused_before_anything_runs(
    bucket: Bucket, tmp_path: pathlib.Path
) -> None:
    bucket.place.module(STEPS.format(last="sed s/^/x/"))
    bucket.put("trip data/1.txt", b"ab\n")
    here = tmp_path / "bin"
    here.mkdir()
    for folder in reversed(os.environ["PATH"].split(os.pathsep)):
        for program in pathlib.Path(folder).glob("*"):
            (here / program.name).unlink(missing_ok=True)
            if program.name != "zstd":
                (here / program.name).symlink_to(program)
    bucket.environ["WORKFLOWS_S3_COMPRESS"] = "zstd"

    refused = bucket.luigi("Last", PATH=str(here))
    packed = bucket.luigi("Last")

    assert refused.code != 0
    assert "[s3] compress = zstd needs zstd there: apt-get install zstd" in refused.err, refused
    assert bucket.place.ledger("Fetch")[0]["at"] > 0
    assert packed.code == 0, packed
    assert len(bucket.place.ledger("Fetch")) == 1, "it ran once: not when it was refused"


def test_one_listing_says_whether_thousands_of_objects_are_complete(
    moto: str, raw_moto: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "b" + secrets.token_hex(8)
    client = client_of("http://{}:{}".format(*raw_moto))
    client.create_bucket(Bucket=name)
    for key, value in environ_of(moto).items():
        monkeypatch.setenv(key, value)
    settings.cache_clear()
    store = S3Store(f"s3://{name}")
    count = 2_500
    parts = [
        {"object": f"S/i/data/a/{n}", "bytes": 1, "stored": 1, "etag": ""} for n in range(count)
    ]
    client.put_object(Bucket=name, Key=parts[0]["object"], Body=b"1")
    for part in parts[1:-1]:
        client.copy_object(
            Bucket=name, Key=part["object"], CopySource=f"{name}/{parts[0]['object']}"
        )
    for part in parts:
        part["etag"] = "c4ca4238a0b923820dcc509a6f75849b"
    target = CheckpointTarget(store, "S", "i")
    target.commit(parts, {"attempt": "S/i/data/a"})
    calls: list[str] = []
    from workflows.storage import s3

    s3.client(name).meta.events.register(
        "before-call.s3", lambda model, **_: calls.append(model.name)
    )
    wrong = target.damaged()
    settings.cache_clear()

    assert wrong == [f"s3://{name}/S/i/data/a/{count - 1} is missing"]
    assert calls == ["ListObjectsV2"] * 3


def test_of_many_objects_those_that_s3_is_too_busy_to_delete_are_deleted_again(
    bucket: Bucket, store: S3Store, weed: Weed, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workflows.storage import s3store

    monkeypatch.setattr(s3store, "wait", lambda _: None)
    names = [f"S/{n}" for n in range(5)]
    for name in names:
        store.create(name, [b"x"])
    busy, denied = (f"check point/S/{n}" for n in (1, 3))
    weed.strict.failing |= {busy: ("SlowDown", 2)}

    store.discard(names[:3])
    left = [item.name for item in store.list("S")]
    weed.strict.failing |= {denied: ("AccessDenied", 1), busy: ("SlowDown", 99)}
    with pytest.raises(CheckpointError) as refused:
        store.remove("S")
    store.create(names[1], [b"x"])
    with pytest.raises(CheckpointError) as slow:
        store.discard(names[:2])
    weed.strict.failing.clear()

    assert left == names[3:]
    assert f"DeleteObject of s3://{bucket.name}/{denied}: AccessDenied" in str(refused.value)
    assert f"DeleteObject of s3://{bucket.name}/{busy}: SlowDown" in str(slow.value)
    assert "run the same again later" in str(slow.value)
    deletes = [call for call in weed.strict.seen if call.operation == "DeleteObjects"]
    assert len([call for call in deletes if call.bucket == bucket.name]) == 3 + 1 + TRIES


@pytest.mark.parametrize("is_denied", [False, True])
def test_the_first_url_of_a_bucket_that_nothing_was_heard_of_is_signed_for_its_region(
    bucket: Bucket, store: S3Store, weed: Weed, monkeypatch: pytest.MonkeyPatch, is_denied: bool
) -> None:
    from workflows.storage import s3

    monkeypatch.setattr(s3, "_regions", {})
    weed.strict.bucket(bucket.name).region = "eu-north-1"
    with weed.strict.refusing("denied", lambda call: is_denied and call.bucket == bucket.name):
        url = store.sign_put("x", "0" * 32)

    assert "%2Feu-north-1%2Fs3%2F" in url
    asked = [call.operation for call in weed.strict.seen if call.bucket == bucket.name]
    assert set(asked[1:]) == {"HeadBucket"}
