"""Lines for the user, written by a thread of their own."""

import os

import pytest

from workflows.reporting import messages


def test_a_line_after_a_long_pause_is_waited_for_like_the_first() -> None:
    reader, writer = os.pipe()
    stream = messages.Stream(writer)
    lost = []

    for number in range(200):
        stream._moved -= 10 * messages.PATIENCE_S  # as if nothing had been said for long
        stream.print(f"line {number}")
        lost.append(stream.flush())

    os.close(writer)
    with open(reader) as file:
        said = file.read().splitlines()
    assert set(lost) == {""}
    assert said == [f"line {number}" for number in range(200)]


def test_a_reader_that_takes_nothing_is_given_up_after_the_patience(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    stream = messages.Stream(writer)
    monkeypatch.setattr(messages, "_NAMES", {writer: "pipe"})

    stream.print("x" * (1 << 20))
    lost = stream.flush(patience_s=0.1)

    os.close(reader)  # ends the write
    assert lost == "nobody reads pipe"
