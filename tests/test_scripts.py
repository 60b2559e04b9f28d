"""The scripts of the main pipeline, run as a node runs them, in every awk this machine has."""

import csv
import io
import os
import pathlib
import random
import shutil
from collections import Counter

import pytest
from scriptnode import Node, Rows

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "workflows" / "scripts"
SAMPLES = sorted((ROOT / "samples" / "taxi").glob("*.csv"))
# awk is mostly a link to one of the others: each is tested once.
AWKS = list(
    {
        os.path.realpath(shutil.which(name.split()[0]) or name): name
        for name in ("awk", "mawk", "gawk", "busybox awk", "original-awk")
        if name == "awk" or shutil.which(name.split()[0])
    }.values()
)


@pytest.fixture(params=AWKS)
def node(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Node:
    return Node(tmp_path, request.param)


def column(node: Node, stdin: str | bytes) -> list[str]:
    """Return the values of passenger_count which select_columns finds."""
    done = node.select(stdin, "passenger_count")
    assert done.code == 0, done.err
    assert done.rows[0] == ["passenger_count"]
    return [row[0] for row in done.rows[1:]]


def quoted(value: str) -> str:
    """Return a CSV field, quoted only when needed."""
    return '"' + value.replace('"', '""') + '"' if set(value) & set('",\r\n') else value


def csv_text(rows: Rows) -> str:
    """Return rows as the scripts promise to write them."""
    return "".join((",".join(map(quoted, row)) or '""') + "\n" for row in rows)


# --- select_columns: finding the column


@pytest.mark.parametrize(
    "header",
    [
        "vendor_id,passenger_count,trip_distance",
        "VendorID,Passenger_Count,trip_distance",
        "vendor_name, passenger_count , trip_distance",
        "vendor_name,\tPASSENGER_COUNT,x",
        '"vendor_id","passenger_count","x"',
        'a," Passenger_Count ",c',
        '"a,b",passenger_count,"c""d"',
        '"a\nb",passenger_count,c',
    ],
)
def test_a_column_is_found_by_its_name_however_the_year_writes_it(node: Node, header: str) -> None:
    assert column(node, f"{header}\n7,1,9\n") == ["1"]


@pytest.mark.parametrize(
    "text",
    [
        "passenger_count,a\n1,x\n",
        "a,b,c,d,passenger_count\nx,x,x,x,1\n",
        "a,b,c,d,passenger_count\r\nx,x,x,x,1\r\n",
        "passenger_count\n1\n",
        "passenger_count\r\n1",
    ],
)
def test_a_column_is_found_wherever_it_stands(node: Node, text: str) -> None:
    assert column(node, text) == ["1"]


@pytest.mark.parametrize("header", ["passenger_count,a", '"passenger_count","a"'])
def test_a_byte_order_mark_is_no_part_of_the_first_name(node: Node, header: str) -> None:
    assert column(node, b"\xef\xbb\xbf" + header.encode() + b"\n1,x\n") == ["1"]


def test_columns_come_out_in_the_order_they_were_asked_for_under_their_plain_names(
    node: Node,
) -> None:
    done = node.select("A,b , C\n1,2,3\n", " c", "A")

    assert done.out == "c,a\n3,1\n"


@pytest.mark.parametrize(
    "name",
    ["two words", "it's", "a\\nb", "a=b", "-f", "--", "$home", "%s", "a,b", "*", "été", "x&y"],
)
def test_a_name_may_hold_anything(node: Node, name: str) -> None:
    done = node.select(csv_text([["first", name, "z"], ["1", "2", "3"]]), name)

    assert done.code == 0, done.err
    assert done.rows == [[name], ["2"]]


def test_a_missing_column_is_refused_with_the_header_that_was_seen(node: Node) -> None:
    done = node.select("vendor_id,passengers\n1,2\n", "passenger_count")

    assert (done.code, done.out) == (3, "")
    assert done.err == (
        "select_columns: no column 'passenger_count' in the header: vendor_id,passengers\n"
    )


def test_an_ambiguous_column_is_refused(node: Node) -> None:
    done = node.select("a,passenger_count, Passenger_Count\n1,2,3\n", "passenger_count")

    assert (done.code, done.out) == (3, "")
    assert "more than one column 'passenger_count'" in done.err
    assert done.err.count("\n") == 1


def test_two_columns_of_one_name_do_no_harm_when_another_is_asked_for(node: Node) -> None:
    assert column(node, "x,X,passenger_count\n1,2,3\n") == ["3"]


def test_a_binary_file_is_refused_in_one_printable_line(node: Node) -> None:
    done = node.select(b"PAR1\x15\x04\x1b[31m\x01" + b"x" * 2000 + b"\n", "passenger_count")

    assert done.code == 3
    assert done.err.count("\n") == 1
    assert "\x1b" not in done.err
    assert len(done.err) < 1000


def test_no_names_is_a_usage_error(node: Node) -> None:
    assert node.select("a\n1\n").code == 2


# --- select_columns: rows


@pytest.mark.parametrize("text", ["", "\n", "\r\n\n", "a,passenger_count\n", "a,passenger_count"])
def test_a_file_without_rows_gives_just_a_header(node: Node, text: str) -> None:
    done = node.select(text, "passenger_count")

    assert (done.code, done.out) == (0, "passenger_count\n")
    assert done.metrics == {"rows_in": 0, "rows_out": 0, "rows_rejected": 0}


@pytest.mark.parametrize("blank", ["", "\r", "  ", "\t\r"])
def test_blank_lines_are_no_rows(node: Node, blank: str) -> None:
    done = node.select(f"{blank}\na,b\n{blank}\n1,2\n{blank}\n3,4\n{blank}\n", "a")

    assert done.out == "a\n1\n3\n"
    assert done.metrics == {"rows_in": 2, "rows_out": 2, "rows_rejected": 0}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("final", [True, False])
def test_line_ends_and_a_missing_last_one_do_not_matter(node: Node, end: str, final: bool) -> None:
    text = end.join(["a,passenger_count", "x,1", "y,", "z,3"]) + (end if final else "")

    assert column(node, text) == ["1", "", "3"]


def test_a_blank_value_of_a_single_column_is_written_so_that_it_stays_a_row(node: Node) -> None:
    done = node.select("a,b\n,x\n1,y\n", "a")

    assert done.out == 'a\n""\n1\n'
    assert node.select(done.out, "a").out == done.out


def test_extra_trailing_fields_are_fine(node: Node) -> None:
    text = "a,passenger_count\nx,1,,\ny,2,z,z\nz,3\n"

    assert column(node, text) == ["1", "2", "3"]


def test_a_row_too_short_to_hold_the_column_is_rejected_and_counted(node: Node) -> None:
    done = node.select('a,b,c,d\n1\n1,2\n1,2,3,4\n"1"\n', "c")

    assert done.out == "c\n3\n"
    assert done.metrics == {"rows_in": 4, "rows_out": 1, "rows_rejected": 3}


@pytest.mark.parametrize("last", ["x", "x,1", 'x,"1', '"x', '"x","1"'])
def test_a_last_line_cut_off_in_or_before_the_column_is_rejected(node: Node, last: str) -> None:
    """`1` may be the half of `12`: nothing shows where the cut was."""
    done = node.select(f"a,passenger_count,c\nx,2,y\n{last}", "passenger_count")

    assert done.out == "passenger_count\n2\n"
    assert done.metrics == {"rows_in": 2, "rows_out": 1, "rows_rejected": 1}


def test_a_quote_that_swallows_lines_and_is_never_closed_is_refused(node: Node) -> None:
    done = node.select('a,b\n1,2\n"3,4\n5,6\n7,8\n', "a")

    assert done.code == 4
    assert done.err == "select_columns: the quote opened in line 3 is never closed\n"


def test_a_stray_quote_in_a_big_file_fails_soon(node: Node) -> None:
    rows = "1234567890,1234567890\n" * 200_000

    done = node.select(f'a,b\n"{rows}', "a")

    assert done.code == 4
    assert "line 2 is not closed within 128 KiB" in done.err


def test_values_are_unchanged(node: Node) -> None:
    values = ["1.0", " 1 ", "1e400", "0x10", "-0", "\\n", "a\\", "%s", "$x", "ü", "nan", "+1", "'"]

    assert column(node, csv_text([["passenger_count", "b"], *([v, "x"] for v in values)])) == values


def test_a_value_is_quoted_on_output_only_when_needed(node: Node) -> None:
    done = node.select('a,b\n"1","x,y"\n"2","say ""hi"""\n"3","two\nlines"\n', "b", "a")

    assert done.out == 'b,a\n"x,y",1\n"say ""hi""",2\n"two\nlines",3\n'


def test_rows_of_very_different_widths_keep_their_values(node: Node) -> None:
    widths = [1, 400, 3, 7, 5000, 2, 60, 0, 1000]
    rows = [["x" * width, str(width), "y" * width] for width in widths * 20]

    assert column(node, csv_text([["a", "passenger_count", "b"], *rows])) == [r[1] for r in rows]


def test_no_metrics_are_written_where_none_are_asked_for(node: Node) -> None:
    command = f"unset WORKFLOWS_METRICS; {node.awk} -f csv.awk -f select_columns.awk -- a"

    done = node.run(command, "a\n1\n")

    assert (done.code, done.out, done.metrics) == (0, "a\n1\n", {})


class NastyFile:
    """A CSV file of everything that real ones hold, and what a reader should find in it."""

    VALUES = (
        *("", "1", "2", "1.0", " 3 ", "a,b", 'say "hi"', '"', ",", "two\nlines", "crlf\r\nhere"),
        *("\n", "é", "\\", "'", "%d", "&", "$(x)", "-1", "1e3", "x" * 70, '",""\n"', "00", "; |"),
    )

    def __init__(self, seed: int, values: tuple[str, ...] = VALUES) -> None:
        self.random = random.Random(seed)
        self.values = values
        columns = self.random.randint(2, 6)
        self.names = [f"c{i}" for i in range(columns)]
        end = self.random.choice(["\n", "\r\n"])
        lines = [",".join(self.header_field(name) for name in self.names)]
        lines += [self.line(columns) for _ in range(self.random.randint(0, 30))]
        # A line after the last one: with a cut-off quote, the file would be another one.
        self.text = end.join(lines) + self.random.choice([end, ""])
        self.asked = self.random.sample(self.names, self.random.randint(1, columns))

    def header_field(self, name: str) -> str:
        blank = self.random.choice(["", " "])
        name = f"{blank}{self.random.choice([name, name.upper()])}{blank}"
        return self.random.choice([name, f'"{name}"'])

    def line(self, columns: int) -> str:
        if self.random.random() < 0.1:
            return ""
        odd = self.random.random()
        fields = columns + (-1 if odd < 0.1 else 1 if odd < 0.2 else 0)
        return ",".join(self.field() for _ in range(fields))

    def field(self) -> str:
        value = self.random.choice(self.values)
        quote = set(value) & set(",\r\n") or value.startswith('"') or self.random.random() < 0.3
        # Without the outer quotes, a quote inside of a value is an ordinary character.
        return '"' + value.replace('"', '""') + '"' if quote else value

    @property
    def expected(self) -> tuple[Rows, int]:
        """Return the chosen columns as Python's csv module reads them, and the rejected rows."""
        _, *rows = [row for row in csv.reader(io.StringIO(self.text, newline="")) if row]
        places = [self.names.index(name) for name in self.asked]
        last = max(places)
        whole = [
            row for row in rows if len(row) > last + 1 or len(row) == last + 1 == len(self.names)
        ]
        # One field of blanks alone, unquoted, is a blank line; the values above hold none.
        return [[row[i] for i in places] for row in whole], len(rows) - len(whole)


@pytest.mark.parametrize("block", range(6))
def test_nasty_files_are_read_as_the_csv_module_reads_them(node: Node, block: int) -> None:
    for seed in range(block * 50, block * 50 + 50):
        file = NastyFile(seed)
        rows, rejected = file.expected

        done = node.select(file.text, *file.asked)

        assert done.out == csv_text([file.asked, *rows]), (seed, file.text)
        assert done.metrics["rows_out"] == len(rows)
        assert done.metrics["rows_rejected"] == rejected
        assert done.metrics["rows_in"] == len(rows) + rejected


@pytest.mark.parametrize("block", range(4))
def test_quoted_newlines_never_split_a_row(node: Node, block: int) -> None:
    values = ("\n", "a\nb", "a\r\nb\r\nc", '\n"\n', '"\n', "\n\n\n", ",\n,", "1")
    for seed in range(block * 50, block * 50 + 50):
        file = NastyFile(seed, values)
        rows, rejected = file.expected

        done = node.select(file.text, *file.asked)

        assert done.out == csv_text([file.asked, *rows]), (seed, file.text)
        assert done.metrics["rows_rejected"] == rejected


# --- count_rows


def test_rows_are_counted_in_the_order_of_their_first_appearance(node: Node) -> None:
    done = node.count("n\n2\n1\n2\n30\n1\n2\n")

    assert done.out == "2,3\n1,2\n30,1\n"
    assert done.metrics == {"rows_in": 6, "rows_counted": 6, "rows_rejected": 0}


@pytest.mark.parametrize(
    ("values", "counted"),
    [
        (["1", "1.0", " 1", "1.00 ", "1\r"], "1,5\n"),
        (["1.50", "1.5", "1.05"], "1.50,1\n1.5,1\n1.05,1\n"),
        (["10", "10.0", "1"], "10,2\n1,1\n"),
        (["", " ", '""', "\r"], ",4\n"),
        (["N", "n"], "N,1\nn,1\n"),
        (["1.0.0", ".0", "v1.0", "-2.0"], "1.0.0,1\n.0,1\nv1.0,1\n-2,1\n"),
        (["0", "00", "0.0"], "0,2\n00,1\n"),
    ],
)
def test_values_that_mean_the_same_are_one_value(
    node: Node, values: list[str], counted: str
) -> None:
    done = node.count("\n".join(["n", *values]) + "\n")

    assert done.out == counted
    assert done.metrics["rows_counted"] == len(values)


def test_several_columns_are_counted_together(node: Node) -> None:
    done = node.count("a,b\n1,x\n1.0, x\n1,y\n\n,\n")

    assert done.out == "1,x,2\n1,y,1\n,,1\n"
    assert done.metrics == {"rows_in": 4, "rows_counted": 4, "rows_rejected": 0}


def test_quoted_values_stay_apart_and_quoted(node: Node) -> None:
    done = node.count('a\n"x,y"\n"x\ny"\n"x,y"\n"say ""hi"""\n"1"\n1\n')

    assert done.out == '"x,y",2\n"x\ny",1\n"say ""hi""",1\n1,2\n'


def test_a_row_with_more_or_fewer_values_than_the_header_is_rejected(node: Node) -> None:
    done = node.count("a,b\n1,2\n1\n1\n1,2,3\n")

    assert done.out == "1,2,1\n"
    assert done.metrics == {"rows_in": 4, "rows_counted": 1, "rows_rejected": 3}


@pytest.mark.parametrize("text", ["", "passenger_count\n"])
def test_no_rows_give_no_counts(node: Node, text: str) -> None:
    done = node.count(text)

    assert (done.code, done.out) == (0, "")
    assert done.metrics == {"rows_in": 0, "rows_counted": 0, "rows_rejected": 0}


def test_what_select_writes_is_counted_row_for_row(node: Node) -> None:
    for seed in range(40):
        file = NastyFile(seed)
        selected = node.select(file.text, *file.asked)

        counted = node.count(selected.out)

        assert counted.metrics["rows_in"] == selected.metrics["rows_out"], (seed, file.text)
        assert counted.metrics["rows_rejected"] == 0


# --- merge_counts


def test_counts_are_added_up_and_sorted_by_count_then_value(node: Node) -> None:
    done = node.merge("1,5\n2,7\n,3\n10,1\n1,5\n9,1\n,1\n")

    assert done.out == "1,10\n2,7\n,4\n10,1\n9,1\n"
    assert done.metrics == {"rows_counted": 23}


def test_sums_are_exact_up_to_2_to_the_53(node: Node) -> None:
    done = node.merge(f"a,{2**53 - 2**32}\na,{2**32 - 1}\nb,1\n")

    assert done.out == f"a,{2**53 - 1}\nb,1\n"
    assert done.metrics == {"rows_counted": 2**53}


def test_a_sum_that_cannot_be_exact_is_refused(node: Node) -> None:
    done = node.merge(f"a,{2**53}\nb,2\n")

    assert (done.code, done.out) == (4, "")
    assert "2^53" in done.err


@pytest.mark.parametrize(
    "line",
    ["", "1", "1,", "1,x", "1,-1", "1,1.5", "1,1e3", "1,2,3", "1, 2", "5,61,7", '"1,2', ",", "a b"],
)
def test_a_line_that_is_no_value_and_count_is_refused_and_shown(node: Node, line: str) -> None:
    done = node.merge(f"1,5\n{line}\n1,5\n" if '"' not in line else f"1,5\n{line}")

    assert (done.code, done.out) == (4, "")
    assert done.err == f"merge_counts: line 2 is not value,count: {line}\n"


def test_quoted_values_are_merged_with_their_plain_form(node: Node) -> None:
    done = node.merge('"x,y",1\n"1",2\n1,3\n"x,y",1\n"a\nb",9\r\n')

    assert done.out == '"a\nb",9\n1,5\n"x,y",2\n'


def test_nothing_merged_is_nothing(node: Node) -> None:
    done = node.merge("")

    assert (done.code, done.out, done.metrics) == (0, "", {"rows_counted": 0})


def test_many_values_are_sorted_whatever_the_order_they_came_in(node: Node) -> None:
    counts = {f"v{i}": i % 7 + 1 for i in range(2000)}
    lines = [f"{value},{count}\n" for value, count in counts.items()]
    random.Random(1).shuffle(lines)

    done = node.merge("".join(lines))

    by_count = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    assert done.out == "".join(f"{value},{count}\n" for value, count in by_count)


# --- the whole job


def test_the_bundled_months_are_counted_as_the_csv_module_counts_them(node: Node) -> None:
    expected: Counter[str] = Counter()
    counted = ""
    assert SAMPLES
    for path in SAMPLES:
        with path.open(newline="", encoding="utf-8") as file:
            rides = [row["passenger_count"].strip() for row in csv.DictReader(file)]
        expected.update(ride.removesuffix(".0") for ride in rides)

        selected = node.select(path.read_bytes(), "passenger_count")
        done = node.count(selected.out)

        assert selected.metrics["rows_in"] == selected.metrics["rows_out"] == len(rides)
        assert done.metrics["rows_counted"] == len(rides)
        counted += done.out

    merged = node.merge(counted)

    assert {value: int(count) for value, count in merged.rows} == expected
    assert merged.metrics["rows_counted"] == expected.total()
