"""The store as a user of s4 knows it: cp, ls, rm, names, and what is refused. Checks 1 to 12."""

import os
import pathlib
import subprocess
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Keys


@pytest.mark.parametrize(
    "data", [b"a\n", b"", bytes(range(128, 138)), b"no newline", b"\0\xff\n\n"]
)
def test_what_is_put_is_got_byte_for_byte(keys: "Keys", data: bytes) -> None:
    keys.ok("cp", "-", "fleet://b/d/k", stdin=data)

    assert os.fsencode(keys.read("b/d/k")) == data


def test_a_big_key_goes_in_and_comes_out(keys: "Keys") -> None:
    big = keys.place.path / "big"
    with big.open("wb") as file:
        file.truncate(300_000_000)
        file.seek(123_456_789)
        file.write(os.urandom(5_000_000))

    keys.ok("cp", "big", "fleet://b/big")
    keys.ok("cp", "fleet://b/big", "back")

    assert subprocess.run(["cmp", big, keys.place.path / "back"]).returncode == 0


def test_a_key_is_not_put_twice_and_after_rm_it_is(keys: "Keys") -> None:
    keys.ok("cp", "-", "fleet://b/k", stdin=b"old")

    for again in (b"new", b"old"):
        done = keys.run("cp", "-", "fleet://b/k", stdin=again)
        assert done.code != 0
        assert "b/k" in done.err
    assert keys.read("b/k") == "old"

    keys.ok("rm", "b/k")
    keys.ok("cp", "-", "fleet://b/k", stdin=b"new")
    assert keys.read("b/k") == "new"


def test_a_directory_as_target_keeps_the_name(keys: "Keys") -> None:
    path = keys.place.path
    (path / "file").write_text("f")
    keys.ok("cp", "file", "fleet://b/d/")
    (path / "foo").mkdir()

    keys.ok("cp", "fleet://b/d/file", "foo/")
    keys.ok("cp", "fleet://b/d/file", "foo2/new/")
    os.unlink(path / "file")
    keys.ok("cp", "fleet://b/d/file", ".")

    assert [p.read_text() for p in (path / "foo/file", path / "foo2/new/file", path / "file")] == [
        *["f"] * 3
    ]


def test_a_tree_goes_in_and_comes_out_with_or_without_slashes(keys: "Keys") -> None:
    top = keys.place.path / "tree"
    for name in ("a", "d/b", "d/e/c"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(name)

    keys.ok("cp", "-r", "tree", "fleet://b/p")
    keys.ok("cp", "-r", "tree/", "fleet://c/p/")
    keys.ok("cp", "-r", "fleet://b/p", "out")
    keys.ok("cp", "-r", "s4://c/p", ".")
    os.rename(keys.place.path / "p", keys.place.path / "first")
    keys.ok("cp", "-r", "s4://c/p/", ".")

    assert keys.names("b") == keys.names("c") == ["p/a", "p/d/b", "p/d/e/c"]
    for copy in ("out", "first", "p"):
        assert subprocess.run(["diff", "-r", top, keys.place.path / copy]).returncode == 0


def test_ls_shows_keys_directories_and_steps(keys: "Keys") -> None:
    keys.give("b", kd__key1="12345", kd__e__key2="", kother="o")
    keys.give("c", kx="x")

    lines = keys.ok("ls", "-r", "s4://b").splitlines()
    level = keys.ok("ls", "b/d/").splitlines()

    assert [line.split()[2:] for line in lines] == [
        ["0", "d/e/key2"],
        ["5", "d/key1"],
        ["1", "other"],
    ]
    time.strptime(" ".join(lines[0].split()[:2]), "%Y-%m-%d %H:%M:%S")
    assert [line.split()[-2:] for line in level] == [["PRE", "e/"], ["5", "key1"]]
    assert keys.ok("ls", "b/d/ke").split()[-1] == "key1"
    assert keys.ok("ls").split() == ["PRE", "b/", "PRE", "c/"]
    assert keys.ok("ls", "b").split() == ["PRE", "b/"]
    for nothing in ("b/zzz", "zzz", "zzz/"):
        assert (keys.run("ls", nothing).code, keys.run("ls", nothing).out) == (1, "")


def test_rm_r_removes_by_prefix_and_a_step_only_by_its_whole_name(keys: "Keys") -> None:
    keys.give("b", kdir__1="", kdir2="", kother="")
    keys.give("step1", ka="")
    keys.give("step10", ka="")

    keys.ok("rm", "-r", "s4://b/di")
    alike = keys.run("rm", "-r", "s4://step")
    keys.ok("rm", "-r", "step1")

    assert keys.names("b") == ["other"]
    assert alike.code != 0
    assert "workflows rm -r step1 step10" in alike.err
    assert keys.ok("ls").split()[1::2] == ["b/", "step10/"]
    assert keys.run("rm", "b/nothing").code != 0
    assert keys.run("rm", "-r", "nothing").code != 0
    assert keys.run("rm", "-r", "b/nothing").code == 0  # so that a script may clean up first


def test_a_stored_file_is_read_only(keys: "Keys") -> None:
    keys.give("b", kk="x")

    assert keys.file("b/k").stat().st_mode & 0o777 == 0o444


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("fleet://b/k", "fleet://b/k2"),
        ("luigi.cfg", "here"),
        ("luigi.cfg", "fleet://_b/k"),
        ("luigi.cfg", "fleet:///abs"),
        ("luigi.cfg", "fleet://../x"),
        ("luigi.cfg", "s4://b/../x"),
        ("luigi.cfg", "s4://b/a//x"),
        ("luigi.cfg", "s4://b/./x"),
        ("luigi.cfg", "s4://b/a\nb"),
        ("luigi.cfg", "s4://" + "b" * 300 + "/k"),
        ("luigi.cfg", "s4://b.pieces/k"),
        ("luigi.cfg", "s3://bucket/k"),
        ("nothing here", "fleet://b/k"),
        ("fleet://b/none", "x"),
        ("-", "fleet://b/d/"),
    ],
)
def test_what_cannot_be_copied_is_refused_in_one_line(
    keys: "Keys", source: str, target: str
) -> None:
    before = sorted(keys.place.path.iterdir())

    done = keys.run("cp", source, target)

    assert done.code in (1, 2)
    assert done.err.count("\n") == 1, done
    assert {p.name for p in keys.place.path.iterdir()} - {p.name for p in before} <= {".workflows"}
    assert not [*keys.nodes.glob("*/data/*")]


def test_an_object_that_cannot_be_read_is_named_with_the_remedy(keys: "Keys") -> None:
    nowhere = str(keys.place.path)

    done = keys.run(
        "cp", "s3://bucket/k", "fleet://b/k", HOME=nowhere, AWS_EC2_METADATA_DISABLED="true"
    )

    assert done.code == 1
    assert "s3://bucket/k: Unable to locate credentials\n  give credentials:" in done.err
    assert not [*keys.nodes.glob("*/data/*")]


ODD = ["a+b", "a&b", "a#b", "a;b", "a%20b", "a$b", "it's", "a*b", "a b", "?x", "ä", "-rf", ".xxh"]


def test_every_character_works_everywhere(keys: "Keys") -> None:
    folder = keys.place.path / "odd"
    folder.mkdir()
    for name in ODD:
        (folder / name).write_text(f"<{name}>\n")

    keys.ok("cp", "-r", "odd", "fleet://in/")
    keys.ok("map", "in/", "out/", 'cat; printf %s "$filename"')
    keys.ok("map-from-n", "out/", "merged/", "xargs cat")
    keys.ok("cp", "-r", "fleet://merged", "back")

    for name in ODD:
        assert (keys.place.path / "back" / name).read_text() == f"<{name}>\n{name}"
        assert keys.ok("eval", f"in/{name}", "cat") == f"<{name}>\n"
    keys.ok("rm", *[f"in/{name}" for name in ODD])
    assert keys.names("in") == []


def test_of_two_puts_at_once_one_wins_and_the_other_is_told(keys: "Keys") -> None:
    puts = [keys.start("cp", "-", "fleet://b/k") for _ in range(2)]
    for number, process in enumerate(puts):  # both are on their way before either can end
        assert process.stdin is not None
        process.stdin.write(f"bytes of {number}".encode())
        process.stdin.flush()
    wait_for(lambda: len([*keys.nodes.glob("*/tmp/*/*/file")]) == 2)
    done = [(process.communicate()[1], process.returncode) for process in puts]

    winner = [code for _, code in done].index(0)
    loser, code = done[1 - winner]
    assert code == 1
    assert b"b/k" in loser
    assert b"exists already" in loser
    assert keys.read("b/k") == f"bytes of {winner}"


def test_a_producer_and_a_reader_may_pause(keys: "Keys") -> None:
    pause = 10
    put = keys.start("cp", "-", "fleet://b/k")
    assert put.stdin is not None
    put.stdin.write(b"x" * 5_000_000)
    put.stdin.flush()
    time.sleep(pause)  # the pause is what is tested
    put.communicate(b"y" * 5_000_000)
    get = keys.start("cp", "fleet://b/k", "-")
    assert get.stdout is not None
    first = os.read(get.stdout.fileno(), 1)
    time.sleep(pause)
    rest = get.communicate()[0]

    assert (put.returncode, get.returncode) == (0, 0)
    assert first + rest == b"x" * 5_000_000 + b"y" * 5_000_000


def test_a_flipped_byte_is_told_by_everything_that_reads_it(keys: "Keys") -> None:
    keys.give("in", k000_a="good\n", k001_b="good\n")
    damaged = keys.file("in/000_a")
    status = damaged.stat()
    damaged.chmod(0o644)
    damaged.write_bytes(b"goof\n")
    damaged.chmod(0o444)
    os.utime(damaged, ns=(status.st_atime_ns, status.st_mtime_ns))

    for words in (
        ("cp", "fleet://in/000_a", "copy"),
        ("cp", "-r", "fleet://in", "tree"),
        ("cp", "fleet://in/000_a", "-"),
        ("eval", "in/000_a", "cat"),
        ("map", "in/", "m/", "cat"),
        ("map-to-n", "in/", "n/", "cat > r; echo r"),
        ("map-from-n", "in/", "f/", "xargs cat"),
    ):
        done = keys.run(*words)
        assert done.code == {"eval": 255}.get(words[0], 1), (words, done)
        assert "in/000_a" in done.err, (words, done)
        assert "damaged" in done.err, (words, done)
    assert keys.names("m") == ["001_b"]
    assert not pathlib.Path(keys.place.path, "copy").exists()
    checked = keys.run("fsck", "in")
    assert checked.code == 1, checked
    assert "no step makes it: copy it again, workflows cp FILE fleet://in/000_a" in checked.out
    assert checked.out.endswith("2 keys read, 1 damaged\n")


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
