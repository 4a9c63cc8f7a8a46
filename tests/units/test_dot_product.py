"""The dot product's Verilog against the golden model and exact rationals, and on its streams."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import reference
from choices import usual_first
from golden_checks import spec_of
from mutation import Mutation, emit_mutant
from stream_checks import check

from m2xfp.errors import InputError
from m2xfp.facts import EmittedFiles, Facts
from m2xfp.formats import (
    AMXFP4,
    INT4_SYM,
    MXFP4,
    MXFP8_E4M3,
    NVFP4,
    SMX4,
    block_format,
)
from m2xfp.rtl.catalog import UNITS
from m2xfp.rtl.units.dot_product import DotProduct
from m2xfp.tb.bulk.simulator import BulkSimulator, SimulationError
from m2xfp.tb.parts import pair_stimulus
from m2xfp.tb.parts.accumulation import schedule
from m2xfp.tb.parts.pairs import decode, encode, expected, formats, load, pairs
from m2xfp.tb.protocol.harness import TestbenchError, run_testbench
from m2xfp.tb.regression import check_case
from m2xfp.tb.vectors import Beats, TestVectors

UNIT = "dot_product"
CONFIGS = list(UNITS[UNIT].configs)
USUAL = ["m2xfp-fp32", "mxfp4-fp32"]
Emit = Callable[[str, str], EmittedFiles]

# 8 distributions of 12 x 3600 groups for each configuration: more than two million in all.
STEPS, COUNT = 12, 3600


@pytest.fixture
def simulator(emitted: Emit, sim_dir: Path, config: str) -> BulkSimulator:
    return BulkSimulator(emitted(UNIT, config), build_dir=sim_dir)


def regress(simulator: BulkSimulator, steps: int, count: int, seed: int) -> None:
    """Play every distribution, every other one with pauses."""
    blocks = formats(simulator.facts)
    for index, name in enumerate(pair_stimulus.DISTRIBUTIONS):
        made = pair_stimulus.groups(name, blocks, steps, count, seed)
        check(
            simulator, pair_stimulus.pair_vectors(simulator.facts, *made), 0.2 * (index % 2), seed
        )


@pytest.mark.parametrize("config", usual_first(CONFIGS, USUAL))
def test_values(simulator: BulkSimulator) -> None:
    count = COUNT // (4 if simulator.facts.parameters.get("lanes") else 1)
    regress(simulator, STEPS, count, seed=1)
    assert STEPS * COUNT * len(pair_stimulus.DISTRIBUTIONS) * len(USUAL) > 650_000


def sums_of_last_places(files: EmittedFiles, build_dir: Path) -> list[int]:
    """Return what is left of 2^-23 after +1 and -1, in every chain, as patterns of FP32."""
    simulator = BulkSimulator(files, build_dir=build_dir)
    arrays = pair_stimulus.last_places(simulator.facts)
    outputs = simulator.run(encode(arrays, simulator.facts)).outputs
    sums = decode(outputs, arrays, simulator.facts)["acc"]
    assert {*sums[1::3].tolist()} == {0x3F800001}
    return sums[2::3].tolist()


def test_a_last_place_survives_a_one(emitted: Emit, sim_dir: Path) -> None:
    files = emitted(UNIT, "m2xfp-fp32")
    facts = Facts.load(files.json)
    assert sums_of_last_places(files, sim_dir) == [0x34000000] * 2 * facts.parameters["chains"]


def test_the_regression_notices_a_last_place_misplaced(emitted: Emit, tmp_path: Path) -> None:
    """A mutant that lived once: 2^-23, then +1, then -1 left 2^-25, and nothing else told it."""
    files = emitted(UNIT, "m2xfp-fp32")
    right, wrong = "assign zeros_4_4[1] = ~zeros_any_6_2;", "assign zeros_4_4[1] = 1'h1;"
    verilog = files.verilog.read_text()
    assert verilog.count(right) == 1
    (tmp_path / "fault.v").write_text(verilog.replace(right, wrong))
    fault = replace(files, verilog=tmp_path / "fault.v")
    assert {*sums_of_last_places(fault, tmp_path)} == {0x33000000}
    simulator = BulkSimulator(fault, build_dir=tmp_path)
    cases = pair_stimulus.regression(simulator.facts)
    [case] = [case for case in cases if case.name == "last places"]
    with pytest.raises(AssertionError, match="last places: o differs"):
        check_case(simulator, case)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_values_at_length(simulator: BulkSimulator) -> None:
    for seed in range(10, 30):
        regress(simulator, STEPS, COUNT, seed)


@pytest.mark.parametrize("config", usual_first(["m2xfp-fp32", "mxfp4-fp32", "nvfp4-fp32"], USUAL))
def test_exact_rationals(simulator: BulkSimulator, config: str) -> None:
    """The RTL against fractions, which share nothing with the golden model."""
    facts = simulator.facts
    blocks = formats(facts)
    specs = tuple(spec_of(block.name) for block in blocks)
    for name in pair_stimulus.DISTRIBUTIONS:
        act, weight, first = pair_stimulus.groups(name, blocks, 10, 3, seed=6)
        if blocks[0].scale.grid:  # the reference has no scales with the unused sign bit set
            for groups, block in zip((act, weight), blocks, strict=True):
                groups[..., block.group_bytes[0]] &= 0x7F
        vectors = pair_stimulus.pair_vectors(facts, act, weight, first)
        acc = simulator.run(vectors.inputs).outputs["o"].data.view("<u4").reshape(10, 3)
        for chain in range(3):
            state = 0
            for step in range(10):
                state = 0 if first[step, chain] else state
                rows = tuple(
                    [_reference_group(groups[step, chain], block)]
                    for groups, block in zip((act, weight), blocks, strict=True)
                )
                state = reference.dot(specs, rows, "fp32", state, None)
                assert int(acc[step, chain]) == state, (name, step, chain)


def _reference_group(packed: np.ndarray, block: object) -> reference.Group:
    codes = packed[: block.group_bytes[0]]
    nibbles = np.stack([codes & 15, codes >> 4], axis=1).reshape(-1).tolist()
    fields = [int(packed[-1]) >> 2 * j & 3 for j in range(block.subgroups)]
    return reference.Group(tuple(nibbles), (int(packed[block.group_bytes[0]]),), tuple(fields))


@pytest.mark.parametrize("config", usual_first(CONFIGS, USUAL))
def test_rate_and_latency(simulator: BulkSimulator) -> None:
    """One group a clock without bubbles, each accumulator after the stated number of clocks."""
    facts = simulator.facts
    made = pair_stimulus.groups("near", formats(facts), 20, 30, seed=2)
    stamps = simulator.run(pair_stimulus.pair_vectors(facts, *made).inputs, stamps=True).stamps
    assert np.array_equal(stamps["i"], np.arange(len(stamps["i"])))
    assert np.array_equal(stamps["o"], stamps["i"] + facts.latency)


@pytest.mark.parametrize("config", usual_first(["m2xfp-fp32", "m2xfp-fp32-single"], USUAL))
def test_stalls_change_nothing(simulator: BulkSimulator) -> None:
    made = pair_stimulus.groups("near", formats(simulator.facts), 20, 60, seed=3)
    vectors = pair_stimulus.pair_vectors(simulator.facts, *made)
    for seed, stall in enumerate(
        [{"i": 0.9}, {"o": 0.9}, {"i": 0.1, "o": 0.9}, {"i": 0.9, "o": 0.1}, {"i": 0.5, "o": 0.5}]
    ):
        out = simulator.run(vectors.inputs, stall=stall, seed=seed).outputs["o"]
        assert np.array_equal(out.data, vectors.outputs["o"].data)


@pytest.mark.parametrize("config", ["m2xfp-fp32"])
def test_reset_clears_every_chain(simulator: BulkSimulator) -> None:
    """Without any ``first`` the accumulators start from +0, whatever the registers held."""
    act, weight, first = pair_stimulus.groups("near", formats(simulator.facts), 5, 3, seed=4)
    vectors = pair_stimulus.pair_vectors(simulator.facts, act, weight, first)
    data, bit = vectors.inputs["i"].data.copy(), simulator.facts.stream("i").field("first").offset
    data[:, bit // 8] &= 0xFF ^ (1 << bit % 8)
    for seed in range(5):
        out = simulator.run({"i": Beats(data)}, seed=seed).outputs["o"]
        assert np.array_equal(out.data, vectors.outputs["o"].data)


def protocol_vectors(emitted: EmittedFiles) -> TestVectors:
    """Return 36 dot products of all distributions, mixed."""
    facts = Facts.load(emitted.json)
    made = [
        pair_stimulus.groups(name, formats(facts), 2, 6, seed=5)
        for name in pair_stimulus.DISTRIBUTIONS
    ]
    return pair_stimulus.pair_vectors(
        facts, *(np.concatenate(parts, axis=1) for parts in zip(*made, strict=True))
    )


def test_schedule_keeps_dot_products_together() -> None:
    first = np.zeros(20, bool)
    first[[3, 4, 11]] = True
    slots = schedule(first, 3)
    assert sorted(slots[slots >= 0]) == list(range(20))
    for chain in range(3):
        rows = [row for row in slots[chain::3] if row >= 0]
        assert all(second == row + 1 or first[second] for row, second in pairwise(rows))
    assert slots[0] == 0
    assert slots[-1] >= 0


@pytest.mark.parametrize(
    "config", usual_first(["m2xfp-fp32", "m2xfp-fp32_subgroup", "m2xfp-fp32-single"], USUAL)
)
def test_arrays(simulator: BulkSimulator) -> None:
    """What `m2xfp simulate` does: rows in order, dot products of random lengths."""
    facts = simulator.facts
    act, weight, _ = pair_stimulus.groups("near", formats(facts), 300, 1, seed=7)
    first = np.random.default_rng(7).random((300, 1)) < 0.1
    arrays = pair_stimulus.pair_arrays(facts, act, weight, first)
    run = simulator.run(encode(arrays, facts))
    acc = decode(run.outputs, arrays, facts)["acc"]
    assert np.array_equal(acc, expected(arrays, facts)["acc"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("w_meta"), "'w_meta' is missing"),
        (lambda arrays: arrays.update(extra=np.zeros(3)), "no field 'extra'"),
        (lambda arrays: arrays.update(first=np.zeros(2, bool)), r"\[2\]|\[3"),
        (lambda arrays: arrays.update(first=np.zeros(3, np.uint8)), "must be bool"),
        (lambda arrays: arrays.update(a_codes=np.zeros((3, 15), np.uint8)), "a_codes"),
        (lambda arrays: arrays.update(a_scales=np.zeros((3, 1), np.uint8)), "a_scales"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path: Path, change: Callable, message: str) -> None:
    facts = UNITS[UNIT].instance("m2xfp-fp32").facts
    arrays = pairs(*(np.zeros((3, 18), np.uint8) for _ in range(2)), facts)
    arrays["first"] = np.ones(3, bool)
    change(arrays)
    np.savez(tmp_path / "pairs.npz", **arrays)
    with pytest.raises(InputError, match=message):
        load(tmp_path / "pairs.npz", facts)


@pytest.mark.parametrize(
    "keywords",
    [
        {"act": MXFP8_E4M3, "weight": block_format("m2xfp-act")},
        {"act": MXFP8_E4M3, "weight": NVFP4},
        {"act": MXFP8_E4M3, "weight": AMXFP4},
        {"act": MXFP8_E4M3, "weight": block_format("mxfp4:group=16")},
        {"act": INT4_SYM, "weight": INT4_SYM},
        {"act": SMX4, "weight": SMX4},
        {"act": MXFP4, "weight": NVFP4},
        {"chains": 4},
        {"chains": 0},
        {"depth": 3},
        {"lanes": 12},
        {"lanes": 4},
    ],
)
def test_wrong_parameters_are_refused(keywords: dict) -> None:
    with pytest.raises(InputError):
        DotProduct(**keywords)


DOT, ADD, ROUND, ACC, SLOTS, DEC = (
    f"m2xfp.rtl.parts.{name}"
    for name in (
        "group_product",
        "fp32_addition",
        "fp32_rounding",
        "fp32_accumulation",
        "slot_arbiter",
        "top_element_decoder",
    )
)
ARITH, STREAMS = "m2xfp.rtl.arith.datapath", "m2xfp.rtl.parts.streams"

FAULTS = [
    Mutation("ties away", ROUND, "guard & (odd | rest.any() | i.borrowed)", "guard"),
    Mutation("no sticky", ADD, "sticky = Mux(far, chosen.any(), lost) & live", "sticky = Const(0)"),
    Mutation("no far sticky", ADD, "Mux(far, chosen.any(), lost)", "Mux(far, 0, lost)"),
    Mutation("rounding of a borrow", ROUND, "| (i.borrowed & odd & rest.all())", ""),
    Mutation("zeros shifted in after a borrow", ROUND, "fill=i.borrowed", "fill=None"),
    Mutation("subnormals flushed", ROUND, "Mux(subnormal, near, zeros)", "zeros"),
    Mutation("hidden bit of subnormals", ADD, "acc.exponent[0] | ~hidden", "acc.exponent[0]"),
    Mutation("overflow wraps", ROUND, "exponent[8] | exponent[:8].all()", "Const(0, 1)"),
    Mutation("infinity does not stay", ADD, "addend.nonzero & ~special", "addend.nonzero"),
    Mutation("NaN is forgotten", ADD, "| (special & acc.mantissa[-1])", ""),
    Mutation("NaN scale ignored", ACC, "held.nan.eq(effects[1])", "held.nan.eq(0)"),
    Mutation("-0 of a cancellation", ROUND, "(found | i.borrowed | ~i.subtract)", "(Const(1, 1))"),
    Mutation("far limit", ADD, "distance[near:].any()", "distance[near + 1 :].any()"),
    Mutation("first ignored", ACC, "(self.first & self.valid)", "(self.first & 0)"),
    Mutation(
        "chains not cleared by reset",
        ACC,
        "clear = Signal(self.chains, init=-1)",
        "clear = Signal(self.chains)",
    ),
    Mutation("chain out of turn", SLOTS, "steps.eq(self._chains - 1)", "steps.eq(0)"),
    Mutation("down step at a power of two", DEC, "down & ~mantissa & exponent.any()", "down & 0"),
    Mutation(
        "metadata 0 beside code 0", DEC, "Mux(down, code.any(), self.meta != 1)", "self.meta != 1"
    ),
    Mutation("sign of the refinement", DOT, "flipped ^ refinement.negative", "flipped"),
    Mutation(
        "multiplier bits swapped", DOT, "Cat(Const(0, bit), named", "Cat(Const(0, 1 - bit), named"
    ),
    Mutation("a lane's sign", DOT, "negative & x.any() & w.any()", "negative & x.any()"),
    Mutation("a stall loses a beat", STREAMS, "~self.o.ready & self.o.valid", "~self.o.ready & 0"),
]


@pytest.mark.parametrize(
    "fault",
    usual_first(FAULTS, ["ties away", "no sticky", "a stall loses a beat"]),
    ids=lambda fault: fault.name,
)
def test_regression_notices(fault: Mutation, sim_dir: Path, tmp_path: Path) -> None:
    simulator = BulkSimulator(emit_mutant(fault, UNIT, "m2xfp-fp32", tmp_path), build_dir=sim_dir)

    def all_checks() -> None:
        regress(simulator, 6, 600, seed=1)
        test_reset_clears_every_chain(simulator)

    with pytest.raises((AssertionError, SimulationError)):
        all_checks()


PROTOCOL_FAULTS = [
    Mutation(
        "ready follows ready",
        STREAMS,
        "self.i.ready.eq(~spare_valid)",
        "self.i.ready.eq(~spare_valid & self.o.ready)",
        "Skid",
    ),
    Mutation(
        "latency misstated",
        "m2xfp.rtl.units.dot_product",
        "self.latency = depth + self._accumulator.latency",
        "self.latency = depth + self._accumulator.latency + 1",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("fault", PROTOCOL_FAULTS, ids=lambda fault: fault.name)
def test_protocol_notices(fault: Mutation, sim_dir: Path, tmp_path: Path) -> None:
    mutant = emit_mutant(fault, UNIT, "m2xfp-fp32", tmp_path)
    with pytest.raises(TestbenchError):
        run_testbench(mutant, protocol_vectors(mutant), build_dir=sim_dir)


@pytest.mark.parametrize("config", CONFIGS)
def test_stimulus_of_few_steps(config: str) -> None:
    """Every distribution makes as many groups as it is asked for, also fewer than its pattern."""
    facts = UNITS[UNIT].instance(config).facts
    for name in pair_stimulus.DISTRIBUTIONS:
        for steps, count in ((1, 1), (2, 6), (3, 2)):
            *groups, first = pair_stimulus.groups(name, formats(facts), steps, count, seed=5)
            assert first.shape == (steps, count)
            assert all(side.shape[:2] == (steps, count) for side in groups)
