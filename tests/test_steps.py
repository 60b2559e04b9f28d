"""Steps of a user's own module, run by Luigi: the maps, failing keys, reruns, checkpoints."""

import re
import shlex
import shutil
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Done, Place

MAPS = """
from workflows.steps import Map, MapFromN, MapToN


class Inputs(Map):
    command = 'cat "$(cat)"'


class Mapped(Map):
    upstream = Inputs
    command = "sed s/input/output/"


class Shuffled(MapToN):
    upstream = Inputs
    command = '''
        cat > content
        for i in {2..3}; do
            file=$(printf "%03d" $i)_machine$i
            echo "$(cat content)$i" > $file
            echo $file
        done
    '''


class Merged(MapFromN):
    upstream = Shuffled
    command = "xargs cat"


class After(Map):
    upstream = Merged
    command = "rev"


class Last(Map):
    upstream = After
    command = "cat"
"""


def machines(place: "Place") -> None:
    place.key("000_machine0", b"input_a\n")
    place.key("001_machine1", b"input_b\n")


def slots(place: "Place", step: str) -> dict[str, int]:
    return {line["key"]: line["slot"] for line in place.ledger(step) if "gone" not in line}


def ran(place: "Place", before: dict[str, int]) -> dict[str, int]:
    """Return step -> number of keys that were done since `before`."""
    now = done(place)
    return {step: now[step] - before.get(step, 0) for step in now if now[step] != before.get(step)}


# It fails only where it is tried again.
SHOWS = """
from workflows.steps import Map


class Fetch(Map):
    command = 'cat "$(cat)"'


class Shown(Map):
    upstream = Fetch
    files = ("shipped.txt",)
    command = '''echo "$filename $WORKFLOWS_STEP $WORKFLOWS_KEY"; tr a-z A-Z; cat shipped.txt
        echo "${PYTHONPATH-no PYTHONPATH}"
        echo n=1 > "$WORKFLOWS_METRICS"; echo said >&2; [[ ${WORKFLOWS_RUN-} ]] || exit 3'''
"""
LAWFUL = """
from workflows.steps import Map


class Fetch(Map):
    command = 'cat "$(cat)"'


class Short(Map):
    upstream = Fetch
    command = "head -c 1"
    %s
"""


def done(place: "Place") -> dict[str, int]:
    """Return step -> number of ledger lines of keys that were done."""
    names = {path.stem for path in (place.state / "nodes").glob("*/ledger/*.jsonl")}
    return {
        name: len([line for line in place.ledger(name) if "gone" not in line])
        for name in names
        if not name.endswith(".pieces")
    }


def drop_nodes(place: "Place") -> None:
    shutil.rmtree(place.state / "nodes")


def no_traceback(done: "Done") -> bool:
    return "Traceback" not in done.err + done.out


# -- the three maps --------------------------------------------------------------------------------


def test_a_map_keeps_each_key_on_its_node_under_its_name(place: "Place") -> None:
    place.module(MAPS)
    machines(place)

    done = place.luigi("Mapped")

    assert done.code == 0, done
    assert place.outputs("Mapped") == {"000_machine0": b"output_a\n", "001_machine1": b"output_b\n"}
    assert slots(place, "Mapped") == {"000_machine0": 0, "001_machine1": 1}


def test_files_of_a_map_to_n_become_keys_on_the_nodes_that_own_their_names(place: "Place") -> None:
    place.module(MAPS)
    machines(place)

    done = place.luigi("Shuffled", "--fleet", "local:4")

    assert done.code == 0, done
    assert place.outputs("Shuffled.pieces") == {
        "000_machine0/002_machine2": b"input_a2\n",
        "000_machine0/003_machine3": b"input_a3\n",
        "001_machine1/002_machine2": b"input_b2\n",
        "001_machine1/003_machine3": b"input_b3\n",
    }
    assert slots(place, "Shuffled.pieces") == {
        "000_machine0/002_machine2": 2,
        "000_machine0/003_machine3": 3,
        "001_machine1/002_machine2": 2,
        "001_machine1/003_machine3": 3,
    }


def test_a_map_from_n_merges_keys_of_one_name_and_maps_may_follow(place: "Place") -> None:
    place.module(MAPS)
    machines(place)

    done = place.luigi("Last", "--fleet", "local:4", "--fuse")

    assert done.code == 0, done
    assert place.outputs("Merged") == {
        "002_machine2": b"input_a2\ninput_b2\n",
        "003_machine3": b"input_a3\ninput_b3\n",
    }
    assert place.outputs("Last") == {
        "002_machine2": b"2a_tupni\n2b_tupni\n",
        "003_machine3": b"3a_tupni\n3b_tupni\n",
    }
    assert place.leftovers() == []


def test_the_number_of_nodes_changes_nothing_but_places(place: "Place") -> None:
    place.module(MAPS)
    machines(place)
    results = []

    for nodes in ("1", "2", "5"):
        done = place.luigi("Last", "--fleet", f"local:{nodes}", "--checkpoint", nodes)
        assert done.code == 0, done
        results.append(place.outputs("Last"))
        drop_nodes(place)

    assert results[0] == results[1] == results[2] != {}


def test_a_fleet_of_another_size_takes_over_where_the_old_one_stopped(place: "Place") -> None:
    place.module(MAPS)
    machines(place)
    place.key("002_machine2", b"input_c\n")
    first = place.luigi("Merged", "--fleet", "local:3")
    drop_nodes(place)

    done = place.luigi("Merged", "--fleet", "local:2")

    assert first.code == 0, first
    assert done.code == 0, done
    assert place.outputs("Merged")["002_machine2"] == b"input_a2\ninput_b2\ninput_c2\n"


def test_equal_basenames_and_numeric_prefixes_of_nested_keys_merge(place: "Place") -> None:
    place.module(
        """
from workflows.steps import Map, MapFromN, Prefix


class Inputs(Map):
    command = 'cat "$(cat)"'


class Merged(MapFromN):
    upstream = Inputs
    command = "xargs cat"
    gather = Prefix()
"""
    )
    for name in ("a/results", "b/c/results", "results", "may/000_rides", "jun/0_fares", "7_x", "y"):
        place.key(name, name.encode() + b"\n")

    done = place.luigi("Merged")

    assert done.code == 0, done
    assert place.outputs("Inputs").keys() >= {"a/results", "b/c/results", "may/000_rides"}
    assert place.outputs("Merged") == {
        "results": b"a/results\nb/c/results\nresults\n",
        "000": b"jun/0_fares\nmay/000_rides\n",
        "7_x": b"7_x\n",
        "y": b"y\n",
    }


def test_a_map_to_n_that_makes_nothing_at_all_is_done(place: "Place") -> None:
    place.module(MAPS.replace("echo $file", "rm $file").replace("done", "done; rm content"))
    machines(place)

    done = place.luigi("Last")
    again = place.luigi("Last")

    assert done.code == 0, done
    assert place.outputs("Merged") == {}
    assert again.code == 0, again


# -- a failing key ---------------------------------------------------------------------------------

FAILS = """
from workflows.steps import Map, MapFromN, MapToN


class Fetch(Map):
    command = 'cat "$(cat)"'


class Check(Map):
    upstream = Fetch
    command = '''
        cat
        if [[ -e "$(< %s)/$filename" ]]; then echo "cannot read $filename" >&2; exit 17; fi
    '''


class Length(Map):
    upstream = Check
    command = "wc -c"


class All(MapToN):
    upstream = Length
    command = "cat > all; echo all"


class Total(MapFromN):
    upstream = All
    command = "xargs cat | paste -sd+ | bc"
"""


def test_one_failing_key_costs_nothing_but_itself_and_mending_it_runs_nothing_else(
    place: "Place",
) -> None:
    where = place.path / "where"
    where.write_text(str(place.path))
    place.module(FAILS.replace("%s", str(where)).replace("paste -sd+ | bc", "wc -l"))
    names = [f"month {n}.csv" for n in range(24)]
    for name in names:
        place.key(name, name.encode() + b"\n")
    bad = place.path / "month 7.csv"
    bad.touch()

    failed = place.luigi("Total")

    assert failed.code == 30, failed
    assert no_traceback(failed)
    assert re.search(r"^    cannot read month 7\.csv$", failed.err, re.MULTILINE)
    assert re.search(r"Check of month 7\.csv on node \d: exited 17", failed.err)
    assert set(place.outputs("Check")) == set(names) - {"month 7.csv"}
    assert set(place.outputs("Length")) == set(names) - {"month 7.csv"}
    assert place.leftovers() == []

    line = re.search(r"^ *to see it again: workflows (repro .*)$", failed.err, re.MULTILINE)
    assert line is not None
    repro = place.run("workflows", *shlex.split(line[1]))

    assert repro.code == 17, repro
    assert repro.out == "month 7.csv\n"
    assert "cannot read month 7.csv\n" in repro.err

    before = done(place)
    again = place.luigi("Total")

    assert again.code == 30, again
    assert ran(place, before) == {}

    bad.unlink()
    mended = place.luigi("Total")

    assert mended.code == 0, mended
    assert ran(place, before) == {"Check": 1, "Length": 1, "All": 1, "Total": 1}
    assert place.outputs("Total") == {"all": b"24\n"}


def test_repro_prints_a_line_to_type_only_if_its_directory_is_kept(place: "Place") -> None:
    place.module(SHOWS)
    place.key("a b", b"one\n")
    (place.path / "shipped.txt").write_text("with it\n")
    assert place.luigi("Shown").code == 0

    plain = place.run("workflows", "repro", "Shown", "a b")
    kept = place.run("workflows", "repro", "Shown", "a b", "--keep")
    line = re.search(r"^kept: (.+); to run it again there: (bash .+)$", kept.err, re.MULTILINE)
    assert line is not None, kept
    typed = subprocess.run(
        ["bash", "-c", line[2]], cwd="/", env=place.environ, capture_output=True, text=True
    )
    shutil.rmtree(line[1])

    assert (plain.code, plain.err) == (3, "said\nShown of a b: exited 3\n")
    assert (typed.returncode, typed.stdout, typed.stderr) == (3, plain.out, "said\n")
    assert plain.out == "a b Shown a b\nONE\nwith it\nno PYTHONPATH\n"


def test_a_law_that_is_added_is_not_checked_of_what_is_done_until_that_is_removed(
    place: "Place",
) -> None:
    place.module(LAWFUL % "")
    place.key("a", b"one\n")
    assert place.luigi("Short").code == 0
    place.module(LAWFUL % 'laws = ("bytes_out = bytes_in",)')

    done_already = place.luigi("Short")
    removed = place.run("workflows", "rm", "-r", "Short")
    again = place.luigi("Short")

    assert (done_already.code, removed.code, again.code) == (0, 0, 30), again
    assert "law broken: bytes_out = bytes_in" in again.err


def test_a_key_that_fails_in_a_pipe_is_blamed_on_its_own_step(place: "Place") -> None:
    where = place.path / "where"
    where.write_text(str(place.path))
    place.module(FAILS.replace("%s", str(where)))
    for name in ("good", "bad"):
        place.key(name, b"x\n")
    (place.path / "bad").touch()

    failed = place.luigi("Length", "--fuse")
    line = re.search(r"workflows (repro .*)$", failed.err, re.MULTILINE)
    assert line is not None
    repro = place.run("workflows", *shlex.split(line[1]))

    assert failed.code == 30, failed
    assert "Check of bad on node" in failed.err
    assert place.outputs("Length") == {"good": b"2\n"}
    assert (repro.code, repro.out) == (17, "x\n"), repro


def test_a_step_with_a_timeout_fails_the_key_that_takes_longer(place: "Place") -> None:
    place.module(
        """
from workflows.steps import Map


class Slow(Map):
    command = 'cat > /dev/null; if [[ $filename == slow ]]; then sleep 1000; fi'
    timeout_s = 0.5
"""
    )
    place.key("slow", b"")
    place.key("quick", b"")

    done = place.luigi("Slow")

    assert done.code == 30, done
    assert "Slow of slow on node" in done.err
    assert "timeout: ran longer than 0.5 s" in done.err
    assert set(place.outputs("Slow")) == {"quick"}


# -- what runs again -------------------------------------------------------------------------------

SCRIPTED = """
from workflows.steps import Map


class Fetch(Map):
    command = 'cat "$(cat)"'


class Shout(Map):
    upstream = Fetch
    command = "bash shout.sh"
    files = ("scripts/shout.sh",)


class Count(Map):
    upstream = Shout
    command = "wc -c"
"""


def scripted(place: "Place", script: str) -> None:
    place.module(SCRIPTED)
    (place.path / "scripts").mkdir(exist_ok=True)
    (place.path / "scripts/shout.sh").write_text(script)


def test_a_changed_script_runs_its_step_and_what_follows_and_overwrites_nothing(
    place: "Place",
) -> None:
    scripted(place, "tr a-z A-Z")
    place.key("a", b"a\n")
    place.key("b", b"b\n")
    place.luigi("Count")
    before = done(place)
    old = [place.output_path("Shout", line) for line in place.ledger("Shout")]

    scripted(place, "tr a-z A-Z; echo more")
    changed = place.luigi("Count")

    assert changed.code == 0, changed
    assert ran(place, before) == {"Shout": 2, "Count": 2}
    assert sorted(path.read_bytes() for path in old) == [b"A\n", b"B\n"]

    before = done(place)
    scripted(place, "tr a-z A-Z")
    back = place.luigi("Count")

    assert back.code == 0, back
    assert ran(place, before) == {}


def test_a_changed_command_runs_its_step_and_what_follows(place: "Place") -> None:
    scripted(place, "cat")
    place.key("a", b"a\n")
    place.luigi("Count")
    before = done(place)

    place.module(SCRIPTED.replace("wc -c", "wc -l"))
    plan = place.run(
        "workflows", "plan", "--module", "mine", "Count", "--source", "source", "--pattern", "*"
    )
    changed = place.luigi("Count")

    assert "1 changed command" in plan.out, plan
    assert "Shout" not in plan.out
    assert changed.code == 0, changed
    assert ran(place, before) == {"Count": 1}


def test_a_missing_script_is_named_before_anything_runs(place: "Place") -> None:
    place.module(SCRIPTED)
    place.key("a", b"a\n")

    run = place.luigi("Count")
    plan = place.run(
        "workflows", "plan", "--module", "mine", "Count", "--source", "source", "--pattern", "*"
    )

    assert (run.code, plan.code) == (35, 2), (run, plan)
    for done in (run, plan):
        assert "Shout ships scripts/shout.sh, but No such file or directory" in done.err
        assert no_traceback(done)
    assert place.ledger("Fetch") == []


DURABLE = """
from workflows.steps import Map, MapFromN


class Fetch(Map):
    command = 'cat "$(cat)"'


class Kept(Map):
    upstream = Fetch
    command = "tr a-z A-Z"
    durable = True


class Reversed(Map):
    upstream = Kept
    command = "rev"


class Counted(Map):
    upstream = Reversed
    command = "wc -c"
"""


def test_a_checkpoint_in_the_middle_is_brought_back_to_empty_nodes_and_not_made_again(
    place: "Place",
) -> None:
    place.module(DURABLE)
    for name in ("a", "b", "c"):
        place.key(name, name.encode() + b"\n")
    first = place.luigi("Counted")
    outputs = place.outputs("Reversed")
    drop_nodes(place)

    again = place.luigi("Counted")

    assert (first.code, again.code) == (0, 0), (first, again)
    assert place.ledger("Fetch") == []
    assert {"wall" in line for line in place.ledger("Kept")} == {False}
    assert place.outputs("Kept") == {"a": b"A\n", "b": b"B\n", "c": b"C\n"}
    assert place.outputs("Reversed") == outputs
    assert len(place.ledger("Counted")) == 3


def test_a_checkpoint_is_found_with_no_node_left_and_nothing_runs(place: "Place") -> None:
    place.module(DURABLE)
    place.key("a", b"a\n")
    place.luigi("Kept")
    drop_nodes(place)

    again = place.luigi("Kept")

    assert again.code == 0, again
    assert done(place) == {}


def test_a_damaged_checkpoint_is_not_brought_back_as_if_it_were_whole(place: "Place") -> None:
    place.module(DURABLE)
    place.key("a", b"a\n")
    place.luigi("Kept")
    drop_nodes(place)
    part = next(path for path in place.checkpoint.glob("Kept/*/data/*/a"))
    part.chmod(0o644)
    part.write_bytes(b"X\n")

    again = place.luigi("Counted")

    assert again.code == 30, again
    assert "Kept of a on node" in again.err
    assert "damaged" in again.err
    assert no_traceback(again)
    assert place.outputs("Kept") == {}


def test_a_flag_overrules_a_switch_that_is_set_both_ways(place: "Place") -> None:
    place.module(MAPS)
    machines(place)

    fused = place.luigi("Mapped", "--fuse", WORKFLOWS_FUSE="false")
    unfused = place.luigi("Inputs", "--fuse", "false", WORKFLOWS_FUSE="true")

    assert "Mapped (fused)" in fused.err
    assert (unfused.code, "(fused)" in unfused.err, len(place.outputs("Inputs"))) == (0, False, 2)
