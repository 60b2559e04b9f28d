"""The last lines of a pipeline whose result is files: where they are, and how large."""

import sys
from typing import TextIO

from workflows.steps import Step
from workflows.targets import CheckpointTarget


class ListsItsFiles(Step):
    """A durable step that prints its files on stdout once they are all there."""

    durable = True

    def show(self) -> None:
        """Print the files, once the whole step is done."""
        show(self.checkpointed)


def show(target: CheckpointTarget, out: TextIO | None = None) -> None:
    """Print where the files of a checkpoint are, then the bytes and name of each."""
    stream = out or sys.stdout
    parts = (target.manifest() or {})["parts"]
    width = max((len(str(part["bytes"])) for part in parts), default=0)
    for number, part in enumerate(parts):
        folder, _, name = target.store.locate(part["object"]).rpartition("/")
        if not number:
            print(folder, file=stream)
        print(f"{part['bytes']:>{width}}  {name}", file=stream)
    stream.flush()
