"""The Hadamard unit with the quantizer behind it: what only the two together can get wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from choices import usual_first
from mutation import Mutation, emit_mutant
from numpy.typing import NDArray
from stream_checks import STALLS, check

from m2xfp.errors import InputError
from m2xfp.facts import EmittedFiles
from m2xfp.formats import MXFP4, block_format
from m2xfp.golden.units.activation_quantizer import activation_quantizer
from m2xfp.golden.units.hadamard import hadamard
from m2xfp.rtl.catalog import UNITS
from m2xfp.rtl.parts.scale_rules import SCALE_RULES
from m2xfp.rtl.units.hadamard_quantizer import HadamardQuantizer
from m2xfp.rtl.verilog.emit import emit
from m2xfp.tb.bench import find_bench
from m2xfp.tb.bulk.simulator import BulkSimulator, SimulationError
from m2xfp.tb.parts import value_stimulus
from m2xfp.tb.parts.blocks import block_arrays, four_values, low_middles, low_sums, two_values
from m2xfp.tb.parts.groups import user_planes
from m2xfp.tb.regression import check_case
from m2xfp.tb.units import hadamard_quantizer

UNIT = "hadamard_quantizer"
CONFIGS = list(UNITS[UNIT].configs)
SLOW_BLOCKS = 70_000  # fourteen distributions and zeros: over a million groups a configuration

Emit = Callable[[str, str], EmittedFiles]


def play(simulator: BulkSimulator, count: int, seed: int) -> int:
    """Play ``count`` blocks of every distribution, and of zeros beside few values, with stalls."""
    facts = simulator.facts
    points = facts.parameters["points"]
    total = 0
    for index, name in enumerate([*value_stimulus.DISTRIBUTIONS, "few"]):
        if name == "few":  # whole blocks of zeros, and of one value
            raw = np.zeros((count, points), np.uint16)
            rng = np.random.default_rng(seed)
            lane = rng.integers(0, points, count)
            raw[np.arange(count), lane] = rng.integers(0, 1 << 16, count) * (
                rng.random(count) < 0.5
            )
        else:
            raw = value_stimulus.groups(name, "bf16", count, seed, points)
        vectors = hadamard_quantizer.vectors(block_arrays(raw, seed), facts, seed)
        check(simulator, vectors, STALLS[index % len(STALLS)], seed)
        total += len(vectors.outputs["o"])
    return total


def play_regression(simulator: BulkSimulator) -> None:
    for case in hadamard_quantizer.regression(simulator.facts, seed=1):
        check_case(simulator, case)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_a_million_groups(emitted: Emit, sim_dir: Path, config: str) -> None:
    simulator = BulkSimulator(emitted(UNIT, config), build_dir=sim_dir)
    assert sum(play(simulator, SLOW_BLOCKS // 10, seed) for seed in range(10)) >= 1_000_000


# Each rule, each kind of element and both scales of zeros come up, in builds as small as can be.
RULED: list[dict[str, Any]] = [
    {"scale_rule": "ceil", "zero_scale": 126, "block": "mxfp4"},
    {"scale_rule": "rtn1", "block": "mxfp6-e2m3"},
    {"scale_rule": "rtn2", "block": "mxint8", "zero_scale": 126},
    {"scale_rule": "even", "block": "mxfp8-e5m2", "stages": 4},
    {"scale_rule": "even-e2m1", "block": "m2xfp-act", "lanes": 8, "stages": 4},
    {"scale_rule": "ceil", "block": "int4", "points": 64},
    {"scale_rule": "rtn1", "block": "smx4:group=32"},
    {"scale_rule": "rtn2", "block": "amxfp4:scale_mode=pot"},
    {"scale_rule": "floor", "block": "mxfp8-e4m3", "zero_scale": 126},
]
assert {given["scale_rule"] for given in RULED} == set(SCALE_RULES)


@pytest.mark.parametrize(
    "given",
    usual_first(RULED, RULED[:3]),
    ids=lambda given: f"{given['block']} {given['scale_rule']}",
)
def test_rules_behind_the_rotation(given: dict[str, Any], sim_dir: Path, tmp_path: Path) -> None:
    """The unit has all parameters of its quantizer, and they make a difference."""
    changes = {"lanes": 4, **given, "block": block_format(given["block"])}
    instance = UNITS[UNIT].instance("32x8", changes, name="ruled")
    simulator = BulkSimulator(emit(instance, tmp_path), build_dir=sim_dir)
    play(simulator, 500, seed=3)
    facts = instance.facts
    raw = value_stimulus.groups("wide", "bf16", 300, 6, facts.parameters["points"])
    raw[:3] = 0
    arrays = block_arrays(raw, 6)
    # The golden unit of the rule is that of the two units, of which the rule's is exact.
    y = hadamard(arrays["x"], arrays["flips"], bits=facts.parameters["bits"])["y"]
    named = {name: facts.parameters[name] for name in ("block", "scale_rule", "zero_scale")}
    ruled, plain = (
        user_planes(
            activation_quantizer(y.reshape(-1, 32), input_type="bf16", **each),
            block_format(given["block"]),
        )
        for each in (named, {"block": given["block"]})
    )
    found = find_bench(UNITS[UNIT]).expected(arrays, facts)
    assert all(np.array_equal(found[name], ruled[name]) for name in ruled)
    assert not np.array_equal(ruled["scales"], plain["scales"])


UNITS_OF, PARTS = "m2xfp.rtl.units", "m2xfp.rtl.parts"
FAULTS = [
    Mutation(
        "transform left out",
        f"{UNITS_OF}.hadamard_quantizer",
        "wiring.connect(m, hadamard.o, quantizer.i)",
        "wiring.connect(m, hadamard.o, quantizer.i); m.d.comb += "
        "quantizer.i.payload.data.eq(self.i.payload.data.values)",
    ),
    Mutation(
        "quantizer of fewer stages",
        f"{UNITS_OF}.hadamard_quantizer",
        "self._hadamard.latency + self._quantizer.latency",
        "self._hadamard.latency + self._quantizer.latency - 1",
    ),
    Mutation(
        "sign not flipped",
        f"{UNITS_OF}.hadamard",
        "values[n].sign ^ self.i.payload.data.flips[n]",
        "values[n].sign",
    ),
    Mutation("NaN ignored", f"{UNITS_OF}.hadamard", "nan.eq(beat.largest.all())", "nan.eq(0)"),
    Mutation("negation one short", f"{PARTS}.butterflies", "+ value.sign\n", "+ Const(0, 1)\n"),
    Mutation(
        "difference the wrong way",
        f"{PARTS}.butterflies",
        "other - values[n]",
        "values[n] - other",
    ),
    Mutation(
        "ties of codes away",
        "m2xfp.rtl.arith.datapath",
        "guard & (rest | code[0])",
        "guard",
    ),
    Mutation(
        "pipeline runs through a stall",
        f"{UNITS_OF}.activation_quantizer",
        "~output.i.valid | output.i.ready",
        "1",
    ),
]


@pytest.mark.parametrize(
    "fault",
    usual_first(FAULTS, ["transform left out", "ties of codes away"]),
    ids=lambda fault: fault.name,
)
def test_regression_notices(fault: Mutation, sim_dir: Path, tmp_path: Path) -> None:
    mutant = emit_mutant(fault, UNIT, "32x8", tmp_path)
    simulator = BulkSimulator(mutant, build_dir=sim_dir)
    with pytest.raises((AssertionError, SimulationError)):
        play_regression(simulator)


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
