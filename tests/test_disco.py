"""Jobs of mapper, combiner and reducer: plain Python, the same answer however they are run."""

import collections
import gzip
import json
import pathlib
import re
import subprocess
import sys
import zlib
from typing import TYPE_CHECKING

import pytest
from signed_urls import SignedObjects
from transcripts import ROOT, SAMPLES, Checkout

if TYPE_CHECKING:
    from conftest import Done, Place

FOLDER = ROOT / "workflows" / "pipelines" / "disco"
MODULE = "workflows.pipelines.disco.tasks"
RUNNER = FOLDER / "scripts" / "mapreduce.py"
TEXTS = [ROOT / "LICENSE", ROOT / "Makefile", ROOT / "luigi.cfg"]
JOB = """
import luigi
from workflows.pipelines.disco.job import Job

class Longest(Job):
    {body}

    def mapper(self, line):
        for word in line.split():
            yield len(word), word

    def reducer(self, key, values):
        yield key, sorted(set(values))[0]
"""


def words(paths: list[pathlib.Path]) -> dict[str, str]:
    """Return how often each word occurs, worked out with nothing of the project."""
    counts: collections.Counter[str] = collections.Counter()
    for path in paths:
        counts.update(re.findall(r"[a-z']+", path.read_text().lower()))
    return {word: str(count) for word, count in counts.items()}


def hours(paths: list[pathlib.Path]) -> dict[str, str]:
    """Return the rides of each hour of the day, and the headers, worked out by position."""
    counts: collections.Counter[str] = collections.Counter()
    for path in paths:
        header, *rows = path.read_text().splitlines()
        counts.update([header and "none", *(row.split(",")[1][11:13] for row in rows)])
    return {hour: str(count) for hour, count in counts.items()}


def run_job(place: "Place", task: str, *more: str, module: str = MODULE) -> "Done":
    return place.luigi(task, *more, module=module)


def parts(done: "Done") -> dict[str, bytes]:
    """Return name -> bytes of what a run says it made."""
    assert done.code == 0, done
    folder, *lines = done.out.splitlines()
    found = {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}
    assert sorted(found) == [line.split()[1] for line in lines]
    return found


def answer(done: "Done") -> dict[str, str]:
    """Return the lines of all outputs, as key -> value."""
    lines = [gzip.decompress(data).decode() for data in parts(done).values()]
    return dict(line.split("\t", 1) for text in lines for line in text.splitlines())


def texts(place: "Place") -> "Place":
    """Put texts in the source, one of them compressed."""
    for path in TEXTS[:2]:
        place.key(path.name, path.read_bytes())
    place.key("luigi.cfg.gz", gzip.compress(TEXTS[2].read_bytes()))
    return place


def test_the_readme_shows_what_comes_out(tmp_path: pathlib.Path) -> None:
    (tmp_path / "here").mkdir()

    Checkout(tmp_path / "here").follow(FOLDER / "README.md")


def test_every_word_is_counted_as_an_independent_program_counts_it(place: "Place") -> None:
    done = run_job(texts(place), "WordCount")

    assert answer(done) == words(TEXTS)
    assert sorted(parts(done)) == [f"{number:03d}_part.gz" for number in range(10)]


def test_real_rides_are_counted_by_hour_with_a_required_file_and_a_parameter(taxi: "Place") -> None:
    by_hour = run_job(taxi, "LogCount", "--partitions", "3")
    by_month = run_job(taxi, "LogCount", "--params", '{"by": "month"}')

    assert answer(by_hour) == hours(sorted(SAMPLES.glob("*.csv")))
    assert answer(by_month)["2018-01"] == "600"


def test_the_outputs_are_the_same_bytes_on_any_number_of_nodes(place: "Place") -> None:
    texts(place)

    results = [parts(run_job(place, "WordCount", "--fleet", f"local:{n}")) for n in (1, 2, 5)]

    assert results[0] == results[1] == results[2]
    assert all(data[4:8] == b"\0\0\0\0" for data in results[0].values())  # no time in gzip's header


def test_a_few_keys_still_make_all_outputs(place: "Place") -> None:
    place.key("text", b"one word one\n")

    done = run_job(place, "WordCount", "--partitions", "7")

    assert len(parts(done)) == 7
    assert answer(done) == {"one": "2", "word": "1"}


def test_a_job_of_the_user_runs_where_neither_luigi_nor_workflows_are(place: "Place") -> None:
    place.module(JOB.format(body="least = luigi.IntParameter(default=2)"), "words")
    place.key("text", "bb a é\n".encode() + b"\xff\xfe\xfd dd\naa")

    done = run_job(place, "Longest", "--compressed", "false", "--partitions", "1", module="words")

    assert parts(done) == {"000_part.txt": b"1\ta\n2\taa\n3\t\xff\xfe\xfd\n"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("params = {'AWS_SECRET': 'x'}", "has the parameter AWS_SECRET: parameters are shown"),
        ("api_token = luigi.Parameter(default='x')", "has the parameter api_token"),
        ("partitions = luigi.IntParameter(default=0)", "--partitions 0 must be at least 1"),
        ("required_files = ('words.py',)", "ships two files called words.py"),
        ("required_files = ('not-there.py',)", "ships not-there.py, but No such file"),
    ],
)
def test_what_a_job_may_not_say_is_refused_before_anything_runs(
    place: "Place", body: str, said: str
) -> None:
    place.module(JOB.format(body=body), "words")
    place.key("text", b"a\n")

    done = run_job(place, "Longest", module="words")

    assert done.code != 0
    assert said in done.err
    assert place.ledger("LongestMap") == []


def test_a_mapper_that_breaks_names_its_line_and_how_to_see_it_again(place: "Place") -> None:
    place.module(JOB.format(body="pass").replace("len(word), word", "1 // 0, word"), "words")
    place.key("text", b"a\n")

    done = run_job(place, "Longest", module="words")

    assert done.code == 30
    assert "words.py" in done.err
    assert "ZeroDivisionError" in done.err
    assert "workflows repro LongestMap text" in done.err


def test_an_input_that_is_cut_off_fails_and_is_not_counted(place: "Place") -> None:
    place.key("cut.gz", gzip.compress(TEXTS[0].read_bytes())[:-20])

    done = run_job(place, "WordCount")

    assert done.code == 30
    assert "unexpected end of file" in done.err


def test_inputs_come_by_signed_urls_and_new_signatures_change_nothing(place: "Place") -> None:
    objects_folder = place.path / "objects"
    objects_folder.mkdir()
    for path in TEXTS:
        (objects_folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    urls = place.path / "urls"

    with SignedObjects(objects_folder) as objects:
        runs = []
        for _ in range(2):
            urls.write_text("".join(objects.sign(f"{path.name}.gz") + "\n" for path in TEXTS))
            runs.append(run_job(place, "WordCount", "--source", "urls", "--pattern", "*.gz"))
            objects.expire()

    assert answer(runs[0]) == words(TEXTS)
    assert runs[1].out == runs[0].out
    assert len(place.ledger("WordCountMap")) == 3
    kept = [path for path in place.state.rglob("*") if path.is_file() and path.suffix != ".pyz"]
    signed = re.compile(rb"Signature=[0-9a-f]")  # what is shipped knows the word
    assert [path for path in kept if signed.search(path.read_bytes())] == []


# -- on a node -------------------------------------------------------------------------------------


def run_half(half: str, module: str, data: bytes, cwd: pathlib.Path, **told: object) -> str:
    """Run one half by itself, under the oldest rules: no packages, no project."""
    (cwd / "module.py").write_text(module)
    settings = json.dumps({"partitions": 2, "compressed": True, **told})
    argv = [sys.executable, "-S", str(RUNNER), half, "module.py", "Mine", settings]
    done = subprocess.run(argv, input=data, cwd=cwd, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_a_job_may_import_and_decorate_with_what_is_only_on_the_driver(
    tmp_path: pathlib.Path,
) -> None:
    module = """
import luigi, luigi.contrib.s3
from luigi import Parameter, IntParameter as Number
from workflows.pipelines.disco import job
from workflows.tasks import Fetch

class Mixin(Fetch):
    day = luigi.DateParameter(default=luigi.date_interval.Date.parse("2018"))

class Mine(Mixin, job.Job):
    size = Number(default=3)

    def mapper(self, line):
        yield (line[: self.size], 1), None

@luigi.Task.event_handler(luigi.Event.SUCCESS)
def told(task):
    pass
"""

    names = run_half("map", module, b"abcdef\n", tmp_path, size=2).split()

    pairs = b"".join((tmp_path / name).read_bytes() for name in names)
    assert pairs == b'["ab",1]\tnull\n'


def test_more_values_than_memory_may_hold_are_written_and_none_is_lost(
    tmp_path: pathlib.Path,
) -> None:
    module = "from workflows import Job\nclass Mine(Job):\n    def mapper(self, line):\n"
    module += "        for n in range(7):\n            yield line, n\n"
    rows = b"".join(b"%d\n" % n for n in range(50_000))

    names = run_half("map", module, rows, tmp_path).split()

    pairs = [line for name in names for line in (tmp_path / name).read_bytes().splitlines()]
    assert len(pairs) == len(set(pairs)) == 350_000
    first = (tmp_path / names[0]).read_bytes().splitlines()
    assert all(zlib.crc32(line.split(b"\t")[0]) % 2 == 0 for line in first)


def test_a_combiner_is_used_before_anything_is_written(tmp_path: pathlib.Path) -> None:
    module = "from workflows import Job\nclass Mine(Job):\n    def mapper(self, line):\n"
    module += "        yield line, 1\n    def combiner(self, key, values):\n"
    module += "        yield key, sum(values)\n"

    names = run_half("map", module, b"a\nb\n" * 300_000, tmp_path).split()

    pairs = sorted(line for name in names for line in (tmp_path / name).read_text().splitlines())
    assert pairs == ['"a"\t300000', '"b"\t300000']


def test_a_reducer_need_not_read_all_values_and_gets_tuples_back(tmp_path: pathlib.Path) -> None:
    module = "from workflows import Job\nclass Mine(Job):\n    def reducer(self, key, values):\n"
    module += "        yield isinstance(key, tuple), key, next(values)\n"
    pairs = b'["a",1]\t10\n["a",1]\t11\n["b",["c"]]\t12\n'

    out = run_half("reduce", module, pairs, tmp_path)

    assert out == "True\ta\t1\t10\nTrue\tb\tc\t12\n"
