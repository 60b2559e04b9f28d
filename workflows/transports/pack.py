"""Pack the node's side into the one file that is shipped to nodes."""

import functools
import hashlib
import io
import pathlib
import zipfile
from typing import NamedTuple

_PACKAGE = pathlib.Path(__file__).resolve().parent.parent
_SHARED = ("__init__.py", "errors.py", "keys.py", "laws.py")
# In the syntax of every Python: an old one must get as far as to say so. `attach` runs for each
# task, so it imports nothing else.
_START = b"""\
import sys

if sys.version_info < (3, 9):
    why = "its Python is %d.%d; needed is 3.9 or newer" % sys.version_info[:2]
    print('\\n{"event":"refused","why":"' + why + '"}')
    sys.exit(1)
if sys.argv[1] == "attach":
    from workflows.node.relay import start
else:
    from workflows.node.__main__ import start

start()
"""
_EPOCH = (1980, 1, 1, 0, 0, 0)


class Pack(NamedTuple):
    """The packed runtime and the digest that names it."""

    data: bytes
    digest: str


@functools.lru_cache(maxsize=1)
def runtime_pack() -> Pack:
    """Return the zip that ``python3`` runs; the same sources always give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("__main__.py", _EPOCH), _START)
        paths = [_PACKAGE / name for name in _SHARED] + sorted((_PACKAGE / "node").glob("*.py"))
        for path in paths:
            name = "workflows/" + path.relative_to(_PACKAGE).as_posix()
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), path.read_bytes())
    data = buffer.getvalue()
    return Pack(data, hashlib.sha256(data).hexdigest()[:20])
