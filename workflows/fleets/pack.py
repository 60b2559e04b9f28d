"""Pack the node's side into the one file that is shipped to nodes."""

import contextlib
import functools
import hashlib
import io
import os
import pathlib
import sys

_PACKAGE = pathlib.Path(__file__).resolve().parent.parent
_SHARED = ("__init__.py", "errors.py")
# The code for `python -c`, before the pack and its arguments. To name the pack itself as the
# program takes half as long again: Python then loads what runs modules as programs.
RUN = "import sys; del sys.argv[0]; sys.path.insert(0, sys.argv[0]); import boot"
# In the syntax of every Python: an old one must get as far as to say so. `attach` runs for each
# session, so it imports nothing else.
_BOOT = b"""\
import sys

if sys.version_info < (3, 9):
    why = "its Python is %d.%d; needed is 3.9 or newer" % sys.version_info[:2]
    print('\\n{"event":"refused","why":"' + why + '"}')
    sys.exit(1)
if sys.argv[1] == "attach":
    from workflows.node.relay import start
else:
    from workflows.node.main import start

start()
"""
_EPOCH = (1980, 1, 1, 0, 0, 0)


class Pack:
    """The packed runtime; packed only when it is asked for, as most nodes have it already."""

    def __init__(self) -> None:
        paths = [_PACKAGE / name for name in _SHARED] + sorted((_PACKAGE / "node").glob("*.py"))
        self._sources = {f"workflows/{p.relative_to(_PACKAGE).as_posix()}": p for p in paths}

    @functools.cached_property
    def digest(self) -> str:
        """Return what names the pack: its sources, and the Python that compiled them."""
        found = hashlib.sha256(sys.version.encode() + _BOOT)
        for name, path in self._sources.items():
            found.update(name.encode() + b"\0" + path.read_bytes())
        return found.hexdigest()[:20]

    @functools.cached_property
    def data(self) -> bytes:
        """Return the zip that `RUN` runs; the same sources always give the same bytes.

        Once made, in a tenth of a second, it is kept where Python keeps what it compiles.
        """
        kept = _PACKAGE / "__pycache__" / f"runtime-{self.digest}.pyz"
        with contextlib.suppress(OSError):
            return kept.read_bytes()
        data = self._packed()
        with contextlib.suppress(OSError):  # not ours to write to: then it is made each time
            kept.parent.mkdir(exist_ok=True)
            for old in kept.parent.glob("runtime-*.pyz"):
                old.unlink()
            part = kept.with_name(f"{kept.name}.{os.getpid()}")
            part.write_bytes(data)
            part.replace(kept)
        return data

    def _packed(self) -> bytes:
        """Return the zip.

        It holds every module twice: compiled, which takes two fifths off the time to start, and as
        source for a node whose Python is another, which passes over the compiled ones.
        """
        import zipfile  # here, as what is rarely used must not cost every start

        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(zipfile.ZipInfo("boot.py", _EPOCH), _BOOT)
            for name, path in self._sources.items():
                source = path.read_bytes()
                archive.writestr(zipfile.ZipInfo(name, _EPOCH), source, zipfile.ZIP_DEFLATED)
                archive.writestr(zipfile.ZipInfo(name + "c", _EPOCH), _compiled(name, path))
        return buffer.getvalue()


def _compiled(name: str, path: pathlib.Path) -> bytes:
    import py_compile
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".pyc") as file:
        py_compile.compile(
            str(path),
            file.name,
            name,
            doraise=True,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
        return pathlib.Path(file.name).read_bytes()


@functools.cache
def runtime_pack() -> Pack:
    """Return the pack of this installation."""
    return Pack()
