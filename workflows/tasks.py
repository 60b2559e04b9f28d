"""The main pipeline: taxi rides per passenger count.

::

    luigi --module workflows.tasks MergeCounts
    luigi --module workflows.tasks MergeCounts --source DIR_OR_URL --pattern '*yellow*' --fleet local:3
"""

import shlex
from typing import Any

import luigi

from workflows import results
from workflows.errors import WorkflowsError
from workflows.steps import Map, MapFromN, MapToN


class Fetch(Map):
    """Every source key, byte for byte, on the node that owns it."""

    command = "bash fetch.sh"
    files = ("scripts/fetch.sh",)
    laws = ("bytes_out = source.bytes",)


class Select(Map):
    """The chosen columns of every ride, found by their names in the header."""

    columns = luigi.ListParameter(
        default=["passenger_count"], description="names of the columns to keep, as JSON"
    )
    upstream = Fetch
    files = ("scripts/csv.awk", "scripts/select_columns.awk")
    laws = ("rows_in = rows_out + rows_rejected",)

    @property
    def command(self) -> str:
        """Return the command that selects the columns."""
        return f"awk -f csv.awk -f select_columns.awk -- {shlex.join(self.columns)}"


class GroupCount(Map):
    """How many rides of a key have each value of the chosen columns."""

    columns = luigi.ListParameter(default=["passenger_count"])
    upstream = Select
    command = "awk -f csv.awk -f count_rows.awk"
    files = ("scripts/csv.awk", "scripts/count_rows.awk")
    laws = ("rows_in = rows_counted + rows_rejected", "rows_in = input.rows_out")


class Shuffle(MapToN):
    """All counts, together on one node."""

    columns = luigi.ListParameter(default=["passenger_count"])
    upstream = GroupCount
    command = "cat > results && echo results"
    laws = ("bytes_out = bytes_in",)


class MergeCounts(MapFromN):
    """How many rides there are of each value, the most frequent first. Durable."""

    columns = luigi.ListParameter(default=["passenger_count"])
    upstream = Shuffle
    command = "xargs cat | awk -f csv.awk -f merge_counts.awk"
    files = ("scripts/csv.awk", "scripts/merge_counts.awk")
    durable = True
    total_laws = (
        "rows_counted = GroupCount.rows_counted",
        "rows_counted + GroupCount.rows_rejected + Select.rows_rejected = Select.rows_in",
    )

    def on_success(self) -> str | None:
        """Print the result, once the whole step is done."""
        if not self.shard:
            results.show(self.checkpointed)
        return None


@luigi.Task.event_handler(luigi.Event.DEPENDENCY_PRESENT)
def _already_done(task: Any) -> None:
    """Print the result of a run that found it done already."""
    if isinstance(task, MergeCounts) and not task.shard:
        try:
            results.show(task.checkpointed)
        except WorkflowsError as error:
            raise SystemExit(str(error)) from error
