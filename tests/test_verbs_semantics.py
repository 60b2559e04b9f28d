"""What a command over one key may do, gets and leaves, on one node: the verbs without Luigi."""

import contextlib
import os
import pathlib
import select
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from workflows.fleets.channel import Channel
from workflows.fleets.local import LocalNode
from workflows.node.environment import environment
from workflows.node.files import checksum, remove
from workflows.node.keys import digest_of, file_digest
from workflows.node.processes import Groups
from workflows.node.storage import Storage
from workflows.node.work import KeyFailed, KeyRun, Stage, Work
from workflows.node.workplace import Workplaces

Event = dict[str, Any]


class Bench:
    """One slot in a directory, and commands run over its keys in this process."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.storage = Storage(str(path / "node"))
        self.places = Workplaces(self.storage)

    def put(self, name: str, data: bytes, step: str = "In") -> tuple[str, str, str]:
        """Publish a key of an earlier step; return what an item refers to it by."""
        tmp = self.path / "put"
        tmp.write_bytes(data)
        identity = digest_of([step, name])
        record = {"key": name, "id": identity, "bytes": len(data), "crc": checksum(str(tmp))}
        self.storage.publish(step, str(tmp), dict(record, metrics={"bytes_out": len(data)}))
        return step, identity, name

    def run(
        self, command: str, *inputs: tuple[str, str, str], mode: str = "map", **stage: Any
    ) -> Event:
        """Run a command over one key, of the name of its first input; return its ledger record."""
        return self.pipe([command], *inputs, mode=mode, **stage)

    def pipe(
        self, commands: list[str], *inputs: tuple[str, str, str], mode: str = "map", **stage: Any
    ) -> Event:
        """Run a fused key."""
        given = inputs or (self.put("key", b""),)
        about: Event = {"files": {}, "laws": [], "timeout_s": 0.0, **stage}
        stages = [Stage(step=f"S{n}", command=c, **about) for n, c in enumerate(commands)]
        work = Work(stages[-1].step, mode, "spec", stages, environment("1", "3"))
        item = {"key": given[0][2], "id": self.identity(given[0][2]), "inputs": given}
        return KeyRun(self.places, work, item, Groups())()

    def identity(self, name: str) -> str:
        """Return the identity that `run` gives the output of a key."""
        return digest_of(["out", name])

    def output(self, name: str = "key") -> pathlib.Path:
        """Return where the output of a key is."""
        return pathlib.Path(self.storage.path("S0", self.identity(name), name))

    def pieces(self, name: str = "key") -> dict[str, bytes]:
        """Return the files that a 1:n key made."""
        return {path.name: path.read_bytes() for path in self.output(name).iterdir()}

    def ship(self, data: bytes) -> pathlib.Path:
        """Put a file where a step's files are."""
        path = pathlib.Path(self.storage.root) / "files" / file_digest(data)
        path.write_bytes(data)
        path.chmod(0o555)
        return path

    def is_published(self, name: str = "key") -> bool:
        """Tell whether a key has an output, or a line in the ledger."""
        return self.output(name).exists() or bool(self.storage.ledger("S0").history())

    def leftovers(self) -> list[str]:
        """Return what is still in the directory for work in progress.

        Directories may stay, for the next key, and what steps ship; nothing that a key had made.
        """
        kept = [path for path in pathlib.Path(self.storage.tmp).rglob("*") if path.is_file()]
        shipped = {path.stat().st_ino for path in (self.path / "node/files").iterdir()}
        return [
            str(path)
            for path in kept
            if path.stat().st_size and path.suffix != ".err" and path.stat().st_ino not in shipped
        ]


@pytest.fixture
def bench(tmp_path: pathlib.Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    assert bench.leftovers() == []
    bench.storage.close()


# -- 1:1 -------------------------------------------------------------------------------------------


def test_a_map_reads_a_key_on_stdin_and_writes_the_key_of_the_same_name(bench: Bench) -> None:
    record = bench.run("sed s/input/output/", bench.put("000_machine0", b"input_a\n"))

    assert record["key"] == "000_machine0"
    assert bench.output("000_machine0").read_bytes() == b"output_a\n"


@pytest.mark.parametrize(
    ("command", "output"),
    [
        ("tr a-z A-Z | rev", "CBA\n"),
        ("cat > content\nwc -l < content\ncat content", "1\nabc\n"),
        ("echo header; cat", "header\nabc\n"),
        ("(echo a; cat)", "a\nabc\n"),
        ("{ cat; }", "abc\n"),
        ("if grep -q b; then echo yes; else echo no; fi", "yes\n"),
        ("for i in {1..3}; do echo -n $i; done", "123"),
        ('while read line; do echo "<$line>"; done', "<abc>\n"),
        ("cat <<'END'\n$HOME `x` \"\nEND\n", '$HOME `x` "\n'),
        ("sort <(cat) <(echo b)", "abc\nb\n"),
        ("f() { cat; }; f # a comment", "abc\n"),
        ("echo '100%' '%s %d' %% 50%", "100% %s %d %% 50%\n"),
        ("printf '%s\\n' \"$(cat)\"", "abc\n"),
        ("head -c0", ""),
        ("echo it never reads", "it never reads\n"),
        ("grep -q nothing || true", ""),
        ("yes | head -n1 || true", "y\n"),
        ("exec cat", "abc\n"),
        ("cat; exit 0", "abc\n"),
        ("trap 'echo bye' EXIT; cat", "abc\nbye\n"),
        ("echo ${UNSET-default}", "default\n"),
    ],
)
def test_a_command_is_any_bash(bench: Bench, command: str, output: str) -> None:
    bench.run(command, bench.put("key", b"abc\n"))

    assert bench.output().read_bytes() == output.encode()


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("false | cat", 1),
        ("cat; echo $UNSET", 1),
        ("false; echo unseen", 1),
        ("cat missing-file; cat", 1),
        ("grep -q nothing", 1),
        ("(exit 7) | cat | cat", 7),
        ("x=$(exit 5); echo $x", 5),
        ("exit 3", 3),
        ("no-such-command", 127),
        ("if", 2),
    ],
)
def test_a_command_is_strict_and_publishes_nothing_when_it_fails(
    bench: Bench, command: str, status: int
) -> None:
    with pytest.raises(KeyFailed, match=f"exited {status}") as caught:
        bench.run(command, bench.put("key", b"abc\n"))

    assert caught.value.event["status"] == status
    assert not bench.is_published()


def test_the_end_of_a_failing_commands_stderr_is_kept(bench: Bench) -> None:
    with pytest.raises(KeyFailed) as caught:
        bench.run(r"for i in {1..2000}; do echo line $i >&2; done; printf '\xff end' >&2; exit 1")

    stderr = str(caught.value.event["stderr"])
    assert len(stderr) <= 4096 + 3
    assert stderr.endswith("line 2000\n\\xff end")


def test_a_command_that_is_killed_is_said_to_be(bench: Bench) -> None:
    with pytest.raises(KeyFailed, match="killed by SIGKILL"):
        bench.run("kill -9 $$")


def test_a_command_runs_in_an_empty_directory_of_its_own(bench: Bench) -> None:
    command = "pwd; ls -A; mkdir -p a/b; echo x > a/b/c; chmod 500 a; echo > .hidden; echo oh >&2"
    for name in ("k0", "k1", "k2"):
        bench.run(command, bench.put(name, b""))

        folder, *rest = bench.output(name).read_text().splitlines()
        assert rest == []
        assert os.listdir(folder) == []


@pytest.mark.parametrize(
    "command",
    [
        "chmod 700 .",
        "rm words",
        "mv words x",
        "cp words x; mv -f x words",
        "cd ..; rm -r 0.cwd",
        "cd ..; rm -r 0.cwd; ln -s /tmp 0.cwd",
        "ln -sf /dev/null ../0.err",
        "rm ../0.err; mkdir ../0.err",
        "rm ../0.err; mkfifo ../0.err",
        "ln ../0.err ../other",
    ],
)
def test_a_directory_that_a_command_changed_is_not_used_again(bench: Bench, command: str) -> None:
    files = {"words": bench.ship(b"a\nb\n").name}
    bench.run(f"pwd; {command}", bench.put("k0", b""), files=files)
    bench.run("pwd; ls -A; cat words", bench.put("k1", b""), files=files)

    (before,) = bench.output("k0").read_text().splitlines()
    folder, *rest = bench.output("k1").read_text().splitlines()
    assert rest == ["words", "a", "b"]
    assert folder != before
    assert not os.path.exists(before)


def test_a_key_that_counts_nothing_has_none_of_the_counts_of_the_one_before(bench: Bench) -> None:
    count = 'set -o noclobber; umask 277; echo rows=3 > "$WORKFLOWS_METRICS"'
    first = bench.run(count, bench.put("k0", b""))
    second = bench.run('test ! -e "$WORKFLOWS_METRICS"', bench.put("k1", b""))
    third = bench.run(count, bench.put("k2", b""))

    assert first["metrics"]["rows"] == third["metrics"]["rows"] == 3
    assert "rows" not in second["metrics"]


def test_nothing_is_removed_where_a_command_let_its_directory_point_to(bench: Bench) -> None:
    other = bench.path / "other"
    other.mkdir()
    (other / "file").touch()

    bench.run(f"cd ..; rmdir 0.cwd; ln -s {other} 0.cwd", bench.put("k0", b""))

    assert (other / "file").exists()


def test_a_key_that_changes_a_file_of_its_step_fails_and_the_file_is_shipped_anew(
    bench: Bench,
) -> None:
    shipped = bench.ship(b"echo hello")

    with pytest.raises(KeyFailed, match=r"it changed helper\.sh, which its step ships"):
        bench.run("chmod u+w helper.sh; echo >> helper.sh", files={"helper.sh": shipped.name})

    assert not shipped.exists()
    assert not bench.is_published()


def test_what_a_failed_key_left_is_removed(bench: Bench) -> None:
    with pytest.raises(KeyFailed):
        bench.run("touch a; false", bench.put("k0", b""))

    assert [name for name in os.listdir(bench.storage.tmp) if name != "alive"] == []


def test_a_directory_that_a_command_made_read_only_is_removed_too() -> None:
    user = os.geteuid()
    folder = pathlib.Path(tempfile.mkdtemp())
    if user == 0:  # who may do anything
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    try:
        (folder / "cwd/a/b").mkdir(parents=True)
        (folder / "cwd/a/b/file").touch()
        (folder / "cwd/a/b").chmod(0)
        (folder / "cwd/a").chmod(0o500)

        remove(str(folder / "cwd"))

        assert list(folder.iterdir()) == []
    finally:
        os.seteuid(user)
        shutil.rmtree(folder)


def test_shipped_files_are_in_the_working_directory(bench: Bench) -> None:
    (bench.path / "node/files/digest").write_text("echo shipped")

    bench.run("bash say.sh", files={"say.sh": "digest"})

    assert bench.output().read_bytes() == b"shipped\n"


def test_a_command_cannot_change_a_shipped_file_for_the_next_key(bench: Bench) -> None:
    shipped = bench.path / "node/files/digest"
    shipped.write_text("echo shipped")

    bench.run("rm say.sh; echo other > say.sh; mktemp > /dev/null", files={"say.sh": "digest"})

    assert shipped.read_text() == "echo shipped"


def test_a_command_is_told_its_key_step_and_place(bench: Bench) -> None:
    names = "$filename|$WORKFLOWS_KEY|$WORKFLOWS_STEP|$WORKFLOWS_SLOT|$WORKFLOWS_NODES|$LC_ALL"

    bench.run(f'echo "{names}"', bench.put("2018/it's 1.csv", b""))

    assert bench.output("2018/it's 1.csv").read_text() == "it's 1.csv|2018/it's 1.csv|S0|1|3|C\n"


def test_temporary_files_go_into_the_working_directory(bench: Bench) -> None:
    bench.run('[[ "$(dirname "$(mktemp)")" == "$PWD" ]] && echo yes')

    assert bench.output().read_bytes() == b"yes\n"


def test_outputs_are_read_only(bench: Bench) -> None:
    bench.run("cat")
    bench.run("echo x > 000_a; echo 000_a", bench.put("many", b""), mode="to_n")

    assert bench.output().stat().st_mode & 0o777 == 0o444
    assert (bench.output("many") / "000_a").stat().st_mode & 0o777 == 0o444


def test_what_a_command_leaves_running_is_dead_after_the_key(bench: Bench) -> None:
    fifo = bench.path / "alive"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)

    bench.run(f"exec 3> {fifo}; sleep 1000 & echo started")

    poll = select.poll()
    poll.register(reader, select.POLLIN)
    assert [event for _, event in poll.poll(5000)] == [select.POLLHUP]
    os.close(reader)
    assert bench.output().read_bytes() == b"started\n"


def test_a_command_that_takes_too_long_fails_and_its_children_are_dead(bench: Bench) -> None:
    fifo = bench.path / "alive"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)

    with pytest.raises(KeyFailed, match=r"timeout: ran longer than 0\.2 s"):
        bench.run(f"exec 3> {fifo}; sleep 1000 | cat", timeout_s=0.2)

    poll = select.poll()
    poll.register(reader, select.POLLIN)
    assert [event for _, event in poll.poll(5000)] == [select.POLLHUP]
    os.close(reader)
    assert not bench.is_published()


def test_a_record_says_what_came_of_a_key(bench: Bench) -> None:
    given = bench.put("key", b"12345\n")

    record = bench.run("cat; cat /dev/null; echo rows=2 >> $WORKFLOWS_METRICS", given)

    assert record["metrics"] == {"rows": 2, "bytes_in": 6, "bytes_out": 6}
    assert record["inputs"] == [given[1]]
    assert record["crc"] == checksum(str(bench.output()))
    assert (record["bytes"], record["spec"]) == (6, "spec")
    assert record["wall"] > 0
    assert record["cpu"] >= 0
    assert record["rss"] > 0


# -- fused -----------------------------------------------------------------------------------------


def test_fused_commands_give_the_bytes_of_one_after_the_other_and_count_each(bench: Bench) -> None:
    given = bench.put("key", b"b\na\n" * 50_000)

    record = bench.pipe(["sort", "uniq -c", "head -n1"], given)

    published = pathlib.Path(bench.storage.path("S2", record["id"], "key"))
    assert published.read_text().split() == ["50000", "a"]
    flow = [(s["metrics"]["bytes_in"], s["metrics"]["bytes_out"]) for s in record["stages"]]
    assert flow[0] == (200_000, 200_000)
    assert flow[1][0] == 200_000
    assert flow[2] == (flow[1][1], record["bytes"])


def test_a_fused_command_that_stops_reading_does_not_fail_the_one_before(bench: Bench) -> None:
    record = bench.pipe(["seq 200000", "head -n1"])

    assert record["bytes"] == 2
    assert record["stages"][0]["metrics"]["bytes_out"] == 1288895


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_failing_fused_command_is_named_and_nothing_is_published(
    bench: Bench, failing: int
) -> None:
    commands = ["cat", "cat", "cat"]
    commands[failing] = "cat > /dev/null; echo broken >&2; exit 9"

    with pytest.raises(KeyFailed) as caught:
        bench.pipe(commands)

    assert caught.value.event["step"] == f"S{failing}"
    assert (caught.value.event["status"], caught.value.event["stderr"]) == (9, "broken\n")
    assert bench.storage.ledger("S2").history() == []


# -- 1:n -------------------------------------------------------------------------------------------

LOOP = """
cat > content
for i in {2..3}; do
    file=$(printf "%03d" $i)_machine$i
    echo -n "$(cat content)$i" > $file
    echo $file
done
"""


def test_a_map_to_n_makes_the_files_whose_names_it_prints(bench: Bench) -> None:
    bench.run(LOOP, bench.put("000_machine0", b"input_a\n"), mode="to_n")

    assert bench.pieces("000_machine0") == {
        "002_machine2": b"input_a2",
        "003_machine3": b"input_a3",
    }


def test_files_that_are_not_printed_are_no_keys(bench: Bench) -> None:
    bench.run("echo a > a; echo b > b; echo a", mode="to_n")

    assert bench.pieces() == {"a": b"a\n"}


def test_zero_files_are_legal(bench: Bench) -> None:
    record = bench.run("cat > /dev/null", mode="to_n")

    assert bench.pieces() == {}
    assert (record["bytes"], record["pieces"]) == (0, [])


@pytest.mark.parametrize("name", ["a b", "it's", "-x", "100%", "$(x)", "#0", "é", 'q"'])
def test_a_file_may_have_any_plain_name(bench: Bench, name: str) -> None:
    bench.put(name, b"")

    bench.run(
        'echo x > ./"$filename"; echo "$filename"',
        ("In", digest_of(["In", name]), name),
        mode="to_n",
    )

    assert bench.pieces(name) == {name: b"x\n"}


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("echo missing", "'missing' was printed, but there is no such file"),
        ("echo /etc/passwd", "'/etc/passwd' is not a plain file name"),
        ("echo ..", "'..' is not a plain file name"),
        ("mkdir d; touch d/x; echo d/x", "'d/x' is not a plain file name"),
        ("echo ../0.err", "'../0.err' is not a plain file name"),
        ("mkdir d; echo d", "'d' was printed, but it is a directory"),
        ("ln -s /etc/passwd l; echo l", "'l' was printed, but it is a link"),
        ("touch x; echo x; echo x", "'x' was printed twice"),
        ("touch x; echo ' x'", "' x' was printed, but there is no such file"),
        ("mkfifo p; echo p", "'p' was printed, but it is a FIFO"),
    ],
)
def test_a_printed_name_that_is_no_file_of_its_own_fails_the_key_and_is_named(
    bench: Bench, command: str, named: str
) -> None:
    with pytest.raises(KeyFailed) as caught:
        bench.run(command, mode="to_n")

    assert named in str(caught.value)
    assert not bench.is_published()


def test_files_that_differ_when_a_lost_key_is_made_again_are_refused(bench: Bench) -> None:
    given = bench.put("key", b"x\n")
    state = bench.path / "state"
    command = f"cat > a; cat {state} >> a; echo a"
    state.write_text("1")
    bench.run(command, given, mode="to_n")
    bench.storage.drop("S0", [bench.identity("key")], "lost")
    state.write_text("2")

    with pytest.raises(KeyFailed, match="not deterministic"):
        bench.run(command, given, mode="to_n")

    state.write_text("1")
    bench.run(command, given, mode="to_n")
    assert bench.pieces() == {"a": b"x\n1"}


# -- n:1 -------------------------------------------------------------------------------------------


def test_a_map_from_n_reads_the_names_of_its_inputs_on_stdin(bench: Bench) -> None:
    given = [bench.put(f"{name}/002_x", name.encode() + b"\n") for name in ("a", "b", "c")]

    record = bench.run("xargs cat", *given, mode="from_n")

    assert bench.output("a/002_x").read_bytes() == b"a\nb\nc\n"
    assert record["metrics"]["bytes_in"] == 6


@pytest.mark.parametrize("name", ["a b", "it's", 'q"', "back\\slash", "-x", "é", "tab\t", "\udcff"])
def test_plain_xargs_reads_inputs_of_any_name(bench: Bench, name: str) -> None:
    given = [bench.put(f"{folder}{name}/{name}", b"x\n") for folder in ("1", "2")]

    bench.run("xargs cat", *given, mode="from_n")

    assert bench.output(f"1{name}/{name}").read_bytes() == b"x\nx\n"


def test_a_key_whose_input_is_gone_fails_naming_it(bench: Bench) -> None:
    given = bench.put("key", b"x")
    bench.storage.drop("In", [given[1]], "lost")

    with pytest.raises(KeyFailed, match="its input In/key is not here"):
        bench.run("cat", given)


# -- laws ------------------------------------------------------------------------------------------


def test_a_law_may_count_bytes_without_any_help_of_the_command(bench: Bench) -> None:
    bench.run("tr a b", bench.put("key", b"aa"), laws=["bytes_out = bytes_in"])

    assert bench.output().read_bytes() == b"bb"


def test_a_key_that_breaks_a_law_is_not_published(bench: Bench) -> None:
    with pytest.raises(KeyFailed, match="law broken: bytes_out = bytes_in, but 1 != 2"):
        bench.run("head -c1", bench.put("key", b"aa"), laws=["bytes_out = bytes_in"])

    assert not bench.is_published()


def test_a_metric_that_cannot_be_read_fails_the_key_and_shows_the_line(bench: Bench) -> None:
    with pytest.raises(KeyFailed, match=r"'rows in=1' in .WORKFLOWS_METRICS is not name=integer"):
        bench.run("echo 'rows in=1' > $WORKFLOWS_METRICS")


# -- publishing ------------------------------------------------------------------------------------


def test_of_two_threads_that_publish_a_key_one_wins_and_nothing_is_replaced(bench: Bench) -> None:
    for number in range(20):
        start = threading.Barrier(2)

        def publish(text: str, number: int = number, start: threading.Barrier = start) -> None:
            tmp = bench.path / f"{text}{number}"
            tmp.write_text(text)
            start.wait()
            record = {"key": "k", "id": f"i{number}", "bytes": 1, "crc": checksum(str(tmp))}
            bench.storage.publish("S", str(tmp), record)

        threads = [threading.Thread(target=publish, args=(text,)) for text in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        lines = [r for r in bench.storage.ledger("S").history() if r["id"] == f"i{number}"]
        assert len(lines) == 1
        path = bench.storage.path("S", f"i{number}", "k")
        assert checksum(path) == lines[0]["crc"]
        assert not (bench.path / f"a{number}").exists()
        assert not (bench.path / f"b{number}").exists()


PUBLISHER = """
import sys
from workflows.node.files import checksum
from workflows.node.storage import Storage

root, text = sys.argv[1:]
storage = Storage(root)
for number in range(20):
    tmp = f"{storage.tmp}/{number}"
    with open(tmp, "w") as file:
        file.write(text)
    record = {"key": "k", "id": f"i{number}", "bytes": 1, "crc": checksum(tmp), "by": text}
    print("ready", flush=True)
    sys.stdin.readline()
    print(storage.publish("S", tmp, record)["by"], flush=True)
storage.close()
"""


def test_of_two_processes_that_publish_a_key_one_wins_and_both_are_told_which(
    bench: Bench,
) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", PUBLISHER, bench.storage.root, text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for text in "ab"
    ]

    told = []
    for _ in range(20):
        for racer in racers:
            assert _line(racer) == "ready"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("\n")
            racer.stdin.flush()
        told.append([_line(racer) for racer in racers])
    for racer in racers:
        racer.communicate(timeout=20)

    lines = {record["id"]: record["by"] for record in bench.storage.ledger("S").history()}
    assert [both[0] for both in told] == [both[1] for both in told] == list(lines.values())
    assert len(bench.storage.ledger("S").history()) == 20
    for identity, by in lines.items():
        assert pathlib.Path(bench.storage.path("S", identity, "k")).read_text() == by


def _line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_file_without_its_ledger_line_is_not_done_and_makes_room(bench: Bench) -> None:
    bench.output().parent.mkdir(parents=True)
    bench.output().write_text("left by a run that died")

    listed = bench.storage.listing("S0")
    bench.run("echo new")

    assert listed == {}
    assert bench.output().read_bytes() == b"new\n"


@pytest.mark.parametrize("damage", ["gone", "shorter", "longer"])
def test_a_ledger_line_whose_file_does_not_agree_is_not_done(bench: Bench, damage: str) -> None:
    record = bench.run("echo abc")
    was_done = bench.storage.is_done("S0", record["id"])

    bench.output().chmod(0o644)
    if damage == "gone":
        bench.output().unlink()
    else:
        bench.output().write_text("abcde\n"[-3 if damage == "shorter" else 0 :])

    assert was_done
    assert not bench.storage.is_done("S0", record["id"])
    assert bench.storage.listing("S0") == {}


def test_a_torn_last_line_of_a_ledger_costs_that_key_alone(bench: Bench) -> None:
    bench.run("echo 1", bench.put("one", b""))
    bench.run("echo 2", bench.put("two", b""))
    path = pathlib.Path(bench.storage.ledger("S0").path)
    path.write_bytes(path.read_bytes()[:-20])

    storage = Storage(str(bench.path / "node"))
    listed = storage.listing("S0")
    bench.run("echo 2", bench.put("two", b""))

    assert list(listed) == [bench.identity("one")]
    assert set(storage.listing("S0")) == {bench.identity("one"), bench.identity("two")}
    storage.close()


# -- the runtime -----------------------------------------------------------------------------------


@contextlib.contextmanager
def runtime(root: pathlib.Path, slots: int = 2) -> Iterator[Channel]:
    """Start a node's runtime as a run does, and talk to it."""
    node = LocalNode(0, 1, slots, str(root))
    node.start()
    channel = Channel(node)
    try:
        yield channel
    finally:
        channel.close()
        node.close()


def asked(command: str, *names: str, mode: str = "map", **env: str) -> Event:
    """Return the message that runs a command over keys that read a source."""
    stage = {"step": "S", "command": command, "files": {}, "laws": [], "timeout_s": 0}
    work = {"step": "S", "mode": mode, "spec": "s", "env": env, "stages": [stage]}
    source = {"url": "nowhere", "bytes": 0, "id": "source", "was": ["nowhere", 0, "etag"]}
    keys = [{"key": n, "id": digest_of(n), "inputs": [], "source": source} for n in names]
    return {"op": "run", "work": work, "keys": keys}


def outcome(channel: Channel, message: Event) -> dict[str, Event]:
    """Run a message to its end; return key -> event."""
    return {e["key"]: e for e in channel.ask(message, "ran") if "key" in e}


def test_two_keys_that_write_the_same_name_at_once_do_not_meet(tmp_path: pathlib.Path) -> None:
    for name in ("to_a", "to_b"):
        os.mkfifo(tmp_path / name)
    command = f"""
      echo "$WORKFLOWS_KEY" > x
      if [[ $WORKFLOWS_KEY == a ]]; then echo > {tmp_path}/to_b; read -r < {tmp_path}/to_a
      else read -r < {tmp_path}/to_b; echo > {tmp_path}/to_a; fi
      cat ./x
    """

    with runtime(tmp_path) as channel:
        outcome(channel, asked(command, "a", "b"))
        read = {n: b"".join(channel.read("S", digest_of(n), n)) for n in ("a", "b")}

    assert read == {"a": b"a\n", "b": b"b\n"}


def test_one_bad_key_costs_no_other_key_anything(tmp_path: pathlib.Path) -> None:
    names = [f"k{n}" for n in range(24)]

    with runtime(tmp_path) as channel:
        events = outcome(channel, asked("[[ $WORKFLOWS_KEY != k5 ]]; echo $filename", *names))
        again = outcome(channel, asked("echo it runs only what is missing", *names))

    assert [name for name, event in events.items() if event["event"] == "failed"] == ["k5"]
    assert set(events) == set(names)
    assert list(again) == ["k5"]


def test_two_runs_that_make_the_same_key_at_once_keep_the_first_one_published(
    tmp_path: pathlib.Path,
) -> None:
    fifos = {run: tmp_path / run for run in ("one", "two")}
    for fifo in fifos.values():
        os.mkfifo(fifo)
    command = f"cat {tmp_path}/$WORKFLOWS_RUN; echo $WORKFLOWS_RUN"
    said: dict[str, Event] = {}

    with runtime(tmp_path / "n") as one, runtime(tmp_path / "n") as two:
        threads = []
        for name, channel in (("one", one), ("two", two)):
            message = asked(command, "key", WORKFLOWS_RUN=name)

            def ask(name: str = name, channel: Channel = channel, message: Event = message) -> None:
                said[name] = outcome(channel, message)["key"]

            threads.append(threading.Thread(target=ask))
            threads[-1].start()
        with open(fifos["one"], "wb"):
            with open(fifos["two"], "wb"):
                pass  # both commands run by now: opening waits for the other end
            threads[1].join()
        threads[0].join()
        read = b"".join(two.read("S", digest_of("key"), "key"))

    assert read == b"two\n"
    assert said["one"]["event"] == said["two"]["event"] == "done"
    ledger = (tmp_path / "n/0/ledger/S.jsonl").read_text().splitlines()
    assert len(ledger) == 1


def test_when_the_driver_goes_away_its_commands_are_killed(tmp_path: pathlib.Path) -> None:
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)

    with runtime(tmp_path / "n") as channel:
        message = asked(f"exec > {fifo}; echo up; exec sleep 1000", "key")
        started = next(channel.ask(message, "ran"))
        with open(fifo, "rb") as alive:
            up = alive.readline()
            channel.close()
            rest = alive.read()

    assert started["todo"] == 1
    assert (up, rest) == (b"up\n", b"")


def test_the_driver_is_told_of_a_key_without_what_may_be_long(tmp_path: pathlib.Path) -> None:
    with runtime(tmp_path) as channel:
        told = outcome(channel, asked("echo > x; echo x", "a", mode="to_n"))["a"]
        message = {"op": "records", "step": "S", "ids": [told["id"]]}
        (record,) = channel.one(message, "records")["records"]

    assert [name for name, _, _ in record["pieces"]] == ["x"]
    assert set(record) - set(told) == {"inputs", "totals", "pieces"}
