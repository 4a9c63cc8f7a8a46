"""The training text of the bundled language model, collected from the running installation.

Every Debian system with Python carries the same kind of text: the Python standard library with
its documentation topics, the Perl library with its manual pages, and the common licences. The
collection is deterministic: the same installation gives the same bytes. Files are held out whole,
and a file that repeats the lines of an earlier one, or of the held-out sample, is left out.
"""

import hashlib
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from m2xfp.errors import InputError

__all__ = ["SEPARATOR", "collect", "held_out_files", "join", "source_files", "training_text"]

SEPARATOR = b"\f\n"
"""Ends every file in a joined text: a page break, which editors and git take as text."""

_PERL_AND_LICENCES = (Path("/usr/share/perl"), Path("/usr/share/common-licenses"))
_SUFFIXES = frozenset({".py", ".pm", ".pl", ".pod", ""})
# Tests and third-party packages differ between installations; the others are generated tables.
_EXCLUDED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "unicore"}
)
_LARGEST = 1_000_000
_LONG_LINE = 20


def source_files() -> list[Path]:
    """Return the text files of the installation in a fixed order, without duplicates by link.

    Python's standard library comes first, then Perl's library and the common licences where they
    are installed.
    """
    found: dict[Path, None] = {}
    for root in (Path(sysconfig.get_path("stdlib")), *_PERL_AND_LICENCES):
        for path in sorted(root.rglob("*")):
            folders = path.relative_to(root).parts[:-1]
            if (
                path.suffix in _SUFFIXES
                and _EXCLUDED_FOLDERS.isdisjoint(folders)
                and path.is_file()
                and 0 < path.stat().st_size <= _LARGEST
            ):
                found.setdefault(path.resolve())
    return list(found)


def _is_text(data: bytes) -> bool:
    """Tell whether the bytes are UTF-8 without NUL."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in data


def _long_lines(data: bytes) -> set[bytes]:
    """Return the distinct lines that are long enough to identify a file."""
    return {line for raw in data.splitlines() if len(line := raw.strip()) >= _LONG_LINE}


def collect(paths: Iterable[Path], seen: set[bytes] | None = None) -> Iterator[tuple[Path, bytes]]:
    """Yield the files that are text and mostly new.

    Parameters
    ----------
    paths
        Files in order; of two that are alike the first is kept.
    seen
        Lines that count as seen before the first file. A file is dropped when half or more of its
        distinct lines of 20 bytes or more were seen.
    """
    known = set(seen or ())
    for path in paths:
        data = path.read_bytes()
        lines = _long_lines(data)
        if not _is_text(data) or 2 * len(lines & known) >= max(len(lines), 1):
            continue
        known |= lines
        yield path, data


def held_out_files(size: int) -> list[Path]:
    """Choose whole Python standard library files, about ``size`` bytes together, as the sample.

    The order is that of the SHA-256 of the path inside the library, so the choice depends neither
    on the place of the installation nor on what the files say. Files between 4 and 48 kB are taken,
    so that the sample mixes many authors.
    """
    root = Path(sysconfig.get_path("stdlib")).resolve()
    candidates = [
        path
        for path, data in collect(source_files())
        if path.is_relative_to(root) and path.suffix == ".py" and 4_000 <= len(data) <= 48_000
    ]
    candidates.sort(
        key=lambda path: hashlib.sha256(path.relative_to(root).as_posix().encode()).digest()
    )
    chosen: list[Path] = []
    total = 0
    for path in candidates:
        if total >= size:
            break
        chosen.append(path)
        total += path.stat().st_size
    return sorted(chosen)


def join(texts: Iterable[bytes]) -> bytes:
    """Return the texts one after the other, each ended by ``SEPARATOR``."""
    return b"".join(text.rstrip(b"\n") + b"\n" + SEPARATOR for text in texts)


def training_text(held_out: bytes) -> bytes:
    """Collect the training text of this installation, without what the held-out sample holds.

    Raises
    ------
    InputError
        If the installation carries less than one megabyte of such text.
    """
    text = join(data for _, data in collect(source_files(), _long_lines(held_out)))
    if len(text) < 1_000_000:
        raise InputError(
            f"this installation carries only {len(text)} bytes of training text; "
            "install the full Python standard library (apt-get install libpython3-stdlib perl)"
        )
    return text
