"""The words of a pipeline as types: source keys, keys, their inputs, shards, and 1:n pieces."""

from typing import NamedTuple

from workflows.node.keys import digest_of
from workflows.node.urls import shown, unsigned


class SourceKey(NamedTuple):
    """One object of a source. `size` is bytes or None if unknown; `etag` changes when bytes do."""

    name: str
    url: str
    size: int | None
    etag: str

    @property
    def identity(self) -> str:
        """Return what stands for the content of the source key."""
        return digest_of([unsigned(self.url), self.size, self.etag])

    @property
    def shown(self) -> str:
        """Return the URL as it may be shown and kept: without secrets."""
        return shown(self.url)


class Input(NamedTuple):
    """One output that a key is made from: the ledger it is in, its identity and its name."""

    step: str
    identity: str
    name: str


class Key(NamedTuple):
    """One key of a step, planned: its identity follows from what it will be made of."""

    name: str
    identity: str
    slot: int
    inputs: tuple[Input, ...] = ()
    source: SourceKey | None = None


class Shard(NamedTuple):
    """Some of the keys of one slot; one Luigi task."""

    label: str
    slot: int
    keys: tuple[Key, ...]


class Piece(NamedTuple):
    """One file that a 1:n step made: which key made it, and what it must be.

    `proof` stands for all files that its maker made.
    """

    key: Key
    size: int
    crc: str
    maker: Input
    proof: str = ""
