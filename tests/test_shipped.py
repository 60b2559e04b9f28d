"""The files that a step ships with its command, as the command finds them on its node."""

import os
import pathlib
from typing import TYPE_CHECKING

import pytest
from faults import runtime, shipping

from workflows.errors import WorkflowsError
from workflows.node.keys import file_digest

if TYPE_CHECKING:
    from conftest import Place

IMPORTS = """
from workflows.steps import Map


class Fetch(Map):
    command = 'cat "$(cat)"'


class Said(Map):
    upstream = Fetch
    command = "python3 main2.py; ./main2.py"
    files = ("lib/main2.py", "lib/helper2.py")
"""
PRINTS_ALL = """
from workflows.steps import MapToN


class Made(MapToN):
    command = "ls"
    files = ("shipped.sh",)
"""


def test_a_shipped_module_is_imported_by_the_one_that_is_shipped_with_it(place: "Place") -> None:
    place.module(IMPORTS)
    (place.path / "lib").mkdir()
    main = "#!/usr/bin/env python3\nimport helper2\nprint(helper2.WORD)\n"
    (place.path / "lib/main2.py").write_text(main)
    (place.path / "lib/helper2.py").write_text('WORD = "helped"\n')
    place.key("a", b"")

    done = place.luigi("Said")
    repro = place.run("workflows", "repro", "Said", "a")

    assert done.code == 0, done
    assert place.outputs("Said") == {"a": b"helped\nhelped\n"}
    assert (repro.code, repro.out) == (0, "helped\nhelped\n")


def test_a_shipped_file_is_no_piece_of_a_1_to_n_step(place: "Place") -> None:
    place.module(PRINTS_ALL)
    (place.path / "shipped.sh").write_text("true\n")
    place.key("a", b"")

    done = place.luigi("Made")

    assert done.code == 30, done
    assert "the piece 'shipped.sh' was printed, but it is a file that the step ships" in done.err
    (kept,) = (place.state / "nodes").glob("*/files/*")
    assert kept.stat().st_mode & 0o777 == 0o555


def test_a_shipped_file_leaves_nothing_in_progress_behind(tmp_path: pathlib.Path) -> None:
    with runtime(tmp_path) as (_, channel):
        files = {file_digest(data): data for data in (b"one", b"two")}

        said = [event["event"] for event in channel.run(shipping(files), files)]

        assert said == ["running", "ran"]
        (own,) = (tmp_path / "0" / "tmp").iterdir()
        assert os.listdir(own) == ["alive"]
        assert sorted(os.listdir(tmp_path / "0" / "files")) == sorted(files)


def test_a_shipped_file_that_a_node_has_is_not_sent_again(tmp_path: pathlib.Path) -> None:
    with runtime(tmp_path) as (_, channel):
        files = {file_digest(b"one"): b"one"}
        list(channel.run(shipping(files), files))

        again = [event["event"] for event in channel.ask(shipping(files), "ran", "lacks")]
        (tmp_path / "0" / "files" / file_digest(b"one")).unlink()
        lost = list(channel.ask(shipping(files), "ran", "lacks"))

        assert again == ["running", "ran"]
        assert lost == [{"event": "lacks", "digests": [file_digest(b"one")]}]


def test_a_shipped_file_that_is_not_what_its_digest_says_is_refused(tmp_path: pathlib.Path) -> None:
    with runtime(tmp_path) as (_, channel):
        files = {file_digest(b"meant"): b"changed"}

        with pytest.raises(WorkflowsError, match="a shipped file is not what its digest"):
            list(channel.run(shipping(files), files))
        assert os.listdir(tmp_path / "0" / "files") == []
