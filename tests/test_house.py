"""The house around the code: pins, configuration, samples and what is shipped."""

import ast
import collections
import configparser
import csv
import graphlib
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
NODE_SIDE = ["workflows/node", "workflows/errors.py"]


def lines_of(name: str) -> list[str]:
    return (ROOT / name).read_text(encoding="utf-8").splitlines()


def pins_of(name: str) -> dict[str, str]:
    lines = [line for line in lines_of(name) if line and not line.startswith(("#", "-r "))]
    return dict(line.split("==") for line in lines)


def test_every_value_in_luigi_cfg_has_its_reason_on_the_line_above() -> None:
    lines = lines_of("luigi.cfg")

    bare = [
        line
        for above, line in zip(["", *lines], lines, strict=False)
        if "=" in line and not line.startswith("#") and not above.startswith("# ")
    ]

    assert bare == []


def test_luigi_cfg_has_no_inline_comments_which_luigi_would_take_for_values() -> None:
    assert [line for line in lines_of("luigi.cfg") if re.match(r"[^#].*\s[#;]", line)] == []


@pytest.mark.parametrize("section", ["core", "worker", "scheduler", "retcode", "batch_email"])
def test_luigi_knows_every_key_of_its_sections(section: str) -> None:
    import luigi.batch_notifier
    import luigi.interface
    import luigi.retcodes
    import luigi.scheduler
    import luigi.worker

    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "luigi.cfg")
    config = {
        "core": luigi.interface.core,
        "worker": luigi.worker.worker,
        "scheduler": luigi.scheduler.scheduler,
        "retcode": luigi.retcodes.retcode,
        "batch_email": luigi.batch_notifier.batch_email,
    }[section]

    # Luigi reads these elsewhere; any other unknown key would be a warning at every start.
    known = {name for name, _ in config.get_params()}
    known |= {"autoload_range", "rpc_retry_attempts", "rpc_retry_wait"}

    assert set(parser[section]) <= known


def test_every_way_a_run_can_fail_has_an_exit_code_that_cron_sees() -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "luigi.cfg")

    assert len(parser["retcode"]) == 6
    assert all(int(code) > 2 for code in parser["retcode"].values())


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_every_requirement_is_pinned_and_the_file_says_how_it_was_made(name: str) -> None:
    lines = lines_of(name)

    assert "# Written by: make requirements" in lines[:3]
    pinned = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+|#.*|-r requirements\.txt")
    assert [line for line in lines if not pinned.fullmatch(line)] == []


def test_every_dependency_of_the_project_is_among_the_pins() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    declared = re.search(r"^dependencies = (\[.*\])$", project, re.MULTILINE)
    extra = re.search(r"^dev = (\[.*?^\])$", project, re.MULTILINE | re.DOTALL)
    assert declared is not None
    assert extra is not None

    run, dev = (
        {re.split(r"[\[<>=]", item)[0] for item in ast.literal_eval(found[1])}
        for found in (declared, extra)
    )

    assert run <= set(pins_of("requirements.txt"))
    assert dev <= set(pins_of("requirements-dev.txt"))


def test_requests_is_not_installed_to_run_since_luigi_imports_it_at_every_start() -> None:
    assert "requests" not in pins_of("requirements.txt")


def test_the_two_requirement_files_never_pin_the_same_thing() -> None:
    assert set(pins_of("requirements.txt")) & set(pins_of("requirements-dev.txt")) == set()


def test_the_changelog_has_its_unreleased_part_on_top() -> None:
    headings = [line for line in lines_of("CHANGELOG.md") if line.startswith("## ")]

    assert headings[0] == "## [Unreleased]"


def test_package_data_is_there_and_listed() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

    assert 'artifacts = ["workflows/py.typed", "workflows/scripts/*"]' in project
    assert (ROOT / "workflows/py.typed").is_file()
    assert any((ROOT / "workflows/scripts").iterdir())


@pytest.mark.parametrize("place", NODE_SIDE)
def test_what_nodes_run_is_standard_library_in_the_syntax_of_python_3_9(place: str) -> None:
    path = ROOT / place
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    outside = set()

    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 9))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            outside |= {name.split(".")[0] for name in names} - sys.stdlib_module_names

    assert files
    assert outside <= {"workflows"}


def test_the_samples_give_the_answer_their_readme_says() -> None:
    counts: collections.Counter[str] = collections.Counter()
    files = sorted((ROOT / "samples/taxi").glob("*.csv"))
    for file in files:
        with file.open(newline="", encoding="utf-8") as rows:
            counts.update(row["passenger_count"] for row in csv.DictReader(rows))

    table = dict(re.findall(r"^\| (\(blank\)|\d|all) \| (\d+) \|$", readme(), re.MULTILINE))
    expected = {name or "(blank)": str(rides) for name, rides in counts.items()}

    assert len(files) == 12
    assert table == {**expected, "all": str(counts.total())}
    assert sum(file.stat().st_size for file in files) <= 700_000


def readme() -> str:
    return (ROOT / "samples/README.md").read_text(encoding="utf-8")


def test_no_file_of_the_project_names_a_machine_it_was_written_on() -> None:
    names = ["*.md", "*.cfg", "*.toml", "*.txt", "*.sh", "Makefile", ".ci/*", ".importlinter"]
    files = [file for name in names for file in ROOT.glob(name)] + [ROOT / "samples/README.md"]
    private = re.compile(r"/(root|work)/[a-z]")

    assert [file.name for file in files if private.search(file.read_text(encoding="utf-8"))] == []


def test_the_picture_of_the_layers_is_drawn_from_the_contract() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci/picture.py"), "--check"], capture_output=True, text=True
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / "workflows").rglob("*.py")
        if "scripts" not in path.parts
    }
    imports = {name: imported(path) & set(modules) - {name} for name, path in modules.items()}

    circles = graphlib.TopologicalSorter(imports)

    circles.prepare()  # raises CycleError, which names the circle
    assert len(imports["workflows.steps"]) > 5


def imported(path: pathlib.Path) -> set[str]:
    """Return all that a module imports, in functions and for type hints too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
            found.add(str(node.module))
    return found
