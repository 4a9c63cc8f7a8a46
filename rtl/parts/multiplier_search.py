"""The search of Sg-EM in a subgroup: which multiplier has the least squared error.

The derivation, with its width proofs, stands in docs/weight-encoder.md.
"""

from collections.abc import Sequence
from operator import add

from amaranth.hdl import Cat, Const, Module, Mux, Value, unsigned
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.rtl.arith.datapath import named, one_hot_mux, reduce_tree
from m2xfp.rtl.parts.code_ladder import Ladder, Step, cut
from m2xfp.rtl.verilog.component import Component

__all__ = [
    "BestMultiplier",
    "CandidateGains",
    "CoarseGains",
    "LaneTerms",
    "SubgroupSums",
    "at_least",
    "first_largest",
    "lane_layout",
    "total",
]


def at_least(value: Value, mark: int) -> Value:
    """Return value >= mark, looking at no bit below the lowest one of ``mark``."""
    zeros = (mark & -mark).bit_length() - 1
    return value[zeros:] >= mark >> zeros


def total(values: Sequence[Value]) -> Value:
    """Return the sum of some values."""
    return reduce_tree(add, list(values))


def first_largest(m: Module, entries: Sequence[Value], key_bits: int, name: str) -> Value:
    """Return the first of the entries with the largest key, their low ``key_bits`` bits."""
    count = iter(range(len(entries)))

    def better(a: Value, b: Value) -> Value:
        return named(m, f"{name}_{next(count)}", Mux(a[:key_bits] < b[:key_bits], b, a))

    return reduce_tree(better, list(entries))


def excess_layout(ladder: Ladder, lanes: int) -> dict[str, int]:
    """Return bits of the sums of some lanes' excesses: factor * (u - mark) at the steps' ends."""
    fields = {}
    for name, multiplier, steps in ladder.excesses():
        most = [step.factor * (step.stop - 1 - mark_of(ladder, multiplier, step)) for step in steps]
        fields[f"excess_{name}"] = (lanes * max(most)).bit_length()
    return fields


def mark_of(ladder: Ladder, multiplier: int, step: Step) -> int:
    """Return where the line through a step's gain crosses zero: factor * (u - mark) is the gain."""
    return (step.before + step.after) * multiplier << ladder.shift


def lane_layout(ladder: Ladder) -> data.StructLayout:
    """Return the fields of ``LaneTerms``.

    A product is at most factor * (stop - 1). A tent is at most its unit, where it falls.
    """
    fields = {}
    for n, steps in enumerate(ladder.changes()):
        fields[f"product_{n}"] = max(s.factor * (s.stop - 1) for s in steps).bit_length()
        fields[f"square_{n}"] = max(s.square for s in steps).bit_length()
    fields |= excess_layout(ladder, 1)
    for name, unit, _ in ladder.tents():
        fields[f"tent_{name}"] = (unit - 1).bit_length()
        fields[f"falls_{name}"] = 1
    return data.StructLayout(fields)


class LaneTerms(Component):
    """What one magnitude adds to the sums of all multipliers and offsets; combinational.

    Only the largest multiplier takes a full choice among the multiples of u. Each smaller one adds
    u times a power of two if u lies between the thresholds of the two, and nothing elsewhere. What
    a higher offset gains above the range of a lower one is an excess; what a lower one gains
    between two values of the next higher one is a tent.

    Parameters
    ----------
    ladder
        The numbers.

    Members
    -------
    u : In(width)
        The magnitude.
    terms : Out(lane_layout(ladder))
        For each multiplier, multiple * u and multiple^2 in the first band, as changes from the
        multiplier before; excesses by band; tents by offset, less one where they fall.
    """

    def __init__(self, ladder: Ladder) -> None:
        self._ladder = ladder
        super().__init__({"u": In(ladder.width), "terms": Out(lane_layout(ladder))})

    def build(self) -> Module:
        """Build comparators and choices."""
        m = Module()
        ladder, u, terms = self._ladder, self.u, self.terms
        triple = named(m, "triple", u + (u << 1))
        reached: dict[int, Value] = {1 << ladder.width: Const(0, 1)}
        finest = ladder.shift + 1 - ladder.offsets  # zeros that all marks end in

        def times(factor: int) -> Value:
            """Return factor * u, for a factor 2^n or 3 * 2^n."""
            zeros = (factor & -factor).bit_length() - 1
            return Cat(Const(0, zeros), {1: u, 3: triple}[factor >> zeros])

        def between(name: str, start: int, stop: int) -> Value:
            """Return start <= u < stop; each comparison is made once."""
            for mark in (start, stop):
                if mark not in reached:
                    reached[mark] = named(m, f"reached_{mark >> finest}", at_least(u, mark))
            return named(m, name, reached[start] & ~reached[stop])

        for n, steps in enumerate(ladder.changes()):
            chosen = [between(f"chosen_{n}_{s.after}", s.start, s.stop) for s in steps]
            by_factor: dict[int, list[Value]] = {}
            for step, bit in zip(steps, chosen, strict=True):
                by_factor.setdefault(step.factor, []).append(bit)
            select = [Cat(*bits).any() for bits in by_factor.values()]
            m.d.comb += [
                terms[f"product_{n}"].eq(one_hot_mux(select, [times(f) for f in by_factor])),
                terms[f"square_{n}"].eq(one_hot_mux(chosen, [Const(s.square) for s in steps])),
            ]
        for name, multiplier, steps in ladder.excesses():
            excess = terms[f"excess_{name}"]
            chosen = [between(f"above_{name}_{s.after}", s.start, s.stop) for s in steps]
            lines = [
                (times(s.factor) - s.factor * mark_of(ladder, multiplier, s))[: len(excess)]
                for s in steps
            ]
            m.d.comb += excess.eq(one_hot_mux(chosen, lines))
        for name, unit, peaks in ladder.tents():
            tent, falls = terms[f"tent_{name}"], terms[f"falls_{name}"]
            rising = [between(f"rises_{name}_{p}", (p - 1) * unit, p * unit) for p in peaks]
            falling = [between(f"falls_{name}_{p}", p * unit, (p + 1) * unit) for p in peaks]
            # u - start where it rises, stop - u where it falls.
            up = [(u - (p - 1) * unit)[: len(tent)] for p in peaks]
            down = [((p + 1) * unit - 1 - u)[: len(tent)] for p in peaks]
            m.d.comb += [
                falls.eq(Cat(*falling).any()),
                tent.eq(one_hot_mux([*rising, *falling], [*up, *down])),
            ]
        return m


def sums_layout(ladder: Ladder) -> data.StructLayout:
    """Return the fields of ``SubgroupSums``: those of all its lanes' terms added up."""
    lanes = ladder.block.metadata.subgroup
    fields = {}
    for n, steps in enumerate(ladder.changes()):
        fields[f"product_{n}"] = (lanes * max(s.factor * (s.stop - 1) for s in steps)).bit_length()
        fields[f"square_{n}"] = (lanes * max(s.square for s in steps)).bit_length()
    fields |= excess_layout(ladder, lanes)
    fields |= {f"tent_{name}": (lanes * unit).bit_length() for name, unit, _ in ladder.tents()}
    return data.StructLayout(fields)


class SubgroupSums(Component):
    """Sums of ``LaneTerms`` over a subgroup; combinational.

    Parameters
    ----------
    ladder
        The numbers.

    Members
    -------
    u : In(ArrayLayout(width, subgroup))
        The magnitudes.
    sums : Out(sums_layout(ladder))
        The sums.
    """

    def __init__(self, ladder: Ladder) -> None:
        self._ladder = ladder
        size = ladder.block.metadata.subgroup
        super().__init__(
            {
                "u": In(data.ArrayLayout(unsigned(ladder.width), size)),
                "sums": Out(sums_layout(ladder)),
            }
        )

    def build(self) -> Module:
        """Build the lanes and the adders."""
        m = Module()
        lanes = [LaneTerms(self._ladder) for _ in range(self._ladder.block.metadata.subgroup)]
        for n, lane in enumerate(lanes):
            m.submodules[f"lane_{n}"] = lane
            m.d.comb += lane.u.eq(self.u[n])
        for field in sums_layout(self._ladder).members:
            kind, _, name = field.partition("_")
            terms = [lane.terms[field] for lane in lanes]
            if kind == "tent":
                terms += [lane.terms[f"falls_{name}"] for lane in lanes]
            m.d.comb += self.sums[field].eq(total(terms))
        return m


def coarse_layout(ladder: Ladder) -> data.StructLayout:
    """Return the fields of ``CoarseGains``: the first band's gain by multiplier, and the rest.

    With all codes at the band's top, a gain is at most lanes * multiple * (2^width - 1).
    """
    lanes, most = ladder.block.metadata.subgroup, (1 << ladder.width) - 1
    fields = {}
    for n, multiplier in enumerate(ladder.multipliers):
        multiple = cut(ladder.steps(multiplier), *ladder.bands[0])[-1].after
        fields[f"coarse_{n}"] = (lanes * multiple * most).bit_length()
    sums = sums_layout(ladder).members
    return data.StructLayout(
        fields | {name: sums[name] for name in sums if name.startswith(("excess", "tent"))}
    )


class CoarseGains(Component):
    """Gains of a subgroup over M in the first band, for every multiplier M; combinational.

    The gain of a candidate is how much less its squared error is than that of all codes zero, the
    sum of q (2w - q). In the first band that is M * (products - (M * squares << shift)), in units
    of 2^-(fraction_bits + 2).

    Parameters
    ----------
    ladder
        The numbers.

    Members
    -------
    sums : In(sums_layout(ladder))
        Of ``SubgroupSums``.
    gains : Out(coarse_layout(ladder))
        ``coarse``, the gain over M, by multiplier; excesses and tents as they came.
    """

    def __init__(self, ladder: Ladder) -> None:
        self._ladder = ladder
        super().__init__({"sums": In(sums_layout(ladder)), "gains": Out(coarse_layout(ladder))})

    def build(self) -> Module:
        """Build the sums of changes and the differences."""
        m = Module()
        ladder = self._ladder
        products: Value = Const(0, 1)
        squares: Value = Const(0, 1)
        for n, multiplier in enumerate(ladder.multipliers):
            products = named(m, f"products_{multiplier}", products + self.sums[f"product_{n}"])
            squares = named(m, f"squares_{multiplier}", squares + self.sums[f"square_{n}"])
            # Never negative, nor is a lane's share: a code is taken only where it gains.
            coarse = products - ((squares * multiplier) << ladder.shift)
            m.d.comb += self.gains[f"coarse_{n}"].eq(coarse)
        for name in coarse_layout(ladder).members:
            if not name.startswith("coarse"):
                m.d.comb += self.gains[name].eq(self.sums[name])
        return m


def gains_layout(ladder: Ladder) -> data.StructLayout:
    """Return the fields of ``CandidateGains``: a gain for each offset and k, lowest first."""
    return data.StructLayout(
        {
            f"gain_{offset}_{k}": ladder.gain_bits(offset)
            for offset in range(ladder.offsets)
            for k in range(len(ladder.multipliers))
        }
    )


class CandidateGains(Component):
    """Gains of a subgroup for every offset and multiplier; combinational.

    A higher offset has the excesses up to its own band, a lower one its own tents and those of the
    offsets between.

    Parameters
    ----------
    ladder
        The numbers.

    Members
    -------
    coarse : In(coarse_layout(ladder))
        Of ``CoarseGains``.
    gains : Out(gains_layout(ladder))
        The gains, in units of 2^-(fraction_bits + 2) with the fraction bits of the offset.
    """

    def __init__(self, ladder: Ladder) -> None:
        self._ladder = ladder
        super().__init__({"coarse": In(coarse_layout(ladder)), "gains": Out(gains_layout(ladder))})

    def build(self) -> Module:
        """Build the sums and their products with the multipliers."""
        m = Module()
        ladder, coarse = self._ladder, self.coarse
        fields = coarse_layout(ladder).members
        highest = ladder.offsets - 1
        for n, multiplier in enumerate(ladder.multipliers):
            k = multiplier - min(ladder.multipliers)
            for offset in range(ladder.offsets):
                excesses = [f"excess_{n}_{band}" for band in range(1, offset + 1)]
                upper = [coarse[f"coarse_{n}"], *(coarse[x] for x in excesses if x in fields)]
                tents = [
                    coarse[f"tent_{n}_{level}"] << (level - offset)
                    for level in range(offset, highest)
                ]
                over = total([total(upper) << (highest - offset), *tents])
                m.d.comb += self.gains[f"gain_{offset}_{k}"].eq(
                    named(m, f"over_{offset}_{k}", over) * multiplier
                )
        return m


def best_layout(ladder: Ladder) -> data.StructLayout:
    """Return the fields of ``BestMultiplier``: k and gain for each offset, lowest first."""
    fields: dict[str, int] = {}
    for offset in range(ladder.offsets):
        fields[f"k_{offset}"] = ladder.block.metadata.bits
        fields[f"gain_{offset}"] = ladder.gain_bits(offset)
    return data.StructLayout(fields)


class BestMultiplier(Component):
    """For each offset the multiplier of the largest gain, the smallest of equals; combinational.

    Parameters
    ----------
    ladder
        The numbers.

    Members
    -------
    gains : In(gains_layout(ladder))
        Of ``CandidateGains``.
    best : Out(best_layout(ladder))
        For each offset k, for the multiplier 1 + k/4, and its gain.
    """

    def __init__(self, ladder: Ladder) -> None:
        self._ladder = ladder
        super().__init__({"gains": In(gains_layout(ladder)), "best": Out(best_layout(ladder))})

    def build(self) -> Module:
        """Build the comparison trees."""
        m = Module()
        ladder = self._ladder
        for offset in range(ladder.offsets):
            entries = [
                Cat(self.gains[f"gain_{offset}_{k}"], Const(k, ladder.block.metadata.bits))
                for k in range(len(ladder.multipliers))
            ]
            best = first_largest(m, entries, ladder.gain_bits(offset), f"best_{offset}")
            m.d.comb += Cat(self.best[f"gain_{offset}"], self.best[f"k_{offset}"]).eq(best)
        return m
