"""The integers behind packed values, as tables: what the CPU's products are made of.

A refined element is an integer times ``2^unit``, a scale a significand times a power of two. The
tables are made by the golden model's own decoding, so whatever it decodes from at most eight bits
a value and eight a scale has them.
"""

from dataclasses import dataclass
from functools import cache
from math import frexp

import torch
from torch import Tensor

from m2xfp.golden.formats.coder import ScaledCoder
from m2xfp.golden.formats.elements import decode, decode_magnitude
from m2xfp.golden.formats.format import Format, format_of
from m2xfp.golden.formats.metadata import ElementMantissa

__all__ = ["NAN", "Integers", "Pair", "integers_of", "pair_of"]

NAN, INFINITE = 1, 2
"""Marks of what is no number."""

_WORD = 1 << 31
_LIMB_BITS = {1: 0, 3: 8, 6: 11}
_LIMBS_LARGEST = {1: (1 << 15) - 1, 3: 1 << 18, 6: 1 << 32}
"""Of the integers that planes of limbs hold, by their number."""


@dataclass(frozen=True)
class Integers:
    """A format as integers.

    Members
    -------
    group, bits, subgroup, field_bits, code_bytes, meta_bytes
        Layout of the packed planes; without metadata the group is one subgroup.
    unit
        Elements are integers times 2^unit.
    table
        [fields][codes]: an element refined by its field; 0 for what is no number.
    fine
        With Elem-EM, the refined magnitudes by code of the finer element; else empty.
    special
        [codes]: 0, NAN or INFINITE.
    scales
        [256]: significand, exponent, and 0 or NAN.
    """

    group: int
    bits: int
    subgroup: int
    field_bits: int
    code_bytes: int
    meta_bytes: int
    unit: int
    table: tuple[tuple[int, ...], ...]
    fine: tuple[int, ...]
    special: tuple[int, ...]
    scales: tuple[tuple[int, int, int], ...]

    @property
    def largest(self) -> int:
        """The largest magnitude."""
        return max(abs(n) for row in (*self.table, self.fine) for n in row)

    @property
    def significand(self) -> int:
        """The largest significand of a scale."""
        return max(scale[0] for scale in self.scales)

    @property
    def exponents(self) -> tuple[int, int]:
        """The lowest and the highest exponent of scales, elements' unit included."""
        found = [exponent for factor, exponent, odd in self.scales if factor and not odd]
        return min(found) + self.unit, max(found) + self.unit


def _mark(value: float) -> int:
    return NAN if value != value else INFINITE if abs(value) == float("inf") else 0


def _last_bit(value: float) -> int:
    """Return the exponent of the last bit of a number that is not zero."""
    mantissa, exponent = frexp(value)
    whole = int(mantissa * 2**53)
    return exponent - 54 + (whole & -whole).bit_length()


def _scale_table(values: list[float], fraction_bits: int) -> tuple[tuple[int, int, int], ...]:
    """Return significands of so many fraction bits, and their exponents; subnormals share one."""
    numbers = [v for v in values if v and not _mark(v)]
    lowest = min(map(_last_bit, numbers))
    found = []
    for value in values:
        odd = NAN if _mark(value) else 0
        exponent = lowest if odd else max(lowest, frexp(value)[1] - 1 - fraction_bits)
        found.append((0 if odd else int(value / 2.0**exponent), exponent, odd))
    return tuple(found)


@cache
def integers_of(key: str) -> Integers | None:
    """Return the integers of a format, by its key; None if it has no such tables."""
    fmt: Format = format_of(key)
    block, coder = fmt.block, fmt.coder
    if not isinstance(coder, ScaledCoder) or coder.split or block.scale.bits != 8:
        return None
    codes = torch.arange(1 << block.element.bits)
    metadata = block.metadata
    fields = 1 << metadata.bits
    fine: list[float] = []
    if isinstance(coder.refinement, ElementMantissa):
        rows = [decode(codes, block.element).tolist()]
        finer = coder.refinement.fine
        fine = decode_magnitude(torch.arange(finer.max_code), finer).tolist()
    else:
        group = codes.unsqueeze(1).expand(-1, block.group)
        count = block.subgroups if metadata.bits else 0
        rows = [
            coder.refinement.decode(group, torch.full((len(codes), count), field))[:, 0].tolist()
            for field in range(fields)
        ]
    special = tuple(map(_mark, rows[0]))
    rows = [[0.0 if odd else v for v, odd in zip(row, special, strict=True)] for row in rows]
    unit = min(_last_bit(v) for row in (*rows, fine) for v in row if v)
    size = 2.0**-unit
    grid = block.scale.grid
    scales: Tensor = coder.scale.value(torch.arange(256))
    code_bytes, _, meta_bytes = block.group_bytes
    return Integers(
        block.group,
        block.element.bits,
        metadata.subgroup if metadata.bits else block.group,
        metadata.bits,
        code_bytes,
        meta_bytes,
        unit,
        tuple(tuple(int(v * size) for v in row) for row in rows),
        tuple(int(v * size) for v in fine),
        special,
        _scale_table(scales.tolist(), grid.mantissa_bits if grid else 0),
    )


@dataclass(frozen=True)
class Pair:
    """Two formats that are multiplied, and how.

    Members
    -------
    a, w
        The operands.
    lanes, padded
        Products of an addend, and that rounded up to whole words.
    item
        Bytes of an integer: 1 or 2.
    planes
        1; 3 or 6 where an integer is two or three limbs: those, and the sums of any two.
    offset
        Added to the bytes of ``a``, which are unsigned.
    """

    a: Integers
    w: Integers
    lanes: int
    padded: int
    item: int
    planes: int
    offset: int

    @property
    def limb_bits(self) -> int:
        """Bits of a limb."""
        return _LIMB_BITS[self.planes]

    @property
    def largest(self) -> int:
        """Bound of the integer of an addend."""
        return self.lanes * self.a.largest * self.w.largest

    @property
    def is_single(self) -> bool:
        """Whether float32 holds addends and, but for extreme exponents, scales."""
        units = self.a.unit + self.w.unit
        return (
            self.planes == 1 and self.largest < 1 << 24 and units > -20 and self._factor < 1 << 24
        )

    @property
    def is_double(self) -> bool:
        """Whether float64 holds addends times significands."""
        return self.largest * self._factor < 1 << 53

    @property
    def _factor(self) -> int:
        return self.a.significand * self.w.significand

    def single_room(self) -> tuple[int, int]:
        """Return the lowest and the highest sum of exponents of scales that float32 multiplies."""
        return -149, 128 - self._factor.bit_length()

    def exact_room(self, addends: int) -> int:
        """Return how far exponents may spread so that 64 bits hold the sum of so many addends."""
        largest = self.largest
        if self.planes == 6:  # the parts that are summed apart
            largest = self.lanes * ((4 << 2 * self.limb_bits) + (2 << 3 * self.limb_bits))
        return 62 - (largest * self._factor).bit_length() - max(1, addends).bit_length()

    def limbs(self, value: int) -> tuple[int, ...]:
        """Return the planes of an integer: balanced limbs, lowest first, and sums of any two."""
        if self.planes == 1:
            return (value,)
        bits, count = self.limb_bits, 2 if self.planes == 3 else 3
        found = []
        for _ in range(count - 1):
            low = (value + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1))
            found.append(low)
            value = (value - low) >> bits
        found.append(value)
        sums = [found[i] + found[j] for i in range(count) for j in range(i + 1, count)]
        return (*found, *sums)


@cache
def pair_of(key_a: str, key_w: str, lanes: int, pair_limit: int) -> Pair | None:
    """Return how two formats are multiplied; None where integers are too wide.

    Parameters
    ----------
    key_a, key_w
        Of the formats.
    lanes
        Products of an addend.
    pair_limit
        How large a sum of two products of bytes may be; 0 if the processor multiplies none.
    """
    a, w = integers_of(key_a), integers_of(key_w)
    if a is None or w is None:
        return None
    largest = max(a.largest, w.largest)
    planes = next((p for p, most in _LIMBS_LARGEST.items() if largest <= most), None)
    if planes == 1 and lanes * a.largest * w.largest >= _WORD:
        planes = 3
    if planes is None:
        return None
    bytes_hold = all(
        -128 <= n < 128 for side in (a, w) for row in (*side.table, side.fine) for n in row
    ) and (w.largest < 128 or not w.fine)
    item = 1 if bytes_hold and 4 * a.largest * w.largest <= pair_limit else 2
    word = 4 // item
    padded = -(-lanes // word) * word
    return Pair(a, w, lanes, padded, item, planes, a.largest if item == 1 else 0)
