"""Print the largest modules and functions, and mark what is over the house limits.

Usage: python .ci/sizes.py PACKAGE
"""

import ast
import pathlib
import statistics
import sys
from collections.abc import Iterator

MODULE_LINES, FUNCTION_LINES, SHOWN = (300, 400), (25, 50), 15


def functions(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Yield (lines, where) of every function in a module, nested ones too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            yield lines, f"{path}:{node.lineno} {node.name}"


def report(title: str, sizes: list[tuple[int, str]], limits: tuple[int, int]) -> None:
    """Print one table: the spread, then the largest, marked where over the soft or hard limit."""
    soft, hard = limits
    numbers = sorted(size for size, _ in sizes)
    p90 = numbers[int(len(numbers) * 0.9)]
    print(
        f"{title}: {len(numbers)}, {sum(numbers)} lines, median {statistics.median(numbers):.0f}, "
        f"p90 {p90}, max {numbers[-1]} (limit {soft}, hard {hard})"
    )
    for size, where in sorted(sizes, reverse=True)[:SHOWN]:
        mark = "!!" if size > hard else "! " if size > soft else "  "
        print(f"{mark}{size:5}  {where}")


def main() -> None:
    """Report the package named on the command line."""
    paths = sorted(pathlib.Path(sys.argv[1]).rglob("*.py"))
    modules = [(len(path.read_text(encoding="utf-8").splitlines()), str(path)) for path in paths]
    report("modules", modules, MODULE_LINES)
    report("functions", [size for path in paths for size in functions(path)], FUNCTION_LINES)


if __name__ == "__main__":
    main()
