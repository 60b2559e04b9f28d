"""A node's part in a shuffle: serve the pieces that others need."""

import threading
from typing import TYPE_CHECKING

from workflows.node.storage import Storage

if TYPE_CHECKING:
    from workflows.node.https import Credential, Listener


class Senders:
    """The listeners of a node: one for each credential, for as long as a session holds it."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._mutex = threading.Lock()
        self._open: dict[str, tuple[Listener, set[object]]] = {}

    def hold(self, session: object, address: str, credential: "Credential") -> int:
        """Open a listener unless there is one; return its port.

        Raises:
            OSError: the address is none of this host's.
        """
        from workflows.node.https import Listener

        with self._mutex:
            if credential.token not in self._open:
                listener = Listener(self._storage, address, credential)
                self._open[credential.token] = (listener, set())
            listener, holders = self._open[credential.token]
            holders.add(session)
            return listener.port

    def release(self, session: object) -> None:
        """Close the listeners that only `session` held."""
        closing = []
        with self._mutex:
            for token, (listener, holders) in list(self._open.items()):
                holders.discard(session)
                if not holders:
                    closing.append(listener)
                    del self._open[token]
        for listener in closing:
            listener.close()
