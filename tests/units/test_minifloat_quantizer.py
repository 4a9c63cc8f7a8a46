"""The quantizer for minifloat scales against the golden model, and the golden unit's own rules."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from choices import usual_first
from mutation import Mutation, emit_mutant
from stream_checks import STALLS, check

from m2xfp.errors import InputError
from m2xfp.facts import EmittedFiles, Facts
from m2xfp.formats import E2M1, FP16, MXFP4, NVFP4, block_format
from m2xfp.golden.units.minifloat_quantizer import minifloat_quantizer
from m2xfp.rtl.catalog import UNITS, Instance
from m2xfp.rtl.units.minifloat_quantizer import MinifloatQuantizer
from m2xfp.tb.bulk.simulator import BulkSimulator, SimulationError
from m2xfp.tb.parts import value_stimulus
from m2xfp.tb.regression import check_case
from m2xfp.tb.units import minifloat_quantizer as bench

UNIT = "minifloat_quantizer"
CONFIGS = list(UNITS[UNIT].configs)
USUAL = ["nvfp4-bf16x8"]
SLOW_GROUPS = 70_000  # fifteen distributions: over a million groups of each configuration

Emit = Callable[[str, str], EmittedFiles]


@pytest.fixture
def simulator(emitted: Emit, sim_dir: Path, config: str) -> BulkSimulator:
    return BulkSimulator(emitted(UNIT, config), build_dir=sim_dir)


def play(simulator: BulkSimulator, count: int, seed: int) -> int:
    """Play ``count`` groups of every distribution, and of boundaries, in turn with the stalls."""
    facts = simulator.facts
    kind, group = facts.parameters["input_type"], block_format(facts.parameters["block"]).group
    total = 0
    for index, name in enumerate(["boundaries", *value_stimulus.DISTRIBUTIONS]):
        if name == "boundaries":
            arrays = bench.boundaries(facts, count, seed)
        else:
            raw = value_stimulus.groups(name, kind, count, seed, group)
            arrays = bench.with_scales({"x": raw}, facts, seed)
        check(simulator, bench.vectors(arrays, facts, seed), STALLS[index % len(STALLS)], seed)
        total += count
    return total


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_a_million_groups(simulator: BulkSimulator) -> None:
    assert play(simulator, SLOW_GROUPS, seed=1) >= 1_000_000


@pytest.mark.parametrize(
    "config", usual_first([name for name in CONFIGS if "fp32" not in name], USUAL)
)
def test_all_patterns(simulator: BulkSimulator) -> None:
    """All 65 536 patterns, each beside maxima that give scales of every significand."""
    facts = simulator.facts
    block = block_format(facts.parameters["block"])
    grid = block.scale.grid
    assert grid is not None
    steps = 1 << grid.mantissa_bits
    ends = [6.0 * float(grid.magnitude(1)), 6.0 * float(grid.max_value), 3.0e38, 1e-30]
    few = [6.0 * (1 + n / steps) for n in range(steps)]
    # A value and its neighbours where the quotient is on the border of two scales.
    borders = [6.0 * (1 + (2 * n + 1) / (2 * steps)) for n in range(steps)]
    for amax in [*few, *borders, *ends]:
        raw = value_stimulus.all_patterns("bf16", amax, block.group)
        assert len(np.unique(raw)) == 65536
        arrays = {"x": raw}
        if facts.parameters["tensor_scale"]:
            rng = np.random.default_rng(int(amax))
            scales = rng.integers(0x3F000000, 0x40800000, len(raw))
            arrays["tensor_scales"] = scales.astype(np.uint32)
        check(simulator, bench.vectors(arrays, facts), stall={}, seed=0)


# --- the golden unit against fractions ----------------------------------------------------------


def _code(value: Fraction, away: bool) -> int:
    """Return the E2M1 code of a magnitude: nearest, ties to even or away."""
    grid = [E2M1.magnitude(n) for n in range(8)]
    found = max(n for n in range(8) if n == 0 or grid[n] <= value)
    if found == 7:
        return 7
    middle = (grid[found] + grid[found + 1]) / 2
    up = value > middle or (value == middle and (away or found % 2 == 1))
    return found + up


@pytest.mark.parametrize(
    ("name", "levels"),
    [("nvfp4", 1), ("nvfp4", 2), ("amxfp4", 1), ("amxfp4:scale_mode=e4m3", 1)],
)
def test_golden_is_exact(name: str, levels: int) -> None:
    """Codes and scales of the golden unit are those of exact quotients."""
    block = block_format(name)
    grid, rng = block.scale.grid, np.random.default_rng(5)
    assert grid is not None
    units = rng.integers(0x3D000000, 0x40000000, 60).astype(np.uint32)
    scale_of = units.view(np.float32).astype(float) if levels == 2 else np.ones(60)
    raw = value_stimulus.near_boundaries("bf16", 60, 5, block, scale_of)
    found = minifloat_quantizer(raw, units if levels == 2 else None, input_type="bf16", block=name)
    values = (raw.astype(np.uint32) << 16).view(np.float32)
    grid_values = [grid.magnitude(n) for n in range(grid.max_code + 1)]
    away = block.ties == "away"
    for row, unit, codes, scales in zip(
        values, scale_of, found["codes"], found["scales"], strict=True
    ):
        exact = [Fraction(float(x)) / Fraction(unit) for x in row]
        sides = [max([Fraction(0), *exact]), max([Fraction(0), *(-x for x in exact)])]
        if block.scaling != "split":
            sides = [max(sides)]
        wanted = []
        for side in sides:
            quotient = side / 6
            near = min(
                range(len(grid_values)),
                key=lambda n: (
                    abs(grid_values[n] - quotient),
                    -n if away else n % 2,
                ),
            )
            if near == 0 and block.scale.name != "e4m3":
                near = grid.bias << grid.mantissa_bits
            wanted.append(near)
        assert list(scales) == wanted
        for at, x in enumerate(exact):
            scale = grid_values[wanted[-1] if x <= 0 else wanted[0]]
            code = int(codes[at // 2]) >> 4 * (at % 2) & 15
            assert code & 7 == (_code(abs(x) / scale, away) if scale else 0)
            assert code >> 3 == int(np.signbit(row[at]))


@pytest.mark.parametrize("pattern", [0, 0x80000000, 1, 0x06FFFFFF, 0x7F800000, 0x7FC00000])
def test_a_tensor_scale_that_is_none_poisons(pattern: int) -> None:
    x = np.full((1, 16), 0x3F80, np.uint16)
    scales = np.array([pattern], np.uint32)
    found = minifloat_quantizer(x, scales, input_type="bf16", block="nvfp4")
    assert found["scales"].tolist() == [[0x7F]]
    assert not found["codes"].any()


# --- faults -------------------------------------------------------------------------------------

PARTS = "m2xfp.rtl.parts"
FAULTS = [
    Mutation(
        "ties away", f"{PARTS}.ratio_rounding", 'ties == "away" or multiple', "True or multiple"
    ),
    Mutation(
        "scale ties away",
        f"{PARTS}.quotients",
        'guard if ties == "away" else',
        "guard if True else",
    ),
    Mutation("quotient without rest", f"{PARTS}.quotients", "rest.any()", "0"),
    Mutation("NaN ignored", f"{PARTS}.relative_values", "self.bad | self.earlier.poisoned", "0"),
    Mutation("values far above wrap", f"{PARTS}.relative_values", "top.replicate(low + 1)", "0"),
    Mutation("border of a quarter", f"{PARTS}.ratio_rounding", "value != boundaries.one", "1"),
]


@pytest.mark.parametrize(
    "fault", usual_first(FAULTS, ["quotient without rest"]), ids=lambda fault: fault.name
)
def test_regression_notices(fault: Mutation, sim_dir: Path, tmp_path: Path) -> None:
    mutant = emit_mutant(fault, UNIT, "nvfp4-bf16x8", tmp_path)
    simulator = BulkSimulator(mutant, build_dir=sim_dir)
    with pytest.raises((AssertionError, SimulationError)):
        _regress(simulator, Facts.load(mutant.json))


def _regress(simulator: BulkSimulator, facts: Facts) -> None:
    for case in bench.regression(facts):
        check_case(simulator, case)


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"block": MXFP4, "lanes": 32}, "activation_quantizer"),
        ({"block": block_format("m2nvfp4-weight")}, "weight_encoder"),
        ({"block": block_format("amxfp4"), "lanes": 32, "tensor_scale": True}, "second level"),
        ({"input_type": FP16}, "bf16 or fp32"),
        ({"lanes": 32}, "divide the group"),
        ({"block": block_format("m2nvfp4-act"), "lanes": 2}, "subgroup"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        MinifloatQuantizer(**given)


def test_a_file_without_tensor_scales(tmp_path: Path) -> None:
    instance: Instance = UNITS[UNIT].instance("nvfp4-two-level-bf16x16")
    x = np.zeros((3, NVFP4.group), np.uint16)
    np.savez(tmp_path / "x.npz", x=x)
    with pytest.raises(InputError, match="tensor_scales"):
        bench.load(tmp_path / "x.npz", instance.facts)
    np.savez(tmp_path / "x.npz", x=x, tensor_scales=np.ones(2, np.float32))
    with pytest.raises(InputError, match="one a group"):
        bench.load(tmp_path / "x.npz", instance.facts)
