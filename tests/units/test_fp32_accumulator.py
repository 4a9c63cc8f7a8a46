"""The FP32 accumulation: any products, with any exponents, in every number of chains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from stream_checks import check

from m2xfp.errors import InputError
from m2xfp.facts import EmittedFiles
from m2xfp.rtl.catalog import UNITS
from m2xfp.rtl.units.fp32_accumulator import Fp32Accumulator
from m2xfp.tb.bench import Arrays
from m2xfp.tb.bulk.simulator import BulkSimulator
from m2xfp.tb.units.fp32_accumulator import expected, load, vectors

UNIT = "fp32_accumulator"
Emit = Callable[[str, str], EmittedFiles]


def pair_of(config: str) -> Any:
    component: Any = UNITS[UNIT].instance(config).component
    return component.pair


def sums(config: str, steps: int, count: int, seed: int) -> Arrays:
    """Return sums one after the other: products of all lengths, exponents near each other."""
    pair, rng = pair_of(config), np.random.default_rng(seed)
    shape = (count, steps)
    bits = rng.integers(0, pair.product_bound.bit_length() + 1, shape)
    size = rng.integers(0, 1 << bits)
    product = np.minimum(size, pair.product_bound) * rng.choice([-1, 1], shape)
    limit = (1 << pair.exponent_bits) - 1
    walk = rng.integers(0, limit, (count, 1)) + np.cumsum(rng.integers(-20, 21, shape), axis=1)
    exponent = walk % limit
    exponent = np.where(rng.random(shape) < 0.5, exponent, np.roll(exponent, 1, axis=1))
    nan, first = rng.random(shape) < 0.002, rng.random(shape) < 0.02
    first[:, 0] = True
    fields = {"product": product, "exponent": exponent, "nan": nan, "first": first}
    return {name: array.reshape(-1) for name, array in fields.items()}


@pytest.mark.parametrize("config", ["m2xfp", "m2xfp-single", "m2xfp-double", "nvfp4"])
def test_accumulation(emitted: Emit, sim_dir: Path, config: str) -> None:
    """Any D with any exponent, in every number of chains, against the golden model."""
    simulator = BulkSimulator(emitted(UNIT, config), build_dir=sim_dir)
    arrays = sums(config, steps=500, count=120, seed=3)
    check(simulator, vectors(arrays, simulator.facts), stall=0.1)


@pytest.mark.parametrize("config", ["m2xfp", "nvfp4"])
def test_golden(config: str) -> None:
    """The golden model against exact fractions, rounded once at each step."""
    facts, pair = UNITS[UNIT].instance(config).facts, pair_of(config)
    arrays = sums(config, steps=40, count=30, seed=4)
    acc, state = expected(arrays, facts)["acc"].tolist(), 0
    for row, found in enumerate(acc):
        number, exponent, nan, first = (array[row].item() for array in arrays.values())
        state = 0 if first else state
        addend = None if nan else number * reference.pow2(exponent - pair.bias)
        if addend != 0:
            state = reference.add_fp32(state, addend)
        assert found == state, row


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("product", 1 << 18, r"product\[2\] = 262144; must be -262144 to 262143"),
        ("product", -(1 << 18) - 1, r"product\[2\] = -262145"),
        ("exponent", 512, r"exponent\[2\] = 512; must be 0 to 511"),
        ("exponent", -1, r"exponent\[2\] = -1"),
    ],
)
def test_numbers_that_do_not_fit(tmp_path: Path, name: str, value: int, message: str) -> None:
    arrays = sums("m2xfp", steps=4, count=1, seed=5)
    arrays[name][2] = value
    np.savez(tmp_path / "in.npz", **arrays)
    with pytest.raises(InputError, match=message):
        load(tmp_path / "in.npz", UNITS[UNIT].instance("m2xfp").facts)


@pytest.mark.parametrize("chains", [0, 4])
def test_wrong_parameters_are_refused(chains: int) -> None:
    with pytest.raises(InputError, match="chains"):
        Fp32Accumulator(chains=chains)
