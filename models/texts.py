"""Texts to evaluate models on, from disk."""

import os
from pathlib import Path

from m2xfp.errors import InputError, MissingToolError
from m2xfp.models.lm import HELD_OUT

__all__ = ["read_text"]


def read_text(source: str | os.PathLike[str] | None = None) -> bytes:
    """Return the text to evaluate on.

    Parameters
    ----------
    source
        None for the bundled held-out text, a file, or ``wikitext``: the test split of wikitext-2
        in a local copy, a file ``wiki.test.raw`` or ``wiki.test.tokens`` in the working folder or
        the copy that the package ``datasets`` keeps.

    Raises
    ------
    InputError
        There is no such file or copy.
    MissingToolError
        The local copy needs pyarrow to be read.
    """
    if source is None:
        return HELD_OUT.read_bytes()
    path = Path(source)
    if path.is_file():
        return path.read_bytes()
    if os.fspath(source) == "wikitext":
        return _wikitext()
    raise InputError(
        f"no text file {os.fspath(source)!r}; give a file, or wikitext where a copy exists"
    )


def _wikitext() -> bytes:
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    plain = [Path("wiki.test.raw"), Path("wiki.test.tokens")]
    for path in plain:
        if path.is_file():
            return path.read_bytes()
    pattern = "datasets--*wikitext/snapshots/*/wikitext-2-raw-v1/test-*.parquet"
    tables = sorted(hub.glob(pattern))
    if not tables:
        raise InputError(
            f"no local copy of wikitext: neither {' nor '.join(map(str, plain))} here, nor "
            f"{pattern} in {hub}; give a text file"
        )
    try:
        from pyarrow.parquet import read_table
    except ImportError as error:
        raise MissingToolError(
            "the Python package pyarrow, to read wikitext", "pip install pyarrow"
        ) from error
    lines: list[str] = read_table(tables[0]).column("text").to_pylist()
    return "\n\n".join(lines).encode()
