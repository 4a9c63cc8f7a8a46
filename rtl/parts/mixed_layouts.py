"""What passes between the parts of the mixed GEMM: commands with segments, jobs, statuses."""

from amaranth.lib import data

from m2xfp.rtl.parts.gemm_cycles import SIZE_BITS
from m2xfp.rtl.parts.gemm_layouts import TAG_BITS, tile_layout
from m2xfp.rtl.parts.switch_pair import SwitchPair

__all__ = [
    "END_BITS",
    "SEGMENTS",
    "checked_layout",
    "job_layout",
    "kind_layout",
    "marked_tile_layout",
    "mixed_command_layout",
    "mixed_faults_layout",
    "mixed_status_layout",
    "slots_layout",
    "word_layout",
]

SEGMENTS = 3
"""Entries of a segment table: MicroMix and MXQuant have MXFP4, MXFP6 and MXFP8."""

END_BITS = 18
"""Bits of a segment's end in groups: with its two formats a segment is three bytes."""

_SLOT_BITS = SIZE_BITS + 1
"""Bits of a number of beats: 2^18 groups of four beats, and the sum of three such numbers."""

_mode = {"act": 3, "weight": 3}
segment_layout = data.StructLayout({"end": END_BITS, **_mode})
"""A segment: the number of the group behind it, and its formats (``m2xfp.pairs``)."""

_sizes = {"m": SIZE_BITS, "n": SIZE_BITS, "k": SIZE_BITS, "tag": TAG_BITS, "resync": 1}
mixed_command_layout = data.StructLayout(
    {**_sizes, "segments": data.ArrayLayout(segment_layout, SEGMENTS)}
)
"""A command as that of ``GemmCore``, and its segment table; a segment may be empty."""

_table_faults = {"bad_k": 1, "bad_segments": 1, "bad_pair": 1}
_faults = {"bad_m": 1, "bad_n": 1, **_table_faults, "misframed": 1}
mixed_faults_layout = data.StructLayout(_faults)
mixed_status_layout = data.StructLayout({**_faults, "tag": TAG_BITS})

slots_layout = data.StructLayout({"end": _SLOT_BITS, **_mode, "wide": 1})
"""A segment in beats: the number of the beat behind it, and whether its groups have several."""

checked_layout = data.StructLayout(
    {
        **_sizes,
        "groups": _SLOT_BITS,
        "slots": data.ArrayLayout(slots_layout, SEGMENTS),
        "faults": data.StructLayout(_table_faults),
    }
)
"""A command whose table was looked at: ``groups`` are the beats of a row."""

job_layout = data.StructLayout(
    {
        "m": SIZE_BITS,
        "n": SIZE_BITS,
        "groups": _SLOT_BITS,
        "slots": data.ArrayLayout(slots_layout, SEGMENTS),
        "faults": mixed_faults_layout,
        "tag": TAG_BITS,
        "resync": 1,
    }
)
"""A checked command, as ``gemm_layouts.job_layout``."""

kind_layout = data.StructLayout(
    {"mode": data.StructLayout(_mode), "narrow": 1, "opening": 1, "closing": 1}
)
"""What the beats of a step are: formats, rate, and whether they begin and end a group."""


def word_layout(pair: SwitchPair) -> data.StructLayout:
    """Return a beat of one side: codes, scale and, if there is any, metadata."""
    layout = pair.operand_layout["act"].shape
    assert isinstance(layout, data.StructLayout)
    return layout


def marked_tile_layout(rows: int, columns: int, chains: int) -> data.StructLayout:
    """Return what goes with results of a segment: which part of k they are, and whose.

    ``begins``: of a product's first segment, nothing is to be added; ``given``: of its last one,
    they leave; ``chain``: which rows of a block they are.
    """
    marks = {"begins": 1, "given": 1, "chain": range(chains)}
    return tile_layout(rows, columns, mixed_faults_layout, marks)
