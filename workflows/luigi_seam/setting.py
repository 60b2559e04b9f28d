"""Luigi parameters whose default is a setting, read when a task is made and not at import."""

from typing import Any

import luigi

from workflows.config import settings


class _Setting:
    """The default of a parameter, which Luigi keeps in a private attribute and reads each time."""

    def __init__(self, *, setting: str, **kwargs: Any) -> None:
        self._setting = ""  # Luigi looks at the default as it makes the parameter
        super().__init__(default=None, **kwargs)  # type: ignore[call-arg]
        self._setting = setting

    @property
    def _default(self) -> Any:
        return getattr(settings(), self._setting) if self._setting else False

    @_default.setter
    def _default(self, value: Any) -> None:
        """Ignore the default that Luigi's constructor sets."""


class SettingParameter(_Setting, luigi.Parameter):
    """A text."""


class BoolSettingParameter(_Setting, luigi.BoolParameter):
    """A truth value."""


class FloatSettingParameter(_Setting, luigi.FloatParameter):
    """A number."""
