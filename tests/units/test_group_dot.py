"""GroupDot and Fp32Accumulator, the two halves of the dot product, each on its own."""

from collections.abc import Callable
from pathlib import Path

import mac_stimulus
import numpy as np
import pytest
import torch
from choices import usual_first

from m2xfp.errors import InputError
from m2xfp.facts import EmittedFiles
from m2xfp.formats import E2M1, E2M3, BlockFormat
from m2xfp.rtl.catalog import UNITS
from m2xfp.rtl.parts.dot_pair import DotPair
from m2xfp.rtl.units.group_dot import GroupDot
from m2xfp.synth.gate_sim.stimulus import job_for
from m2xfp.tb.bulk.simulator import Player
from m2xfp.tb.vectors import Beats

Emit = Callable[[str, str], EmittedFiles]
_E2M1 = np.array([int(2 * E2M1.magnitude(code)) for code in range(8)])
_E2M3 = np.array([int(8 * E2M3.magnitude(code)) for code in range(32)])


def pair_of(unit: str, config: str) -> DotPair:
    parameters = UNITS[unit].instance(config).parameters
    return DotPair(parameters["act"], parameters["weight"])


def unpack(groups: np.ndarray, block: BlockFormat) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return codes [n, group], scales [n] and metadata fields [n, subgroups]."""
    size = block.group_bytes[0]
    codes = np.stack([groups[:, :size] & 15, groups[:, :size] >> 4], -1).reshape(len(groups), -1)
    meta = groups[:, -1:] >> 2 * np.arange(block.subgroups) & 3
    return codes.astype(int), groups[:, size].astype(int), meta.astype(int)


def products(pair: DotPair, act: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return D, the sum of exponent fields and NaN, in integers from the definition."""
    x, a_scale, a_meta = unpack(act, pair.act)
    w, w_scale, w_meta = unpack(weight, pair.weight)
    magnitude = x & 7
    size = pair.act.metadata.subgroup
    left = _E2M1[magnitude] * (4 if size else 1)
    for s in range(pair.act.subgroups):
        part = magnitude[:, s * size : (s + 1) * size]
        top = s * size + part.argmax(axis=1)  # the first of equals
        rows = np.arange(len(x))
        left[rows, top] = _E2M3[np.maximum(4 * magnitude[rows, top] + a_meta[:, s] - 1, 0)]
    terms = left * np.where(x & 8, -1, 1) * _E2M1[w & 7] * np.where(w & 8, -1, 1)
    if pair.weight.subgroups:
        terms = terms * (4 + np.repeat(w_meta, pair.weight.metadata.subgroup, axis=1))
    total = terms.sum(axis=1)
    if pair.act.scale.grid is None:
        return total, a_scale + w_scale, (a_scale == 255) | (w_scale == 255)
    fields = [(scale >> 3 & 15, scale & 7) for scale in (a_scale, w_scale)]
    for e, mantissa in fields:
        total = total * (mantissa + np.where(e, 8, 0))
    nan = (a_scale & 127 == 127) | (w_scale & 127 == 127)
    return total, sum(np.maximum(e, 1) for e, _ in fields), nan


@pytest.mark.parametrize("config", list(UNITS["group_dot"].configs))
def test_products(emitted: Emit, sim_dir: Path, config: str) -> None:
    """D, exponent and NaN against integers, and the bounds that the widths rest on."""
    pair = pair_of("group_dot", config)
    player = Player(emitted("group_dot", config), build_dir=sim_dir)
    width, exponent_bits = pair.product_shape.width, pair.exponent_bits
    reached = 0
    for name in ("random_bytes", "extremes", "near"):
        act, weight, _ = mac_stimulus.groups(name, (pair.act, pair.weight), 10, 2000, seed=1)
        act, weight = act.reshape(20000, -1), weight.reshape(20000, -1)
        run = player.run({"i": Beats(np.hstack([act, weight]))}, stall=0.1)
        rows = np.zeros((20000, 8), np.uint8)
        rows[:, : run.outputs["o"].data.shape[1]] = run.outputs["o"].data
        word = rows.view("<u8")[:, 0].astype(np.int64)
        found = word & (1 << width) - 1
        found -= (found >> width - 1) << width
        total, exponent, nan = products(pair, act, weight)
        assert np.array_equal(word >> width + exponent_bits & 1, nan)
        assert np.array_equal(found[~nan], total[~nan])
        assert np.array_equal((word >> width & (1 << exponent_bits) - 1)[~nan], exponent[~nan])
        reached = max(reached, np.abs(total[~nan]).max())
    assert pair.product_bound // 4 < reached <= pair.product_bound


def accumulator_words(pair: DotPair, count: int, seed: int) -> tuple[np.ndarray, ...]:
    """Return fields of random products: D of all lengths, exponents near each other, first."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, pair.product_bound.bit_length() + 1, (count, 3))
    size = rng.integers(0, 1 << bits)
    product = np.minimum(size, pair.product_bound) * rng.choice([-1, 1], size.shape)
    limit = (1 << pair.exponent_bits) - 1
    start = rng.integers(0, limit, 3)
    exponent = np.clip(
        start + np.cumsum(rng.integers(-20, 21, (count, 3)), axis=0) % limit, 0, limit
    )
    exponent = np.where(rng.random((count, 1)) < 0.5, exponent, np.roll(exponent, 1, axis=0))
    nan = rng.random((count, 3)) < 0.002
    first = rng.random((count, 3)) < 0.02
    first[0] = True
    return product, exponent, nan, first


@pytest.mark.parametrize("config", ["m2xfp", "m2xfp-single", "m2xfp-double", "nvfp4"])
def test_accumulation(emitted: Emit, sim_dir: Path, config: str) -> None:
    """Any D with any exponent, in every number of chains, against the golden model."""
    from m2xfp.golden.bits import to_bits
    from m2xfp.golden.formats.products import accumulate

    chains = UNITS["fp32_accumulator"].instance(config).parameters["chains"]
    player = Player(emitted("fp32_accumulator", config), build_dir=sim_dir)
    pair = pair_of("fp32_accumulator", config)
    product, exponent, nan, first = accumulator_words(pair, 20_000, seed=3)
    width = pair.product_shape.width
    word = (
        (product & (1 << width) - 1)
        | exponent << width
        | nan.astype(np.int64) << width + pair.exponent_bits
        | first.astype(np.int64) << width + pair.exponent_bits + 1
    )[:, :chains]
    rows = np.ascontiguousarray(word.reshape(-1, 1).astype("<u8")).view(np.uint8)
    stream = player.description.inputs[0]
    run = player.run({"i": Beats(np.ascontiguousarray(rows[:, : stream.bytes]))}, stall=0.1)
    found = run.outputs["o"].data.view("<u4").reshape(-1, chains)
    value = np.where(nan, np.nan, np.ldexp(product.astype(float), exponent - pair.bias))
    acc = torch.zeros(3)
    for step in range(len(product)):
        acc = torch.where(torch.from_numpy(first[step]), torch.tensor(0.0), acc)
        acc = accumulate(acc, torch.from_numpy(value[step]))
        wanted = to_bits(acc)[:chains]
        assert np.array_equal(found[step], wanted), (step, found[step], wanted)


JOBS = [
    ("group_dot", "m2xfp"),
    ("group_dot", "nvfp4"),
    ("fp32_accumulator", "m2xfp"),
    ("fp32_accumulator", "m2xfp-single"),
    ("fp32_accumulator", "nvfp4"),
    ("exact_accumulator", "m2xfp"),
]


@pytest.mark.parametrize("names", usual_first(JOBS, [JOBS[0], JOBS[2]]), ids="-".join)
def test_jobs_for_power(emitted: Emit, sim_dir: Path, names: tuple[str, str]) -> None:
    """What power is measured on: the golden model's results are those of the Verilog."""
    player = Player(emitted(*names), build_dir=sim_dir)
    job = job_for(player.description, "random", lanes=64, depth=7)
    assert job is not None
    assert job.groups >= 64
    out = player.run(job.inputs, stall=0.1).outputs["o"]
    assert np.array_equal(out.data, job.outputs["o"].data)
    assert np.array_equal(out.last, job.outputs["o"].last)


def test_depth_is_refused() -> None:
    with pytest.raises(InputError, match="depth=3"):
        GroupDot(depth=3)
