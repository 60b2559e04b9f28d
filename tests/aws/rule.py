"""One thing that Amazon refuses, and its exact answer."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Rule:
    """What is refused, and how: a row of a table of the stand-in.

    `message` may hold ``{fields}``, which `refuse` fills in. `source` says where Amazon's answer
    is documented or was seen: a page of its documentation, or ``owner/repository#issue``.
    """

    name: str
    refuses: str
    status: int
    code: str
    message: str
    source: str

    def refuse(self, **fields: str) -> "Refusal":
        """Return the refusal; fields that the message does not name become elements of the XML."""
        named = {k: v for k, v in fields.items() if f"{{{k}}}" in self.message}
        rest = {k.replace("_", "-"): v for k, v in fields.items() if k not in named}
        return Refusal(self, self.message.format(**named), rest)


class Refusal(Exception):
    """A request that breaks a rule; `elements` are further elements of the XML answer."""

    def __init__(self, rule: Rule, message: str, elements: Mapping[str, str]) -> None:
        super().__init__(rule.name, message)
        self.rule, self.message, self.elements = rule, message, dict(elements)
