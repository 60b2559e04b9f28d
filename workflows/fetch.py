"""`Fetch`: the first step of most pipelines, for any source: a directory, S3 or a list of URLs.

It is alone in its module, so that a pipeline that imports it gets no other step with it.
"""

from workflows.steps import Map


class Fetch(Map):
    """Every source key, byte for byte, on the node that owns it."""

    command = ". ./fetch.sh"
    files = ("scripts/fetch.sh",)
    laws = ("bytes_out = source.bytes",)
