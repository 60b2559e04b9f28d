"""Batch pipelines over many files: Luigi tasks that run commands on the node that owns a key.

Nothing is imported here: nodes unpack this package too, and the command line must start fast.
"""

__version__ = "0.1.0"
