"""What passes between the parts of the GEMM core: commands, tiles, statuses."""

from collections.abc import Mapping

from amaranth.hdl import Shape, ShapeLike, unsigned
from amaranth.lib import data

from m2xfp.formats import BlockFormat
from m2xfp.rtl.parts.gemm_cycles import SIZE_BITS
from m2xfp.rtl.parts.layouts import group_layout

__all__ = [
    "TAG_BITS",
    "command_layout",
    "faults_layout",
    "job_layout",
    "status_layout",
    "tagged",
    "tile_layout",
    "weights_layout",
    "words_layout",
]

TAG_BITS = 3
"""Bits of a command's tag: a command is then 64 bits wide, and its status a byte."""

command_layout = data.StructLayout(
    {
        "m": unsigned(SIZE_BITS),
        "n": unsigned(SIZE_BITS),
        "k": unsigned(SIZE_BITS),
        "tag": unsigned(TAG_BITS),
        "resync": unsigned(1),
    }
)
"""One command: [m, k] activations times [n, k] weights, or the end of a failure."""

# What went wrong with a command: all zero is success.
_faults = {"bad_m": 1, "bad_n": 1, "bad_k": 1, "misframed": 1}
faults_layout = data.StructLayout(_faults)
status_layout = data.StructLayout({**_faults, "tag": TAG_BITS})

job_layout = data.StructLayout(
    {
        "m": SIZE_BITS,
        "n": SIZE_BITS,
        "groups": SIZE_BITS,
        "faults": faults_layout,
        "tag": TAG_BITS,
        "resync": 1,
    }
)
"""A checked command; with a fault nothing is to be done but to report it."""


def tagged(name: str, shape: ShapeLike) -> data.StructLayout:
    """Return the payload of an operand stream: ``shape``, called ``name``, and a command's tag."""
    return data.StructLayout({name: shape, "tag": TAG_BITS})


def words_layout(name: str, word: ShapeLike, rows: int) -> data.StructLayout:
    """Return the payload of the weights: a word, or one of each of ``rows`` rows, with a tag."""
    return tagged(name, word) if rows == 1 else tagged("rows", data.ArrayLayout(word, rows))


def weights_layout(block: BlockFormat, rows: int) -> data.StructLayout:
    """Return the same where words are groups."""
    return words_layout("group", group_layout(block), rows)


def tile_layout(
    rows: int,
    columns: int,
    faults: data.StructLayout = faults_layout,
    marks: Mapping[str, ShapeLike] | None = None,
) -> data.StructLayout:
    """Return what goes with a step whose accumulators are results.

    ``rows`` and ``lanes`` say how many rows and columns are part of the matrix, ``last`` that no
    more follow for this command, ``faults`` then how it went, and ``tag`` which command it is. No
    rows and ``last`` is a command without results; rows without lanes are zeros, which close the
    results of one that failed. ``marks`` are fields beside these, which the rows take along.
    """
    return data.StructLayout(
        {
            "rows": Shape.cast(range(rows + 1)).width,
            "lanes": Shape.cast(range(columns + 1)).width,
            "last": 1,
            "faults": faults,
            "tag": TAG_BITS,
            **(marks or {}),
        }
    )
