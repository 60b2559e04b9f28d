"""Lists of URLs: told from data, and every line read as it stands or named with its number."""

import gzip
import json
import os
import pathlib
import re
import shlex

import pytest
from rough_server import serving

from workflows.errors import SourceError, UsageError, WorkflowsError
from workflows.planning import sourceweb
from workflows.planning.source import list_source

# To read a FIFO would be to wait for a writer for ever.
pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Return a directory with two files to be listed."""
    (tmp_path / "data").mkdir()
    for name in ("a.csv", "b c.csv"):
        (tmp_path / "data" / name).write_text(name)
    return tmp_path


def listed(path: pathlib.Path, text: str | bytes, pattern: str = "*") -> list[str]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [key.name for key in list_source(str(path), pattern)]


def refusal(path: pathlib.Path, text: str | bytes, pattern: str = "*") -> str:
    with pytest.raises(WorkflowsError) as caught:
        listed(path, text, pattern)
    return str(caught.value)


# -- data ------------------------------------------------------------------------------------------

CSV = "vendor,fare,tip\n1,2.50,0\n"
DATA = {
    "rides.csv": CSV.encode(),
    "rides": CSV.encode(),
    "one line.csv": b"vendor,fare,tip\n",
    "one.csv": b"passenger_count\n",
    "[odd]*.csv": b"1\n2\n",
    "rides.tsv": b"vendor\tfare\n1\t2\n",
    "rides.txt": b"vendor;fare\n1;2\n",
    "rides.psv": b"vendor|fare\n1|2\n",
    "rides.json": b'[{"vendor": 1}]\n',
    "rides.jsonl": b'{"vendor": 1}\n{"vendor": 2}\n',
    "lines": json.dumps({"vendor": 1}, indent=1).encode(),
    "page": b"<!DOCTYPE html>\n<html></html>\n",
    "rides.gz": gzip.compress(CSV.encode()),
    "packed": gzip.compress(CSV.encode()),
    "bz2": b"BZh91AY&SY" + b"abc" * 9,
    "zst": b"\x28\xb5\x2f\xfd" + b"abc" * 9,
    "rides.parquet": b"PAR1" + b"abcd" * 9 + b"PAR1",
    "parquet": b"PAR1" + b"\x00" * 9,
    "binary": bytes(range(256)),
    "windows.csv": CSV.encode("utf-16"),
}


@pytest.mark.parametrize("name", DATA)
def test_a_file_of_data_is_not_taken_for_a_list_and_the_message_says_how_to_read_it(
    tmp_path: pathlib.Path, name: str
) -> None:
    path = tmp_path / name

    said = refusal(path, DATA[name])

    command = said.partition(" looks like data, not a list of URLs; to read it: ")[2]
    assert said.startswith(f"{path} ")
    _, folder, _, pattern = shlex.split(command)
    assert [key.name for key in list_source(folder, pattern)] == [name]


def test_data_is_told_by_its_beginning_however_large_it_is(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"vendor,fare\n")
    os.truncate(path, 1 << 40)

    with pytest.raises(UsageError, match="looks like data"):
        list_source(str(path), "*")


def test_a_served_page_or_table_is_not_taken_for_a_list() -> None:
    with serving() as server:
        for name in ("page/x", "ok/rides.csv"):
            with pytest.raises(UsageError, match="looks like data, not a list of URLs; to read it"):
                list_source(f"{server.url}/{name}", "*")


def test_what_may_be_either_is_read_as_a_list_and_the_message_says_what_to_do_with_data(
    tmp_path: pathlib.Path,
) -> None:
    path = tmp_path / "numbers"

    assert "numbers, line 1: " in refusal(path, "5\n")
    assert f"; if that is data, not a list: --source {tmp_path} " in refusal(path, "5\n")
    assert f"; if that is data, not a list: --source {tmp_path} " in refusal(path, "5\n6\n")
    assert f"(2 names were seen); if that is data, not a list: --source {tmp_path} " in refusal(
        path, "5\n6\n", "*.csv"
    )
    assert "lists no URLs" in refusal(path, "")
    assert "lists no URLs" in refusal(path, "# none\n\n")
    assert "is UTF-16; save the list as UTF-8" in refusal(path, "a.csv\n".encode("utf-16"))


# -- what a list is read from ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0", "-"])
def test_what_can_be_read_once_is_no_source(name: str) -> None:
    with pytest.raises(UsageError, match=r"can be read only once.*write the list into a file"):
        list_source(name, "*")


@pytest.mark.parametrize(("kind", "said"), [("fifo", "is a FIFO"), ("/dev/zero", "is a device")])
def test_a_fifo_or_device_as_list_is_named_and_not_waited_for(
    tmp_path: pathlib.Path, kind: str, said: str
) -> None:
    path = kind if kind.startswith("/") else str(tmp_path / kind)
    if not kind.startswith("/"):
        os.mkfifo(path)

    with pytest.raises(UsageError, match=f"{said}; a source is a directory or a file that lists"):
        list_source(path, "*")


@pytest.mark.parametrize("url", ["ftp://h/list", "gs://b/list", "s3a://b/p/", "FTP://h/l"])
def test_a_source_of_an_unknown_scheme_is_not_said_to_be_missing(url: str) -> None:
    with pytest.raises(UsageError, match=r"s?3?:// is not supported; http, https, s3"):
        list_source(url, "*")


# -- lines -----------------------------------------------------------------------------------------


def test_a_bom_crlf_comments_and_blank_lines_are_no_part_of_any_name(folder: pathlib.Path) -> None:
    text = "\ufeffdata/a.csv\r\n  # note\r\n\r\n \t\r\n#x\r\ndata/b c.csv"

    assert listed(folder / "list", text) == ["a.csv", "b c.csv"]


def test_a_path_is_taken_as_it_is_with_its_blanks(folder: pathlib.Path) -> None:
    (folder / "data/ lead.csv ").write_text("")

    assert listed(folder / "list", "data/ lead.csv \n") == [" lead.csv "]


@pytest.mark.parametrize("form", ["file://{}", "FILE://localhost{}", "  file://{} "])
def test_a_file_url_is_decoded_and_its_scheme_read_in_any_case(
    folder: pathlib.Path, form: str
) -> None:
    url = form.format(f"{folder}/data/b%20c.csv")

    assert listed(folder / "list", f"{url}\n") == ["b c.csv"]


def test_the_scheme_of_a_url_is_read_in_any_case_and_blanks_around_it_are_dropped(
    folder: pathlib.Path,
) -> None:
    with serving() as server:
        lower = server.url.replace("http", "HtTp")
        (folder / "list").write_text(f"\t {lower}/ok/x%20y \n")
        (key,) = list_source(str(folder / "list"), "*")

        assert (key.name, key.url) == ("x y", f"{server.url}/ok/x%20y")
        (key,) = list_source(f"{lower}/ok/list", "*")
        assert key.url == f"{server.url}/ok/x"


LINES = {
    "ftp://h/x.csv": "ftp://h/x.csv: ftp:// is not supported",
    "s3a://b/x.csv": "https, s3 and file are; write s3://",
    "http:/h/x.csv": "write two slashes behind its scheme",
    "https:h/x.csv": "write two slashes behind its scheme",
    "file:/x.csv": "write two slashes behind its scheme",
    "file://host/x.csv": "is of another host; write file:///PATH",
    "file:///x?.csv": "is not percent-encoded: write % as %25, ? as %3F, # as %23",
    "file:///x#.csv": "is not percent-encoded",
    "file:///x%zz.csv": "is not percent-encoded",
    "file:///x%00.csv": "is not percent-encoded",
    "http:///x.csv": "its host or port is missing or malformed",
    "http://h:8x/x.csv": "its host or port is missing or malformed",
    "http://[::1/x.csv": "its host or port is missing or malformed",
    "http://h/a\tb.csv": "holds a control character",
    "http://h/dir/": "has no file name: a list names files",
    " data/a.csv": "begins or ends with a blank, and there is no such file: remove the blank",
    "data/a.csv ": "begins or ends with a blank",
    "gone.csv": "gone.csv is listed, but No such file",
    "data": "data is a directory, not a file",
    "data/": "data is a directory, not a file",
    "~/x.csv": "x.csv is listed, but No such file",
    "/dev/null": "/dev/null is a device, not a file",
    "fifo": "fifo is a FIFO, not a file",
}


@pytest.mark.parametrize("line", LINES)
def test_a_line_that_names_nothing_is_named_with_its_number(
    folder: pathlib.Path, line: str
) -> None:
    os.mkfifo(folder / "fifo")

    said = refusal(folder / "list", f"data/a.csv\n\n{line}\n")

    assert said.startswith(f"{folder}/list, line 3: ")
    assert LINES[line] in said


def test_all_bad_lines_are_counted_and_the_first_are_named(folder: pathlib.Path) -> None:
    said = refusal(folder / "list", "".join(f"gone{n}.csv\n" for n in range(9)) + "data/a.csv\n")

    first, *lines = said.splitlines()
    assert first.startswith(f"9 names in {folder}/list cannot be read; if that is data")
    assert lines[0].startswith(f"  {folder}/list, line 1: {folder}/gone0.csv is listed")
    assert lines[-1] == "  ... and 4 more"


def test_a_list_of_dead_urls_is_given_up_after_some_and_its_number_not_invented(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def wait_s(_: object, attempt: int) -> float:
        tries.append(attempt)
        return 0

    monkeypatch.setattr(sourceweb, "_wait_s", wait_s)
    text = "".join(f"http://127.0.0.1:9/{number}.csv\n" for number in range(400))

    said = refusal(folder / "list", text)

    assert re.match(r"at least \d+ names in \S+ cannot be read:\n", said)
    assert 0 < len(tries) < 3 * 400, "as often as each is tried again"


def test_a_line_is_judged_only_if_its_name_matches(folder: pathlib.Path) -> None:
    text = "data/a.csv\nftp://h/notes.txt\ngone.txt\nhttp://127.0.0.1:9/x.txt\n"

    assert listed(folder / "list", text, "*.csv") == ["a.csv"]


def test_two_urls_that_differ_in_their_query_alone_have_one_name_and_no_secret_is_said(
    folder: pathlib.Path,
) -> None:
    with serving() as server:
        text = f"{server.url}/ok/x?token=5ecre7\n{server.url}/ok/x?token=0ther\n"
        said = refusal(folder / "list", text)

    assert said.startswith(f"two keys are called 'x': {server.url}/ok/x is there twice, or with")
    assert "5ecre7" not in said
    assert "0ther" not in said


def test_names_in_urls_keep_bytes_that_are_not_utf_8(folder: pathlib.Path) -> None:
    with serving() as server:
        assert listed(folder / "list", f"{server.url}/ok/a%FFb\n") == ["a\udcffb"]


# -- lists from elsewhere ----------------------------------------------------------------------


@pytest.mark.parametrize("line", ["file:///etc/passwd", "FILE:///etc/passwd", " file:///etc/x"])
def test_a_list_from_a_server_names_no_file_of_this_machine(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rough_server import Handler

    monkeypatch.setattr(Handler, "answer_ok", lambda self, _: self.send(200, line.encode()))
    with serving() as server, pytest.raises(SourceError) as caught:
        list_source(f"{server.url}/ok/list", "*")

    assert str(caught.value).startswith(f"{server.url}/ok/list, line 1: ")
    assert "a list from http may name only http, https and s3 URLs" in str(caught.value)
