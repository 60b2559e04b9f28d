"""Every row of a CSV file classified, in pandas data frames of 100 rows, on all nodes.

::

    python3 -m workflows.pipelines.classify.generate 1000000 > rides.csv
    luigi --module workflows.pipelines.classify.tasks ClassifyRows --source . --pattern rides.csv
"""

import functools
import os
from collections.abc import Sequence

import luigi

from workflows.errors import UsageError
from workflows.fetch import Fetch
from workflows.pipelines.listing import ListsItsFiles
from workflows.steps import MapFromN, MapToN


class InPieces:
    """How many rows go together. Neither number changes the result of a classifier of rows."""

    piece_rows = luigi.IntParameter(
        default=10_000, description="rows of a piece, which is one key: what runs at once"
    )
    frame_rows = luigi.IntParameter(
        default=100, description="rows of a data frame, which is one call of the classifier"
    )
    classifier = luigi.Parameter(
        default="",
        description="Python file with a function classify(frame); empty: the example of rides",
    )

    @functools.cached_property
    def checked(self) -> tuple[int, int]:
        """Return the rows of a piece and of a frame.

        Raises:
            UsageError: a piece is not some whole frames.
        """
        if self.frame_rows < 1 or self.piece_rows < 1 or self.piece_rows % self.frame_rows:
            raise UsageError(
                f"--piece-rows {self.piece_rows} must be a multiple of --frame-rows"
                f" {self.frame_rows}, or the frames would depend on the pieces"
            )
        return self.piece_rows, self.frame_rows


class SplitRows(InPieces, MapToN):
    """The rows in pieces of equal length, each with the header, spread over the nodes."""

    upstream = Fetch
    files = ("scripts/split_rows.py", "../../scripts/csv_rows.py")
    laws = ("rows_in = rows_out",)
    balanced = True

    @property
    def command(self) -> str:
        return f"python3 -m split_rows {self.checked[0]}"


class Classify(InPieces, MapToN):
    """The rows of a piece with their classes, compressed, on their way to one node."""

    upstream = SplitRows
    laws = ("rows_in = rows_out",)
    pip = ("pandas",)

    @property
    def command(self) -> str:
        module, extension = os.path.splitext(os.path.basename(self.files[-1]))
        if extension != ".py" or not module.isidentifier():
            raise UsageError(f"--classifier {self.classifier} is not the name of a Python module")
        return f"python3 -m classify_rows {self.checked[1]} {module} classified.csv.gz"

    @property
    def files(self) -> Sequence[str]:  # type: ignore[override]
        """Return the scripts, and the classifier."""
        chosen = os.path.abspath(self.classifier) if self.classifier else "scripts/classifier.py"
        return ("scripts/classify_rows.py", "../../scripts/csv_rows.py", chosen)


class ClassifyRows(InPieces, ListsItsFiles, MapFromN):
    """All rows with their classes in one compressed file, in order, under one header. Durable."""

    upstream = Classify
    command = "python3 merge_compressed.py"
    files = ("scripts/merge_compressed.py",)
    laws = ("bytes_in = bytes_out + bytes_headers",)
    total_laws = ("Classify.rows_out = SplitRows.rows_in",)
