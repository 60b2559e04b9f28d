"""Laws of conservation between steps: ``rows_in = rows_out + rows_rejected``.

A law is a sum on each side of one ``=``. Its names are numbers of the key at hand: what its command
wrote to ``$WORKFLOWS_METRICS``, what the runtime measured (``bytes_in``, ``bytes_out``), what the
inputs had (``input.rows_out``, summed), or what an earlier step had on the way to this key
(``Select.rows_in``, summed). Checked before an output is published.
"""

import re
from collections.abc import Mapping
from typing import Optional

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)?\Z")
_WHOLE = re.compile(r"[+-]?[0-9]+\Z")


def parse(law: str) -> tuple[list[str], list[str]]:
    """Return the names on the two sides of `law`.

    >>> parse("rows_in = rows_out + rows_rejected")
    (['rows_in'], ['rows_out', 'rows_rejected'])

    Raises:
        ValueError: it is not two sums of names around one ``=``.
    """
    sides = [[name.strip() for name in side.split("+")] for side in law.split("=")]
    if len(sides) != 2 or not all(_NAME.match(name) for side in sides for name in side):
        raise ValueError(f"{law!r} is not a law; write it as 'rows_in = rows_out + rows_rejected'")
    return sides[0], sides[1]


def broken(law: str, numbers: Mapping[str, int]) -> Optional[str]:
    """Return None if `law` holds for `numbers`, else a sentence that shows both sides.

    >>> broken("rows_in = rows_out", {"rows_in": 3, "rows_out": 2})
    'law broken: rows_in = rows_out, but 3 != 2 (rows_in=3, rows_out=2)'
    >>> broken("rows_in = rows_out", {"rows_in": 3})
    'law broken: rows_in = rows_out, but nobody counted rows_out'
    """
    left, right = parse(law)
    unknown = [name for name in left + right if name not in numbers]
    if unknown:
        return f"law broken: {law}, but nobody counted {', '.join(unknown)}"
    sums = [sum(numbers[name] for name in side) for side in (left, right)]
    if sums[0] == sums[1]:
        return None
    shown = ", ".join(f"{name}={numbers[name]}" for name in left + right)
    return f"law broken: {law}, but {sums[0]} != {sums[1]} ({shown})"


def names(law: str) -> list[str]:
    """Return all names of `law`.

    >>> names("bytes_out = source.bytes")
    ['bytes_out', 'source.bytes']
    """
    left, right = parse(law)
    return left + right


def parse_metrics(text: str) -> Mapping[str, int]:
    r"""Read ``name=integer`` lines; a name given twice is summed.

    >>> parse_metrics("rows_in=2\nrows_in=3\n")
    {'rows_in': 5}

    Raises:
        ValueError: a line is anything else.
    """
    metrics: dict[str, int] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        is_whole = equals and _WHOLE.match(value.strip())
        if not is_whole or not _NAME.match(name) or "." in name:
            raise ValueError(f"{line!r} in $WORKFLOWS_METRICS is not name=integer")
        metrics[name] = metrics.get(name, 0) + int(value)
    return metrics
