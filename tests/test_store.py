"""The durable store: an object is there whole or not at all, and is never replaced."""

import os
import pathlib
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from workflows.errors import CheckpointError, UsageError
from workflows.store import DirectoryStore, open_store

RACER = """
import sys
from workflows.store import DirectoryStore

store = DirectoryStore(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(store.create("a/_SUCCESS", [sys.argv[2].encode() * 1000]))
"""


@pytest.fixture
def store(tmp_path: pathlib.Path) -> DirectoryStore:
    return DirectoryStore(str(tmp_path / "store"))


def test_what_was_created_is_read_back(store: DirectoryStore) -> None:
    created = store.create("step/é \udcff/_SUCCESS", [b"a", b"", b"b"])

    assert created
    assert store.read("step/é \udcff/_SUCCESS") == b"ab"
    assert store.read("step/other") is None


def test_a_second_create_of_a_name_changes_nothing_and_says_so(store: DirectoryStore) -> None:
    store.create("x", [b"first"])

    assert not store.create("x", [b"second"])
    assert store.read("x") == b"first"


def test_of_many_threads_exactly_one_creates_a_name(store: DirectoryStore) -> None:
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

    assert len(won) == 1
    assert store.read("x") == f"{won[0]}".encode()


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


def test_a_write_that_breaks_off_leaves_nothing(
    store: DirectoryStore, tmp_path: pathlib.Path
) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise CheckpointError("the node is gone")

    with pytest.raises(CheckpointError):
        store.create("x", chunks())

    assert store.read("x") is None
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_only_objects_below_the_prefix_are_listed(store: DirectoryStore) -> None:
    for name in ("b/2", "a/1", "b/1/x", "bb/1"):
        store.create(name, [b"12"])

    assert sorted(item.name for item in store.list("b")) == ["b/1/x", "b/2"]
    assert sorted(item.name for item in store.list("")) == ["a/1", "b/1/x", "b/2", "bb/1"]
    assert list(store.list("nowhere")) == []
    assert {item.size for item in store.list("")} == {2}


def test_what_is_removed_is_gone_and_the_rest_stays(store: DirectoryStore) -> None:
    for name in ("a/1", "a/2", "b/1"):
        store.create(name, [b""])

    store.remove("a")
    store.remove("nowhere")

    assert [item.name for item in store.list("")] == ["b/1"]


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
