"""The error tree: each class travels between processes whole, and is drawn where readers look."""

import inspect
import pickle
import re

import pytest

from workflows import errors
from workflows.errors import (
    ConfigError,
    KeyNameError,
    KeysFailed,
    NodeLost,
    NodeRefused,
    WorkflowsError,
    describe_failure,
)

CLASSES = [
    thing
    for _, thing in inspect.getmembers(errors, inspect.isclass)
    if issubclass(thing, WorkflowsError)
]
EVENT = {"step": "Select", "key": "it's", "why": "exited 3", "status": 3, "stderr": "no column\n"}
ARGUMENTS: dict[type[WorkflowsError], tuple[object, ...]] = {
    ConfigError: (["[node] slots = many: must be a whole number"],),
    KeyNameError: ("a\nb", "newline"),
    NodeLost: ("node 1", "it hung up"),
    NodeRefused: ("node 1", "no Python"),
    KeysFailed: ("node 1", 23, [EVENT]),
}


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_survives_pickling_with_its_message_and_its_fields(
    kind: type[WorkflowsError],
) -> None:
    error = kind(*ARGUMENTS.get(kind, ("what was seen",)))

    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is kind
    assert str(copy) == str(error) != ""
    assert vars(copy) == vars(error)


def test_the_tree_at_the_top_of_the_module_shows_every_class_under_its_parent() -> None:
    drawn = {}
    path: list[str] = []

    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ([│├└─ ]*)([A-Z]\w+)", line)
        if found:
            depth = len(found[1]) // 4
            path[depth:] = [found[2]]
            drawn[found[2]] = path[depth - 1] if depth else "Exception"

    assert drawn == {kind.__name__: kind.__bases__[0].__name__ for kind in CLASSES}


def test_every_error_of_the_package_is_one_class_of_the_tree() -> None:
    raised = [
        thing
        for _, thing in inspect.getmembers(errors, inspect.isclass)
        if issubclass(thing, BaseException)
    ]

    assert raised == CLASSES


def test_a_failed_key_is_described_with_its_stderr_and_the_line_that_repeats_it() -> None:
    text = describe_failure("node 1", EVENT)

    assert text.splitlines() == [
        "Select of it's on node 1: exited 3",
        "    no column",
        """  to see it again: workflows repro Select 'it'"'"'s'""",
    ]


@pytest.mark.parametrize(
    ("key", "typed"),
    [
        ("a.csv", "a.csv"),
        ("a b", "'a b'"),
        ("-rf", "-- -rf"),
        ("é", "'é'"),
        ("\udcff\t'", r"$'\xff\x09\x27'"),
        ("\x1b[2J", r"$'\x1b[2J'"),
    ],
)
def test_the_line_that_repeats_a_failure_can_be_copied_from_a_terminal(
    key: str, typed: str
) -> None:
    text = describe_failure("node 1", dict(EVENT, key=key))

    assert text.endswith(f"workflows repro Select {typed}")


def test_many_failures_show_the_first_few_and_count_the_rest() -> None:
    events = [dict(EVENT, key=f"k{n}", stderr=f"reason {n}\n") for n in range(9)]

    text = str(KeysFailed("node 1", 2, events))

    assert text.startswith("9 of 11 keys failed on node 1\n")
    assert [f"k{n}" in text for n in range(9)] == [True] * 5 + [False] * 4
    assert text.endswith("and 4 more")


def test_bad_settings_are_all_named_at_once() -> None:
    text = str(ConfigError(["[node] slots", "[run] fuse"]))

    assert "[node] slots" in text
    assert "[run] fuse" in text
