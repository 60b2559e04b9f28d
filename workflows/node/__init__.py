"""The node's side: one standard-library program, packed into one file and shipped to every node.

It keeps the keys' files and the ledgers of one slot, and runs commands over keys. It is spoken to
in JSON lines (``wire.py`` has the framing, ``server.py`` the operations). Python 3.9 syntax.
"""
