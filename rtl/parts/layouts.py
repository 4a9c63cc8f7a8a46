"""Packed fields of the shared formats as Amaranth layouts: bit 0 first, as stored in memory."""

from amaranth.hdl import unsigned
from amaranth.lib import data

from m2xfp.formats import BlockFormat, InputType

__all__ = ["group_layout", "value_layout"]


def value_layout(kind: InputType) -> data.StructLayout:
    """Return the fields of one input value: mantissa, exponent, sign (IEEE 754-2019, 3.4)."""
    return data.StructLayout(
        {"mantissa": kind.mantissa_bits, "exponent": kind.exponent_bits, "sign": 1}
    )


def group_layout(block: BlockFormat) -> data.StructLayout:
    """Return the fields of a packed group: codes, scale and, if the format has any, metadata.

    For M2XFP these are the 144 bits of docs/format.md: element i in bits 4i..4i+3, the scale in
    bits 128..135, subgroup j in bits 136+2j..137+2j.
    """
    fields: dict[str, object] = {
        "codes": data.ArrayLayout(unsigned(block.element.bits), block.group),
        "scale": unsigned(block.scale.bits),
    }
    if block.subgroups:
        fields["meta"] = data.ArrayLayout(unsigned(block.metadata.bits), block.subgroups)
    return data.StructLayout(fields)
