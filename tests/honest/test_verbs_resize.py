"""Keys that verbs made are found again after a resize, or it is said how to move them."""

import re
import shlex
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Done, Keys
    from ec2fleets import Ec2

VERBS = (
    ("ls", "-r", "in"),
    ("ls", "in/"),
    ("ls",),
    ("cp", "fleet://in/a", "-"),
    ("cp", "luigi.cfg", "fleet://in/a"),
    ("cp", "luigi.cfg", "fleet://in/new"),
    ("eval", "in/a", "cat"),
    ("map", "in/", "out2/", "cat"),
    ("map-to-n", "in/", "out2/", "echo x > f; echo f"),
    ("map-from-n", "in/", "out2/", "xargs cat"),
    ("rm", "in/a"),
    ("rm", "-r", "in/"),
)


def moved(keys: "Keys", refusal: "Done") -> None:
    """Type what a refusal says."""
    lines = re.findall(r"^  workflows (.*)$", refusal.err, re.M)
    assert lines, refusal
    for line in lines:
        keys.ok(*shlex.split(line))


@pytest.mark.parametrize("nodes", [2, 4])
def test_no_verb_sees_less_or_makes_a_key_twice_on_a_local_fleet_of_another_size(
    keys: "Keys", nodes: int
) -> None:
    names = [*"abcdefg", "003_x", "004_x"]
    keys.give("in", **{f"k{name}": f"{name}\n" for name in names})
    keys.ok("map", "in/", "out/", "cat")
    files = sorted(path for path in keys.nodes.rglob("data/**/*") if path.is_file())

    refused = [keys.run(*words, "--fleet", f"local:{nodes}") for words in VERBS]

    for done in refused:
        assert done.code != 0, done
        assert done.out == ""
        assert "--fleet local:3" in done.err
    assert sorted(path for path in keys.nodes.rglob("data/**/*") if path.is_file()) == files

    moved(keys, refused[0])

    other = ("--fleet", f"local:{nodes}")
    for step in ("in", "out"):
        listed = keys.ok("ls", "-r", step, *other).splitlines()
        assert sorted(line.split(None, 3)[3] for line in listed) == sorted(names)
    assert (
        keys.ok("eval", "in/003_x", "cat; echo $WORKFLOWS_SLOT", *other) == f"003_x\n{3 % nodes}\n"
    )
    keys.ok("map", "in/", "out2/", "cat", *other)
    assert keys.ok("cp", "fleet://out2/g", "-", *other) == "g\n"
    assert "local:" + str(nodes) in keys.run("ls", "-r", "in").err


def test_what_a_map_makes_of_a_pipelines_keys_belongs_to_the_fleet_too(keys: "Keys") -> None:
    keys.place.module(
        "from workflows.steps import Map\n\nclass Copy(Map):\n    command = 'xargs cat'\n"
    )
    for name in "abcdef":
        keys.place.key(name, name.encode())
    assert keys.place.luigi("Copy").code == 0
    keys.ok("map", "Copy/", "out/", "cat")

    done = keys.run("ls", "-r", "out", "--fleet", "local:2")

    assert (done.code, done.out) == (1, "")
    assert "workflows cp -r fleet://out/ moved/out --fleet local:3" in done.err
    moved(keys, done)
    assert len(keys.ok("ls", "-r", "out", "--fleet", "local:2").splitlines()) == 6


def test_once_all_keys_of_verbs_are_removed_another_size_is_as_good(keys: "Keys") -> None:
    keys.give("in", ka="x", kb="y")
    keys.ok("rm", "-r", "in/")

    assert keys.run("cp", "luigi.cfg", "fleet://in/a", "--fleet", "local:4").code == 0
    assert keys.run("ls", "in/", "--fleet", "local:4").code == 0
    assert keys.run("ls", "in/").code == 1


def test_keys_that_an_earlier_version_stored_are_refused_alike(keys: "Keys") -> None:
    import shutil

    keys.give("in", ka="x", kb="y", kc="z")
    for folder in keys.nodes.glob("*/named"):
        shutil.rmtree(folder)
    for mark in keys.nodes.glob("*/fleet"):
        mark.write_text(mark.read_text().split("\n")[0] + "\n")

    done = keys.run("ls", "in/", "--fleet", "local:4")

    assert done.code == 1
    moved(keys, done)
    assert len(keys.ok("ls", "in/", "--fleet", "local:4").splitlines()) == 3


def test_an_ec2_fleet_with_keys_of_verbs_is_not_resized_until_they_are_moved(
    ec2: "Ec2", keys: "Keys"
) -> None:
    assert ec2.run("up", "--yes").code == 0
    spec = f"ec2:{ec2.name}"
    keys.ok("cp", "luigi.cfg", "fleet://in/000_a", "--fleet", spec)

    refused = ec2.run("resize", "3", "--yes")

    assert refused.code == 2, refused
    assert len(ec2.live()) == 2
    assert "keys of in were made by verbs" in refused.err
    moved(keys, refused)
    assert ec2.run("resize", "3", "--yes").code == 0
    keys.ok("cp", "-r", "moved/in", "fleet://in/", "--fleet", spec)
    assert keys.ok("ls", "-r", "in", "--fleet", spec).endswith(" 000_a\n")
