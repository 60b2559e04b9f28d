"""Taxi rides by their number of passengers: each number in as many files as there are nodes.

::

    luigi --module workflows.pipelines.partition.tasks PartitionByPassengers
    luigi --module workflows.pipelines.partition.tasks PartitionByPassengers --files-each 12
"""

import shlex

import luigi

from workflows.errors import UsageError
from workflows.pipelines.listing import ListsItsFiles
from workflows.steps import MapFromN, MapToN
from workflows.tasks import Select

_COLUMNS = (
    "vendor_id",
    "pickup_datetime",
    "dropoff_datetime",
    "passenger_count",
    "trip_distance",
)


class ByPassengers:
    """The columns kept of a ride, and the number of files for each passenger count."""

    columns = luigi.ListParameter(default=_COLUMNS, description="names of the columns to keep")
    by = luigi.Parameter(
        default="passenger_count", description="the column to partition by, whole numbers"
    )
    files_each = luigi.IntParameter(
        default=0, description="files per number of passengers; 0: as many as the fleet has nodes"
    )


class Partition(ByPassengers, MapToN):
    """The rides of one month, a file for each number of passengers and part of the rides."""

    upstream = Select
    files = ("scripts/partition_rows.py", "../../scripts/csv_rows.py")
    laws = ("rows_in = rows_out + rows_rejected", "rows_in = input.rows_out")
    balanced = True

    @property
    def command(self) -> str:
        """Return the command that partitions a key.

        Raises:
            UsageError: the column is not among those that are kept, or there are to be -1 files.
        """
        if self.by not in self.columns:
            raise UsageError(f"--by {self.by} is not one of --columns {' '.join(self.columns)}")
        if self.files_each < 0:
            raise UsageError(f"--files-each {self.files_each} must be at least 1; 0: one per node")
        files = self.files_each or len(self.nodes)
        return f"python3 -m partition_rows {files} {shlex.quote(self.by)} passengers"


class PartitionByPassengers(ByPassengers, ListsItsFiles, MapFromN):
    """All rides, by their number of passengers. Durable."""

    upstream = Partition
    command = "xargs cat"
    laws = ("bytes_out = bytes_in",)
    total_laws = ("bytes_out = Partition.bytes_out",)
