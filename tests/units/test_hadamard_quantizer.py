"""The Hadamard unit with the quantizer behind it: what only the two together can get wrong."""

from pathlib import Path

import numpy as np
import pytest

from m2xfp.errors import InputError
from m2xfp.formats import MXFP4, block_format
from m2xfp.rtl.catalog import UNITS
from m2xfp.rtl.units.hadamard_quantizer import HadamardQuantizer
from m2xfp.rtl.verilog.emit import emit
from m2xfp.tb.bench import find_bench
from m2xfp.tb.bulk.simulator import BulkSimulator
from m2xfp.tb.parts import value_stimulus
from m2xfp.tb.parts.blocks import block_arrays

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
