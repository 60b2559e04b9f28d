"""Whatever is misspelt is refused with a code that is not 0, and with the word that was meant."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from workflows import cli, config
from workflows.config import Settings, parse
from workflows.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    import pathlib

    from conftest import Place


KEPT = """
from workflows.steps import Map


class Kept(Map):
    command = "xargs cat"
    durable = True
"""


@pytest.fixture
def here(tmp_path: "pathlib.Path", monkeypatch: pytest.MonkeyPatch) -> "Iterator[pathlib.Path]":
    """Run verbs of this process in an empty directory, with no settings but their defaults."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("WORKFLOWS_", "LUIGI_"))]:
        monkeypatch.delenv(name)
    config.settings.cache_clear()
    yield tmp_path
    config.settings.cache_clear()


@pytest.mark.parametrize(
    ("line", "code", "meant"),
    [
        ("verfy", 2, "did you mean 'verify'?"),
        ("map-ton a/ b/ c", 2, "did you mean 'map-to-n'?"),
        ("ls --flet local:2", 2, "for --flet, did you mean --fleet?"),
        ("ls --flee local:2", 2, "for --flee, did you mean --fleet?"),
        ("exec --nod 1 true", 255, "for --nod, did you mean --node?"),
        ("eval a/b true --timout 3", 255, "for --timout, did you mean --timeout?"),
        ("fleet stauts x", 2, "did you mean 'status'?"),
        ("fleet status x --jsn", 2, "for --jsn, did you mean --json?"),
    ],
)
def test_a_misspelt_verb_action_or_option_is_answered_with_the_one_that_was_meant(
    here: "pathlib.Path", capfd: pytest.CaptureFixture[str], line: str, code: int, meant: str
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(line.split())

    assert left.value.code == code
    assert meant in capfd.readouterr().err
    assert os.listdir(here) == []


@pytest.mark.parametrize(
    ("spec", "meant"),
    [
        ("loca:3", "did you mean 'local:3'?"),
        ("shh:hosts.yaml", "did you mean 'ssh:hosts.yaml'?"),
        ("ec:crawl", "did you mean 'ec2:crawl'?"),
        ("local:x", "write local:N"),
    ],
)
def test_a_misspelt_kind_of_fleet_is_answered_with_the_one_that_was_meant(
    here: "pathlib.Path", capfd: pytest.CaptureFixture[str], spec: str, meant: str
) -> None:
    assert cli.main(["ls", "--fleet", spec]) == 2

    assert meant in capfd.readouterr().err
    assert os.listdir(here) == []


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("WORKFLOWS_SLOTZ", "did you mean 'WORKFLOWS_SLOTS'?"),
        ("WORKFLOWS_SLOT", "did you mean 'WORKFLOWS_SLOTS'?"),
        ("WORKFLOWS_TIMEOUT_", "did you mean 'WORKFLOWS_TIMEOUT_S'?"),
        ("WORKFLOWS_S3_SIGNATURE", "did you mean 'WORKFLOWS_S3_SIGNATURE_S'?"),
        ("WORKFLOWS_X", "rename it"),
    ],
)
def test_a_variable_that_is_no_setting_is_refused(name: str, meant: str) -> None:
    with pytest.raises(ConfigError, match="no such setting") as caught:
        parse({}, {name: "3"})

    assert f"{name}: " in str(caught.value)
    assert meant in str(caught.value)


def test_the_variables_that_our_own_processes_set_are_known() -> None:
    of_the_script = dict.fromkeys(
        [
            *("WORKFLOWS_LOG", "WORKFLOWS_TIMEOUT", "WORKFLOWS_NOTIFY", "WORKFLOWS_GRACE"),
            *("WORKFLOWS_EXIT", "WORKFLOWS_TASK", "WORKFLOWS_SECONDS"),
            *("WORKFLOWS_FETCH_ATTEMPTS", "WORKFLOWS_FETCH_BACKOFF_S"),
        ],
        "1",
    )
    of_a_command = dict.fromkeys(
        [
            *("WORKFLOWS_RUNTIME", "WORKFLOWS_SLOT", "WORKFLOWS_NODES", "WORKFLOWS_KEY"),
            *("WORKFLOWS_STEP", "WORKFLOWS_METRICS", "WORKFLOWS_ETAG", "WORKFLOWS_SIZE"),
            *("WORKFLOWS_RUN", "WORKFLOWS_ROOT"),
        ],
        "1",
    )

    assert parse({}, {**of_the_script, **of_a_command}) == Settings()


@pytest.mark.parametrize("section", ["nod", "nodes", "Node"])
def test_a_section_that_is_called_nearly_as_one_of_ours_and_has_its_keys_is_refused(
    section: str,
) -> None:
    with pytest.raises(ConfigError, match=rf"\[{section}\]: .* did you mean \[node\]"):
        parse({section: {"slots": "3"}}, {})
    with pytest.raises(ConfigError, match=r"\[node\] slotz: .* did you mean 'slots'"):
        parse({"node": {"slotz": "3"}}, {})


def test_sections_of_luigi_and_of_tasks_are_none_of_ours() -> None:
    sections = {
        "core": {"workers": "8", "local_scheduler": "true"},
        "worker": {"timeout": "0", "retries": "2"},
        "scheduler": {"retry_delay": "1"},
        "Runs": {"date": "x"},
        "nodes": {"colour": "red"},
        "ec2 crawl": {"nodes": "3"},
    }

    assert parse(sections, {}) == Settings()


def test_a_misspelt_step_task_run_or_parameter_is_answered_with_the_one_that_was_meant(
    taxi: "Place",
) -> None:
    assert taxi.luigi("MergeCounts", module="workflows.tasks").code == 0
    (run,) = os.listdir(taxi.state / "runs")

    for words, meant in (
        (("fsck", "Selec"), "no node of local:3 has a step 'Selec'; did you mean 'Select'?"),
        (("fsck", "Nothing", "Fetch"), "has a step 'Nothing'; there are Fetch, GroupCount"),
        (("results", "MergeCount"), "did you mean 'MergeCounts'?"),
        (("results", "Nothing"), "Nothing has no result"),
        (("results", "--tpo", "3"), "for --tpo, did you mean --to?"),
        (("report", run[:-1]), f"did you mean '{run}'?"),
        (("plan", "MergeCount"), "workflows.tasks has no step 'MergeCount'; did you mean 'MergeC"),
        (("plan", "tasks.Sum"), "no step 'tasks.Sum'; there are Fetch, GroupCount, MergeCounts, "),
        (("plan", "--source", "x", "Select"), "the parameters of a task follow its name"),
        (("plan", "MergeCounts", "--sorce", "x"), "no --sorce; did you mean '--source'?"),
        (("gc", "MergeCount"), "MergeCounts"),
        (("repro", "Slect", "x"), "did you mean 'Select'?"),
        (("why", str(taxi.checkpoint / "MergeCounts")), "workflows results"),
    ):
        done = taxi.run("workflows", *words)
        assert done.code == 2, done
        assert meant in done.err, done
        assert "Traceback" not in done.err
    whole = taxi.run("workflows", "fsck", "Shuffle", "Fetch")
    assert (whole.code, whole.out) == (0, "36 keys read, 0 damaged\n")


def test_why_says_what_it_compared_and_reads_the_bytes_if_asked(place: "Place") -> None:
    place.module(KEPT)
    place.key("k", b"abc")
    assert place.luigi("Kept").code == 0
    (done,) = place.checkpoint.glob("Kept/*/_SUCCESS")
    (data,) = place.checkpoint.glob("Kept/*/data/*/k")

    listed, read = (place.run("workflows", "why", str(done), *words) for words in ((), ("--read",)))
    assert (listed.code, read.code) == (0, 0)
    assert "1 of 1 are there; their sizes were compared, not their bytes" in listed.out
    assert "1 of 1 are there; their bytes were read" in read.out

    data.chmod(0o644)
    data.write_bytes(b"abd")

    listed, read = (place.run("workflows", "why", str(done), *words) for words in ((), ("--read",)))
    assert (listed.code, read.code) == (0, 1)
    assert "not their bytes (to read these: --read)" in listed.out
    assert "0 of 1 are there; their bytes were read" in read.out
    assert f"{data} is damaged" in read.out


def test_a_misspelt_ec2_fleet_is_answered_with_the_one_that_is_described(
    here: "pathlib.Path", capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from workflows.ec2_fleet import Ec2Fleet

    (here / "crawl.yaml").write_text("nodes: 2\n")
    (here / "hosts.yaml").write_text("hosts: [craw]\n")
    (here / "broken.yaml").write_text("{")
    monkeypatch.setattr(Ec2Fleet, "instances", lambda _: [])

    assert cli.main(["fleet", "down", "craw", "--yes"]) == 2

    assert "did you mean 'crawl'?" in capfd.readouterr().err


def test_what_was_meant_is_one_name_or_all_that_there_are() -> None:
    assert did_you_mean("Fech", ["Fetch", "Select"]) == "; did you mean 'Fetch'?"
    assert did_you_mean("x", [f"s{n:02d}" for n in range(15)]).endswith("s11 and 3 more")
