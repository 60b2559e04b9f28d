"""What commands get of the environment of whoever starts a run, and where secrets never are."""

import os
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from workflows.config import Settings, parse, passed
from workflows.errors import ConfigError, UsageError, describe_failure
from workflows.node.environment import environment, without
from workflows.node.processes import Groups
from workflows.node.storage import Storage
from workflows.node.work import KeyFailed, KeyRun, Stage, Work
from workflows.node.workplace import Workplaces

if TYPE_CHECKING:
    from conftest import Keys, Place
    from sshd import Hosts

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYzw&é"
GIVEN = {
    "AWS_PROFILE": "crawl",
    "AWS_REGION": "eu-west-1",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "NOT_NAMED": "no",
}
SET = {"WORKFLOWS_PASS_ENV": "AWS_PROFILE, AWS_R*", "WORKFLOWS_SECRETS": "AWS_SECRET_ACCESS_KEY"}
# One key shows that it has all, and that no argument of any process does. The other says the secret
# on stderr twice: the first time where the part that is kept begins.
STEPS = """
from workflows.steps import Map


class Shown(Map):
    command = '''
      read -r path
      if [[ $filename == bad ]]; then
        for cut in {0..40}; do
          printf '%s%*s' "$AWS_SECRET_ACCESS_KEY" "$((60 + cut))" "" >&2
        done
        echo "login $AWS_SECRET_ACCESS_KEY refused" >&2
        exit 3
      fi
      seen=$(cat /proc/[0-9]*/cmdline 2> /dev/null | tr '\\\\0' ' ' || true)
      [[ $seen != *"$AWS_SECRET_ACCESS_KEY"* ]]
      echo "$AWS_PROFILE $AWS_REGION ${#AWS_SECRET_ACCESS_KEY} ${AWS_SESSION_TOKEN-none}"
    '''
"""


def files_below(*folders: pathlib.Path) -> Iterator[pathlib.Path]:
    for folder in folders:
        yield from (path for path in folder.rglob("*") if path.is_file())


def holding(text: str, *folders: pathlib.Path) -> list[str]:
    """Return the files that hold `text`, or its beginning or end."""
    whole = text.encode()
    parts = (whole, whole[:12], whole[-12:])
    return [
        str(path)
        for path in files_below(*folders)
        if any(part in path.read_bytes() for part in parts)
    ]


@pytest.mark.parametrize("where", ["local", "ssh"])
def test_named_variables_reach_commands_and_a_secret_is_in_no_file_argument_or_message(
    place: "Place", request: pytest.FixtureRequest, where: str
) -> None:
    place.module(STEPS)
    place.key("good", b"")
    place.key("bad", b"")
    fleet, folders = "local:2", [place.state]
    hosts: Hosts | None = None
    if where == "ssh":
        hosts = request.getfixturevalue("hosts")
        assert hosts is not None
        hosts.add(2)
        fleet = hosts.spec
        folders += [node.scratch for node in hosts.nodes]

    done = place.luigi("Shown", "--fleet", fleet, **GIVEN, **SET)

    assert done.code == 30, done
    found = (hosts or place).outputs("Shown")
    assert found == {"good": b"crawl eu-west-1 35 none\n"}
    assert "login *** refused" in done.err
    assert SECRET[:12] not in done.err + done.out
    assert SECRET[-12:] not in done.err + done.out
    assert holding(SECRET, *folders) == []


def test_eval_exec_and_repro_get_the_same_variables_and_keep_no_secret(
    keys: "Keys", tmp_path: pathlib.Path
) -> None:
    keys.give("b", kk="x")
    said = 'echo "$AWS_PROFILE ${#AWS_SECRET_ACCESS_KEY}"'
    keys.place.module(STEPS)
    keys.place.key("good", b"")
    given: dict[str, Any] = {**GIVEN, **SET}
    assert keys.place.luigi("Shown", **given).code == 0

    assert keys.ok("eval", "b/k", said, **given) == "crawl 35\n"
    assert keys.ok("exec", "--node", "0", "--raw", said, **given) == "crawl 35\n"
    repro = keys.run("repro", "Shown", "good", "--keep", TMPDIR=str(tmp_path), **given)
    mapped = keys.run("map", "b/", "out/", said, **given)

    assert (repro.code, repro.out) == (0, "crawl eu-west-1 35 none\n")
    assert SECRET not in repro.err
    assert (mapped.code, keys.read("out/k")) == (0, "crawl 35\n")
    assert holding(SECRET, keys.place.path, tmp_path) == []


def test_without_being_named_no_credentials_reach_a_command_and_its_failure_says_how_they_would(
    place: "Place",
) -> None:
    place.module(
        STEPS.replace(
            "read -r path", 'echo "Unable to locate credentials${AWS_PROFILE-}" >&2; exit 1'
        )
    )
    place.key("k", b"")

    done = place.luigi("Shown", **GIVEN)

    assert done.code == 30
    assert "    Unable to locate credentials\n" in done.err
    assert "[node] pass_env = AWS_PROFILE" in done.err


@pytest.mark.parametrize(
    ("stderr", "is_hinted"),
    [
        ("Unable to locate credentials. You can configure credentials by running ...", True),
        ("botocore.exceptions.NoCredentialsError: Unable to locate credentials", True),
        ("ERROR: NoCredentialProviders: no valid providers in chain", True),
        ("The config profile (crawl) could not be found", True),
        ("An error occurred (AccessDenied)", False),
    ],
)
def test_what_tools_say_that_find_no_credentials_is_known(stderr: str, is_hinted: bool) -> None:
    event = {"step": "S", "key": "k", "why": "exited 1", "stderr": stderr}

    assert ("pass_env" in describe_failure("node 0", event)) is is_hinted


def test_a_variable_that_is_named_and_not_set_is_refused_before_anything_runs(
    place: "Place",
) -> None:
    place.module(STEPS)
    place.key("k", b"")

    done = place.luigi("Shown", WORKFLOWS_PASS_ENV="CRAWL_TOKEN")
    verb = place.run("workflows", "eval", "b/k", "true", WORKFLOWS_SECRETS="CRAWL_TOKEN")

    assert done.code == 35, done
    assert "[node] pass_env names CRAWL_TOKEN, which is not set here" in done.err
    assert place.ledger("Shown") == []
    assert verb.code == 255
    assert "[node] secrets names CRAWL_TOKEN" in verb.err
    with pytest.raises(UsageError, match="not set"):
        passed(Settings(secrets=("NONE",)), {})


@pytest.mark.parametrize("name", ["A-B", "*", "A*B", "PATH", "WORKFLOWS_SLOT", "filename", "1A"])
def test_what_cannot_be_passed_is_refused_as_a_setting(name: str) -> None:
    with pytest.raises(ConfigError, match=r"\[node\] pass_env"):
        parse({"node": {"pass_env": f"AWS_PROFILE, {name}"}}, {})


def test_a_wildcard_passes_all_of_a_kind_and_hides_those_whose_names_say_that_they_are_secret() -> (
    None
):
    environ = {"AWS_REGION": "eu", "AWS_SESSION_TOKEN": "t" * 9, "AWSX": "", "WORKFLOWS_X": "w"}
    chosen = parse({"node": {"pass_env": "AWS_* W*"}}, {})

    assert passed(chosen, environ) == (
        {"AWS_REGION": "eu", "AWS_SESSION_TOKEN": "t" * 9},
        ["t" * 9],
    )


def test_a_secret_is_hidden_wherever_what_is_kept_of_stderr_begins(tmp_path: pathlib.Path) -> None:
    storage = Storage(str(tmp_path / "node"))
    source = {"url": "x", "bytes": 0, "id": "i", "was": ["x", 0, ""]}
    said = set()
    size = 12 * (1 + len(SECRET.encode()))
    for cut in range(1, 40, 6):  # so many bytes of the first one, and the blank before it, are cut
        after = 4096 + 4 * len(SECRET) + cut - size
        command = f'for _ in {{1..12}}; do printf " $SECRET"; done; printf "%{after}s" ""; exit 1'
        stage = Stage("S", f"{{ {command}; }} >&2", {}, [], 0.0)
        env = dict(environment("0", "1"), SECRET=SECRET)
        work = Work("S", "map", "", [stage], env, [SECRET])
        item = {"key": "k", "id": "i", "source": source}
        with pytest.raises(KeyFailed) as failed:
            KeyRun(Workplaces(storage), work, item, Groups())()
        said.add(str(failed.value.event["stderr"]).strip())
    storage.close()

    assert said <= {" ".join(["***"] * count) for count in (11, 12)}


def test_a_secret_that_holds_another_is_hidden_whole_and_a_tiny_one_is_left() -> None:
    assert without(b"abcdefgh abcd a", ["abcdefgh", "abcd", "a"]) == b"*** *** a"
    assert without(b"\xff\xfe12 x", [os.fsdecode(b"\xff\xfe12")]) == b"*** x"
