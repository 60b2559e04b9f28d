"""Sources that are passed on as they come, and keys whose commands ask to be run again."""

import pathlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from rough_server import BODY, Server, serving

if TYPE_CHECKING:
    from conftest import Done, Place

FETCHED = """
from workflows.steps import Map
from workflows.tasks import Fetch


class Copy(Map):
    upstream = Fetch
    command = "tee >(head -c 100000 > /dev/null; touch {seen}; cat > /dev/null)"
"""
AGAIN = """
from workflows.steps import Map


class Flaky(Map):
    command = "xargs cat; echo >> {tries}; (($(wc -l < {tries}) > {failures})) || exit {code}"
"""


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


def fetched(place: "Place", server: Server, what: str, *words: str) -> "Done":
    """Run both steps over one URL."""
    place.module(FETCHED.format(seen=place.path / "seen"))
    (place.path / "urls").write_text(f"{server.url}/{what}/x.bin\n")
    return place.luigi(
        "Copy", "--source", "urls", "--pattern", "*", *words, WORKFLOWS_FETCH_BACKOFF_S="0"
    )


def release_when(path: pathlib.Path, server: Server) -> threading.Thread:
    """Let the server go on once a file is there."""

    def wait() -> None:
        while not path.exists() and not server.released.wait(0.01):
            pass
        server.released.set()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_fused_step_reads_a_url_before_the_last_of_it_is_there(
    place: "Place", server: Server
) -> None:
    thread = release_when(place.path / "seen", server)

    done = fetched(place, server, "half", "--fuse")
    server.released.set()
    thread.join()

    assert done.code == 0, done
    assert place.outputs("Copy") == {"x.bin": BODY}
    assert [path for path in server.asked if "half" in path] == ["/half/x.bin"] * 2, "HEAD and GET"


@pytest.mark.parametrize("fuse", [(), ("--fuse",)])
@pytest.mark.parametrize("what", ["cut/2", "stream"])
def test_a_source_whose_connection_is_cut_is_there_whole_in_the_same_run(
    place: "Place", server: Server, what: str, fuse: tuple[str, ...]
) -> None:
    done = fetched(place, server, what, *fuse)

    assert done.code == 0, done
    assert place.outputs("Copy") == {"x.bin": BODY}


@pytest.mark.parametrize(
    ("code", "failures", "tries"), [(75, 2, 3), (75, 3, 3), (1, 1, 1), (74, 1, 1)]
)
def test_a_key_whose_command_says_that_its_trouble_may_pass_is_run_again_twice(
    place: "Place", code: int, failures: int, tries: int
) -> None:
    counted = place.path / "tries"
    place.module(AGAIN.format(tries=counted, failures=failures, code=code))
    place.key("a", b"a\n")

    done = place.luigi("Flaky")

    assert counted.read_text() == "\n" * tries
    if failures < tries:
        assert done.code == 0, done
        assert place.outputs("Flaky") == {"a": b"a\n"}
    else:
        assert done.code == 30
        assert f"Flaky of a on node 0: exited {code}" in done.err
    assert place.leftovers() == []


def test_a_key_is_not_run_again_where_retries_are_0(place: "Place") -> None:
    counted = place.path / "tries"
    place.module(AGAIN.format(tries=counted, failures=1, code=75))
    place.key("a", b"a\n")

    assert place.luigi("Flaky", WORKFLOWS_RETRIES="0").code == 30
    assert counted.read_text() == "\n"
