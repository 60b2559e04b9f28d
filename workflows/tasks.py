"""The main pipeline: taxi rides per passenger count.

::

    luigi --module workflows.tasks MergeCounts
    luigi --module workflows.tasks MergeCounts --source DIR_OR_URL --pattern '*yellow*'
"""

import shlex
from collections.abc import Sequence

import luigi

from workflows.fetch import Fetch
from workflows.running import results
from workflows.steps import Map, MapFromN, MapToN

__all__ = ["Fetch", "GroupCount", "MergeCounts", "Select", "Shuffle"]


class ByColumns:
    """The columns to count by; every step after Fetch depends on them."""

    columns = luigi.ListParameter(
        default=("passenger_count",), description="names of the columns to count by, as JSON"
    )


class Select(ByColumns, Map):
    """The chosen columns of every ride, found by their names in the header."""

    upstream = Fetch
    files = tuple(
        f"scripts/{name}"
        for name in ("csv.awk", "select_columns.awk", "select_parquet.py", "csv_rows.py")
    )
    laws = ("rows_in = rows_out + rows_rejected",)

    @property
    def command(self) -> str:
        """Return the command that selects the columns."""
        columns = shlex.join(self.columns)
        return (
            f"case $filename in *.parquet) exec python3 select_parquet.py {columns} ;;"
            f" *) exec awk -f csv.awk -f select_columns.awk -- {columns} ;; esac"
        )

    @property
    def pip(self) -> Sequence[str]:
        """Return what nodes must have installed: something only if there is Parquet to read."""
        return (
            ["duckdb>=1,<2"] if any(k.name.endswith(".parquet") for k in self.listed.keys) else []
        )


class GroupCount(ByColumns, Map):
    """How many rides of a key have each value of the chosen columns."""

    upstream = Select
    command = "awk -f csv.awk -f count_rows.awk"
    files = ("scripts/csv.awk", "scripts/count_rows.awk")
    laws = ("rows_in = rows_counted + rows_rejected", "rows_in = input.rows_out")


class Shuffle(ByColumns, MapToN):
    """All counts, together on one node."""

    upstream = GroupCount
    command = "cat > results && echo results"
    laws = ("bytes_out = bytes_in",)


class MergeCounts(ByColumns, MapFromN):
    """How many rides there are of each value, the most frequent first. Durable."""

    upstream = Shuffle
    command = "xargs cat | awk -f csv.awk -f merge_counts.awk"
    files = ("scripts/csv.awk", "scripts/merge_counts.awk")
    durable = True
    total_laws = (
        "rows_counted = GroupCount.rows_counted",
        "rows_counted + GroupCount.rows_rejected + Select.rows_rejected = Select.rows_in",
    )

    def show(self) -> None:
        """Print where the result is, and the result as a table."""
        results.show(self.checkpointed)
