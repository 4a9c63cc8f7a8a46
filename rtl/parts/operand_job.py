"""What the fetcher of an operand is asked for."""

from amaranth.lib import data

from m2xfp.rtl.parts.gemm_cycles import SIZE_BITS

__all__ = ["PITCH_BITS", "fetch_layout"]

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
