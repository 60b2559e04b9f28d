"""hosts.yaml: what it may say, and that everything wrong in it is named at once."""

import json
import pathlib
import textwrap

import pytest

from workflows.errors import ConfigError, UsageError
from workflows.fleets.hosts import Hosts, from_json, read_hosts, to_json

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti"


BAD_KEY = (
    "host_key must be as in the host's /etc/ssh/ssh_host_ed25519_key.pub: 'ssh-ed25519 AAAA...'"
)


def read(tmp_path: pathlib.Path, text: str) -> Hosts:
    path = tmp_path / "hosts.yaml"
    path.write_text(textwrap.dedent(text))
    return read_hosts(str(path))


def problems(tmp_path: pathlib.Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    return caught.value.problems


def test_a_host_takes_from_the_defaults_what_it_does_not_say_itself(tmp_path: pathlib.Path) -> None:
    found = read(
        tmp_path,
        f"""
        patience: 5
        defaults: {{user: ann, port: 2222, scratch: ~/scratch, host_key: {KEY} a comment}}
        hosts:
          - 10.0.0.1
          - {{address: 10.0.0.2, port: 22, slots: 8, identity: keys/id, python: python3.12}}
        """,
    )

    first, second = found.hosts
    assert (first.address, first.user, first.port) == ("10.0.0.1", "ann", 2222)
    assert (first.scratch, first.host_key, first.slots) == ("scratch", (KEY,), 0)
    assert (second.port, second.slots, second.python) == (22, 8, "python3.12")
    assert second.identity == str(tmp_path / "keys/id")
    assert found.patience == 5


def test_a_jump_host_is_a_host_of_its_own(tmp_path: pathlib.Path) -> None:
    found = read(
        tmp_path, f"hosts: [{{address: a, jump: {{address: b, user: bob, host_key: {KEY}}}}}]"
    )

    jump = found.hosts[0].jump
    assert jump is not None
    assert (jump.address, jump.user, jump.host_key) == ("b", "bob", (KEY,))


def test_everything_that_is_wrong_is_named_with_the_near_match(tmp_path: pathlib.Path) -> None:
    assert problems(
        tmp_path,
        """
        defautls: {}
        defaults: {scrach: /x}
        hosts:
          - {port: 0, slots: many}
          - {address: a, host_key: nonsense, scratch: "/a'b", jump: {adress: b}}
        """,
    ) == [
        f"{tmp_path}/hosts.yaml: no such key 'defautls'; did you mean 'defaults'?",
        "defaults: no such key 'scrach'; did you mean 'scratch'?",
        "hosts[0]: address is missing",
        f"hosts[1]: {BAD_KEY}",
        'hosts[1]: scratch "/a\'b" may hold A-Z a-z 0-9 _@%+=:,./~ - only',
        "hosts[1] jump: no such key 'adress'; did you mean 'address'?",
        "hosts[1] jump: address is missing",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("hosts: []", "at least one host"),
        ("[1, 2]", "names and values"),
        ("hosts: [{address: a, port: 70000}]", "port must be a number from 1 to 65535"),
        ("hosts: [{address: a, port: true}]", "port must be a number"),
        ("hosts: [{address: 7}]", "address must be text"),
        ("hosts: [{address: a, limits: {files: 1}}]", "'files'; did you mean 'open_files'?"),
        ("hosts: [{address: a, limits: {open_files: 9}}]", "open_files must be a number from 1024"),
        ("hosts: [{address: a, packages: git}]", "packages must be a list of names"),
        ("hosts: [{address: a, packages: [git, --force]}]", "packages must be a list of names"),
        ("hosts: [{address: a, post_int: x}]", "no such key 'post_int'; did you mean 'post_init'?"),
        ("hosts: [{address: a", "is not YAML"),
        ("hosts: [a]\npatience: long", "patience must be a number"),
    ],
)
def test_a_bad_value_is_refused(tmp_path: pathlib.Path, text: str, problem: str) -> None:
    assert any(problem in one for one in problems(tmp_path, text))


def test_a_file_that_is_not_there_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*none.yaml: No such file"):
        read_hosts(str(tmp_path / "none.yaml"))


def test_a_host_survives_its_way_to_the_hub(tmp_path: pathlib.Path) -> None:
    jump = f"{{address: b, host_key: {KEY}}}"
    text = f"hosts: [{{address: a, host_key: {KEY}, packages: [git], jump: {jump}}}]"
    (host,) = read(tmp_path, text).hosts

    assert from_json(json.loads(json.dumps(to_json(host)))) == host
