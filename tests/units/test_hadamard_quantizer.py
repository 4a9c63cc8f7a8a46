"""The Hadamard unit with the quantizer behind it: what only the two together can get wrong."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from m2xfp.errors import InputError
from m2xfp.formats import MXFP4, block_format
from m2xfp.golden.units.activation_quantizer import activation_quantizer
from m2xfp.golden.units.hadamard import hadamard
from m2xfp.rtl.catalog import UNITS
from m2xfp.rtl.units.hadamard_quantizer import HadamardQuantizer
from m2xfp.rtl.verilog.emit import emit
from m2xfp.tb.bench import find_bench
from m2xfp.tb.bulk.simulator import BulkSimulator
from m2xfp.tb.parts import value_stimulus
from m2xfp.tb.parts.blocks import block_arrays, four_values, low_middles, low_sums, two_values
from m2xfp.tb.units import hadamard_quantizer

UNIT = "hadamard_quantizer"


def test_the_two_units_apart_give_the_same(sim_dir: Path, tmp_path: Path) -> None:
    """The emitted transform's bits, through the emitted quantizer, are this unit's groups."""
    instances = (
        UNITS[UNIT].instance("32x8", {"points": 64}),
        UNITS["hadamard"].instance("32x8", {"points": 64}),
        UNITS["activation_quantizer"].instance("bf16x8"),
    )
    together, *apart = (
        BulkSimulator(emit(instance, tmp_path), build_dir=sim_dir) for instance in instances
    )
    x = np.vstack(
        [value_stimulus.groups(name, "bf16", 200, 6, 64) for name in ("heavy", "special")]
    )
    data = find_bench(UNITS[UNIT]).encode(block_arrays(x, 6), together.facts)
    transformed = apart[0].run(data).outputs["o"]
    wanted = apart[1].run({"i": transformed}).outputs["o"]
    found = together.run(data).outputs["o"]
    assert np.array_equal(found.data, wanted.data)
    assert np.array_equal(found.last, wanted.last)


def test_an_outlier_is_spread() -> None:
    """Of groups with one large value each, the others survive quantization after the rotation."""
    rng = np.random.default_rng(7)
    values = rng.standard_normal((2000, 32)) * 0.02
    values[np.arange(2000), rng.integers(0, 32, 2000)] = 1.0
    x = value_stimulus.from_float64(
        values, UNITS["activation_quantizer"].instance("bf16x32").parameters["input_type"]
    )
    bench = find_bench(UNITS[UNIT])
    facts = UNITS[UNIT].instance("32x32").facts
    codes = bench.expected(block_arrays(x, 8), facts)["codes"]
    plain = find_bench(UNITS["activation_quantizer"])
    straight = plain.expected({"x": x}, UNITS["activation_quantizer"].instance("bf16x32").facts)[
        "codes"
    ]
    zeros = [float(np.mean(np.concatenate([c & 7, c >> 4 & 7]) == 0)) for c in (codes, straight)]
    assert zeros[0] < 0.1
    assert zeros[1] > 0.9


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="groups of 32"):
        HadamardQuantizer(block=block_format("mxfp4:group=16"))
    with pytest.raises(InputError, match="lanes=4"):
        HadamardQuantizer(lanes=4)
    assert HadamardQuantizer(lanes=4, block=MXFP4).beats_per_group == 8


@pytest.mark.parametrize("block", ["m2xfp-act", "mxfp4", "mxfp6-e2m3", "mxfp8-e4m3"])
def test_negligible_results(block: str) -> None:
    """Results that far below the block's largest exponent become zero whatever they are.

    That is what is argued of mutants. Results of a binade more do matter.
    """
    facts = UNITS[UNIT].instance("32x8", {"block": block_format(block)}).facts
    below = hadamard_quantizer.negligible(facts)
    assert below is not None
    low = block_arrays(value_stimulus.groups("subnormal", "bf16", 1000, 5, 32), 5)
    some = [four_values(32, 5), two_values(32, 5), low_middles(32, 5), low]
    x, flips = (np.concatenate([each[name] for each in some]) for name in ("x", "flips"))
    y = hadamard(x, flips, bits=facts.parameters["bits"])["y"].astype(np.int64)
    largest = np.maximum(x >> 7 & 0xFF, 1).max(axis=1, keepdims=True).astype(np.int64)
    results = (y.astype(np.uint32) << 16).view(np.float32).astype(float)
    # The transform of 32 values comes with a scale of 2^-3.
    enough = np.abs(results).max(axis=1, keepdims=True) >= 2.0 ** (largest - 127 - 3)
    assert enough[largest > 1].all()
    rng = np.random.default_rng(5)

    def planes(binades: int) -> list[NDArray[np.uint8]]:
        """Return the groups with any others in the place of results up to so many binades more."""
        field = largest - 3 - np.tile(below, 4) + binades
        subnormal = np.where((field >= -6) & (largest > 1), 1 << (field + 6).clip(0, 6), 0)
        limit = np.where(field >= 1, field << 7, subnormal)
        small = (y & 0x7FFF) <= limit
        assert (small & (limit > 0))[:, ::8].any()
        assert (small & (limit > 0))[:, 1::8].any()
        made = np.where(small, y & 0x8000 | rng.integers(0, limit + 1), y).astype(np.uint16)
        return list(activation_quantizer(made, input_type="bf16", block=block).values())

    wanted = list(
        activation_quantizer(y.astype(np.uint16), input_type="bf16", block=block).values()
    )
    assert all(map(np.array_equal, planes(0), wanted))
    assert not all(map(np.array_equal, planes(1), wanted))


@pytest.mark.parametrize("bits", [9, 12, 16])
def test_last_places_of_results(bits: int) -> None:
    """A result far below the largest one has no bits below a place that follows from that."""
    facts = UNITS[UNIT].instance("32x8", {"bits": bits}).facts
    # One result of nearly all values together, and one of a single last place.
    extreme = np.full((1, 32), 0x3FFF, np.uint16)
    extreme[0, :2] = (135 - bits << 7) + np.arange(2)
    some = [
        {"x": extreme, "flips": np.zeros((1, 32), np.bool_)},
        low_sums(32, bits, 5),
        four_values(32, 5),
        *(
            block_arrays(value_stimulus.groups(name, "bf16", 2000, 5, 32), 5)
            for name in ("equal", "wide", "subnormal")
        ),
    ]
    x, flips = (np.concatenate([each[name] for each in some]) for name in ("x", "flips"))
    y = hadamard(x, flips, bits=bits)["y"].astype(np.int64)
    fields, significands = y >> 7 & 0xFF, y & 0x7F | ((y & 0x7F80) != 0) << 7
    apart = fields.max(axis=1, keepdims=True) - fields.clip(1)

    def lost(places: int) -> NDArray[np.bool_]:
        return significands & (1 << (apart - places).clip(0, 8)) - 1 != 0

    # Of a block of zeros or of subnormals alone the largest exponent tells nothing.
    there = np.broadcast_to(fields.max(axis=1, keepdims=True) > 1, y.shape)
    assert not lost(hadamard_quantizer.places(facts))[there].any()
    assert lost(hadamard_quantizer.places(facts) - 1)[there].any()
