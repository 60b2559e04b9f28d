"""What a step states of itself: which mistakes in it are refused before anything runs."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Place

SHIPS = """
from workflows.steps import Map


class Fetch(Map):
    command = 'bash say.sh'
    files = ("one/say.sh", "two/say.sh")
"""


def test_two_shipped_files_of_one_name_are_refused_unless_they_are_the_same(
    place: "Place",
) -> None:
    place.module(SHIPS)
    place.key("a", b"a\n")
    for folder in ("one", "two"):
        (place.path / folder).mkdir()
        (place.path / folder / "say.sh").write_text(f"cat; echo {folder}\n")

    refused = place.luigi("Fetch")
    (place.path / "two/say.sh").write_text("cat; echo one\n")
    same = place.luigi("Fetch")

    assert (refused.code, same.code) == (35, 0), (refused, same)
    assert "Fetch ships two files called say.sh; rename one" in refused.err
    assert "Traceback" not in refused.err
    assert len(place.ledger("Fetch")) == 1


GAP = """
import luigi
from workflows.steps import Map


class Worded:
    word = luigi.Parameter(default="default")


class First(Worded, Map):
    @property
    def command(self):
        return f"cat > /dev/null; echo {self.word}"


class Between(Map):
    upstream = First
    command = "cat"


class Last(Worded, Map):
    upstream = Between
    command = "cat"
"""


def test_a_parameter_that_a_step_in_between_would_drop_is_refused_naming_that_step(
    place: "Place",
) -> None:
    place.module(GAP)
    place.key("a", b"a\n")

    refused = place.luigi("Last", "--word", "hello")
    nothing_ran = place.ledger("First") == []
    default = place.luigi("Last")
    place.module(GAP.replace("class Between(Map)", "class Between(Worded, Map)"))
    passed = place.luigi("Last", "--word", "hello")

    assert (refused.code, default.code, passed.code) == (35, 0, 0), (refused, default, passed)
    assert "word of Last does not reach First: Between, between them, does not" in refused.err
    assert "Traceback" not in refused.err
    assert nothing_ran
    assert place.outputs("Last") == {"a": b"hello\n"}
