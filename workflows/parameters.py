"""The parameters that all steps have, and which of them luigid shows."""

from typing import Any

import luigi
from luigi.parameter import ParameterVisibility
from luigi.task import task_id_str

from workflows.config import settings


class StepParameters(luigi.Task):
    """A task with the parameters of a step.

    The visualizer lists them in this order. Those that are the same in all tasks are kept off it.
    """

    shard = luigi.Parameter(default="", description="set by workflows: which keys")
    source = luigi.Parameter(
        default=settings().source,
        description="directory or s3://bucket/prefix/, or file or URL that lists URLs",
    )
    pattern = luigi.Parameter(
        default=settings().pattern,
        description="glob of the keys to take",
        visibility=ParameterVisibility.HIDDEN,
    )
    fleet = luigi.Parameter(
        default=settings().fleet,
        description="local:N or ssh:FILE",
        visibility=ParameterVisibility.HIDDEN,
    )
    checkpoint = luigi.Parameter(
        default=settings().checkpoint,
        description="directory or s3://bucket/prefix of the durable results",
        visibility=ParameterVisibility.HIDDEN,
    )
    fuse = luigi.BoolParameter(
        default=settings().fuse,
        # Also `--fuse false`: to overrule luigi.cfg, and since luigid prints parameters that way.
        parsing=luigi.BoolParameter.EXPLICIT_PARSING,
        significant=False,
        description="run neighbouring 1:1 steps of a key as one pipe",
        visibility=ParameterVisibility.HIDDEN,
    )
    dataset = luigi.Parameter(
        default="",
        description="set by workflows: what the source held",
        visibility=ParameterVisibility.HIDDEN,
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Luigi's own id leaves hidden parameters out: tasks of two fleets would be one to luigid.
        params = self.to_str_params(only_significant=True)
        self.task_id = task_id_str(self.get_task_family(), params)
