"""The top-1 decoder: which element of a subgroup Elem-EM refines, and by how much."""

from amaranth.hdl import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.errors import InputError
from m2xfp.formats import E2M1, BlockFormat
from m2xfp.rtl.arith.datapath import first_maximum, named
from m2xfp.rtl.verilog.component import Component

__all__ = ["TopElementDecoder", "refinement_layout"]

# What the top-1 element has beyond its E2M1 value, in eighths of the group's scale: 0 or
# +-2^shift times its sign. From docs/format.md section 4: 0, +-1, +-2, +-4 and 8.
refinement_layout = data.StructLayout({"shift": 2, "negative": 1, "nonzero": 1})


class TopElementDecoder(Component):
    """Find the top-1 element of an Elem-EM subgroup and what its metadata adds to it.

    The plain lanes are the codes themselves: E2M1[code]. The element at ``top`` is larger in
    magnitude by E2M3[max(4 c + meta - 1, 0)] - E2M1[c] (docs/format.md section 4), which is
    ``refinement``. Every bit pattern is accepted; metadata 0 beside code 0, which no encoder
    emits, refines by nothing. Combinational. Source: M2XFP (arXiv 2601.19213) Alg. 1, Sec. 5.2.

    Parameters
    ----------
    block
        An E2M1 format with two bits of Elem-EM metadata.

    Members
    -------
    codes : In(ArrayLayout(4, subgroup))
        Codes, sign on top.
    meta : In(2)
        Metadata of the subgroup.
    top : Out(subgroup)
        One-hot: the largest magnitude, the lowest index of equals.
    refinement : Out(refinement_layout)
        ``nonzero``, ``negative``, ``shift``: 0 or (-1)^negative * 2^shift eighths, to be multiplied
        by the sign of the element.

    Raises
    ------
    InputError
        If the format is another one.
    """

    def __init__(self, block: BlockFormat) -> None:
        if block.element is not E2M1 or (block.metadata.name, block.metadata.bits) != (
            "elem-em",
            2,
        ):
            raise InputError(
                f"block={block.name}: the top-1 decoder takes E2M1 formats with two bits of "
                "Elem-EM metadata"
            )
        self.block = block
        size = block.metadata.subgroup
        super().__init__(
            {
                "codes": In(data.ArrayLayout(unsigned(block.element.bits), size)),
                "meta": In(block.metadata.bits),
                "top": Out(size),
                "refinement": Out(refinement_layout),
            }
        )

    def build(self) -> Module:
        """Build the decoder."""
        m = Module()
        size = self.block.metadata.subgroup
        largest, first = first_maximum(m, [self.codes[n][:-1] for n in range(size)])
        code = named(m, "largest", largest)
        m.d.comb += self.top.eq(Cat(*first))

        # In E2M3 the steps below 1, 2, 4 and 8 are 1, 1, 2 and 4 eighths: for the exponent field e
        # a step up is 2^(max(e, 1) - 1). A step down from a power of two is one of the binade
        # below, 2^(max(e - 1, 1) - 1).
        mantissa, exponent = code[0], code[1:]
        down = named(m, "down", self.meta == 0)
        binade = Signal(2)  # exponent field of the step
        m.d.comb += [
            binade.eq(Mux(down & ~mantissa & exponent.any(), exponent - 1, exponent)),
            self.refinement.shift.eq(Mux(binade == 0, 0, binade - 1) + (self.meta == 3)),
            self.refinement.negative.eq(down),
            self.refinement.nonzero.eq(Mux(down, code.any(), self.meta != 1)),
        ]
        return m
