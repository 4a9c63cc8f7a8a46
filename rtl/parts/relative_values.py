"""Values on their way to a scale that is a minifloat: few binades matter, whatever their type."""

from dataclasses import dataclass, replace

from amaranth.hdl import Cat, Module, Mux, Value
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.errors import InputError
from m2xfp.formats import BlockFormat, FloatElement, InputType
from m2xfp.rtl.arith.datapath import maximum, sticky_or
from m2xfp.rtl.parts.layouts import value_layout
from m2xfp.rtl.verilog.component import Component

__all__ = ["LEAST_UNIT", "RelativePeak", "RelativeType"]

LEAST_UNIT = 14
"""Least exponent field of a tensor scale, 2^-113: below it subnormal values would count."""


@dataclass(frozen=True)
class RelativeType:
    """Sign, exponent and mantissa of x over the tensor scale, as far as they decide anything.

    The exponent is counted from the least binade that can give a code other than 0, whatever the
    scale of the group; 0 stands for all below. In the largest one every code is the largest one,
    and the scale is. So NVFP4 needs 5 bits of the 8.

    Parameters
    ----------
    kind
        Type of the values, with an exponent of 8 bits.
    block
        Target format, with a minifloat as scale.
    tensor_scale
        Whether there is a tensor scale of any significand; all mantissa bits count then.
    """

    kind: InputType
    block: BlockFormat
    tensor_scale: bool = False

    def __post_init__(self) -> None:
        """Refuse float16, whose subnormals are within reach of the scales."""
        if self.kind.exponent_bits != 8:
            raise InputError(
                f"input_type={self.kind.name}: minifloat scales are made of bf16 or fp32"
            )

    @property
    def grid(self) -> FloatElement:
        """The minifloat that holds the scale."""
        assert self.block.scale.grid is not None
        return self.block.scale.grid

    @property
    def offset(self) -> int:
        """What the exponent of 1 is: the bias of a field that is large enough.

        What is refined counts down to a sixteenth of the least scale, other values to a quarter;
        from 16 times the largest scale on every code is the largest.
        """
        lowest = self.grid.bias + self.grid.mantissa_bits - 1
        bits = (lowest + (5 if self.block.metadata.bits else 3)).bit_length()
        assert self.grid.emax + 5 < 1 << bits
        return (1 << bits) - 1

    @property
    def margin(self) -> int:
        """What the exponent of the least scale is, 2^(1 - bias - mantissa bits)."""
        return self.offset - (self.grid.bias + self.grid.mantissa_bits - 1)

    @property
    def stored(self) -> InputType:
        """The type that is stored."""
        bits = self.kind.mantissa_bits
        if not self.tensor_scale:
            # Boundaries are multiples of 1/8 (of refined elements 1/32) of the scale's last bit.
            deciding = self.grid.mantissa_bits + (5 if self.block.metadata.bits else 3)
            bits = min(bits, deciding + (self.block.ties == "even"))
        exponent_bits = 1 + self.offset.bit_length()
        return replace(self.kind, name="relative", exponent_bits=exponent_bits, mantissa_bits=bits)

    def narrowed(self, value: data.View, unit_exponent: Value | None) -> tuple[Value, Value]:
        """Return mantissa and exponent of a value as they are stored."""
        bits = self.stored.mantissa_bits
        cut = len(value.mantissa) - bits
        mantissa = sticky_or(value.mantissa, bits)
        if self.block.ties == "away" and not self.tensor_scale:
            mantissa = value.mantissa[cut:]
        low = self.stored.exponent_bits - 1
        if unit_exponent is None:
            # Of a field of few bits more with the same bias: the upper bits are 01..1 or 10..0.
            top, upper = value.exponent[-1], value.exponent[low:-1]
            within, kept = Mux(top, ~upper.any(), upper.all()), value.exponent[:low]
        else:
            difference = value.exponent - unit_exponent + self.offset
            top = ~difference[-1]  # what is out of range is above it
            within, kept = ~difference[low + 1 :].any(), difference[: low + 1]
        inside = Cat(kept, top) if unit_exponent is None else kept
        return mantissa, Mux(within, inside, top.replicate(low + 1))


class RelativePeak(Component):
    """Largest of some values, or largest above zero and of the others, and what goes with a group.

    Parameters
    ----------
    relative
        Type of the values.
    lanes
        Number of values.

    Members
    -------
    lanes : In(ArrayLayout(stored value, lanes))
        The values.
    bad : In(1)
        One of them is NaN or infinite, or the tensor scale is none.
    unit : In
        Mantissa of the tensor scale.
    earlier : In(layout)
        Peak of what came earlier, zero if nothing did.
    peak : Out(layout)
        ``keys``, exponent above mantissa, one a scale; ``poisoned``; ``unit``.
    """

    def __init__(self, relative: RelativeType, lanes: int) -> None:
        self.kind = relative.stored
        self._split = relative.block.scaling == "split"
        key = self.kind.mantissa_bits + self.kind.exponent_bits
        unit = 23 if relative.tensor_scale else 0
        self.layout = data.StructLayout(
            {"keys": data.ArrayLayout(key, 1 + self._split), "poisoned": 1, "unit": unit}
        )
        super().__init__(
            {
                "lanes": In(data.ArrayLayout(value_layout(self.kind), lanes)),
                "bad": In(1),
                "unit": In(unit),
                "earlier": In(self.layout),
                "peak": Out(self.layout),
            }
        )

    def build(self) -> Module:
        """Build the trees."""
        m = Module()
        lanes = [self.lanes[n] for n in range(self.lanes.shape().length)]
        for side, name in enumerate(("positive", "negative")[: 1 + self._split]):
            keys: list[Value] = []
            for value in lanes:
                key = Cat(value.mantissa, value.exponent)
                keys.append(Mux(value.sign == side, key, 0) if self._split else key)
            largest = maximum(m, [*keys, self.earlier.keys[side]], name)
            m.d.comb += self.peak.keys[side].eq(largest)
        m.d.comb += [
            self.peak.poisoned.eq(self.bad | self.earlier.poisoned),
            self.peak.unit.eq(self.unit),
        ]
        return m
