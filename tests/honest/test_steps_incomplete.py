"""A typed map does not work on what there happens to be of another one that has not ended well."""

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Keys

FAILING = "case $filename in 00[14]*) exit 9;; esac; cat > all; echo all"


def total(keys: "Keys", source: str = "out/") -> tuple[int, str]:
    done = keys.run("map-from-n", source, "total/", "xargs cat | wc -l")
    return done.code, done.err


def test_after_a_failed_map_to_n_a_map_from_n_is_refused_until_it_is_run_again(
    six: "Keys",
) -> None:
    failed = six.run("map-to-n", "in/", "out/", FAILING)

    code, err = total(six)

    assert (failed.code, code) == (1, 2), (failed, err)
    assert "out/ is not complete: 2 of 6 keys are missing (out/001_f1, out/004_f4)" in err
    assert f"Run it again: workflows map-to-n in/ out/ '{FAILING}'\n" in err
    assert "workflows rm -r out/" in err
    assert six.run("map", "out/", "copy/", "cat").code == 2
    six.ok("map-to-n", "in/", "out/", "cat > all; echo all")
    assert total(six)[0] == 0
    assert six.read("total/all") == "12\n"


def test_after_a_killed_map_to_n_a_map_from_n_is_refused_too(six: "Keys") -> None:
    mark = six.place.path / "begun"
    process = six.start("map-to-n", "in/", "out/", f"touch {mark}; sleep 300; cat > all; echo all")
    deadline = time.monotonic() + 60
    while not mark.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    six.give("out", kall="an older one\n")

    code, err = total(six)

    assert code == 2, err
    assert "out/ is not complete: 6 of 6 keys are missing" in err


def test_a_map_to_n_that_was_killed_as_it_delivered_is_not_complete(six: "Keys") -> None:
    six.run("map-to-n", "in/", "out/", FAILING)
    command = "cat > $filename.all; echo $filename.all"
    six.ok("rm", "-r", "out/")
    six.run("map-to-n", "in/", "out/", f"{command}; exit 3")
    (note,) = six.nodes.glob("*/notes/*")
    text = note.read_text()
    six.ok("map-to-n", "in/", "out/", command)
    assert not note.exists()
    # As if it had been killed in the middle, its note and all that one node got are put back.
    note.write_text(text)
    for path in six.nodes.glob("1/ledger/out.pieces.jsonl"):
        path.unlink()

    code, err = total(six)
    again = six.run("map-to-n", "in/", "out/", command)

    assert code == 2, err
    assert "out/ is not complete: 2 of 6 keys have files that are not delivered (out/00" in err
    assert again.code == 0, again
    assert total(six)[0] == 0


def test_a_note_that_outlived_its_map_is_no_obstacle(six: "Keys") -> None:
    six.run("map-to-n", "in/", "out/", FAILING)
    (note,) = six.nodes.glob("*/notes/*")
    text = note.read_text()
    six.ok("map-to-n", "in/", "out/", "cat > all; echo all")
    note.write_text(text)

    code, err = total(six)

    assert code == 0, err
    assert not note.exists()


@pytest.mark.parametrize("verb", ["map", "map-from-n"])
def test_a_failed_map_of_another_kind_is_known_too(six: "Keys", verb: str) -> None:
    cat = "cat" if verb == "map" else "xargs cat"
    failing = f"f={{}}; read -r f; case $WORKFLOWS_KEY in 001*) exit 9;; esac; {cat} || true"
    failed = six.run(verb, "in/", "out/", failing)

    code, err = total(six)
    others, said = total(six, "out/00[23]_*")

    assert (failed.code, code) == (1, 2), (failed, err)
    assert f"missing (out/001_f1): the {verb} that makes them failed" in err
    assert others == 0, said


def test_what_was_removed_and_inputs_that_were_taken_away_are_missed_no_longer(
    six: "Keys",
) -> None:
    failing = "case $filename in 001*) exit 9;; esac; cat"
    six.run("map", "in/", "out/", failing)
    six.run("map", "in/", "other/", failing)

    six.ok("rm", "-r", "other/")
    six.ok("map", "in/00[23]_*", "other/", "cat")
    six.ok("rm", "in/001_f1")
    six.ok("map", "in/", "out/", failing)

    assert total(six, "other/")[0] == 0
    six.ok("rm", "-r", "total/")
    assert total(six)[0] == 0
