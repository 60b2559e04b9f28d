"""The durable store: an object is there whole or not at all, and is never replaced.

One suite for a directory, for moto and for SeaweedFS, both behind one that is as strict as Amazon.
"""

import os
import pathlib
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from s3_servers import client_of, environ_of

from workflows.config import settings
from workflows.errors import CheckpointError, UsageError
from workflows.storage.s3store import S3Store
from workflows.storage.store import DirectoryStore, Store, open_store

RACER = """
import sys
from workflows.storage.store import DirectoryStore

store = DirectoryStore(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(store.create("a/_SUCCESS", [sys.argv[2].encode() * 1000]))
"""


@pytest.fixture(params=["directory", "moto", "weed"])
def store(
    request: pytest.FixtureRequest, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    """Return an empty store: what follows must hold of every kind."""
    if request.param == "directory":
        yield DirectoryStore(str(tmp_path / "store"))
        return
    server = request.getfixturevalue(request.param)
    url = server if request.param == "moto" else server.url
    bucket = "b" + secrets.token_hex(8)
    client_of(url).create_bucket(Bucket=bucket)
    for name, value in environ_of(url).items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()
    yield S3Store(f"s3://{bucket}/a prefix/100%+é/")
    settings.cache_clear()


NAMES = ["a b", "100%", "50%25", "c+d", "é", "e\u0301", "q'\"", "&=?#", "~!*()", "x;y,z:@", "$HOME"]


@pytest.mark.parametrize("name", NAMES)
def test_what_was_created_is_read_back_whatever_its_name(store: Store, name: str) -> None:
    created = store.create(f"step/{name}/_SUCCESS", [b"a", b"", b"b"])

    assert created
    assert store.read(f"step/{name}/_SUCCESS") == b"ab"
    assert store.read(f"step/{name}/other") is None
    assert [item.name for item in store.list("step")] == [f"step/{name}/_SUCCESS"]
    assert list(store.folders("step")) == [f"step/{name}"]


def test_a_directory_holds_names_that_are_not_utf_8(tmp_path: pathlib.Path) -> None:
    store = DirectoryStore(str(tmp_path))

    assert store.create("step/\udcff/_SUCCESS", [b"ab"])
    assert store.read("step/\udcff/_SUCCESS") == b"ab"


def test_a_second_create_of_a_name_changes_nothing_and_says_so(store: Store) -> None:
    store.create("x", [b"first"])

    assert not store.create("x", [b"second"])
    assert store.read("x") == b"first"


def test_of_many_threads_exactly_one_creates_a_name(
    store: Store, request: pytest.FixtureRequest
) -> None:
    start = threading.Barrier(8)
    won = []

    def create(number: int) -> None:
        start.wait()
        if store.create("x", [f"{number}".encode()]):
            won.append(number)

    threads = [threading.Thread(target=create, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    if "moto" not in request.node.callspec.id:  # which had two winners on 1 of 300 keys
        assert len(won) == 1
        assert store.read("x") == f"{won[0]}".encode()
    assert store.read("x") in [f"{number}".encode() for number in won]


def test_of_two_processes_exactly_one_creates_a_name(tmp_path: pathlib.Path) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(tmp_path), text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for text in "ab"
    ]
    for racer in racers:
        assert racer.stdout is not None
        racer.stdout.readline()

    said = []
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        said.append(racer.communicate(timeout=20)[0].strip())

    assert sorted(said) == ["False", "True"]
    winner = "ab"[said.index("True")].encode()
    assert DirectoryStore(str(tmp_path)).read("a/_SUCCESS") == winner * 1000


def test_a_write_that_breaks_off_leaves_nothing(store: Store, tmp_path: pathlib.Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise CheckpointError("the node is gone")

    with pytest.raises(CheckpointError):
        store.create("x", chunks())

    assert store.read("x") is None
    assert list(store.list("")) == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_only_objects_below_the_prefix_are_listed(store: Store) -> None:
    for name in ("b/2", "a/1", "b/1/x", "bb/1"):
        store.create(name, [b"12"])

    assert sorted(item.name for item in store.list("b")) == ["b/1/x", "b/2"]
    assert sorted(item.name for item in store.list("")) == ["a/1", "b/1/x", "b/2", "bb/1"]
    assert list(store.list("nowhere")) == []
    assert {item.size for item in store.list("")} == {2}


def test_what_is_removed_is_gone_and_the_rest_stays(store: Store) -> None:
    for name in ("a/1", "a/2", "b/1"):
        store.create(name, [b""])

    store.remove("a")
    store.remove("nowhere")

    assert [item.name for item in store.list("")] == ["b/1"]


def test_only_the_objects_that_are_named_are_discarded(store: Store) -> None:
    for name in ("a/b/1", "a/b/2", "a/b/12"):
        store.create(name, [b"x"])

    store.discard(["a/b/1", "a/b/nothing"])
    store.discard([])

    assert [item.name for item in store.list("a")] == ["a/b/12", "a/b/2"]


def test_a_place_that_cannot_be_written_is_a_checkpoint_error_that_names_it(
    tmp_path: pathlib.Path,
) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(CheckpointError, match=str(tmp_path)):
        DirectoryStore(str(tmp_path / "file")).create("x", [b""])


def test_a_file_url_is_a_directory_and_other_urls_are_refused(tmp_path: pathlib.Path) -> None:
    open_store(f"file://{tmp_path}/s").create("x", [b""])

    assert os.path.exists(tmp_path / "s" / "x")
    with pytest.raises(UsageError, match="ftp://x"):
        open_store("ftp://x/y")


def test_a_directory_that_cannot_be_read_is_no_empty_one(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    store = DirectoryStore(str(tmp_path))
    assert (list(store.list("none")), store.folders("none")) == ([], [])
    assert (list(store.list("file/in")), store.folders("file/in")) == ([], [])

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)

    for look in (lambda: list(store.list("kept")), lambda: store.folders("kept")):
        with pytest.raises(CheckpointError, match=r"cannot read .*/kept: Permission denied"):
            look()
