"""Packed fields of the shared formats as Amaranth layouts: bit 0 first, as stored in memory."""

from amaranth.hdl import Shape, unsigned
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
        "scale": _scale_layout(block),
    }
    if block.subgroups:
        fields["meta"] = data.ArrayLayout(unsigned(block.metadata.bits), block.subgroups)
    return data.StructLayout(fields)


def _scale_layout(block: BlockFormat) -> Shape | data.ArrayLayout:
    """Return one scale, or those of values above zero and of the others."""
    one = unsigned(block.scale.bits)
    return data.ArrayLayout(one, 2) if block.scaling == "split" else one
