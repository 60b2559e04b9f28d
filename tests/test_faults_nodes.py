"""What is left of a node's directory when something in it breaks, or all of it goes."""

import json
import pathlib
import shutil

import pytest
from faults import Trial, runtime, until

from workflows.errors import WorkflowsError


def test_a_local_node_whose_directory_goes_within_a_run_is_made_again(trial: Trial) -> None:
    trial.gated(1)
    run = trial.start("Copy", "--fleet", "local:1")
    until(trial.started, "the command runs")

    shutil.rmtree(trial.place.state / "nodes")
    trial.open()
    run.wait()

    assert run.succeeded(), run.err
    assert "Traceback" not in run.err, run.err
    assert trial.place.outputs("Copy") == {"0_key": b"text\n"}


def test_a_local_node_whose_directory_cannot_be_made_again_is_refused(trial: Trial) -> None:
    trial.gated(1)
    run = trial.start("Copy", "--fleet", "local:1")
    until(trial.started, "the command runs")

    shutil.rmtree(trial.place.state / "nodes")
    (trial.place.state / "nodes").write_text("in the way")
    trial.open()
    run.wait()

    assert not run.succeeded()
    assert "node 0 cannot work: Not a directory" in run.err
    assert "Traceback" not in run.err, run.err


def test_fsck_says_what_a_node_cannot_read_and_ends(tmp_path: pathlib.Path) -> None:
    with runtime(tmp_path) as (_, channel):
        (tmp_path / "0" / "ledger" / "Step.jsonl").mkdir()

        with pytest.raises(WorkflowsError, match=r"node 0: IsADirectoryError: .*Step\.jsonl"):
            channel.one({"op": "check", "steps": []}, "checked")
        assert channel.one({"op": "list", "steps": []}, "listing")["steps"] == {}


def test_a_key_whose_ledger_line_has_no_checksum_is_damaged(tmp_path: pathlib.Path) -> None:
    with runtime(tmp_path) as (_, channel):
        output = tmp_path / "0" / "data" / "Step" / "1" / "a"
        output.parent.mkdir(parents=True)
        output.write_bytes(b"text\n")
        line = json.dumps({"id": "1", "key": "a", "bytes": 5}) + "\n"
        (tmp_path / "0" / "ledger" / "Step.jsonl").write_text(line)

        bad, checked = channel.ask({"op": "check", "steps": []}, "checked")

    assert (bad["key"], bad["why"]) == ("a", "its ledger line has no checksum")
    assert checked["keys"] == 1
