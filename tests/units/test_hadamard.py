"""The Hadamard unit's Verilog against the golden model."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from choices import usual_first
from mutation import Mutation, emit_mutant
from stream_checks import STALLS, check

from m2xfp.errors import InputError
from m2xfp.facts import EmittedFiles
from m2xfp.rtl.catalog import UNITS
from m2xfp.rtl.units.hadamard import Hadamard
from m2xfp.tb.bulk.simulator import BulkSimulator, SimulationError
from m2xfp.tb.parts import value_stimulus
from m2xfp.tb.parts.blocks import block_arrays
from m2xfp.tb.regression import check_case
from m2xfp.tb.units import hadamard as bench

UNIT = "hadamard"
CONFIGS = list(UNITS[UNIT].configs)
USUAL = ["32x8"]
SLOW_BLOCKS = 70_000  # of each distribution

Emit = Callable[[str, str], EmittedFiles]


@pytest.fixture
def simulator(emitted: Emit, sim_dir: Path, config: str) -> BulkSimulator:
    return BulkSimulator(emitted(UNIT, config), build_dir=sim_dir)


def play(simulator: BulkSimulator, count: int, seed: int) -> None:
    facts = simulator.facts
    points = facts.parameters["points"]
    for index, name in enumerate(value_stimulus.DISTRIBUTIONS):
        raw = value_stimulus.groups(name, "bf16", count, seed, points)
        vectors = bench.vectors(block_arrays(raw, seed), facts, seed)
        check(simulator, vectors, STALLS[index % len(STALLS)], seed)


def play_regression(simulator: BulkSimulator) -> None:
    for case in bench.regression(simulator.facts, seed=1):
        check_case(simulator, case)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_values_at_length(simulator: BulkSimulator) -> None:
    """A million blocks of each configuration."""
    for seed in range(10):
        play(simulator, SLOW_BLOCKS // 10, seed)


@pytest.mark.parametrize("config", usual_first(CONFIGS, USUAL))
def test_all_patterns(simulator: BulkSimulator) -> None:
    """All 65 536 patterns beside a fixed largest magnitude, and beside equals."""
    facts = simulator.facts
    points = facts.parameters["points"]
    for amax in (1.0, 2.0**-120, 3.38e38):
        raw = value_stimulus.all_patterns("bf16", amax, points)
        assert len(np.unique(raw)) == 65536
        check(simulator, bench.vectors(block_arrays(raw, 3), facts, 3))


@pytest.mark.parametrize("config", usual_first(CONFIGS, USUAL))
def test_blocks_far_apart(simulator: BulkSimulator) -> None:
    """Blocks that meet in the pipeline with gaps of every length leave each other alone."""
    facts = simulator.facts
    raw = value_stimulus.groups("wide", "bf16", 300, 5, facts.parameters["points"])
    vectors = bench.vectors(block_arrays(raw, 5), facts, 5)
    for seed, stall in enumerate(({"i": 0.5}, {"i": 0.9}, {"i": 0.7, "o": 0.3})):
        check(simulator, vectors, stall, seed)


PARTS, UNITS_OF = "m2xfp.rtl.parts.butterflies", "m2xfp.rtl.units.hadamard"
ROUNDING, STORE = "m2xfp.rtl.parts.fp32_rounding", "m2xfp.rtl.parts.beat_store"

FAULTS = [
    Mutation("difference the wrong way", PARTS, "other - values[n]", "values[n] - other"),
    Mutation("sum of the wrong beat", PARTS, "front[n] + self.i[n]", "front[n] + queued[n]"),
    Mutation(
        "queue stands on the wrong half",
        UNITS_OF,
        "(beat.number & distance)",
        "(~beat.number & distance)",
    ),
    Mutation("negation one short", PARTS, "+ value.sign\n", "+ Const(0, 1)\n"),
    Mutation("negative zero kept", PARTS, "value.sign & ~negated[bits]", "value.sign"),
    Mutation("subnormals a binade low", PARTS, "value.exponent[0] | ~normal", "value.exponent[0]"),
    Mutation("peak may be 0", UNITS_OF, "step=taken, start=1", "step=taken, start=0"),
    Mutation(
        "sign not flipped",
        UNITS_OF,
        "values[n].sign ^ self.i.payload.data.flips[n]",
        "values[n].sign",
    ),
    Mutation("distance wraps", PARTS, "bits.bit_length())", "bits.bit_length() - 1)"),
    Mutation(
        "scale of another size", UNITS_OF, "(self._doublings + 1) // 2", "self._doublings // 2"
    ),
    Mutation("no bit below", UNITS_OF, "Cat(negative, total", "Cat(negative & 0, total"),
    Mutation("NaN ignored", UNITS_OF, "nan.eq(beat.largest.all())", "nan.eq(0)"),
    Mutation(
        "last on every beat", UNITS_OF, "store.group_last & store.drain_ends", "store.group_last"
    ),
    Mutation("ties away", ROUNDING, "guard & (odd | rest.any() | i.borrowed)", "guard"),
    Mutation(
        "ties of negative sums to odd", ROUNDING, "i.borrowed & odd & rest.all()", "Const(0, 1)"
    ),
]


@pytest.mark.parametrize(
    "fault",
    usual_first(FAULTS, ["queue stands on the wrong half", "no bit below"]),
    ids=lambda fault: fault.name,
)
def test_regression_notices(fault: Mutation, sim_dir: Path, tmp_path: Path) -> None:
    mutant = emit_mutant(fault, UNIT, "32x8", tmp_path)
    simulator = BulkSimulator(mutant, build_dir=sim_dir)
    with pytest.raises((AssertionError, SimulationError)):
        play_regression(simulator)


def test_lanes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(InputError, match="lanes=128: must divide the block of 64"):
        Hadamard(points=64, lanes=128)
    with pytest.raises(InputError, match="lanes=24"):
        Hadamard(points=32, lanes=24)


@pytest.mark.parametrize(
    ("points", "lanes", "levels", "latency"),
    [(32, 32, 3, 5), (32, 8, 3, 11), (128, 32, 7, 10), (128, 1, 1, 264)],
)
def test_latency(points: int, lanes: int, levels: int, latency: int) -> None:
    """A store, an alignment, the waits between beats, registers of butterflies, a rounding."""
    assert Hadamard(points=points, lanes=lanes, levels=levels).latency == latency
