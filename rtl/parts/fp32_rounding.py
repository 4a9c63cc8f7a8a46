"""The last two steps to FP32 or bfloat16: normalise a sum, and round it to nearest even."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.formats import FP32, InputType
from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.arith.fixed_point import leading_zeros, normalise
from m2xfp.rtl.parts.layouts import value_layout
from m2xfp.rtl.verilog.component import Component

__all__ = ["Normalise", "Round", "normalised_layout", "round_to_bf16", "summed_layout"]


def summed_layout(bits: int) -> data.StructLayout:
    """Return the fields of a sum before its rounding: a magnitude of ``bits`` bits.

    It is one short of the true one if ``borrowed``. The top bit weighs 2^(exponent + 1 - 127).
    ``subtract``: if the sum is zero, it is a difference, +0.
    """
    return data.StructLayout(
        {
            "magnitude": bits,
            "borrowed": 1,
            "subtract": 1,
            "exponent": 9,
            "negative": 1,
            "nan": 1,
        }
    )


def normalised_layout(kind: InputType) -> data.StructLayout:
    """Return the fields between normalisation and rounding: rounded down, and whether ``up``.

    The exponent field is not yet limited to 255.
    """
    return data.StructLayout(
        {"mantissa": kind.mantissa_bits, "exponent": 9, "sign": 1, "up": 1, "nan": 1}
    )


class Normalise(Component):
    """Bring a sum to exponent and mantissa, and decide its rounding; combinational.

    Parameters
    ----------
    bits
        Of the magnitude, two more than those of the type's significand at least.
    kind
        FP32 or BF16, which have the same exponents.

    Members
    -------
    i : In(summed_layout(bits))
        The sum.
    o : Out(normalised_layout(kind))
        Its fields rounded down, and ``up``, to nearest even. An exact difference of zero is +0, any
        other sum that is rounded to zero keeps its sign.

    Notes
    -----
    The magnitude is shifted up by its leading zeros, but by no more than ``exponent``, where the
    subnormals begin. Where it is one short (``borrowed``) ones are shifted in from below, so that
    it is still short by one unit of its last place, and the rounding decides on magnitude + 1.
    Source: IEEE 754-2019, 4.3.1, 6.3.
    """

    def __init__(self, bits: int, kind: InputType = FP32) -> None:
        super().__init__({"i": In(summed_layout(bits)), "o": Out(normalised_layout(kind))})

    def build(self) -> Module:
        """Build the leading-zero count, the shift and the decision."""
        m = Module()
        i, o = self.i, self.o
        zeros, found = leading_zeros(m, i.magnitude, "zeros")
        near, far = i.exponent[: len(zeros)], i.exponent[len(zeros) :]
        subnormal = named(m, "subnormal", ~far.any() & (near < zeros))
        shift = named(m, "shift", Mux(subnormal, near, zeros))
        bits = normalise(m, i.magnitude, shift, "normalised", fill=i.borrowed)
        below = len(bits) - len(o.mantissa) - 1
        mantissa = bits[below:-1]
        guard, rest, odd = bits[below - 1], bits[: below - 1], mantissa[0]
        m.d.comb += [
            o.mantissa.eq(mantissa),
            o.up.eq(guard & (odd | rest.any() | i.borrowed) | (i.borrowed & odd & rest.all())),
            # 0 for subnormals. If nothing is found the sum is zero or, borrowed, one unit far below
            # the last place of a subnormal.
            o.exponent.eq((i.exponent + 1 - zeros) & (found & ~subnormal).replicate(10)),
            o.sign.eq((i.negative ^ i.borrowed) & (found | i.borrowed | ~i.subtract)),
            o.nan.eq(i.nan),
        ]
        return m


class Round(Component):
    """Last step: round to nearest even; combinational.

    A carry out of the mantissa leaves zeros behind, so the next binade, the smallest normal number
    and infinity come out by themselves. Source: IEEE 754-2019, 4.3.1, 7.4.

    Parameters
    ----------
    kind
        FP32 or BF16.

    Members
    -------
    i : In(normalised_layout(kind))
        The sum, rounded down.
    acc : Out(value_layout(kind))
        Subnormals kept, overflow to infinity, 0x7FC00000 or 0x7FC0 for a NaN.
    """

    def __init__(self, kind: InputType = FP32) -> None:
        super().__init__({"i": In(normalised_layout(kind)), "acc": Out(value_layout(kind))})

    def build(self) -> Module:
        """Build the increment."""
        m = Module()
        i = self.i
        mantissa_bits, exponent = len(i.mantissa), i.exponent
        huge = named(m, "huge", exponent[8] | exponent[:8].all())
        rounded = named(m, "rounded", i.mantissa + i.up)
        # Both exponents are ready when the carry of the rounding, which comes last, chooses.
        raised = Mux(rounded[-1], (exponent[:8] + 1)[:8], exponent[:8])
        m.d.comb += [
            self.acc.mantissa.eq(
                (rounded[:-1] & (~(huge | i.nan)).replicate(mantissa_bits))
                | Cat(Const(0, mantissa_bits - 1), i.nan)
            ),
            self.acc.exponent.eq(raised | (huge | i.nan).replicate(8)),
            self.acc.sign.eq(i.sign & ~i.nan),
        ]
        return m


def round_to_bf16(m: Module, value: data.View, name: str) -> Signal:
    """Return an FP32 value rounded once to bfloat16, to nearest even; NaN gives 0x7FC0.

    Exponent and mantissa stand side by side, so that a carry moves into the next binade, and from
    the largest finite value to infinity, by itself. Source: IEEE 754-2019, 4.3.1, 7.4.
    """
    bits = value.as_value()
    nan = named(m, f"{name}_nan", value.exponent.all() & value.mantissa.any())
    up = bits[15] & (bits[16] | bits[:15].any())
    return named(m, name, Mux(nan, 0x7FC0, (bits[16:] + up)[:16]))
