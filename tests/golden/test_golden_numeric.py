"""The exact helpers: single roundings against the exact reference."""

from fractions import Fraction

import numpy as np
import pytest
import reference
import torch

from m2xfp.golden.bits import to_bits
from m2xfp.golden.formats.numeric import pack_bits, round_half_away, round_once, unpack_bits

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.mark.parametrize("kind", DTYPES)
def test_round_once_rounds_once(kind):
    """Midpoints of the type and numbers just beside them, further than float32 can tell."""
    rng = np.random.default_rng(71)
    ebits, mbits = reference.IEEE[kind]
    raw = rng.integers(0, ((1 << ebits) - 1) << mbits, 3000)
    low = [reference.from_bits(kind, int(bits))[1] for bits in raw]
    high = [reference.from_bits(kind, int(bits) + 1)[1] for bits in raw]
    values = []
    for a, b in zip(low, high, strict=True):
        middle = (a + b) / 2 if b is not None else a
        beside = middle * Fraction(int(rng.integers(-2, 3)), 1 << 50)
        values.append(float(middle + beside) * int(rng.choice([-1, 1])))
    found = to_bits(round_once(torch.tensor(values, dtype=torch.float64), DTYPES[kind]))
    for value, bits in zip(values, found.tolist(), strict=True):
        exact = (int(value < 0), abs(Fraction(value)))
        assert bits == reference.to_bits(kind, exact), f"{value.hex()}: seed 71"


def test_half_away_does_not_round_up_what_is_below_a_half():
    x = torch.tensor([0.49999999999999994, 0.5, -0.5, 2.5, -2.5], dtype=torch.float64)
    assert round_half_away(x).tolist() == [0, 1, -1, 3, -3]


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_packing_is_little_endian_without_gaps(bits):
    codes = torch.from_numpy(np.random.default_rng(bits).integers(0, 1 << bits, (5, 16)))
    packed = pack_bits(codes, bits)
    assert torch.equal(unpack_bits(packed, bits, 16), codes)
    number = int.from_bytes(bytes(packed[2].tolist()), "little")
    assert [number >> bits * i & (1 << bits) - 1 for i in range(16)] == codes[2].tolist()
