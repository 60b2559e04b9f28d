"""Draw docs/architecture.svg from the layers in .importlinter and the first lines of docstrings.

Usage: python .ci/picture.py [--check]
"""

import ast
import configparser
import html
import pathlib
import re
import sys
import textwrap

ROOT = pathlib.Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "architecture.svg"
WIDTH, MARGIN, GAP, LINE = 960, 16, 10, 17
CHARACTERS = 7.0  # pixels of width that a character of a sentence takes, on average
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1c2430 }
  .name { font-weight: 600; font-family: ui-monospace, monospace }
  rect { fill: #eef3f8; stroke: #9fb3c8 }
  rect.top { fill: #e3f1e6; stroke: #93bd9d }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6ebf1 } rect { fill: #22303e; stroke: #4b6378 }
    rect.top { fill: #22382a; stroke: #4b7a58 }
  }
"""
# What a newcomer opens first; the others are below it or beside it.
ENTRANCES = {"tasks", "steps", "cli", "verbs", "pipelines"}


def rows() -> list[list[str]]:
    """Return the names on each row of the contract, the highest row first."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / ".importlinter", encoding="utf-8")
    layers = parser["importlinter:contract:layers"]["layers"]
    return [re.split(r"\s*[|:]\s*", row.strip()) for row in layers.strip().splitlines()]


def sentence(name: str) -> str:
    """Return the first sentence of what a module or a package says of itself."""
    module = ROOT / "workflows" / f"{name}.py"
    path = module if module.exists() else ROOT / "workflows" / name / "__init__.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = re.split(r"(?<=\.)\s|\n\n", text, maxsplit=1)[0]
    return re.sub(r"`", "", " ".join(first.split())).rstrip(".") + "."


def drawn(names: list[str], y: int) -> tuple[list[str], int]:
    """Return the boxes of a row that begins at `y`, and their height."""
    width = (WIDTH - 2 * MARGIN - GAP * (len(names) - 1)) / len(names)
    texts = {
        name: textwrap.wrap(sentence(name), int((width - 2 * GAP) / CHARACTERS)) for name in names
    }
    height = LINE * (1 + max(map(len, texts.values()))) + 2 * GAP
    parts = []
    for number, name in enumerate(names):
        x = MARGIN + number * (width + GAP)
        is_package = (ROOT / "workflows" / name).is_dir()
        kind = ' class="top"' if name in ENTRANCES else ""
        parts.append(
            f'<rect{kind} x="{x:.0f}" y="{y}" width="{width:.0f}" height="{height}" rx="6"/>'
        )
        label = f"{name}/" if is_package else f"{name}.py"
        parts.append(
            f'<text class="name" x="{x + GAP:.0f}" y="{y + GAP + 12}">{html.escape(label)}</text>'
        )
        for line, text in enumerate(texts[name], 1):
            top = y + GAP + 12 + line * LINE
            parts.append(f'<text x="{x + GAP:.0f}" y="{top}">{html.escape(text)}</text>')
    return parts, height


def picture() -> str:
    """Return the picture."""
    parts, y = [], MARGIN
    for names in rows():
        boxes, height = drawn(names, y)
        parts += boxes
        y += height + GAP
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + MARGIN - GAP}"'
        ' role="img" aria-label="The layers of the package: each row imports lower rows only">'
    )
    return "\n".join([head, f"<style>{STYLE}</style>", *parts, "</svg>", ""])


def main() -> int:
    """Write the picture, or check that it is up to date."""
    text = picture()
    if "--check" not in sys.argv[1:]:
        PICTURE.write_text(text, encoding="utf-8")
        return 0
    if PICTURE.exists() and PICTURE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{PICTURE.relative_to(ROOT)} is out of date: python .ci/picture.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
