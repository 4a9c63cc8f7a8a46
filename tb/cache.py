"""The cache of built simulation models: one folder a build, named by a hash of all that goes in."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from m2xfp.errors import MissingToolError
from m2xfp.files import is_whole, plain_folder, put_folder, refusals, remove
from m2xfp.tb.verilator import PIP_REMEDY

__all__ = ["BUILD_DIR", "cached_build", "locked", "require_cache"]

# Where built simulation models are kept, below the working directory.
BUILD_DIR = Path("build/sim")


def require_cache() -> None:
    """Raise MissingToolError if the package that locks the cache is missing."""
    try:
        import filelock  # noqa: F401
    except ImportError as error:
        raise MissingToolError("the Python package filelock", PIP_REMEDY) from error


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Let one process at a time into the block, by a lock on a file, which is made.

    It is a lock of the operating system: it ends with its process, however that ends, and a file
    that is left means nothing.
    """
    require_cache()
    from filelock import FileLock

    with refusals(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def cached_build(
    build_dir: Path,
    name: str,
    verilog: Path,
    facts: Iterable[str],
    build: Callable[[Path], None],
) -> Path:
    """Return the folder of a build, making it first unless it is there already.

    A build is sealed with the hashes of its files; one that was damaged since is built anew.

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
        Called with a new folder that holds the copy, and whose path has neither spaces nor quotes.
        Several processes may ask at once: one builds, the others wait. A build that fails or is
        interrupted leaves nothing behind that counts.

    Raises
    ------
    MissingToolError
        If the package filelock is missing.
    FileError
        If the cache cannot be written.
    """
    require_cache()
    text = verilog.read_bytes()
    key = sha256(text)
    for fact in (verilog.name, *facts):
        key.update(sha256(fact.encode()).digest())
    build_dir = build_dir.resolve()
    target = build_dir / f"{name}-{key.hexdigest()[:16]}"
    if is_whole(target):  # also in a cache that cannot be written
        return target
    with locked(Path(f"{target}.lock")), refusals(target):
        if not is_whole(target):
            work = build_dir / f".build-{target.name}"
            remove(work)  # what a process that was killed has left
            try:
                with plain_folder(work) as parent:
                    folder = parent / "build"
                    folder.mkdir()
                    (folder / verilog.name).write_bytes(text)
                    build(folder)
                    put_folder(folder, target)
            finally:
                remove(work)
    return target
