"""Runs watched in a real luigid: what a browser shows of them, and what its death does."""

import contextlib
import functools
import http.server
import json
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Done, Place
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

SAMPLES = pathlib.Path(__file__).resolve().parent.parent / "samples" / "taxi"
COLUMNS = 'columns=["passenger_count"]'
STEPS = ("Fetch", "Select", "GroupCount", "Shuffle", "MergeCounts")
# A key that a page would take for markup, if one let it.
BAD = "bad <b>yellow</b> & 'co'.csv"

# Every key says that it has begun, and waits until it is let go on.
GATED = """
from workflows.steps import Map


class Gated(Map):
    command = '''
        read -r path
        touch "$GATES/$filename.begun"
        while [[ ! -e $GATES/$filename.open && ! -e $GATES/all.open ]]; do sleep 0.02; done
        cat "$path"
    '''


class Lines(Map):
    upstream = Gated
    command = "wc -l"
"""

FAILING = """
from workflows.steps import Map


class Lines(Map):
    command = 'read -r path; grep -c . "$path"'
"""


def until(true: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """Wait for an event of another process that nothing announces."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)
    return found


class Luigid:
    """A luigid of our own, with a port and a state that outlive its processes."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = pathlib.Path(sys.executable).with_name("luigid")
        words = ["--address", "127.0.0.1", "--port", str(self.port), "--logdir", str(self.path)]
        self.process = subprocess.Popen(
            [program, *words, "--state-path", str(self.path / "state")],
            cwd=self.path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(self.answers, "luigid answers")

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.path / "luigi-server.log").read_text()
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        return False

    def end(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(30)

    def tasks(self) -> list[dict[str, Any]]:
        """Return what the visualizer's list is made from."""
        data = urllib.parse.quote(json.dumps({"status": "", "upstream_status": ""}))
        url = f"http://127.0.0.1:{self.port}/api/task_list?data={data}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return list(json.load(answer)["response"].values())

    def watch(self, place: "Place", **settings: str) -> None:
        """Let the runs of a place use this luigid, as a user's luigi.cfg says it."""
        config = place.path / "luigi.cfg"
        text = config.read_text()
        chosen = {
            "local_scheduler": "false",
            "scheduler_host": "127.0.0.1",
            "scheduler_port": str(self.port),
            "rpc_retry_wait": "1",
            **settings,
        }
        for name, value in chosen.items():
            text, found = re.subn(rf"(?m)^{name} =.*$", f"{name} = {value}", text)
            assert found == 1, name
        config.write_text(text)


@pytest.fixture
def luigid(tmp_path: pathlib.Path) -> Iterator[Luigid]:
    path = tmp_path / "luigid"
    path.mkdir()
    server = Luigid(path)
    server.start()
    yield server
    server.end()


def start(place: "Place", *words: str) -> "subprocess.Popen[str]":
    """Start Luigi over this place's source, with its gates."""
    (place.path / "gates").mkdir(exist_ok=True)
    return subprocess.Popen(
        place.command("luigi", "--module", "mine", *words, "--source", "source", "--pattern", "*"),
        cwd=place.path,
        env=dict(place.environ, GATES=str(place.path / "gates")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def gated(place: "Place", *words: str) -> "Iterator[subprocess.Popen[str]]":
    """Start a run whose keys wait at their gates; it is over when this ends."""
    place.module(GATED)
    run = start(place, *words)
    try:
        yield run
    finally:
        (place.path / "gates" / "all.open").touch()
        with run:
            run.wait(120)


def begun(place: "Place") -> set[str]:
    return {path.stem for path in (place.path / "gates").glob("*.begun")}


# -- what its visualizer shows ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> "Iterator[Chrome]":
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium or chromedriver (apt-get install chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (
            *("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-sync"),
            *("disable-background-networking", "disable-component-update"),
            "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # its page asks for fonts
            *("window-size=1400,1000", f"user-data-dir={profile}"),
        ):
            options.add_argument(f"--{flag}")
        chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
        yield chrome
        chrome.quit()


class Page:
    """The visualizer of a luigid in a browser."""

    def __init__(self, browser: "Chrome", luigid: Luigid) -> None:
        self.browser = browser
        self.url = f"http://127.0.0.1:{luigid.port}/static/visualiser/index.html"

    def open(self, fragment: str) -> None:
        self.browser.get("about:blank")  # or only the fragment changes, and nothing is loaded
        self.browser.get(f"{self.url}#{fragment}")

    def all(self, selector: str) -> "list[WebElement]":
        return self.browser.find_elements("css selector", selector)

    def one(self, selector: str) -> "WebElement":
        """Wait for an element that a person could see."""
        visible = lambda: [e for e in self.all(selector) if e.is_displayed()]  # noqa: E731
        found: WebElement = until(visible, f"{selector} is shown")[0]
        return found

    def rows(self, **state: str) -> "list[WebElement]":
        self.open(urllib.parse.urlencode({"length": "100", **state}))
        self.one("#taskTable tbody td.details-control")
        return self.all("#taskTable tbody tr")

    def row(self, step: str, status: str, details: str = "") -> "WebElement":
        rows = self.rows(family=step, statuses=json.dumps([status]))
        (found,) = [row for row in rows if details in row.text]
        return found


def texts(row: "WebElement") -> list[str]:
    return [cell.text for cell in row.find_elements("css selector", "td")]


def click(row: "WebElement", selector: str) -> None:
    row.find_element("css selector", selector).click()


@pytest.fixture(scope="module")
def seen(
    tmp_path_factory: pytest.TempPathFactory, new_place: "Callable[[pathlib.Path], Place]"
) -> "Iterator[tuple[Place, Luigid, Done]]":
    """Count the taxi rides under a luigid, with one file that has no such column."""
    path = tmp_path_factory.mktemp("seen")
    (path / "luigid").mkdir()
    server = Luigid(path / "luigid")
    server.start()
    place = new_place(path)
    for sample in sorted(SAMPLES.glob("*.csv")):
        place.key(sample.name, sample.read_bytes())
    handler = functools.partial(Quiet, directory=str(place.state / "runs"))
    logs = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=logs.serve_forever).start()
    server.watch(place, log_url=f"http://127.0.0.1:{logs.server_port}/")
    first = place.luigi("MergeCounts", module="workflows.tasks")
    assert first.code == 0, first
    place.key(BAD, b"vendor,fare\n1,2\n")
    yield place, server, place.luigi("MergeCounts", module="workflows.tasks")
    logs.shutdown()
    logs.server_close()
    server.end()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """What `python -m http.server --directory .workflows/runs` does, without a word."""

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def page(browser: "Chrome", seen: "tuple[Place, Luigid, Done]") -> Page:
    return Page(browser, seen[1])


@pytest.mark.browser
def test_the_list_shows_each_step_with_its_shard_its_source_and_its_node(page: Page) -> None:
    rows = [texts(row) for row in page.rows(family="Select", statuses='["DONE"]')]

    assert len(rows) == 12
    for category, name, details, *_ in rows:
        assert (category, name) == ("DONE", "Select")
        what, node = details.split("\n", 1) if "\n" in details else (details, "")
        assert re.fullmatch(
            rf"shard=yellow_tripdata_20\d\d-\d\d\.csv, source=source, {re.escape(COLUMNS)}",
            what,
        ), details
        assert re.fullmatch(r'\{"local:3 node [012]":0\.\d+\}', node), details


@pytest.mark.browser
def test_a_shard_s_message_says_keys_and_rate_and_where_its_log_is(page: Page) -> None:
    click(page.row("Fetch", "DONE", "2018-05"), ".statusMessage")
    message = until(lambda: page.one("#statusMessageModal pre").text, "the message is loaded")

    said, log = message.split("\nlog: ")
    assert re.fullmatch(r"1 of 1 keys done, \d+\.\d MB/s", said)
    assert re.search(
        r"^\d\d:\d\d:\d\d yellow_tripdata_2018-05\.csv done: \d+ bytes",
        pathlib.Path(log).read_text(),
    )
    until(lambda: page.one("#statusMessageModal .progress-bar").text == "100%", "all is done")


@pytest.mark.browser
def test_the_link_of_a_shard_opens_its_log(page: Page, browser: "Chrome") -> None:
    before = browser.current_window_handle
    row = page.row("Fetch", "DONE", "2018-05")

    click(row, "a[target=_blank]")
    until(lambda: len(browser.window_handles) == 2, "the link opens a window")
    browser.switch_to.window(browser.window_handles[1])
    text = until(lambda: page.one("body").text, "the log is loaded")
    browser.close()
    browser.switch_to.window(before)

    assert "yellow_tripdata_2018-05.csv done:" in text


@pytest.mark.browser
def test_the_error_names_the_failing_key_its_status_its_stderr_and_its_log(page: Page) -> None:
    click(page.row("Select", "FAILED"), ".showError")

    def shown() -> list[str]:
        # A modal fades in: what is not visible yet has no text.
        texts = [pre.text for pre in page.all("#errorModal pre")]
        return texts if texts and all(texts) else []

    error, again = until(shown, "the error is loaded")

    lines = error.splitlines()
    assert re.fullmatch(rf"Select of {re.escape(BAD)} on node \d: exited 3", lines[0])
    assert lines[1].strip() == (
        "select_columns: no column 'passenger_count' in the header: vendor,fare"
    )
    assert lines[2].strip().startswith("to see it again: workflows repro Select 'bad <b>")
    assert lines[0] in pathlib.Path(lines[3].strip().removeprefix("log: ")).read_text()
    assert again.startswith('luigi --module workflows.tasks Select --shard "bad <b>')


@pytest.mark.browser
def test_the_message_of_a_failed_shard_names_the_key_as_text(page: Page) -> None:
    click(page.row("Select", "FAILED"), ".statusMessage")
    message = until(lambda: page.one("#statusMessageModal pre").text, "the message is loaded")

    assert message.startswith(f"0 of 1 keys done, 1 failed: {BAD}, ")
    until(lambda: page.one("#statusMessageModal .progress-bar").text == "0%", "nothing is done")


@pytest.mark.browser
def test_what_is_left_of_a_failed_run_is_marked_as_such(page: Page) -> None:
    rows = [texts(row) for row in page.rows(statuses='["UPSTREAM_FAILED"]')]

    assert {row[1] for row in rows} == {"GroupCount", "Shuffle", "MergeCounts"}


@pytest.mark.browser
def test_the_graph_shows_what_the_result_is_made_from(page: Page) -> None:
    # The first run's result: its whole step, which has no node and is done.
    row = next(
        row
        for row in page.rows(family="MergeCounts", statuses='["DONE"]')
        if "node" not in row.text
    )
    link = row.find_element("css selector", "a.btn-info").get_attribute("href") or ""

    page.open(link.partition("#")[2].replace("hideDone=1", "hideDone=0"))

    def drawn() -> list[str]:
        from selenium.common.exceptions import StaleElementReferenceException

        with contextlib.suppress(StaleElementReferenceException):  # drawn anew meanwhile
            texts = [node.text for node in page.all("#graphPlaceholder .graph-node-a")]
            return texts if len(texts) >= 53 else []
        return []

    nodes = until(drawn, "the graph is drawn")
    keys = dict.fromkeys(("Fetch", "Select", "GroupCount"), 12)
    assert {step: nodes.count(step) for step in STEPS} == {**keys, "Shuffle": 13, "MergeCounts": 4}
    assert page.one("#dependencyTitle").text == f"MergeCounts({COLUMNS}, shard=, source=source)"


def test_the_result_s_message_says_where_it_is(seen: "tuple[Place, Luigid, Done]") -> None:
    place, server, _ = seen
    (result,) = place.checkpoint.glob("MergeCounts/*")

    messages = [task["status_message"] for task in server.tasks()]

    assert f"committed: {result}" in messages
    assert "1 pieces delivered" not in messages
    assert any(str(message).startswith("12 pieces delivered to") for message in messages)


def test_a_run_under_luigid_fails_and_says_so_as_it_does_without(
    seen: "tuple[Place, Luigid, Done]",
) -> None:
    _, luigid, run = seen

    assert run.code == 30
    assert f"luigid shows it: http://127.0.0.1:{luigid.port}\n" in run.err
    assert f"Select of {BAD} on node" in run.err
    assert run.err.splitlines()[-1].startswith("1 key failed, finished work is kept")
    assert "Warning" not in run.err


def step(**parameters: Any) -> Any:
    from workflows.tasks import Select

    kind: Any = Select  # Luigi's types do not know the parameters of a base class
    return kind(**parameters)


@pytest.mark.parametrize(
    "hidden", [{"fleet": "local:9"}, {"pattern": "x"}, {"checkpoint": "x"}, {"dataset": "x"}]
)
def test_tasks_that_differ_in_what_is_not_shown_are_still_two(hidden: dict[str, str]) -> None:
    one, other = step(), step(**hidden)

    assert one != other
    assert one.task_id != other.task_id


def test_a_task_is_the_same_whether_its_steps_are_fused_or_not() -> None:
    assert step(fuse=True) == step(fuse=False)


# -- while a run goes on ---------------------------------------------------------------------------


def test_progress_is_that_of_the_keys_also_while_the_next_one_takes_long(
    place: "Place", luigid: Luigid
) -> None:
    luigid.watch(place, key_tasks="0", shards="1", slots="1")
    for number in range(4):
        place.key(f"k{number}", b"1\n")

    with gated(place, "Gated", "--fleet", "local:1"):
        for number in range(3):
            until(functools.partial(lambda n: f"k{n}" in begun(place), number), f"k{number} begins")
            if number < 2:
                (place.path / "gates" / f"k{number}.open").touch()
        wanted = ("2 of 4 keys done, 0.0 MB/s", 50)
        until(
            lambda: (
                wanted
                in [
                    (str(task["status_message"]).split("\n")[0], task["progress_percentage"])
                    for task in luigid.tasks()
                ]
            ),
            "half of the keys are shown as done",
        )


def test_a_key_that_failed_often_runs_at_once_when_it_is_mended(
    place: "Place", luigid: Luigid
) -> None:
    luigid.watch(place)
    place.module(FAILING)
    place.key("a", b"1\n")
    place.key("b", b"")

    failed = [place.luigi("Lines").code for _ in range(4)]
    place.key("b", b"1\n")
    mended = place.luigi("Lines")

    assert failed == [30] * 4
    assert (mended.code, place.outputs("Lines")) == (0, {"a": b"1\n", "b": b"1\n"})


# -- luigid dies -----------------------------------------------------------------------------------


def interrupted_luigid(place: "Place", luigid: Luigid, number: int) -> tuple[int, str]:
    """Run two steps; end luigid and start it again while keys of the first one run."""
    luigid.watch(place)
    for key in range(4):
        place.key(f"k{key}", b"1\n")
    with gated(place, "Lines") as run:
        until(lambda: begun(place), "the first key begins")
        luigid.end(number)
        luigid.start()
        (place.path / "gates" / "all.open").touch()
        _, err = run.communicate(timeout=120)
    return run.returncode, err


def test_a_luigid_killed_and_started_again_ends_the_run_which_the_next_one_completes(
    place: "Place", luigid: Luigid
) -> None:
    code, err = interrupted_luigid(place, luigid, signal.SIGKILL)
    kept = len(place.ledger("Gated"))
    again = place.luigi("Lines", GATES=str(place.path / "gates"))

    assert code == 25, err
    assert err.splitlines()[-2].startswith("not finished, though nothing failed: ")
    assert err.splitlines()[-1].endswith("finished work is kept: run it again")
    assert kept > 0
    assert (again.code, sorted(place.outputs("Lines"))) == (0, ["k0", "k1", "k2", "k3"])
    assert len(place.ledger("Gated")) == 4
    assert place.leftovers() == []


def test_a_luigid_that_is_stopped_and_started_again_lets_the_run_go_on(
    place: "Place", luigid: Luigid
) -> None:
    code, err = interrupted_luigid(place, luigid, signal.SIGTERM)

    assert code == 0, err
    assert sorted(place.outputs("Lines")) == ["k0", "k1", "k2", "k3"]
    assert len(place.ledger("Gated")) == 4


def test_without_a_luigid_a_run_ends_and_says_what_to_start(
    place: "Place", tmp_path: pathlib.Path
) -> None:
    Luigid(tmp_path).watch(place, rpc_retry_attempts="2")
    place.module(FAILING)
    place.key("a", b"1\n")

    run = place.luigi("Lines")

    assert run.code == 40, run
    away, error = run.err.splitlines()
    assert away == "WARNING: luigid does not answer; trying again for a while"
    assert error.startswith("ERROR: luigid does not answer: ")
    assert "start it, or set local_scheduler = true in luigi.cfg" in error


def test_luigis_own_timeout_ends_a_task_and_its_command_and_says_so(place: "Place") -> None:
    place.key("k0", b"1\n")
    config = place.path / "luigi.cfg"
    before, luigis = config.read_text().split("\n[worker]\n")
    luigis = luigis.replace("\ntimeout = 0\n", "\ntimeout = 2\n")
    config.write_text(f"{before}\n[worker]\n{luigis}")

    with gated(place, "Gated") as run:
        _, err = run.communicate(timeout=120)
        started = begun(place)

    assert started == {"k0"}
    assert run.returncode == 30
    assert "ERROR: Gated k0: ended by [worker] timeout in luigi.cfg; finished work is kept" in err
    assert "Traceback" not in err, err
    assert place.ledger("Gated") == []
    assert place.leftovers() == []


def test_tasks_of_steps_are_threads_and_start_no_process(place: "Place") -> None:
    place.key("k0", b"1\n")

    with gated(place, "Gated") as run:
        until(lambda: begun(place), "the key begins")
        own = pathlib.Path(f"/proc/{run.pid}/cmdline").read_bytes()
        text = pathlib.Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text()
        children = [pathlib.Path(f"/proc/{pid}/cmdline").read_bytes() for pid in text.split()]

    assert children
    assert own not in children
