"""The parameters that all steps have, and which of them luigid shows."""

from typing import Any

import luigi
from luigi.parameter import ParameterVisibility

from workflows.luigi_seam.setting import BoolSettingParameter, SettingParameter
from workflows.planning.source import conceal


class SourceParameter(SettingParameter):
    """A source as luigid, logs and checkpoints may show it: see `source.conceal`."""

    def normalize(self, value: str) -> str:
        """Return the value as it is shown and kept."""
        return conceal(value)


class StepParameters(luigi.Task):
    """A task with the parameters of a step.

    The visualizer lists them in this order. Those that are the same in all tasks are kept off it.
    """

    shard = luigi.Parameter(default="", description="set by workflows: which keys")
    source = SourceParameter(
        setting="source",
        description="directory or s3://bucket/prefix/, or file or URL that lists URLs",
    )
    pattern = SettingParameter(
        setting="pattern",
        description="glob of the keys to take",
        visibility=ParameterVisibility.HIDDEN,
    )
    fleet = SettingParameter(
        setting="fleet",
        description="local:N or ssh:FILE",
        visibility=ParameterVisibility.HIDDEN,
    )
    checkpoint = SettingParameter(
        setting="checkpoint",
        description="directory or s3://bucket/prefix of the durable results",
        visibility=ParameterVisibility.HIDDEN,
    )
    fuse = BoolSettingParameter(
        setting="fuse",
        # Also `--fuse false`: to overrule luigi.cfg, and since luigid prints parameters that way.
        parsing=luigi.BoolParameter.EXPLICIT_PARSING,
        significant=False,
        description="run neighbouring 1:1 steps of a key as one pipe",
        visibility=ParameterVisibility.HIDDEN,
    )
    strict = BoolSettingParameter(
        setting="strict",
        parsing=luigi.BoolParameter.EXPLICIT_PARSING,
        significant=False,
        description="refuse a bucket in another region than the EC2 fleet",
        visibility=ParameterVisibility.HIDDEN,
    )
    dataset = luigi.Parameter(
        default="",
        description="set by workflows: what the source held",
        visibility=ParameterVisibility.HIDDEN,
    )

    @property
    def parameters(self) -> "dict[str, Any]":
        """Return the value of each parameter."""
        return dict(self.param_kwargs)

    def to_str_params(
        self, only_significant: bool = False, only_public: bool = False
    ) -> dict[str, str]:
        """Return the parameters as text; for the task's id, which Luigi makes of public ones, all.

        Without those that are not shown, tasks of two fleets would be one task to luigid.
        """
        found: dict[str, str] = super().to_str_params(only_significant)
        return found
