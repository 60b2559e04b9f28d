"""Settings: where they come from, which one wins, and what is said of a bad one."""

import pathlib

import pytest

from workflows.config import Settings, parse, settings
from workflows.errors import ConfigError


def test_without_any_setting_the_samples_run_on_this_machine() -> None:
    chosen = parse({}, {})

    assert chosen == Settings()
    assert (chosen.source, chosen.fleet) == ("samples/taxi", "local:3")


def test_the_environment_beats_luigi_cfg() -> None:
    chosen = parse({"fleet": {"spec": "local:3"}}, {"WORKFLOWS_FLEET": "local:5"})

    assert chosen.fleet == "local:5"


def test_sections_of_luigi_and_of_others_are_left_alone() -> None:
    assert parse({"core": {"workers": "many"}, "mine": {"slots": "x"}}, {}) == Settings()


@pytest.mark.parametrize(("text", "value"), [("true", True), ("Yes", True), ("0", False)])
def test_a_switch_is_read_as_people_write_it(text: str, value: bool) -> None:
    assert parse({"run": {"fuse": text}}, {}).fuse is value


@pytest.mark.parametrize(
    ("section", "key", "text", "why"),
    [
        ("node", "slots", "many", "must be a whole number"),
        ("node", "slots", "1.5", "must be a whole number"),
        ("node", "slots", "-1", "must be at least 0"),
        ("node", "silence", "0.5", "must be at least 1"),
        ("s3", "signature", "604801", "must be at most 604800"),
        ("node", "timeout", "soon", "must be a number"),
        ("node", "timeout", "nan", "must be a number"),
        ("node", "timeout", "inf", "must be a number"),
        ("run", "fuse", "maybe", "must be true or false"),
        ("run", "shards", "0", "must be at least 1"),
        ("run", "deadline", "soon", "must be a duration: 90, 90s, 30m, 2h or 1d"),
        ("run", "retries", "", "must be a whole number"),
    ],
)
def test_a_bad_value_is_named_with_its_section_and_what_it_must_be(
    section: str, key: str, text: str, why: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse({section: {key: text}}, {})

    assert f"[{section}] {key} = {text}: " in str(caught.value)
    assert why in str(caught.value)


def test_an_unknown_key_is_an_error_that_offers_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match=r"\[node\] slot: .* did you mean 'slots'\?"):
        parse({"node": {"slot": "3"}}, {})


@pytest.mark.parametrize(("text", "kind"), [("yes", "zstd"), ("false", "none"), ("gzip", "gzip")])
def test_compression_that_is_asked_for_without_a_name_is_zstd(text: str, kind: str) -> None:
    assert parse({"s3": {"compress": text}}, {}).s3_compress == kind


def test_an_unknown_variable_of_s3_is_an_error_that_offers_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'WORKFLOWS_S3_SIGNATURE_S'\?"):
        parse({}, {"WORKFLOWS_S3_SIGNATURE": "60"})
    assert parse({}, {"WORKFLOWS_LOG": "x", "MY_WORKFLOWS_S3_X": "y"}) == parse({}, {})


def test_all_bad_settings_are_reported_together() -> None:
    sections = {"node": {"slots": "x", "timeout": "y"}, "run": {"retry": "1"}}

    with pytest.raises(ConfigError) as caught:
        parse(sections, {"WORKFLOWS_SHARDS": "none"})

    assert len(caught.value.problems) == 4
    assert "WORKFLOWS_SHARDS = none" in str(caught.value)


def test_an_endpoint_without_its_scheme_is_an_error_that_says_so() -> None:
    with pytest.raises(ConfigError, match=r"endpoint_url = 127\.0\.0\.1:8333: must begin"):
        parse({"s3": {"endpoint_url": "127.0.0.1:8333"}}, {})


def test_a_percent_sign_and_a_space_in_a_value_are_kept(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "luigi.cfg").write_text("[source]\nurl = trip data/100%/$(x)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LUIGI_CONFIG_PATH", raising=False)
    settings.cache_clear()

    chosen = settings()

    settings.cache_clear()
    assert chosen.source == "trip data/100%/$(x)"


def test_a_file_that_is_no_configuration_is_one_error(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "luigi.cfg").write_text("workers = 8\n")
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()

    with pytest.raises(ConfigError, match=r"luigi\.cfg"):
        settings()

    settings.cache_clear()
