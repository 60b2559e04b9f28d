"""The words of the project are those of docs/glossary.md; the phrases it forbids occur nowhere."""

import pathlib
import re
import tokenize

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
GLOSSARY = ROOT / "docs" / "glossary.md"
FORBIDDEN = {
    "anew": r"\banew\b",
    "mend": r"\bmend(s|ed|ing)?\b",
    "of it is said": r"\bof (it|them|which) is said\b",
    "come of age": r"\b(came|come|comes|coming) of age\b",
    "of its own accord": r"\bof (its|their) own accord\b",
    "heed": r"\bheed(s|ed|ing)?\b",
    "is no part of": r"\b(is|are) no part of\b",
    "for want of": r"\bfor want of\b",
    "whatever becomes of": r"\bwhatever becomes of\b",
    "talk nonsense": r"\b(talks?|talking) nonsense\b|\bma(de|kes?) no sense\b",
    "gone again": r"\bgone again\b",
    "well again": r"\bwell again\b",
    "so many of": r"\bso many of\b",
    "as ever": r"\bas ever\b",
    "begin again": r"\bbeg(in|ins|inning|an|un) again\b",
    "in vain": r"\bin vain\b",
    # A heading may begin with it, and so may a question.
    "What ... as the subject of a sentence": r"(?:\A|[.!?:] )(?:\*\*)?What [a-z`][^.?]*[.:;]",
    "cluster": r"\bclusters?\b",
    "worker node": r"\bworker nodes?\b",
}
# Scripts that steps ship: their bytes are part of an output's identity, so a better word in a
# comment would make every user's keys run again.
SHIPPED = (
    "workflows/scripts/",
    "workflows/pipelines/classify/scripts/",
    "workflows/pipelines/disco/scripts/",
    "workflows/pipelines/partition/scripts/",
)
PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("workflows/**/*.md")),
    ROOT / "run_pipeline.sh",
    ROOT / "luigi.cfg",
]
MODULES = [
    path
    for path in sorted(ROOT.glob("workflows/**/*.py"))
    if not path.relative_to(ROOT).as_posix().startswith(SHIPPED)
]


def name_of(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


def flat(text: str) -> str:
    return " ".join(text.split())


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs, list items, table cells and comments of a page; no headings."""
    text = re.sub(r"^(#+ |#!).*$", "", text, flags=re.M) if "\n## " in text else text
    text = re.sub(r"^\s*#( |$)", "", text, flags=re.M)
    parts = re.split(r"\n\s*\n|^\s*(?:[-*]|\d+\.) |\|", text, flags=re.M)
    return [flat(part) for part in parts]


def spoken(path: pathlib.Path) -> list[str]:
    """Return the comments and texts of a module, each run of neighbouring ones as one."""
    skipped = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    runs: list[list[str]] = [[]]
    before = None
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT:
                said = token.string.lstrip("# ")
            elif token.type == tokenize.STRING:
                said = token.string.strip("rbfRBF").strip("\"'")
            elif token.type in skipped:
                continue
            else:
                before = None
                continue
            if token.type != before:
                runs.append([])
            runs[-1].append(said)
            before = token.type
    return [flat(part) for run in runs for part in re.split(r"\n\s*\n", " ".join(run))]


def found(texts: list[str]) -> list[tuple[str, str]]:
    return [
        (phrase, text[max(0, hit.start() - 30) : hit.end() + 30])
        for phrase, pattern in FORBIDDEN.items()
        for text in texts
        for hit in re.finditer(pattern, text, 0 if phrase.startswith("What") else re.I)
    ]


def test_the_glossary_lists_the_phrases_that_are_looked_for() -> None:
    table = GLOSSARY.read_text(encoding="utf-8").partition("\n## Words not to use\n")[2]

    listed = re.findall(r"^\| (.+?) \| .+ \|$", table, re.M)

    assert listed[0] == "not"
    assert listed[1:] == list(FORBIDDEN)


@pytest.mark.parametrize(
    "text",
    [
        "It is made anew.",
        "Mend the cause.",
        "A URL that came of age.",
        "What is done is kept.",
        "It ends. What is left, goes.",
        "it talks nonsense",
        "**What is signed.** It holds.",
    ],
)
def test_a_forbidden_phrase_is_found(text: str) -> None:
    assert found([text]) != []


@pytest.mark.parametrize("text", ["What runs there?", "Amend it.", "What it costs to run"])
def test_a_question_a_heading_and_other_words_are_not_taken_for_one(text: str) -> None:
    assert found([text]) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_has_a_forbidden_phrase(page: pathlib.Path) -> None:
    text = page.read_text(encoding="utf-8")
    if page == GLOSSARY:
        text = text.partition("\n## Words not to use\n")[0]

    assert found(paragraphs(text)) == []


def test_the_unreleased_part_of_the_changelog_has_no_forbidden_phrase() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    unreleased = text.partition("\n## [Unreleased]\n")[2].partition("\n## [")[0]

    assert unreleased
    assert found(paragraphs(unreleased)) == []


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_no_comment_docstring_or_message_has_a_forbidden_phrase(module: pathlib.Path) -> None:
    assert found(spoken(module)) == []
