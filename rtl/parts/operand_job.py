"""What the fetcher of an operand is asked for."""

from amaranth.lib import data

from m2xfp.rtl.parts.gemm_cycles import SIZE_BITS

__all__ = ["PITCH_BITS", "fetch_layout", "tag_layout"]

PITCH_BITS = 32


def fetch_layout(address_bits: int) -> data.StructLayout:
    """Return a job: a packed matrix [rows, groups], fetched as often as ``others`` ask."""
    return data.StructLayout(
        {
            "codes": address_bits,
            "scales": address_bits,
            "meta": address_bits,
            "codes_pitch": PITCH_BITS,
            "scales_pitch": PITCH_BITS,
            "rows": SIZE_BITS,
            "groups": SIZE_BITS,
            "others": SIZE_BITS,
        }
    )


def tag_layout(rows: int, turns: int, slots: int) -> data.StructLayout:
    """Return what a request carries for the answer: where its words go.

    ``skips``: without its first word. ``ends``: the chunk ends with it.
    """
    indices = {"row": rows, "turn": turns, "slot": slots}
    bits = {name: max(1, (count - 1).bit_length()) for name, count in indices.items()}
    return data.StructLayout({"plane": 2, **bits, "skips": 1, "ends": 1})
