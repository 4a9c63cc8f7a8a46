"""The codes of magnitudes under all multipliers of Sg-EM, in integers.

The derivation, with its width proofs, stands in docs/weight-encoder.md.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from m2xfp.formats import BlockFormat, FloatElement

__all__ = ["Ladder", "Step", "cut", "threshold_bits"]


def threshold_bits(block: BlockFormat) -> int:
    """Return the fraction bits that make every threshold between codes an integer.

    4 for E2M1 with two bits: thresholds are 1 3 5 7 10 14 20 times M / 16.
    """
    assert isinstance(block.element, FloatElement)
    return block.element.bias + block.element.mantissa_bits + block.metadata.bits


@dataclass(frozen=True)
class Step:
    """A range of magnitudes, and how the multiple that stands for them changes there.

    Members
    -------
    start, stop
        start <= u < stop.
    before, after
        Multiples of the smallest element step.
    """

    start: int
    stop: int
    before: int
    after: int

    @property
    def factor(self) -> int:
        """How much the multiple grows."""
        return self.after - self.before

    @property
    def square(self) -> int:
        """How much its square grows."""
        return self.after**2 - self.before**2


def cut(steps: Iterable[Step], low: int, high: int) -> list[Step]:
    """Return the part of the changes between two multiples, neighbours that are alike in one."""
    parts: list[Step] = []
    for step in steps:
        before, after = (min(max(m, low), high) for m in (step.before, step.after))
        if parts and (parts[-1].before, parts[-1].after) == (before, after):
            parts[-1] = replace(parts[-1], stop=step.stop)
        elif after > before:
            parts.append(Step(step.start, step.stop, before, after))
    return parts


@dataclass(frozen=True)
class Ladder:
    """The codes of magnitudes under all multipliers of Sg-EM, in integers.

    A magnitude is an integer u of ``width`` bits that stands for w = u * 2^-fraction_bits in units
    of the shared scale with the highest offset; the multiplier 1 + k/4 is the integer M = 4 + k;
    code c decodes to multiples[c] * M / 8.

    Members
    -------
    block
        The format: a floating-point element with Sg-EM metadata.
    fraction_bits, integer_bits
        Of w.
    offsets
        Offsets of the shared scale that are searched at once, each half of the next. Fraction
        bits are at least ``threshold_bits`` for the lowest.
    """

    block: BlockFormat
    fraction_bits: int
    integer_bits: int
    offsets: int = 1

    @property
    def element(self) -> FloatElement:
        """The element."""
        assert isinstance(self.block.element, FloatElement)
        return self.block.element

    @property
    def width(self) -> int:
        """Bits of a magnitude."""
        return self.integer_bits + self.fraction_bits

    @property
    def shift(self) -> int:
        """Fraction bits beyond those that the thresholds need."""
        return self.fraction_bits - threshold_bits(self.block)

    @property
    def multipliers(self) -> tuple[int, ...]:
        """The multipliers M, largest first."""
        return tuple(reversed(range(1 << self.block.metadata.bits, 2 << self.block.metadata.bits)))

    @property
    def multiples(self) -> tuple[int, ...]:
        """Value of each code in smallest steps: 0 1 2 3 4 6 8 12 for E2M1."""
        magnitudes = [self.element.magnitude(code) for code in range(self.element.max_code + 1)]
        return tuple(int(magnitude / magnitudes[1]) for magnitude in magnitudes)

    @property
    def bands(self) -> tuple[tuple[int, int], ...]:
        """Ranges of multiples: up to the largest value of the lowest offset, then of each next."""
        largest = self.multiples[-1]
        tops = [largest >> (self.offsets - 1 - n) for n in range(self.offsets)]
        return tuple(pairwise((0, *tops)))

    def thresholds(self, multiplier: int) -> tuple[int, ...]:
        """Return where code c ends and c + 1 begins, for c = 0, 1, ..., below 2^width."""
        marks = [(low + high) * multiplier << self.shift for low, high in pairwise(self.multiples)]
        return tuple(mark for mark in marks if mark < 1 << self.width)

    def steps(self, multiplier: int) -> list[Step]:
        """Return the multiple of every magnitude, but those that round to zero."""
        marks = self.thresholds(multiplier)
        stops = (*marks[1:], 1 << self.width)
        return [
            Step(start, stop, 0, multiple)
            for start, stop, multiple in zip(marks, stops, self.multiples[1:], strict=False)
        ]

    def changes(self) -> list[list[Step]]:
        """Return, largest multiplier first, how multiples in the first band change from the last.

        The first has the multiples themselves. From each multiplier to the next smaller one a code
        rises by one at most: neighbouring thresholds of E2M1 are at least a factor 7/5 apart,
        multipliers at most 5/4.
        """
        largest, *others = self.multipliers
        rows = [self.steps(largest)]
        marks = self.thresholds(largest)
        for multiplier in others:
            stops, marks = marks, self.thresholds(multiplier)
            stops += (1 << self.width,) * (len(marks) - len(stops))
            assert all(stop <= start for stop, start in zip(stops, marks[1:], strict=False))
            changes = pairwise(self.multiples)
            rows.append([Step(a, b, *c) for a, b, c in zip(marks, stops, changes, strict=False)])
        return [cut(row, *self.bands[0]) for row in rows]

    def excesses(self) -> Iterator[tuple[str, int, list[Step]]]:
        """Yield (name, multiplier, steps) for each multiplier and higher band that it reaches."""
        for n, multiplier in enumerate(self.multipliers):
            for band, (low, high) in list(enumerate(self.bands))[1:]:
                above = [replace(step, before=low) for step in self.steps(multiplier)]
                if steps := cut(above, low, high):
                    yield f"{n}_{band}", multiplier, steps

    def tents(self) -> Iterator[tuple[str, int, tuple[int, ...]]]:
        """Yield (name, unit, peaks) for each multiplier, largest first, and each finer offset.

        Values that an offset has and the next higher one has not are odd multiples; each lies half
        way between two that both have. In units of a quarter of their distance from these
        neighbours, ``peaks`` are twice the odd multiples.
        """
        peaks = tuple(2 * m for m in self.multiples if m % 2)
        for n, multiplier in enumerate(self.multipliers):
            for level in range(self.offsets - 1):
                below = self.offsets - level  # of the unit below the threshold's, in powers of two
                yield f"{n}_{level}", multiplier << (self.shift + 1 - below), peaks

    def gain_bits(self, offset: int) -> int:
        """Return the bits of a subgroup's gain with an offset, 0 for the lowest.

        With the highest, a lane's gain q (2w - q) is at most w^2 < 4^integer_bits, in units of
        2^-(fraction_bits + 2). An offset less has one fraction bit less and one integer bit more.
        """
        lanes, lower = self.block.metadata.subgroup, self.offsets - 1 - offset
        units = 2 * (self.integer_bits + lower) + self.fraction_bits - lower + 2
        return (lanes - 1).bit_length() + units
