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
