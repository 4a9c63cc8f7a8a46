"""The choice of the shared scale's offset: gains of a group added up, and compared."""

from collections.abc import Sequence
from dataclasses import dataclass

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data

from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parts.multiplier_search import first_largest, total

__all__ = ["GroupTotals", "SearchedBeat", "add_gains", "best_offset", "by_offset", "token_layout"]


def token_layout(phases: int) -> data.StructLayout:
    """Return what goes through the search with a beat.

    Whether it is the first or the last of its group, which of the offsets that come one after the
    other is searched, and the group's scale, ``poisoned`` and ``last``.
    """
    return data.StructLayout(
        {"first": 1, "ends": 1, "phase": range(phases), "scale": 8, "poisoned": 1, "last": 1}
    )


@dataclass(frozen=True)
class SearchedBeat:
    """What the search in the subgroups of a beat has found.

    Members
    -------
    valid, token
        There is a beat, and what goes with it.
    gains
        Of each offset that is searched at once, lowest first: the gain of each subgroup, in units
        of the lowest offset's.
    multipliers
        The same for the metadata.
    """

    valid: Value
    token: data.View
    gains: list[list[Value]]
    multipliers: list[list[Value]]


@dataclass(frozen=True)
class GroupTotals:
    """What the search in a whole group has found.

    Members
    -------
    complete, token
        There is a group, and what goes with it.
    gains
        The gain of the group by offset, lowest first.
    multipliers
        Metadata of all subgroups, in the order they were found in: offsets within beats.
    """

    complete: Value
    token: data.View
    gains: list[Signal]
    multipliers: Value


def add_gains(
    m: Module, enable: Value, beat: SearchedBeat, beats: int, phases: int, bits: int
) -> GroupTotals:
    """Add up the gains of a group, one total an offset; a clock later.

    Parameters
    ----------
    m, enable
        The module, and whether its pipeline goes on.
    beat
        What arrives.
    beats, phases
        Beats a group, and clocks a beat: offsets that are searched one after the other.
    bits
        Of a total.
    """
    # A ring of as many places as phases.
    ring = [
        [
            Signal(bits, name=f"total_{phase * len(beat.gains) + n}", reset_less=True)
            for n in range(len(beat.gains))
        ]
        for phase in range(phases)
    ]
    found = Cat(*(k for offset in beat.multipliers for k in offset))
    collected = Signal(beats * phases * len(found), reset_less=True)
    complete = Signal()
    token = Signal(beat.token.shape(), name="added_token", reset_less=True)
    with m.If(enable):
        m.d.sync += [
            complete.eq(beat.valid & beat.token.ends & (beat.token.phase == phases - 1)),
            token.eq(beat.token),
        ]
        with m.If(beat.valid):
            m.d.sync += collected.eq(Cat(collected, found)[len(found) :])
            for phase in range(phases - 1):
                m.d.sync += [a.eq(b) for a, b in zip(ring[phase], ring[phase + 1], strict=True)]
            for n, summands in enumerate(beat.gains):
                gain: Value = named(m, f"gain_{n}", total(summands))
                if phases > 1:
                    # An offset more is a factor 4. The lowest one's u ends in phases - 1 zeros,
                    # and so does its gain.
                    shifted = [Cat(Const(0, 2 * p), gain)[phases - 1 :] for p in range(phases)]
                    gain = Array(shifted)[beat.token.phase]
                earlier = Mux(beat.token.first, 0, ring[0][n])
                m.d.sync += ring[-1][n].eq(earlier + gain)
    return GroupTotals(complete, token, [gain for place in ring for gain in place], collected)


def best_offset(m: Module, group: GroupTotals, offsets: Sequence[int]) -> Value:
    """Return the index of the offset with the largest total: the lower of equals.

    An offset below zero is no choice where the stored scale is 0.
    """
    entries: list[Value] = []
    for index, value in enumerate(group.gains):
        allowed = Const(1, 1) if offsets[index] >= 0 else group.token.scale.any()
        entries.append(Cat(value, allowed, Const(index, 2)))
    best = first_largest(m, entries, len(group.gains[0]) + 1, "better")
    return named(m, "offset", best[-2:])


def by_offset(collected: Value, offsets: int, beats: int, bits: int) -> list[Value]:
    """Return the group's metadata for each offset, from all in the order they were found in."""
    words = [collected[n : n + bits] for n in range(0, len(collected), bits)]
    subgroups = len(words) // (offsets * beats)  # a beat
    return [
        Cat(
            words[(beat * offsets + index) * subgroups + s]
            for beat in range(beats)
            for s in range(subgroups)
        )
        for index in range(offsets)
    ]
