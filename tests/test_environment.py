"""What commands inherit from whoever started the run."""

import os
import pathlib
import sys
from typing import TYPE_CHECKING, Any

import pytest

from workflows.node.environment import environment

if TYPE_CHECKING:
    from conftest import Place

SAYS = """
from workflows.steps import Map


class Said(Map):
    command = '''
      shown=$(env)
      grep -E "^(BASH_(ENV|FUNC)|ENV=|PYTHON(PATH|HOME|STARTUP)|AWS_|KEPT)" <<< "$shown"
    '''
"""
GIVEN = {
    "ENV": "/nowhere",
    "BASH_FUNC_cat%%": "() { echo changed; }",
    "PYTHONHOME": "",
    "PYTHONSTARTUP": "/nowhere",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_SESSION_TOKEN": "token",
    "KEPT": "yes",
}


def test_commands_inherit_no_credentials_and_nothing_that_changes_bash_or_python(
    place: "Place",
) -> None:
    place.module(SAYS)
    place.key("a", b"")
    started = place.path / "started"
    text = f'[[ "$BASH_EXECUTION_STRING" != *shown* ]] || : > {started}'
    (place.path / "env.bash").write_text(text + "\n")
    given: dict[str, Any] = {**GIVEN, "BASH_ENV": str(place.path / "env.bash")}

    done = place.luigi("Said", **given)
    repro = place.run("workflows", "repro", "Said", "a", **given)

    assert done.code == 0, done
    assert place.outputs("Said") == {"a": b"KEPT=yes\n"}
    assert (repro.code, repro.out) == (0, "KEPT=yes\n"), repro
    assert not started.exists()


def test_the_nodes_own_python_is_found_and_programs_of_a_user_before_those_beside_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other, mine = (tmp_path / name for name in ("own", "other", "mine"))
    for folder in (own, other):
        folder.mkdir()
        (folder / "python3").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(own / "python3"))

    for given, path in (
        (f"{mine}:{own}:{other}", f"{mine}:{own}:{other}"),
        (f"{mine}:{other}:{own}", f"{own}:{mine}:{other}:{own}"),
        (f"{mine}", f"{own}:{mine}"),
    ):
        monkeypatch.setitem(os.environ, "PATH", given)
        assert environment("0", "1")["PATH"] == path
