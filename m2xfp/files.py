"""Writing files so that an interrupted run leaves nothing half-written; hashes of our sources."""

import importlib.util
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

__all__ = ["atomic_path", "sources_digest", "write_atomic"]


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``target`` that replaces it when the block ends well.

    The temporary name keeps the suffix of ``target`` (numpy and matplotlib choose by it). If the
    block raises, the temporary file is removed and ``target`` stays as it was. Missing parent
    folders are made.
    """
    path = Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(target: str | os.PathLike[str], content: str | bytes) -> Path:
    """Write ``content`` to ``target`` in one step and return its path."""
    with atomic_path(target) as temporary:
        data = content.encode() if isinstance(content, str) else content
        temporary.write_bytes(data)
    return Path(target)


def sources_digest(*modules: str) -> bytes:
    """Return a hash of the sources of modules, packages with all that is below them.

    Names of caches hold it, so that no result outlives the code that made it.

    Parameters
    ----------
    modules
        Dotted names; they are not imported.
    """
    digest = sha256()
    for name in modules:
        spec = importlib.util.find_spec(name)
        assert spec is not None, name
        assert spec.origin is not None, name
        origin = Path(spec.origin)
        paths = [origin]
        if origin.name == "__init__.py":
            paths = [p for p in origin.parent.rglob("*") if p.suffix in {".py", ".cpp"}]
        for path in sorted(paths):
            digest.update(sha256(path.read_bytes()).digest())
    return digest.digest()
