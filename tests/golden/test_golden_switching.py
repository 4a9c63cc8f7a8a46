"""Dot products whose formats change from group to group, in the golden model, against fractions."""

from fractions import Fraction

import numpy as np
import pytest
import reference
from golden_checks import spec_of

from m2xfp.errors import InputError, UnknownNameError
from m2xfp.formats import BLOCK_FORMATS, M2XFP_ACT, M2XFP_WEIGHT, MXFP4, MXFP8_E4M3
from m2xfp.golden.units.switching_dot_product import switching_dot_product
from m2xfp.pairs import FORMAT_NUMBERS, PAIR_SETS, pair_set

ROWS, STEPS = 12, 10
QUIET_NAN = 0x7FC00000
Sides = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]


def drawn(pairs: str, seed: int) -> tuple[Sides, list[list[tuple[str, str] | None]], np.ndarray]:
    """Return groups of any codes, the names of their formats, and where sums begin."""
    rng = np.random.default_rng(seed)
    known, shape = pair_set(pairs).pairs, (ROWS, STEPS)
    chosen = rng.integers(0, len(known) + 1, shape)
    chosen[:, ::2] %= len(known)  # half of what is left over is a pair that there is not
    names = [[(*map(_name, known[n]),) if n < len(known) else None for n in row] for row in chosen]
    sides = []
    for side in range(2):
        codes = rng.integers(0, 256, (*shape, 32), np.uint8)
        codes &= np.where(rng.random((*shape, 1)) < 0.8, 0xFA, 0xFF).astype(np.uint8)  # no NaN
        scales = rng.integers(122, 133, shape).astype(np.uint8)
        scales[rng.random(shape) < 0.02] = 0xFF
        formats = np.full(shape, 7, np.uint8)
        for row, step in np.ndindex(shape):
            if (pair := names[row][step]) is not None:
                formats[row, step] = FORMAT_NUMBERS[pair[side]]
        meta = rng.integers(0, 256, shape).astype(np.uint8)
        sides.append({"codes": codes, "scales": scales, "meta": meta, "formats": formats})
    first = rng.random(shape) < 0.2
    first[:, 0] = True
    return (sides[0], sides[1]), names, first


def _name(block: object) -> str:
    return block.name


def exact(sides: Sides, names: tuple[str, str], at: tuple[int, int]) -> Fraction | None:
    """Return the value of a pair of groups; None if it has none."""
    values = []
    for side, name in zip(sides, names, strict=True):
        block = BLOCK_FORMATS[name]
        packed = int.from_bytes(side["codes"][at].tobytes(), "little")
        bits = block.element.bits
        codes = tuple(packed >> bits * n & ((1 << bits) - 1) for n in range(32))
        meta = int(side["meta"][at])
        fields = tuple(meta >> 2 * n & 3 for n in range(block.subgroups))
        group = reference.Group(codes, (int(side["scales"][at]),), fields)
        values.append(
            [
                None if m is None else (-m if s else m)
                for s, m in reference.dequantize(spec_of(name), group)
            ]
        )
    if any(x is None for each in values for x in each):
        return None
    return sum((x * w for x, w in zip(*values, strict=True)), Fraction())


@pytest.mark.parametrize("pairs", ["micromix", "m2xfp", "m2xfp-fp8", "float", "all"])
def test_running_sums(pairs: str) -> None:
    """After every group, both accumulations, the status, and what begins anew."""
    sides, names, first = drawn(pairs, seed=len(pairs))
    fp32 = switching_dot_product(*sides, first, pairs=pairs)
    whole = switching_dot_product(*sides, first, pairs=pairs, window="all")
    seen = set()
    for row in range(ROWS):
        acc, total, refused = 0, Fraction(), False
        for step in range(STEPS):
            pair, at = names[row][step], (row, step)
            if first[at]:
                acc, total, refused = 0, Fraction(), False
            refused |= pair is None
            value = None if pair is None else exact(sides, pair, at)
            seen |= {(refused, value is None)}
            acc = reference.add_fp32(acc, value)
            total = None if value is None or total is None else total + value
            assert fp32["acc"][at] == acc, at
            assert fp32["refused"][at] == whole["refused"][at] == refused, at
            once = QUIET_NAN
            if total is not None:
                once = reference.to_bits("fp32", (int(total < 0), abs(total)))
            assert whole["acc"][at] == once, at
            assert not whole["inexact"][at]
    assert seen == {(False, False), (False, True), (True, False), (True, True)}


def test_numbers_and_sets() -> None:
    """The numbers of formats are those that the documentation names; sets hold what they say."""
    numbers = [FORMAT_NUMBERS[name] for name in ("mxfp4", "mxfp8-e4m3", "m2xfp-act")]
    assert numbers == [0, 3, 6]
    assert len(pair_set("all").pairs) == 36
    assert pair_set("micromix").narrow == ((MXFP4, MXFP4),)
    assert pair_set("mxfp4:mxfp4+mxfp8-e4m3:mxfp4").wide == ((MXFP8_E4M3, MXFP4),)
    assert pair_set("mxfp4:mxfp4+mxfp8-e4m3:m2xfp-weight").wide == ((MXFP8_E4M3, M2XFP_WEIGHT),)
    assert set(PAIR_SETS) == {"micromix", "float", "all", "m2xfp", "m2xfp-fp8"}


def test_units_with_multipliers() -> None:
    """A weight's quarters are two more mantissa bits, which that of E4M3 has room for."""
    fp8 = pair_set("m2xfp-fp8")
    assert fp8.mantissa_bits(1) == 3
    assert fp8.unit(MXFP8_E4M3, M2XFP_WEIGHT) == fp8.unit(MXFP8_E4M3, MXFP4) == -12
    assert fp8.unit(M2XFP_ACT, M2XFP_WEIGHT) == -6
    alone = pair_set("mxfp4:mxfp4+mxfp8-e4m3:m2xfp-weight")
    assert alone.unit(MXFP8_E4M3, M2XFP_WEIGHT) == -12
    assert alone.unit(MXFP4, MXFP4) == -2


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("mxfp4", InputError, "ACT:WEIGHT"),
        ("mxfp4:mxfp4", InputError, "wider one"),
        ("mxfp8-e4m3:mxfp8-e4m3", InputError, "take dot_product"),
        ("mxfp4:mxfp4+mxfp4:mxfp4+mxfp4:mxint8", InputError, "twice"),
        ("mxfp4:mxfp4+m2xfp-act:mxfp8-e4m3", InputError, "with E2M1 weights only"),
        ("mxfp4:mxfp4+m2xfp-weight:mxfp8-e4m3", UnknownNameError, "m2xfp-act"),
        ("mxfp4:m2xfp-act+mxfp8-e4m3:mxfp4", UnknownNameError, "m2xfp-weight"),
        ("mxfp4:nvfp4+mxfp8-e4m3:mxfp4", UnknownNameError, "mxint8"),
        ("mxfp4:fp4+mxfp8-e4m3:mxfp4", UnknownNameError, "mxint8"),
    ],
)
def test_sets_that_are_none(text: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        pair_set(text)
