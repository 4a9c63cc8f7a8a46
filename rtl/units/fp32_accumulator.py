"""Accumulation of exact group products in FP32, one rounding a group."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m2xfp.errors import InputError
from m2xfp.formats import FP32, M2XFP_ACT, M2XFP_WEIGHT, BlockFormat
from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.arith.fixed_point import leading_zeros, normalise, shift_right
from m2xfp.rtl.parts.layouts import value_layout
from m2xfp.rtl.parts.streams import Skid, packet, packet_stream
from m2xfp.rtl.units.group_dot import DotPair, delayed, register
from m2xfp.rtl.verilog.component import Component

__all__ = [
    "Accumulator",
    "AccumulatorPipeline",
    "Addend",
    "Fp32Accumulator",
    "Normalise",
    "Round",
    "Turnstile",
    "normalised_layout",
    "summed_layout",
]

# The significand of an aligned operand: 24 bits, guard, round and sticky. One rounding needs no
# more, since a cancellation of more than one bit happens only when nothing was shifted out.
_EXTRA = 3
_SIGNIFICAND = FP32.mantissa_bits + 1
_ALIGNED = _SIGNIFICAND + _EXTRA


def addend_layout(pair: DotPair) -> data.StructLayout:
    """Return the fields of a group product on its way into an accumulator.

    The value is (-1)^negative * significand / 2^(n - 1) * 2^(exponent - 127), with the top one of
    the n bits of ``significand`` set unless the product is zero.

    Exponents: for M2XFP 2^17 * 2^(508 - 260) = 2^265 is the largest power of two, 2^-260 the
    smallest; with 127 added -133..392 fit 10 bits and a sign for all pairs of formats.
    """
    return data.StructLayout(
        {
            "significand": len(Signal(pair.product_shape)) - 1,
            "exponent": signed(10),
            "negative": 1,
            "nonzero": 1,
            "nan": 1,
        }
    )


class Addend(Component):
    """Bring an exact product to sign, exponent and normalised significand; combinational.

    Parameters
    ----------
    pair
        Formats of the operands.

    Members
    -------
    i : In(pair.product_layout)
        The exact product.
    o : Out(addend_layout(pair))
        The same value; if ``nan`` the other fields mean nothing.
    """

    def __init__(self, pair: DotPair) -> None:
        self.pair = pair
        super().__init__({"i": In(pair.product_layout), "o": Out(addend_layout(pair))})

    def build(self) -> Module:
        """Build absolute value, leading-zero count and shift."""
        m = Module()
        product = self.i.product
        bits = len(self.o.significand)
        negative = product[-1]
        # |D| needs no sign: the bound of D is symmetric, so -2^bits does not occur.
        magnitude = named(
            m, "magnitude", ((product[:-1] ^ negative.replicate(bits)) + negative)[:bits]
        )
        zeros, found = leading_zeros(m, magnitude, "zeros")
        offset = bits - 1 + FP32.bias - self.pair.bias
        m.d.comb += [
            self.o.significand.eq(normalise(m, magnitude, zeros, "normalised")),
            self.o.exponent.eq(self.i.exponent + offset - zeros),
            self.o.negative.eq(negative),
            self.o.nonzero.eq(found),
            self.o.nan.eq(self.i.nan),
        ]
        return m


# Between alignment and addition: the operand of the larger exponent, the other one shifted and, for
# a subtraction, inverted.
_aligned_layout = data.StructLayout(
    {
        "large": _SIGNIFICAND,
        "small": _ALIGNED,
        "subtract": 1,
        "exponent": 9,
        "negative": 1,
        "nan": 1,
    }
)


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


# Between normalisation and rounding: FP32 rounded down, and whether it is to be rounded up.
# The exponent field is not yet limited to 255.
normalised_layout = data.StructLayout(
    {"mantissa": FP32.mantissa_bits, "exponent": 9, "sign": 1, "up": 1, "nan": 1}
)

_summed_layout = summed_layout(_ALIGNED + 1)


class Align(Component):
    """First step of acc + addend: choose the larger exponent, shift the other operand to it.

    Combinational. An accumulator that is infinite or NaN, or a zero addend, lets the accumulator
    through alone.

    Members
    -------
    acc : In(32)
        The accumulator, FP32.
    addend : In(addend_layout(pair))
        The addend.
    o : Out
        Aligned operands.
    """

    def __init__(self, pair: DotPair) -> None:
        super().__init__(
            {
                "acc": In(value_layout(FP32)),
                "addend": In(addend_layout(pair)),
                "o": Out(_aligned_layout),
            }
        )

    def build(self) -> Module:
        """Build the aligner."""
        m = Module()
        acc, addend, o = self.acc, self.addend, self.o
        hidden = named(m, "hidden", acc.exponent.any())
        special = named(m, "special", acc.exponent.all())
        live = named(m, "live", addend.nonzero & ~special)
        acc_exponent = named(m, "acc_exponent", Cat(acc.exponent[0] | ~hidden, acc.exponent[1:]))
        acc_significand = named(m, "acc_significand", Cat(acc.mantissa, hidden))
        bits = len(addend.significand)
        add_significand = Cat(Const(0, _SIGNIFICAND - bits), addend.significand)

        # addend exponent - acc exponent - 1: its sign says which is larger, and its complement is
        # the distance the other way. Where the addend is larger the distance is one more, which is
        # a fixed shift of the accumulator.
        ahead = Signal(signed(11))
        m.d.comb += ahead.eq(addend.exponent + (~Cat(acc_exponent, Const(0, 2))).as_signed())
        addend_larger = named(m, "addend_larger", ~ahead[-1])
        takes_addend = named(m, "takes_addend", addend_larger & live)
        distance = Mux(addend_larger, ahead[:10], ~ahead[:10])
        # Beyond 31 nothing is left above the sticky bit.
        distance, far = named(m, "distance", distance[:5]), named(m, "far", distance[5:].any())
        chosen = named(
            m,
            "chosen",
            Mux(
                addend_larger,
                Cat(Const(0, 1), acc_significand, Const(0, 1)),
                Cat(Const(0, 2), add_significand),
            ),
        )
        shifted, lost = shift_right(m, chosen, distance, "shifted")
        kept = shifted & (~far & live).replicate(len(shifted))
        sticky = Mux(far, chosen.any(), lost) & live
        subtract = named(m, "subtract", (acc.sign ^ addend.negative) & live)
        m.d.comb += [
            o.large.eq(Mux(takes_addend, add_significand, acc_significand)),
            o.small.eq(Cat(sticky, kept) ^ subtract.replicate(_ALIGNED)),
            o.subtract.eq(subtract),
            o.exponent.eq(Mux(takes_addend, addend.exponent[:9], acc_exponent)),
            o.negative.eq(Mux(takes_addend, addend.negative, acc.sign)),
            o.nan.eq(addend.nan | (special & acc.mantissa[-1])),
        ]
        return m


class Add(Component):
    """Second step: add or subtract the aligned significands; combinational.

    ``small`` may be the larger one if the exponents are equal or the accumulator is subnormal. The
    difference is negative then, and its complement, one less than its magnitude, goes on; the last
    step makes up for it.

    Members
    -------
    i : In, o : Out
        Aligned operands, their sum.
    """

    def __init__(self) -> None:
        super().__init__({"i": In(_aligned_layout), "o": Out(_summed_layout)})

    def build(self) -> Module:
        """Build the adder."""
        m = Module()
        i, o = self.i, self.o
        total = named(
            m,
            "total",
            (Cat(Const(0, _EXTRA), i.large) + i.small + i.subtract)[: _ALIGNED + 1],
        )
        carry = total[-1]
        borrowed = named(m, "borrowed", i.subtract & ~carry)
        m.d.comb += [
            o.magnitude.eq(Cat(total[:-1] ^ borrowed.replicate(_ALIGNED), carry & ~i.subtract)),
            o.borrowed.eq(borrowed),
            o.subtract.eq(i.subtract),
            o.exponent.eq(i.exponent),
            o.negative.eq(i.negative),
            o.nan.eq(i.nan),
        ]
        return m


class Normalise(Component):
    """Bring a sum to FP32's exponent and mantissa, and decide its rounding; combinational.

    Parameters
    ----------
    bits
        Of the magnitude, two more than the 24 of FP32's significand at least.

    Members
    -------
    i : In(summed_layout(bits))
        The sum.
    o : Out(normalised_layout)
        Its fields rounded down, and ``up``, to nearest even. An exact difference of zero is +0, any
        other sum that is rounded to zero keeps its sign.

    Notes
    -----
    The magnitude is shifted up by its leading zeros, but by no more than ``exponent``, where the
    subnormals begin. Where it is one short (``borrowed``) ones are shifted in from below, so that
    it is still short by one unit of its last place, and the rounding decides on magnitude + 1.
    Source: IEEE 754-2019, 4.3.1, 6.3.
    """

    def __init__(self, bits: int) -> None:
        super().__init__({"i": In(summed_layout(bits)), "o": Out(normalised_layout)})

    def build(self) -> Module:
        """Build the leading-zero count, the shift and the decision."""
        m = Module()
        i, o = self.i, self.o
        zeros, found = leading_zeros(m, i.magnitude, "zeros")
        near, far = i.exponent[: len(zeros)], i.exponent[len(zeros) :]
        subnormal = named(m, "subnormal", ~far.any() & (near < zeros))
        shift = named(m, "shift", Mux(subnormal, near, zeros))
        bits = normalise(m, i.magnitude, shift, "normalised", fill=i.borrowed)
        below = len(bits) - _SIGNIFICAND
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

    Members
    -------
    i : In(normalised_layout)
        The sum, rounded down.
    acc : Out(32)
        FP32: subnormals kept, overflow to infinity, 0x7FC00000 for a NaN.
    """

    def __init__(self) -> None:
        super().__init__({"i": In(normalised_layout), "acc": Out(value_layout(FP32))})

    def build(self) -> Module:
        """Build the increment."""
        m = Module()
        i = self.i
        mantissa_bits, exponent = FP32.mantissa_bits, i.exponent
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


class Accumulator(Component):
    """A ring of FP32 accumulators: as many chains as the addition has register stages.

    acc' = RNE(acc + addend) for one chain in each enabled clock, the chains in turn.

    Parameters
    ----------
    pair
        Formats of the operands.
    chains
        1 to 3. The addition is cut into as many stages.

    Members
    -------
    enable : In(1)
        Go on by one step; nothing changes otherwise.
    addend : In(addend_layout(pair))
        For the chain whose turn it is. ``nonzero`` and ``nan`` 0: the chain stays as it is.
    first : In(1)
        Clear the chain to +0 first.
    acc : Out(32)
        The chain that took its addend ``chains`` steps ago.
    """

    def __init__(self, pair: DotPair, chains: int) -> None:
        self.pair, self.chains = pair, chains
        super().__init__(
            {
                "enable": In(1),
                "addend": In(addend_layout(pair)),
                "first": In(1),
                "acc": Out(value_layout(FP32)),
            }
        )

    def build(self) -> Module:
        """Build the ring."""
        m = Module()
        m.submodules.align = align = Align(self.pair)
        m.submodules.add = add = Add()
        m.submodules.normalise = normalised = Normalise(len(add.o.magnitude))
        m.submodules.round = round_ = Round()
        held = register(m, self.enable, "acc_held", Value.cast(round_.acc))
        aligned, summed = Value.cast(align.o), Value.cast(add.o)
        if self.chains == 3:
            aligned = register(m, self.enable, "aligned", aligned)
        if self.chains >= 2:
            summed = register(m, self.enable, "summed", summed)
        m.d.comb += [
            self.acc.eq(held),
            align.acc.eq(held & (~self.first).replicate(len(held))),
            align.addend.eq(self.addend),
            add.i.eq(aligned),
            normalised.i.eq(summed),
            round_.i.eq(normalised.o),
        ]
        return m


class AccumulatorPipeline(Component):
    """``Addend``, a register, and the ring of accumulators.

    Parameters
    ----------
    pair
        Formats of the operands.
    chains
        Accumulators, 1 to 3.

    Members
    -------
    enable : In(1)
        Go on by one step.
    i : In(pair.product_layout)
        The exact product.
    valid : In(1)
        There is one; otherwise the chain stays as it is.
    first : In(1)
        Clear the chain to +0 first. Reset clears all chains.
    o : Out(32)
        The chain after the addend of ``latency`` steps ago.
    """

    def __init__(self, pair: DotPair, chains: int) -> None:
        if chains not in (1, 2, 3):
            raise InputError(f"chains={chains}: the accumulator has 1, 2 or 3 chains")
        self.pair, self.chains = pair, chains
        self.latency = 1 + chains
        super().__init__(
            {
                "enable": In(1),
                "i": In(pair.product_layout),
                "valid": In(1),
                "first": In(1),
                "o": Out(value_layout(FP32)),
            }
        )

    def build(self) -> Module:
        """Build the pipeline."""
        m = Module()
        m.submodules.addend = addend = Addend(self.pair)
        m.submodules.accumulator = accumulator = Accumulator(self.pair, self.chains)
        gated = Signal(addend_layout(self.pair))
        # Ones after reset: every chain is cleared when its turn comes for the first time.
        clear = Signal(self.chains, init=-1)
        m.d.comb += [
            addend.i.eq(self.i),
            gated.eq(addend.o),
            gated.nonzero.eq(addend.o.nonzero & self.valid),
            gated.nan.eq(addend.o.nan & self.valid),
            accumulator.enable.eq(self.enable),
            accumulator.addend.eq(register(m, self.enable, "addend_held", gated.as_value())),
            accumulator.first.eq(clear[0]),
            self.o.eq(accumulator.acc),
        ]
        with m.If(self.enable):
            m.d.sync += clear.eq((clear >> 1) | (self.first & self.valid))
        return m


class Turnstile(Component):
    """Lets a group in when the turn has come to the chain that it belongs to.

    The ring of accumulators turns by one chain in every step, with or without a group. Groups
    belong to the chains in turn, so after a pause of the input the next one waits until its chain
    comes round again.

    Parameters
    ----------
    chains
        Length of the ring.

    Members
    -------
    enable : In(1)
        The ring turns in this clock.
    valid : In(1)
        There is a group.
    open : Out(1)
        It may enter, a function of registers alone.
    """

    def __init__(self, chains: int) -> None:
        self._chains = chains
        super().__init__({"enable": In(1), "valid": In(1), "open": Out(1)})

    def build(self) -> Module:
        """Build the counter."""
        m = Module()
        if self._chains == 1:
            m.d.comb += self.open.eq(1)
            return m
        steps = Signal(range(self._chains))  # until the chain of the next group comes round
        m.d.comb += self.open.eq(steps == 0)
        with m.If(self.enable):
            with m.If(steps != 0):
                m.d.sync += steps.eq(steps - 1)
            with m.Elif(~self.valid):
                m.d.sync += steps.eq(self._chains - 1)
        return m


class Fp32Accumulator(Component):
    """Accumulate exact group products: acc' = RNE(acc + D * 2^(exponent - bias)), one a clock.

    One rounding of the exact sum to FP32, to nearest even. Subnormals are kept, overflow gives
    infinity, a NaN scale or a NaN accumulator gives 0x7FC00000. A zero D leaves the accumulator
    unchanged, bit for bit; an infinite one stays until a NaN comes; an exact difference of zero is
    +0, and any other sum that rounds to zero keeps its sign (docs/format.md section 7).

    The addition takes as many clocks as there are ``chains``, and each chain is an accumulator of
    its own: group t belongs to chain t mod ``chains``, counted from reset. So one group a clock is
    accumulated, each into the result of ``chains`` groups before.

    Parameters
    ----------
    act, weight
        Formats of the operands, see ``DotPair``.
    chains
        Independent accumulators, 1 to 3. More of them shorten the clock period, see docs/mac.md.

    Members
    -------
    i : In(packet_stream(product_layout, first))
        D, ``exponent``, ``nan``, and ``first``: clear the accumulator to +0 before this group. All
        chains are cleared by reset.
    o : Out(packet_stream(32))
        The accumulator after each group.
    latency
        Clocks from a group's acceptance to its accumulator at the output.

    Raises
    ------
    InputError
        If the formats do not go together or the chains are not 1 to 3.
    """

    beats_per_group = 1

    def __init__(
        self,
        *,
        act: BlockFormat = M2XFP_ACT,
        weight: BlockFormat = M2XFP_WEIGHT,
        chains: int = 3,
    ) -> None:
        self.pair = DotPair(act, weight)
        self.chains = chains
        self.pipeline = AccumulatorPipeline(self.pair, chains)
        self.latency = self.pipeline.latency
        shape = data.StructLayout({"product": self.pair.product_layout, "first": 1})
        super().__init__(
            {
                "i": In(packet_stream(shape)),
                "o": Out(packet_stream(value_layout(FP32))),
            }
        )

    def build(self) -> Module:
        """Build the unit."""
        m = Module()
        m.submodules.turnstile = turnstile = Turnstile(self.chains)
        m.submodules.pipeline = pipeline = self.pipeline
        m.submodules.skid = skid = Skid(packet(value_layout(FP32)))
        step = skid.i.ready
        accepted = named(m, "accepted", self.i.valid & turnstile.open)
        m.d.comb += [
            turnstile.enable.eq(step),
            turnstile.valid.eq(self.i.valid),
            self.i.ready.eq(step & turnstile.open),
            pipeline.enable.eq(step),
            pipeline.i.eq(self.i.payload.data.product),
            pipeline.valid.eq(accepted),
            pipeline.first.eq(self.i.payload.data.first),
            skid.i.payload.data.eq(pipeline.o),
            skid.i.payload.last.eq(delayed(m, step, "last", self.i.payload.last, self.latency)),
            skid.i.valid.eq(delayed(m, step, "valid", accepted, self.latency, reset=True)),
        ]
        wiring.connect(m, skid.o, wiring.flipped(self.o))
        return m
