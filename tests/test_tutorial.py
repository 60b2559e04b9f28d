"""The tutorial: what it says to type is typed, what it says one sees is seen."""

import pathlib

from transcripts import ROOT, Checkout, blocks, commands, is_run, matches

PAGE = ROOT / "docs" / "tutorial.md"


def test_every_command_of_the_tutorial_prints_what_it_shows(tmp_path: pathlib.Path) -> None:
    (tmp_path / "here").mkdir()
    checkout = Checkout(tmp_path / "here")

    checkout.follow(PAGE)

    assert len(checkout.ran) > 20


def test_only_what_needs_other_machines_is_not_run() -> None:
    left_out = [
        shown.command
        for block in blocks(PAGE)
        if block.kind == "console" and not is_run(block)
        for shown in commands(block.text)
    ]

    needed = ("ssh:", "ec2:", "workflows fleet ")
    assert [command for command in left_out if not any(word in command for word in needed)] == []


def test_what_a_page_shows_may_leave_out_what_differs_each_time_but_nothing_else() -> None:
    assert matches("a\n...\nb\n", "a\n1\n2\nb\n")
    assert matches(".../data/... is 5\n", "/x/data/y is 5\n")
    assert not matches("a\nb\n", "a\n")
    assert not matches("a\n", "a\nb\n")
    assert not matches("", "a\n")
