"""What passes between the parts of the GEMM core: commands, tiles, statuses."""

from amaranth.hdl import Shape, unsigned
from amaranth.lib import data

from m2xfp.rtl.parts.gemm_cycles import SIZE_BITS

__all__ = ["command_layout", "job_layout", "status_layout", "tile_layout"]

command_layout = data.StructLayout(
    {"m": unsigned(SIZE_BITS), "n": unsigned(SIZE_BITS), "k": unsigned(SIZE_BITS)}
)
"""One command: [m, k] activations times [n, k] weights."""

# What became of a command: all zero is success.
status_layout = data.StructLayout({"bad_m": 1, "bad_n": 1, "bad_k": 1, "misframed": 1})

job_layout = data.StructLayout(
    {"m": SIZE_BITS, "n": SIZE_BITS, "groups": SIZE_BITS, "status": status_layout}
)
"""A checked command; a status other than zero says that nothing is to be done."""


def tile_layout(rows: int, columns: int) -> data.StructLayout:
    """Return what goes with a step whose accumulators are results.

    ``rows`` and ``lanes`` say how many rows and columns are part of the matrix, ``last`` that no
    more follow for this command, and ``status`` then how it went. No rows and ``last`` is a command
    without results.
    """
    return data.StructLayout(
        {
            "rows": Shape.cast(range(rows + 1)).width,
            "lanes": Shape.cast(range(columns + 1)).width,
            "last": 1,
            "status": status_layout,
        }
    )
