"""The definition of a step: its command, the files it ships, its laws. Nothing runs here."""

import functools
import hashlib
import os
import sys
from collections.abc import Sequence
from typing import Any, ClassVar

from workflows.config import settings
from workflows.errors import UsageError
from workflows.node import laws
from workflows.node.keys import digest_of
from workflows.planning import stated
from workflows.planning.parameters import StepParameters


class Definition(StepParameters):
    """The attributes of all steps; `steps.Step` uses them."""

    _is_base_of_steps = True
    mode: ClassVar[str]
    files: ClassVar[Sequence[str]] = ()
    laws: ClassVar[Sequence[str]] = ()
    total_laws: ClassVar[Sequence[str]] = ()
    durable: ClassVar[bool] = False
    # Whether no output, or an empty one, is nothing to warn of.
    allow_empty: ClassVar[bool] = False
    # How many keys, or how many in a hundred ("5%"), may fail without the run failing.
    max_failed: ClassVar["int | str"] = 0
    # Whether a key's name is taken once, whatever made it; and inputs are compared before each use.
    by_name: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check what a class of steps states.

        Raises:
            UsageError: an attribute is misspelt, or of the wrong type.
        """
        super().__init_subclass__(**kwargs)
        stated.check(cls, Definition)

    @property
    def command(self) -> str:
        """Return the bash command for each key; a step states it as an attribute or a property.

        Raises:
            UsageError: the step states none.
        """
        raise UsageError(f"{self.name} has no command")

    @property
    def timeout_s(self) -> float:
        """Return the seconds that a command may take for one key; 0: any."""
        return settings().timeout_s

    @property
    def pip(self) -> Sequence[str]:
        """Return the Python packages that the command needs on its node, as pip knows them."""
        return ()

    @property
    def name(self) -> str:
        """Return the step's name: its class's."""
        return type(self).__name__

    @property
    def ledger(self) -> str:
        """Return the name of the ledger that the step's outputs are in."""
        return self.name

    @functools.cached_property
    def shipped(self) -> dict[str, tuple[str, bytes]]:
        """Return name -> (digest, bytes) of the files that the step ships.

        Raises:
            UsageError: one is not there, or would hide another one of its name.
        """
        here = os.path.dirname(os.path.abspath(sys.modules[type(self).__module__].__file__ or "."))
        found: dict[str, tuple[str, bytes]] = {}
        for path in self.files:
            try:
                with open(os.path.join(here, path), "rb") as file:
                    data = file.read()
            except OSError as error:
                raise UsageError(
                    f"{self.name} ships {path}, but {error.strerror}: {os.path.join(here, path)}"
                ) from error
            name, digest = os.path.basename(path), hashlib.sha256(data).hexdigest()[:20]
            if name in found and found[name][0] != digest:
                raise UsageError(f"{self.name} ships two files called {name}; rename one")
            found[name] = (digest, data)
        return found

    @functools.cached_property
    def spec(self) -> str:
        """Return the digest of what the step does: its name, command and code.

        Raises:
            UsageError: a law is malformed or would never be checked, `durable` would be ignored,
                or a file that the step ships is not there.
        """
        stated.check_decorated(type(self), Definition)
        for name in ("command", "files", "laws", "total_laws", "pip"):
            stated.check_value(self.name, name, getattr(self, name))
        self._check_laws()
        digests = {name: digest for name, (digest, _) in self.shipped.items()}
        return digest_of([self.name, self.mode, self.command, digests, *self._further_spec()])

    def _further_spec(self) -> list[str]:
        """Return what else decides on the outputs; nothing for steps as all versions knew them."""
        return []

    def _check_laws(self) -> None:
        if self.durable and self.mode == "to_n":
            raise UsageError(
                f"{self.name} is a MapToN, which cannot be durable; make a step durable that"
                " reads it"
            )
        if self.total_laws and not self.durable and self.mode != "to_n":
            raise UsageError(
                f"{self.name} has total_laws, which are checked when it is made durable:"
                " write durable = True, or state them in a step that is"
            )
        for law in [*self.laws, *self.total_laws]:
            try:
                laws.parse(law)
            except ValueError as error:
                raise UsageError(f"{self.name}: {error}") from error

    def refuse_gap(self, before: "Definition", far_before: "Sequence[Definition]") -> None:
        """Check that every step that has a parameter of this one is given its value.

        Raises:
            UsageError: one is not, as `before`, between it and this one, has no such parameter.
        """
        for name in self.parameters.keys() - before.parameters:
            for far in far_before:
                if far.parameters.get(name, self.parameters[name]) != self.parameters[name]:
                    raise UsageError(
                        f"{name} of {self.name} does not reach {far.name}: {before.name}, between"
                        f" them, does not declare it; declare {name} on {before.name} too"
                    )
