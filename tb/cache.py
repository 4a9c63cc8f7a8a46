"""The cache of built simulation models: one folder a build, named by a hash of all that goes in."""

import tempfile
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path

from m2xfp.errors import MissingToolError
from m2xfp.tb.verilator import PIP_REMEDY

__all__ = ["BUILD_DIR", "cached_build"]

# Where built simulation models are kept, below the working directory.
BUILD_DIR = Path("build/sim")


def cached_build(
    build_dir: Path,
    name: str,
    verilog: Path,
    facts: Iterable[str],
    build: Callable[[Path], None],
) -> Path:
    """Return the folder of a build, making it first unless it is there already.

    Parameters
    ----------
    build_dir
        Folder of the cache.
    name
        Start of the folder's name, for people.
    verilog
        The Verilog file. ``build`` finds a copy of it under the same name in its folder, and the
        copy stays there: it is what the model was made from.
    facts
        Whatever else the result depends on: options, versions, other sources.
    build
        Called with a new folder that holds the copy. Several processes may ask at once: one
        builds, the others wait. A build that fails or is interrupted leaves nothing behind.

    Raises
    ------
    MissingToolError
        If the package filelock is missing.
    """
    try:
        from filelock import FileLock
    except ImportError as error:
        raise MissingToolError("the Python package filelock", PIP_REMEDY) from error

    text = verilog.read_bytes()
    key = sha256(text)
    for fact in (verilog.name, *facts):
        key.update(sha256(fact.encode()).digest())
    build_dir = build_dir.resolve()
    build_dir.mkdir(parents=True, exist_ok=True)
    target = build_dir / f"{name}-{key.hexdigest()[:16]}"
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=build_dir, prefix=".build-") as parent:
                folder = Path(parent) / "build"
                folder.mkdir()
                (folder / verilog.name).write_bytes(text)
                build(folder)
                folder.rename(target)
    return target
