"""Running sums of every pair of MX elements in the golden model, against exact rationals.

M2XFP goes with the wider elements too: as weights with multipliers, as activations refined.
"""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import reference
import torch
from golden_checks import spec_of

from m2xfp.formats import Window
from m2xfp.golden import PackedTensor, get_format
from m2xfp.golden.bits import to_bits
from m2xfp.golden.formats.products import product_unit, running_exact, running_fp32
from m2xfp.tb.parts import value_stimulus

NAMES = ("mxfp4", "mxfp6-e2m3", "mxfp6-e3m2", "mxfp8-e4m3", "mxfp8-e5m2", "mxint8")
M2XFP = ("m2xfp-act", "m2xfp-weight")
PAIRS = [
    *product(NAMES, NAMES),
    *product(NAMES[1:], M2XFP[1:]),
    *product(M2XFP[:1], NAMES[1:]),
]
ROWS, GROUPS = 6, 4
QUIET_NAN = 0x7FC00000
Rows = list[list[reference.Group]]


def operands(names: tuple[str, str], seed: int) -> list[PackedTensor]:
    """Return groups of any bytes, scales near one another; half of them negated from the other."""
    found = []
    rng = np.random.default_rng([seed, *((*NAMES, *M2XFP).index(name) for name in names)])
    for name in names:
        fmt = get_format(name)
        codes = fmt.block.group_bytes[0]
        size = sum(fmt.block.group_bytes)
        data = value_stimulus.packed_groups(ROWS * GROUPS, seed + len(found), size)
        data[:, codes] = 127 + rng.integers(-5, 6, len(data))
        wide = fmt.block.element.bits == 8 and name != "mxint8"
        if wide:  # most groups have neither NaN nor infinity
            rare = rng.random((len(data), 1)) < 0.1
            data[:, :codes] = np.where(rare, data[:, :codes], data[:, :codes] & 0xFB)
            if name == "mxfp8-e4m3":
                data[:, :codes] = np.where(rare, data[:, :codes], data[:, :codes] & 0xFE)
            data[-1, 5], data[7, 3] = 0x7F, 0xFC  # NaN; of E5M2 an infinity
        found.append(
            PackedTensor.from_groups(fmt, torch.from_numpy(data.reshape(ROWS, GROUPS, -1)))
        )
    # The second group of a row takes the first one back, but for a few bits.
    plane = found[1].codes.reshape(ROWS, GROUPS, -1)
    other = found[0].codes.reshape(ROWS, GROUPS, -1)
    other[:, 1] = other[:, 0]
    plane[:, 1] = plane[:, 0]
    plane[::2, 1, 0] ^= 1
    return found


def groups_of(packed: PackedTensor) -> Rows:
    codes, scales, fields = packed.unpack()
    return [
        [
            reference.Group(tuple(c), tuple(s), tuple(f))
            for c, s, f in zip(
                *(part[row].tolist() for part in (codes, scales, fields)), strict=True
            )
        ]
        for row in range(len(codes))
    ]


def addends(names: tuple[str, str], rows: tuple[Rows, Rows]) -> list[list[Fraction | None]]:
    """Return the exact value of every pair of groups; None if there is none."""
    specs = [spec_of(name) for name in names]
    return [
        [
            None
            if any(m is None or n is None for (_, m), (_, n) in zip(xa, xw, strict=True))
            else sum(
                ((-m * n if s != t else m * n) for (s, m), (t, n) in zip(xa, xw, strict=True)),
                Fraction(),
            )
            for xa, xw in (
                (reference.dequantize(specs[0], a), reference.dequantize(specs[1], w))
                for a, w in zip(*pair, strict=True)
            )
        ]
        for pair in zip(*rows, strict=True)
    ]


@pytest.mark.parametrize("names", PAIRS, ids="-x-".join)
def test_running_sums(names: tuple[str, str]) -> None:
    seen = set()
    for seed in (1, 2):
        packed = operands(names, seed)
        wanted = addends(names, tuple(groups_of(each) for each in packed))
        fp32 = to_bits(running_fp32(*packed))[..., 0]
        exact, inexact = running_exact(*packed)
        assert not inexact.any()
        for row, values in enumerate(wanted):
            acc, total = 0, Fraction()
            for step, value in enumerate(values):
                seen.add(value is None)
                acc = reference.add_fp32(acc, value)
                assert int(fp32[row, step]) == acc
                total = None if value is None or total is None else total + value
                once = QUIET_NAN
                if total is not None:
                    once = reference.to_bits("fp32", (int(total < 0), abs(total)))
                assert int(to_bits(exact)[row, step]) == once
    assert False in seen
    assert (True in seen) == any(name.startswith("mxfp8") for name in names)


def test_a_window_sees_sums_that_cancel_within_a_group() -> None:
    """Split sums: what is exactly zero has no place, and what lies outside is told."""
    fmt = get_format("mxfp8-e5m2")
    data = torch.zeros(1, 3, 33, dtype=torch.uint8)
    data[..., 32] = 127
    data[0, :, 0] = 0x7B  # the largest
    data[0, :, 1] = 0x01  # the smallest
    other = data.clone()
    other[0, 0, 32] = 100  # below the window, but zero: both products are taken back
    data[0, 0, 2:4] = data[0, 0, :2]
    other[0, 0, 2:4] = other[0, 0, :2] | 0x80
    other[0, 2, 32] = 100
    window = Window("test", 250, 260, 100)
    a, w = (PackedTensor.from_groups(fmt, x) for x in (data, other))
    acc, inexact = running_exact(a, w, window=window)
    assert inexact.tolist() == [[False, False, True]]
    assert product_unit(fmt.block, fmt.block) == -32
    assert acc[0].tolist() == [0.0, float(57344**2), float(57344**2)]


def test_an_element_without_a_number_is_not_outside_a_window() -> None:
    """It makes the sum NaN, as a NaN scale does, and says nothing of exponents."""
    fmt = get_format("mxfp8-e4m3")
    data = torch.zeros(1, 1, 33, dtype=torch.uint8)
    data[..., 0], data[..., 32] = 0x7F, 10
    one = PackedTensor.from_groups(fmt, data)
    acc, inexact = running_exact(one, one, window=Window("test", 250, 260, 100))
    assert acc.isnan().all()
    assert not inexact.any()
