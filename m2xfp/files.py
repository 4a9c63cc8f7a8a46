"""Files and folders that hold under abuse.

A file is written beside its target and moved into place, so that an interrupted run leaves nothing
half-written. A folder of a cache is sealed: it holds the hashes of its files, and one that was
damaged since is made anew. What the file system refuses becomes a `FileError` with the remedy.
"""

import atexit
import errno
import importlib.util
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from pathlib import Path

from m2xfp.errors import FileError, explain

__all__ = [
    "atomic_path",
    "cache_environment",
    "is_plain",
    "is_special",
    "is_whole",
    "plain_folder",
    "put_folder",
    "read_sealed",
    "refusals",
    "remove",
    "seal",
    "sources_digest",
    "try_place",
    "write_atomic",
    "write_sealed",
]

SEAL = ".whole"  # the file in a sealed folder that holds the hashes of all others


@contextmanager
def refusals(place: str | os.PathLike[str]) -> Iterator[None]:
    """Within the block a refusal of the file system is a FileError that names ``place``.

    It names another file where the error is about one that has nothing to do with ``place``.
    """
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        if error.errno is None:  # a library's own error, such as of a file's contents
            raise
        raise FileError(
            explain(error, place if _is_for(error.filename, place) else None)
        ) from error
    except Exception as error:
        refusal = _refusal_in(error)
        if refusal is None:
            raise
        raise FileError(explain(refusal, place)) from error


def _refusal_in(error: Exception) -> OSError | None:
    """Return what the file system said to a library that raises errors of its own.

    Those are safetensors, which has the number in the text, and torch.save, which goes on after a
    write that failed and then finds the file too short.
    """
    if found := re.search(r"\(os error (\d+)\)", str(error)):
        return OSError(int(found[1]), os.strerror(int(found[1])))
    if "inline_container" in str(error) and isinstance(error.__context__, OSError):
        return error.__context__
    return None


def _is_for(name: object, place: str | os.PathLike[str]) -> bool:
    """Tell whether a file is made for ``place``: a folder above it, or one for a while."""
    if name is None:
        return True
    path = Path(str(name)).absolute()
    return Path(place).absolute().is_relative_to(path) or any(
        part.startswith((".build-", ".put-", ".tmp")) for part in path.parts
    )


def is_special(path: Path) -> bool:
    """Whether a device, a pipe or an open file of a process stands at a path, as /dev/null does.

    To move a file into that place would take it away from everybody else.
    """
    links = path.is_symlink() and os.readlink(path).startswith("/proc/")
    opened = links or os.path.realpath(path.parent).startswith("/proc/")
    return path.exists() and (opened or not (path.is_file() or path.is_dir()))


def _end_of_links(path: Path) -> Path:
    """Return where a link leads, or the path itself; OSError for links that lead in a circle."""
    if not path.is_symlink():
        return path
    with suppress(FileNotFoundError):  # where it leads is still to be made
        path.stat()
    return Path(os.path.realpath(path))


def try_place(path: Path) -> None:
    """Raise OSError unless a file, or a folder with files, can be made at a path.

    Something is really made and removed again, beside a file or in a folder that is there,
    otherwise above the first folder that is missing, as deep as the path is: permissions alone do
    not tell of `/proc`, quotas, a full disk or a name that is too long. It has a name that nobody
    else has, so two processes do not disturb each other.
    """
    place = _end_of_links(path).absolute()
    there = next(each for each in (place, *place.parents) if os.path.lexists(each))
    missing = place.relative_to(there).parts
    if not missing:
        if not os.access(there, os.W_OK):  # a file that is not to be replaced
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        there = there if there.is_dir() else there.parent
    scratch = Path(tempfile.mkdtemp(prefix=".tmp", dir=there))
    try:
        inside = scratch.joinpath(*missing) if ".." not in missing else scratch
        inside.mkdir(parents=True, exist_ok=True)
        (inside / "x").write_bytes(b"x")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``target`` that replaces it when the block ends well.

    The temporary name keeps the suffix of ``target`` (numpy and matplotlib choose by it). If the
    block raises, the temporary file is removed and ``target`` stays as it was. Missing parent
    folders are made. A link stays, and the file that it leads to is replaced.

    Raises
    ------
    FileError
        The folder cannot be made or written, or writing fails, as on a full disk; a device or a
        pipe is no file.
    """
    path = Path(target)
    with refusals(path):
        if is_special(path):
            raise FileError(f"{path.absolute()} is a device or a pipe; choose a file")
        path = _end_of_links(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():  # found out now, not when the work is done
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        handle, name = tempfile.mkstemp(prefix=".tmp", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            temporary.replace(path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_atomic(target: str | os.PathLike[str], content: str | bytes) -> Path:
    """Write ``content`` to ``target`` in one step and return its path."""
    with atomic_path(target) as temporary:
        data = content.encode() if isinstance(content, str) else content
        temporary.write_bytes(data)
    return Path(target)


def write_sealed(target: Path, content: str | bytes) -> Path:
    """Write a file of a cache, with a file beside it that holds its hash."""
    data = content.encode() if isinstance(content, str) else content
    write_atomic(target, data)
    write_atomic(_seal_of(target), sha256(data).hexdigest())
    return target


def read_sealed(target: Path) -> bytes | None:
    """Return what `write_sealed` wrote; None if it is not there, or not as it was written."""
    try:
        data = target.read_bytes()
        sealed = _seal_of(target).read_text()
    except (OSError, ValueError):
        return None
    return data if sha256(data).hexdigest() == sealed else None


def _seal_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256")


def seal(folder: Path, files: Iterable[str] | None = None) -> None:
    """Write the hashes of a folder's files into it, as the last of its files.

    ``files`` are their paths in the folder, all files if left out.
    """
    paths = (
        sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
        if files is None
        else [folder / name for name in files]
    )
    hashes = {
        path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest() for path in paths
    }
    write_atomic(folder / SEAL, json.dumps(hashes, indent=1))


def is_whole(folder: Path) -> bool:
    """Tell whether a folder is sealed and every file that it was sealed with is as it was then.

    Files that were added since do not count. A folder that was damaged, or that another program
    is removing, is not whole; nothing that happens to it is an error.
    """
    try:
        sealed = json.loads((folder / SEAL).read_text())
        return all(
            sha256((folder / name).read_bytes()).hexdigest() == digest
            for name, digest in sealed.items()
        )
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def remove(path: Path) -> None:
    """Remove a file, or a folder with all in it, if it is there and can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def put_folder(made: Path, target: Path) -> None:
    """Put a finished folder at ``target`` in one step, in the place of one that is not whole.

    It is sealed, if it is not yet. ``made`` may be on another disk: the copy is made beside the
    target first. If another process was first with a whole one, that one stays.
    """
    with refusals(target):
        if not (made / SEAL).is_file():
            seal(made)
        with tempfile.TemporaryDirectory(
            dir=target.parent, prefix=".put-", ignore_cleanup_errors=True
        ) as scratch:
            whole = Path(shutil.move(made, Path(scratch) / "new"))
            if target.exists() and not is_whole(target):
                with suppress(OSError):
                    target.rename(Path(scratch) / "old")
            try:
                whole.rename(target)
            except OSError:
                if not is_whole(target):
                    raise


def _is_usable(folder: Path) -> bool:
    """Tell whether files can be made in a folder, which is made if it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@cache
def _cache_home() -> Path | None:
    """Return a folder for caches where the user's own cannot be written, otherwise None."""
    given = os.environ.get("XDG_CACHE_HOME")
    own = Path(given) if given else Path(os.path.expanduser("~"), ".cache")
    if own.is_absolute() and _is_usable(own):
        return None
    folder = tempfile.mkdtemp(prefix="m2xfp-cache-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def cache_environment() -> dict[str, str]:
    """Return the environment for programs that keep caches of their own for each user.

    yosys and nextpnr as WebAssembly, and ccache, fail where the home folder is missing or cannot
    be written. There they get a folder that goes with this process: slower, and it works.
    """
    home = _cache_home()
    return dict(os.environ) if home is None else {**os.environ, "XDG_CACHE_HOME": str(home)}


def is_plain(path: str | os.PathLike[str]) -> bool:
    """Tell whether a path has only characters that make, shells and other tools leave alone."""
    return re.fullmatch(r"[A-Za-z0-9_./+@=,-]+", os.fspath(path)) is not None


@contextmanager
def plain_folder(wished: Path) -> Iterator[Path]:
    """Give an empty folder for tools that cannot work where a path has a space or a quote in it.

    It is below ``wished`` if that has a plain path, so that it can be moved from there in one step,
    and otherwise in the first plain place for temporary files. It is removed at the end.

    Raises
    ------
    FileError
        It cannot be made.
    """
    places = [str(wished)] if is_plain(wished) else [tempfile.gettempdir(), "/tmp", "/var/tmp"]
    with refusals(wished):
        if not is_plain(wished):
            places = [name for name in places if is_plain(name) and os.path.isdir(name)]
        if not places:
            raise FileError(
                f"{wished}: the tools that are called here take no path with such characters, and "
                "TMPDIR has them too; set TMPDIR to a folder without spaces"
            )
        Path(places[0]).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=places[0], prefix=".build-", ignore_cleanup_errors=True
        ) as name:
            yield Path(name)


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
