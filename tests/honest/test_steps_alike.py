"""A cause that fails many keys is told once, with what to do, and how many there are."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from rough_server import Server, serving

from workflows.errors import KeysFailed, likeness

if TYPE_CHECKING:
    from conftest import Place

OWN = """
from workflows.steps import Map
class Fetch(Map):
    command = {command!r}
class Copy(Map):
    upstream = Fetch
    command = "cat"
"""
HINT = "let the first step be the shipped one, from workflows.fetch import Fetch"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


def listed(place: "Place", server: Server, count: int, query: str = "") -> None:
    urls = [f"{server.url}/ok/{number}.csv{query}" for number in range(count)]
    (place.path / "urls").write_text("\n".join(urls) + "\n")


@pytest.mark.parametrize(
    ("command", "words", "query"),
    [
        ('read -r url; cat "$url"', (), ""),
        ('read -r url; wc -l < "$url"', ("--fuse",), ""),
        ('read -r url; cat "$url"', (), "?v=" + "x" * 300),
    ],
)
def test_a_fetch_of_ones_own_that_cannot_read_urls_is_told_once_to_use_the_shipped_one(
    place: "Place", server: Server, command: str, words: tuple[str, ...], query: str
) -> None:
    place.module(OWN.format(command=command))
    listed(place, server, 16, query)

    done = place.luigi("Copy", "--source", "urls", "--pattern", "*", *words)

    assert done.code == 30, done
    assert done.err.count(HINT) == 1
    assert len(re.findall(r"No such file|File name too long", done.err)) == 1
    assert "and 15 more in the same way: " in done.err
    assert "16 keys failed" in done.err


def test_the_same_in_one_task_of_many_keys(place: "Place", server: Server) -> None:
    place.module(OWN.format(command='read -r url; cat "$url"'))
    listed(place, server, 16)

    done = place.luigi(
        "Fetch", "--source", "urls", "--pattern", "*", "--fleet", "local:1", WORKFLOWS_KEY_TASKS="0"
    )

    assert done.code == 30, done
    assert done.err.count(HINT) == 1
    assert done.err.count("No such file") == 1
    assert "more in the same way: " in done.err


def test_a_path_that_is_not_there_has_nothing_to_do_with_urls(place: "Place") -> None:
    place.module(OWN.format(command="cat nowhere"))
    place.key("a", b"a\n")

    done = place.luigi("Fetch")

    assert done.code == 30
    assert "No such file" in done.err
    assert HINT not in done.err


def test_few_keys_are_shown_one_by_one_and_another_cause_beside_many(place: "Place") -> None:
    place.module(
        OWN.format(
            command="case $filename in a*) echo many >&2; exit 3;; b*) echo few $filename >&2;"
            " exit 4;; c*) echo one >&2; exit 5;; esac"
        )
    )
    for name in ("a1", "a2", "a3", "a4", "a5", "b1", "b2", "b3", "c1"):
        place.key(name, b"a\n")

    done = place.luigi("Fetch")

    assert done.code == 30, done
    assert done.err.count("    many\n") == 1
    assert "and 4 more in the same way: " in done.err
    assert [done.err.count(f"    few b{number}\n") for number in (1, 2, 3)] == [1, 1, 1]
    assert done.err.count("    one\n") == 1


def failure(key: str, stderr: str, **more: str) -> dict[str, str]:
    return {"step": "S", "key": key, "why": "exited 1", "stderr": stderr, **more}


def test_what_differs_in_more_than_the_name_of_its_key_is_not_alike() -> None:
    one = likeness(failure("d/a b", "x/a%20b: no\n"))

    assert one == likeness(failure("d/c", "x/c: no\n"))
    assert one != likeness(failure("d/c", "x/e: no\n"))
    assert one != likeness({**failure("d/c", "x/c: no\n"), "step": "T"})


def test_an_error_of_many_keys_shows_one_of_each_kind() -> None:
    many = [failure(f"k{number}", "same\n") for number in range(9)]
    other = failure("z", "other\n")

    text = str(KeysFailed("node 0", 0, [*many, other]))

    assert text.startswith(
        "10 of 10 keys failed on node 0\nS of k0 on node 0: exited 1\n    same\n"
    )
    assert text.count("same\n") == 1
    assert "  and 8 more in the same way: k1, k2, k3, k4, ...\n" in text
    assert "S of z on node 0" in text
