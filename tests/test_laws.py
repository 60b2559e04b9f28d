"""Laws of conservation: how they are written, and what happens when one is broken."""

import http.server
import re
import shutil
import threading
from typing import TYPE_CHECKING

import pytest

from workflows.node.laws import broken, parse, parse_metrics

if TYPE_CHECKING:
    from conftest import Place


def test_a_law_is_two_sums_of_names_around_one_equals_sign() -> None:
    assert parse("a + b.c = d") == (["a", "b.c"], ["d"])


@pytest.mark.parametrize(
    "law",
    [
        "",
        "rows_in",
        "a = b = c",
        "a == b",
        "a = ",
        "= a",
        "a = b -c",
        "a = 1",
        "a.b.c = d",
        "a + = b",
    ],
)
def test_a_malformed_law_is_refused_and_shown(law: str) -> None:
    with pytest.raises(ValueError, match="is not a law; write it as") as caught:
        parse(law)

    assert repr(law) in str(caught.value)


def test_a_law_that_holds_says_nothing() -> None:
    assert broken("rows_in = rows_out + rows_rejected", _rows(5, 3, 2)) is None


def test_a_broken_law_shows_both_sides_and_every_number() -> None:
    sentence = broken("rows_in = rows_out + rows_rejected", _rows(5, 3, 1))

    assert sentence == (
        "law broken: rows_in = rows_out + rows_rejected, but 5 != 4"
        " (rows_in=5, rows_out=3, rows_rejected=1)"
    )


def test_what_nobody_counted_breaks_a_law_by_name() -> None:
    assert "nobody counted rows_out" in str(broken("rows_in = rows_out", {"rows_in": 1}))


def test_metrics_given_twice_are_summed() -> None:
    assert parse_metrics("rows_in=2\nrows_out=1\nrows_in=3\n") == {"rows_in": 5, "rows_out": 1}


@pytest.mark.parametrize(
    "line", ["rows_in", "rows in=1", "=1", "a.b=1", "rows_in=one", "rows_in=1.5", "rows_in=1_0"]
)
def test_a_metric_that_is_no_whole_number_is_refused(line: str) -> None:
    with pytest.raises(
        ValueError, match=re.escape(f"{line!r} in $WORKFLOWS_METRICS is not name=integer")
    ):
        parse_metrics(line + "\n")


def _rows(read: int, written: int, rejected: int) -> dict[str, int]:
    return {"rows_in": read, "rows_out": written, "rows_rejected": rejected}


DROPS_A_ROW = """
from workflows.steps import Map


class Fetch(Map):
    command = 'cat "$(cat)"'


class Select(Map):
    upstream = Fetch
    durable = True
    command = '''
      cat > rows
      grep -v lost < rows > kept || true
      echo "rows_in=$(wc -l < rows)" >> "$WORKFLOWS_METRICS"
      echo "rows_out=$(wc -l < kept)" >> "$WORKFLOWS_METRICS"
      echo "rows_rejected=0" >> "$WORKFLOWS_METRICS"
      cat kept
    '''
    laws = ("rows_in = rows_out + rows_rejected",)
"""


def test_a_step_that_drops_a_row_fails_naming_the_key_and_publishes_nothing(place: "Place") -> None:
    place.module(DROPS_A_ROW)
    place.key("a good", b"1\n2\n")
    place.key("a bad", b"1\nlost\n")

    done = place.luigi("Select")

    assert done.code == 30, done
    assert "Select of a bad on node" in done.err
    assert "law broken: rows_in = rows_out + rows_rejected, but 2 != 1" in done.err
    assert place.outputs("Select") == {"a good": b"1\n2\n"}
    assert list(place.checkpoint.glob("Select/**/*")) == []
    assert place.leftovers() == []


LOSES_A_COUNT = """
from workflows.steps import Map, MapFromN, MapToN


class Rows(Map):
    command = '''
      cat "$(cat)" > rows
      echo "rows_out=$(wc -l < rows)" > "$WORKFLOWS_METRICS"
      cat rows
    '''


class Shuffle(MapToN):
    upstream = Rows
    command = "cat > all && echo all"


class Merge(MapFromN):
    upstream = Shuffle
    durable = True
    command = '''
      xargs cat | sed 1d > merged
      echo "rows_out=$(wc -l < merged)" > "$WORKFLOWS_METRICS"
      cat merged
    '''
    total_laws = ("rows_out = Rows.rows_out",)
"""


def test_a_merge_that_loses_a_count_is_never_committed(place: "Place") -> None:
    place.module(LOSES_A_COUNT)
    place.key("a", b"1\n2\n")
    place.key("b", b"3\n")

    done = place.luigi("Merge")

    assert done.code == 30, done
    assert "Merge (all) as a whole: law broken: rows_out = Rows.rows_out, but 2 != 3" in done.err
    assert "Traceback" not in done.err
    assert list(place.checkpoint.glob("Merge/**/*")) == []


def test_a_malformed_law_of_a_step_is_refused_before_anything_runs(place: "Place") -> None:
    place.module(DROPS_A_ROW.replace("rows_in = rows_out", "rows_in : rows_out"))
    place.key("a", b"1\n")

    done = place.luigi("Select")
    verb = place.run(
        "workflows", "plan", "--module", "mine", "Select", "--source", "source", "--pattern", "*"
    )

    assert done.code == 35, done
    assert "is not a law" in done.err
    assert "Traceback" not in done.err
    assert verb.code == 2, verb
    assert "is not a law" in verb.err
    assert "Traceback" not in verb.err
    assert place.ledger("Fetch") == []


COUNTS_BEHIND_A_CHECKPOINT = """
from workflows.steps import Map

COUNTED = 'cat > rows; echo "rows_{}=$(wc -l < rows)" > "$WORKFLOWS_METRICS"; cat rows'


class Fetch(Map):
    command = 'cat "$(cat)"'


class Copied(Map):
    upstream = Fetch
    durable = True
    command = COUNTED.format("out")


class Checked(Map):
    upstream = Copied
    durable = True
    command = COUNTED.format("in")
    laws = ("rows_in = input.rows_out", "rows_in = Copied.rows_out")
"""


def test_a_restored_step_has_what_its_keys_counted_when_they_were_made(place: "Place") -> None:
    place.module(COUNTS_BEHIND_A_CHECKPOINT)
    place.key("a", b"1\n2\n")
    assert place.luigi("Checked").code == 0
    made = place.ledger("Copied")
    shutil.rmtree(place.state / "nodes")
    changed = COUNTS_BEHIND_A_CHECKPOINT.replace(
        'COUNTED.format("in")', 'COUNTED.format("in") + " # again"'
    )
    place.module(changed)

    done = place.luigi("Checked")

    assert done.code == 0, done
    (restored,) = place.ledger("Copied")
    assert (restored["metrics"], restored["totals"]) == (made[0]["metrics"], made[0]["totals"])
    assert place.ledger("Fetch") == []


@pytest.mark.parametrize(
    ("said", "instead", "answer"),
    [
        ("    durable = True\n", "", "Merge has total_laws, which are checked when it is made"),
        (
            "    upstream = Rows\n",
            "    upstream = Rows\n    durable = True\n",
            "Shuffle is a MapToN",
        ),
    ],
)
def test_what_a_step_states_in_vain_is_refused_before_anything_runs(
    place: "Place", said: str, instead: str, answer: str
) -> None:
    place.module(LOSES_A_COUNT.replace(said, instead))
    place.key("a", b"1\n")

    done = place.luigi("Merge")

    assert done.code == 35, done
    assert answer in done.err
    assert "Traceback" not in done.err
    assert place.ledger("Rows") == []


class Wordless(http.server.BaseHTTPRequestHandler):
    """Answers without saying how long the answer is, as what is made on the way."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        return

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(b"vendor_id,passenger_count\n1,2\n")


def test_a_law_on_the_size_of_a_source_that_does_not_tell_it_is_left_out(place: "Place") -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Wordless) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        (place.path / "list").write_text(f"http://127.0.0.1:{server.server_port}/month.csv\n")

        done = place.luigi(
            "MergeCounts", "--source", "list", "--pattern", "*", module="workflows.tasks"
        )

        server.shutdown()
        thread.join()

    assert done.code == 0, done
    assert done.out.splitlines()[1:] == ["2  1"]
