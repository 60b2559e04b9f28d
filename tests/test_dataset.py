"""Datasets: what a source is found to hold, and which slot each of its keys is placed on."""

import datetime as dt
import json
import os
import pathlib
import random
import time

import pytest
from rough_server import BODY, serving
from signed_urls import SignedObjects

from workflows.config import settings
from workflows.errors import KeyNameError, SourceError, UsageError
from workflows.model import SourceKey
from workflows.planning import dataset, source, sourceweb
from workflows.planning.dataset import load, place
from workflows.planning.source import list_source
from workflows.storage.store import DirectoryStore


def keys_of(sizes: list[int], name: str = "month-{:03d}.csv") -> list[SourceKey]:
    return [SourceKey(name.format(n), f"/in/{n}", size, "e") for n, size in enumerate(sizes)]


def loads_of(keys: list[SourceKey], placed: list[int], slots: int) -> list[int]:
    loads = [0] * slots
    for key, slot in zip(keys, placed, strict=True):
        loads[slot] += key.size or 0
    return loads


def sizes(count: int, seed: int) -> list[int]:
    chance = random.Random(seed)
    return [chance.randint(200_000, 3_000_000) for _ in range(count)]


# -- placing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 12])
@pytest.mark.parametrize("seed", range(3))
def test_no_slot_has_more_than_a_tenth_above_the_mean(slots: int, seed: int) -> None:
    keys = keys_of(sizes(144, seed))

    loads = loads_of(keys, place(keys, slots, {}), slots)

    assert max(loads) <= 1.1 * sum(loads) / slots


def test_one_giant_key_does_not_spread_the_others_unevenly() -> None:
    keys = keys_of([1000, *[10] * 30])

    loads = loads_of(keys, place(keys, 4, {}), 4)

    assert sorted(loads) == [100, 100, 100, 1000]


def test_empty_keys_and_keys_of_unknown_size_are_spread_too() -> None:
    keys = [SourceKey(f"k{n}", "", size, "") for n, size in enumerate([0] * 6 + [None] * 6)]

    placed = place(keys, 3, {})

    assert sorted(placed.count(slot) for slot in range(3)) == [4, 4, 4]


@pytest.mark.parametrize("slots", [3, 5, 30, 40])
def test_a_new_key_moves_no_other(slots: int) -> None:
    old = keys_of(sizes(36, seed=slots))
    before = {key.name: slot for key, slot in zip(old, place(old, slots, {}), strict=True)}
    new = SourceKey("a-new-month.csv", "/in/new", 1_500_000, "e")

    placed = place([new, *old], slots, before)

    assert dict(zip([key.name for key in old], placed[1:], strict=True)) == before


def test_keys_stay_where_they_were_only_as_long_as_that_is_even() -> None:
    keys = keys_of([100] * 40)
    before = {key.name: 0 for key in keys}

    loads = loads_of(keys, place(keys, 4, before), 4)

    assert max(loads) <= 1.1 * sum(loads) / 4


def test_a_slot_that_is_no_more_gives_its_keys_to_the_others() -> None:
    keys = keys_of([100] * 12)
    before = {key.name: n % 4 for n, key in enumerate(keys)}

    placed = place(keys, 3, before)

    assert set(placed) == {0, 1, 2}
    kept = [(before[key.name], slot) for key, slot in zip(keys, placed, strict=True)]
    assert all(now == then for then, now in kept if then < 3)


def test_a_numeric_prefix_beats_size_and_what_was_before() -> None:
    keys = [SourceKey(f"{n:03d}_x", "", 10**n, "") for n in range(6)]

    assert place(keys, 4, {key.name: 3 for key in keys}) == [0, 1, 2, 3, 0, 1]


def test_equal_basenames_are_placed_together() -> None:
    names = ["a/same.csv", "b/same.csv", "c/same.csv", "a/x", "b/y", "c/z", "z"]
    keys = [SourceKey(name, "", 100, "") for name in names]

    placed = place(keys, 3, {})

    assert len(set(placed[:3])) == 1
    assert placed[5] == placed[6]
    assert set(placed[3:]) == {0, 1, 2} - {placed[0]}


def test_a_listing_that_a_power_loss_emptied_is_made_again(tmp_path: pathlib.Path) -> None:
    source, store = tmp_path / "source", DirectoryStore(str(tmp_path / "store"))
    write(source, "a", "b", "c")
    whole = load(str(source), "*", 2, store)
    (kept,) = [pathlib.Path(store.locate(found.name)) for found in store.list("datasets")]
    text = kept.read_bytes()
    kept.unlink()
    kept.touch()

    assert load(str(source), "*", 2, store) == whole
    assert kept.read_bytes() == text
    write(source, "d")
    kept.unlink()
    kept.write_bytes(text[:20])
    assert len(load(str(source), "*", 2, store).keys) == 4


# -- listing ---------------------------------------------------------------------------------------


def write(folder: pathlib.Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode("utf-8", "surrogateescape"))


def test_a_directory_is_searched_below_and_hidden_files_are_left(tmp_path: pathlib.Path) -> None:
    write(tmp_path, "b.csv", "deep/er/a.csv", ".hidden", ".git/config", "deep/.tmp")

    found = list_source(str(tmp_path), "*")

    assert [key.name for key in found] == ["b.csv", "deep/er/a.csv"]
    assert [key.size for key in found] == [5, 13]
    assert all(os.path.isabs(key.url) for key in found)


def test_a_pattern_chooses_by_basename_or_by_whole_name(tmp_path: pathlib.Path) -> None:
    write(tmp_path, "2018/yellow_1.csv", "2018/green_1.csv", "2019/yellow_2.csv")

    assert len(list_source(str(tmp_path), "*yellow*")) == 2
    assert [k.name for k in list_source(str(tmp_path), "2019/*")] == ["2019/yellow_2.csv"]


def test_names_with_any_byte_are_listed_as_they_are(tmp_path: pathlib.Path) -> None:
    names = ["a b", "it's", 'q"', "100%;$(x)", "back\\", "-rf", "é", "\udcff", "#0", "[x]*"]
    write(tmp_path, *names)

    assert [key.name for key in list_source(str(tmp_path), "*")] == sorted(names)


def test_a_name_with_a_newline_is_refused_by_name(tmp_path: pathlib.Path) -> None:
    write(tmp_path, "a\nb")

    with pytest.raises(KeyNameError, match=r"'a\\nb' cannot be a key"):
        list_source(str(tmp_path), "*")


def test_a_file_that_lists_paths_is_a_source(tmp_path: pathlib.Path) -> None:
    write(tmp_path, "data/it's 1.csv", "data/2.csv")
    listing = tmp_path / "list.txt"
    listing.write_text(f"# months\ndata/it's 1.csv\r\n\n{tmp_path}/data/2.csv\n")

    found = list_source(str(listing), "*")

    assert [key.name for key in found] == ["2.csv", "it's 1.csv"]
    assert {key.url for key in found} == {str(tmp_path / "data" / key.name) for key in found}


def test_what_is_kept_in_the_source_itself_is_no_source(tmp_path: pathlib.Path) -> None:
    write(tmp_path, "in/a.csv", "in/results/Last/1/data/x", "in/results2/b.csv")
    store = DirectoryStore(str(tmp_path / "in/results"))

    found = load(str(tmp_path / "in"), "*", 1, store)

    assert [key.name for key in found.keys] == ["a.csv", "results2/b.csv"]
    assert load(str(tmp_path / "in"), "*", 1, store) == found, "nor is what the first call kept"
    names = [key.name for key in list_source(str(tmp_path / "in/results/Last"), "*", store.url)]
    assert names == ["1/data/x"], "what is kept may be a source of its own"


def test_a_source_that_is_the_checkpoint_is_refused(tmp_path: pathlib.Path) -> None:
    write(tmp_path, "in/a.csv")
    (tmp_path / "link").symlink_to(tmp_path / "in")

    for name in ("in", "link"):
        with pytest.raises(UsageError, match="is the source and the checkpoint"):
            load(str(tmp_path / name), "*", 1, DirectoryStore(str(tmp_path / "in")))
    with pytest.raises(UsageError, match="is the source and the checkpoint"):
        list_source("s3://bucket/", "*", "s3://bucket")


def test_of_a_signed_url_no_more_than_a_byte_is_read_to_list_it_and_spaces_are_sent_as_they_must(
    tmp_path: pathlib.Path,
) -> None:
    with serving() as server:
        (tmp_path / "urls").write_text(f"{server.url}/half/a b é.bin?X-Signature=5ecre7\n")
        started = time.monotonic()
        found = list_source(str(tmp_path / "urls"), "*")  # the second half never comes
        took_s = time.monotonic() - started
        asked = list(server.asked)

    assert [(key.name, key.size) for key in found] == [("a b é.bin", len(BODY))]
    assert asked == ["/half/a%20b%20%C3%A9.bin?X-Signature=5ecre7"]
    assert took_s < 20


def test_a_list_that_a_server_has_no_time_for_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sourceweb, "_wait_s", lambda *_: 0)
    with serving() as server:
        found = list_source(f"{server.url}/503/2/list", "*")
        asked = list(server.asked)
        with pytest.raises(SourceError, match=r"/503/list answers 503"):
            list_source(f"{server.url}/503/list?X-Signature=5ecre7", "*")

    assert [key.url for key in found] == [f"{server.url}/ok/x"]
    assert asked == ["/503/2/list"] * 3 + ["/ok/x"]


def test_a_list_that_is_cut_off_is_asked_for_again_and_never_half_of_it_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sourceweb, "_wait_s", lambda *_: 0)
    with serving() as server:
        found = list_source(f"{server.url}/cut/2/list", "*")
        with pytest.raises(SourceError, match=r"/cut/list cannot be reached"):
            list_source(f"{server.url}/cut/list", "*")

    assert [key.url for key in found] == [f"{server.url}/ok/x"]


def test_a_listed_file_that_is_missing_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "list.txt").write_text("gone.csv\n")

    with pytest.raises(SourceError, match=r"gone\.csv is listed, but No such file"):
        list_source(str(tmp_path / "list.txt"), "*")


def test_two_listed_keys_of_one_name_are_refused_with_both_places(tmp_path: pathlib.Path) -> None:
    write(tmp_path, "a/x.csv", "b/x.csv")
    (tmp_path / "list.txt").write_text("a/x.csv\nb/x.csv\n")

    with pytest.raises(SourceError, match=r"two keys are called 'x\.csv': .*a/x.*b/x"):
        list_source(str(tmp_path / "list.txt"), "*")


def test_an_empty_source_a_pattern_without_match_and_no_source_say_so(
    tmp_path: pathlib.Path,
) -> None:
    write(tmp_path, "full/x.csv")
    (tmp_path / "empty").mkdir()

    with pytest.raises(UsageError, match=r"nothing in .*empty matches '\*' \(0 names were seen\)"):
        list_source(str(tmp_path / "empty"), "*")
    with pytest.raises(UsageError, match=r"nothing in .*full matches 'y\*' \(1 names were seen\)"):
        list_source(str(tmp_path / "full"), "y*")
    with pytest.raises(UsageError, match=r"there is no source .*nowhere: give a directory"):
        list_source(str(tmp_path / "nowhere"), "*")


# -- remembering -----------------------------------------------------------------------------------


def test_a_dataset_is_named_by_its_content_alone(tmp_path: pathlib.Path) -> None:
    write(tmp_path, "in/a.csv", "in/b.csv")
    store = DirectoryStore(str(tmp_path / "store"))

    one = load(str(tmp_path / "in"), "*", 3, store)
    again = load(str(tmp_path / "in"), "*", 3, store)
    other_slots = load(str(tmp_path / "in"), "*", 2, store)
    (tmp_path / "in/a.csv").write_bytes(b"changed")
    changed = load(str(tmp_path / "in"), "*", 3, store)

    assert one == again
    assert other_slots.digest == one.digest
    assert changed.digest != one.digest
    assert changed.placed == one.placed


def test_a_file_replaced_by_one_of_the_same_size_and_time_is_noticed(
    tmp_path: pathlib.Path,
) -> None:
    write(tmp_path, "in/a.csv")
    path = tmp_path / "in/a.csv"
    before = list_source(str(tmp_path / "in"), "*")[0]
    other = tmp_path / "other"
    other.write_bytes(b"IN/A.CSV")
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))

    os.replace(other, path)

    after = list_source(str(tmp_path / "in"), "*")[0]
    assert after.size == before.size
    assert after.identity != before.identity


def test_the_next_run_places_keys_as_the_last_one_did(tmp_path: pathlib.Path) -> None:
    write(tmp_path, *[f"in/{n}.csv" for n in range(10)])
    store = DirectoryStore(str(tmp_path / "store"))
    first = load(str(tmp_path / "in"), "*", 3, store)
    write(tmp_path, "in/0-first.csv")

    second = load(str(tmp_path / "in"), "*", 3, store)

    placed = {key.name: slot for key, slot in zip(second.keys, second.placed, strict=True)}
    assert {key.name: placed[key.name] for key in first.keys} == {
        key.name: slot for key, slot in zip(first.keys, first.placed, strict=True)
    }


def test_a_stored_dataset_holds_each_keys_name_url_size_etag_and_slot(
    tmp_path: pathlib.Path,
) -> None:
    write(tmp_path, "in/é \udcff.csv")
    store = DirectoryStore(str(tmp_path / "store"))

    listed = load(str(tmp_path / "in"), "*", 1, store)

    stored = [item for item in store.list("datasets") if listed.digest in item.name]
    assert len(stored) == 1
    lines = json.loads(store.read(stored[0].name) or b"")["keys"]
    assert lines == [[*listed.keys[0], 0]]


def test_skew_is_the_fullest_slot_over_the_mean() -> None:
    keys = tuple(keys_of([99, 299]))

    assert dataset.Dataset("s", "*", 2, keys, (0, 1)).skew == pytest.approx(1.5)
    assert dataset.Dataset("s", "*", 2, keys, (0, 0)).skew == pytest.approx(2.0)


# -- signed URLs -----------------------------------------------------------------------------------


def test_a_signed_url_is_asked_for_by_get_and_its_signature_is_no_part_of_what_it_is(
    tmp_path: pathlib.Path,
) -> None:
    (tmp_path / "a.gz").write_bytes(b"12345")
    (tmp_path / "empty.gz").write_bytes(b"")
    source = tmp_path / "urls"

    with SignedObjects(tmp_path) as objects:
        found = []
        for _ in range(2):
            source.write_text(f"{objects.sign('a.gz')}\n{objects.sign('empty.gz')}\n")
            found.append(list_source(str(source), "*"))

    assert [(key.name, key.size) for key in found[0]] == [("a.gz", 5), ("empty.gz", 0)]
    assert [key.identity for key in found[0]] == [key.identity for key in found[1]]
    assert [key.url for key in found[0]] != [key.url for key in found[1]]


def test_no_signature_is_kept(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.gz").write_bytes(b"12345")
    source = tmp_path / "urls"

    with SignedObjects(tmp_path) as objects:
        source.write_text(objects.sign("a.gz"))
        load(str(source), "*", 2, DirectoryStore(str(tmp_path / "store")))

    kept = [path.read_text() for path in (tmp_path / "store").rglob("*.json")]
    assert len(kept) == 1
    assert "/a.gz" in kept[0]
    assert "Signature" not in kept[0]


def test_a_signature_that_has_expired_says_so_and_shows_none(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.gz").write_bytes(b"12345")
    source = tmp_path / "urls"

    with SignedObjects(tmp_path) as objects:
        source.write_text(objects.sign("a.gz"))
        objects.expire()
        with pytest.raises(SourceError) as caught:
            list_source(str(source), "*")

    assert "a.gz answers 403 Forbidden: has its signature expired" in str(caught.value)
    assert "Signature=" not in str(caught.value)


@pytest.mark.parametrize("url", ["https://h/k?policy=1&expires=2", "/a/b?Signature", "https://h/k"])
def test_a_url_that_is_not_signed_is_kept_as_it_is(url: str) -> None:
    assert source.unsigned(url) == url


@pytest.mark.parametrize(
    ("ago_s", "lasts_s", "deadline", "said"),
    [
        (100, 60, "0", "; sign it for longer"),
        (0, 600, "55m", "before [run] deadline; sign it for longer"),
    ],
)
def test_a_signature_that_does_not_last_is_refused_before_anything_is_asked(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    ago_s: int,
    lasts_s: int,
    deadline: str,
    said: str,
) -> None:
    monkeypatch.setenv("WORKFLOWS_DEADLINE_S", deadline)
    signed = dt.datetime.now(dt.timezone.utc) - dt.timedelta(seconds=ago_s)
    query = f"X-Amz-Date={signed:%Y%m%dT%H%M%SZ}&X-Amz-Expires={lasts_s}&X-Amz-Signature=ab"
    listed = tmp_path / "listed"
    listed.write_text(f"http://127.0.0.1:9/a.gz?{query}\n")

    settings.cache_clear()
    with pytest.raises(SourceError) as caught:
        list_source(str(listed), "*")
    settings.cache_clear()

    assert "the signature of http://127.0.0.1:9/a.gz" in str(caught.value)
    assert said in str(caught.value)
    assert "ab" not in str(caught.value).split("a.gz")[1]
