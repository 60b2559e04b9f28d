"""In luigid, a failure is seen for a day, and a run tries a lost node again all the same."""

import json
import os
import pathlib
import shutil
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import test_luigid

if TYPE_CHECKING:
    from conftest import Place

ROOT = pathlib.Path(__file__).resolve().parents[2]
FAKETIME = next(pathlib.Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
DAY_S = 86_400


class Luigid(test_luigid.Luigid):
    """A luigid started beside our luigi.cfg, with a clock that a test can move."""

    def start(self) -> None:
        shutil.copy(ROOT / "luigi.cfg", self.path)
        self.clock = self.path / "clock"
        self.move(0)
        os.environ.update(
            LD_PRELOAD=str(FAKETIME),
            FAKETIME_TIMESTAMP_FILE=str(self.clock),
            FAKETIME_NO_CACHE="1",
            FAKETIME_DONT_FAKE_MONOTONIC="1",
        )
        try:
            super().start()
        finally:
            for name in [name for name in os.environ if name.startswith(("LD_PRE", "FAKETIME"))]:
                del os.environ[name]

    def move(self, seconds: int) -> None:
        self.clock.write_text(f"+{seconds}\n")

    def ask(self, what: str, **arguments: str) -> Any:
        data = urllib.parse.quote(json.dumps(arguments))
        url = f"http://127.0.0.1:{self.port}/api/{what}?data={data}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["response"]

    def failed(self) -> set[str]:
        """Return what is red, once luigid has looked after its tasks as it does each minute."""
        self.ask("prune")
        found = self.ask("task_list", status="FAILED", upstream_status="")
        return {task["display_name"] for task in found.values()}


@pytest.fixture
def luigid(tmp_path: pathlib.Path) -> Iterator[Luigid]:
    if FAKETIME is None:
        pytest.skip("no libfaketime: apt-get install faketime")
    path = tmp_path / "luigid"
    path.mkdir()
    server = Luigid(path)
    server.start()
    yield server
    server.end()


def test_a_failed_task_stays_failed_in_luigid_for_a_day_and_until_the_next_run_tries_it(
    place: "Place", luigid: Luigid
) -> None:
    luigid.watch(place)
    place.module(
        "from workflows.steps import Map\n\n\n"
        "class Bad(Map):\n    command = 'test -e ../../../../mended || exit 3'\n"
    )
    place.key("a", b"one\n")
    assert place.luigi("Bad").code == 30

    (red,) = luigid.failed()
    for seconds in (11, 300, 1000, 3600, 43_200, DAY_S):  # long after its worker is forgotten
        luigid.move(seconds)
        assert luigid.failed() == {red}, seconds

    assert place.luigi("Bad").code == 30
    luigid.move(3 * DAY_S)
    luigid.failed()  # its worker is given up
    luigid.move(5 * DAY_S)
    assert luigid.failed() == set(), "not for ever: luigid would grow"


AGAIN = """
import luigi

from workflows.errors import NodeLost
from workflows.luigi_seam import retries
from workflows.steps import Map

retries.AFTER_S = 0.2
tries = []


class Lost(Map):
    command = 'cat "$(cat)"'

    def run(self):
        if self.shard:
            tries.append(1)
            if len(tries) < 3:
                raise NodeLost("node 0", "it hung up")
        return super().run()


class Slow(Map):
    command = 'sleep 3; cat "$(cat)"'


class Both(luigi.WrapperTask):
    def requires(self):
        return [kind(source="source", pattern="*") for kind in (Lost, Slow)]
"""


def test_a_run_tries_a_task_again_whose_node_was_lost_though_luigid_would_not(
    place: "Place", luigid: Luigid
) -> None:
    luigid.watch(place)
    place.module(AGAIN)
    place.key("a", b"one\n")

    run = place.run("luigi", "--module", "mine", "Both")

    assert run.code == 0, run
    assert place.outputs("Lost") == {"a": b"one\n"}
    assert luigid.failed() == set()


OFTEN = """
import luigi

from workflows.steps import Map


class Copy(Map):
    command = 'cat "$(cat)"'


class Often(luigi.Task):
    retry_count = 1

    def run(self):
        raise ValueError("it broke")


class Both(luigi.WrapperTask):
    def requires(self):
        return [Copy(source="source", pattern="*"), Often()]
"""


def test_a_task_that_luigid_disabled_since_it_failed_too_often_is_named(
    place: "Place", luigid: Luigid
) -> None:
    luigid.watch(place)
    place.module(OFTEN)
    place.key("a", b"one\n")

    first = place.run("luigi", "--module", "mine", "Both")
    again = place.run("luigi", "--module", "mine", "Both")

    assert (first.code, again.code) == (30, 25), (first, again)
    assert "Often() failed: ValueError: it broke" in first.err
    assert "disabled, and so not run: Often()" in again.err
    assert "nothing failed" not in first.err + again.err
