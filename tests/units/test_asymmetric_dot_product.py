"""The asymmetric dot product: Verilog against the golden model and fractions, rates, refusals."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import reference
from choices import usual_first
from golden_checks import spec_of
from mutation import Mutation, emit_mutant

from m2xfp.errors import InputError, UnknownNameError
from m2xfp.facts import EmittedFiles
from m2xfp.formats import (
    AMXFP4,
    BLOCK_FORMATS,
    M2XFP_WEIGHT,
    MXFP4,
    NVFP4,
    BlockFormat,
    block_format,
    window,
)
from m2xfp.rtl.catalog import find_unit
from m2xfp.rtl.parts.asymmetric_pair import AsymmetricPair
from m2xfp.rtl.units.asymmetric_dot_product import AsymmetricDotProduct
from m2xfp.rtl.verilog.emit import emit
from m2xfp.synth.studies import dot_layers
from m2xfp.synth.studies.dot_layers import run_dot_layer
from m2xfp.tb.bench import Arrays, find_bench
from m2xfp.tb.bulk.simulator import BulkSimulator, SimulationError
from m2xfp.tb.parts.class_pairs import beats_of_a_group, vectors
from m2xfp.tb.parts.class_stimulus import DISTRIBUTIONS, class_groups
from m2xfp.tb.parts.element_codes import packed_codes, unpacked_codes
from m2xfp.tb.parts.pairs import formats, pairs
from m2xfp.tb.regression import check_case

UNIT = find_unit("asymmetric_dot_product")
CONFIGS = list(UNIT.configs)
USUAL = ["e5m2-half"]
QUIET_NAN = 0x7FC00000
Emit = Callable[[str, str], EmittedFiles]


@pytest.fixture
def simulator(emitted: Emit, sim_dir: Path, config: str) -> BulkSimulator:
    return BulkSimulator(emitted(UNIT.name, config), build_dir=sim_dir)


every = pytest.mark.parametrize("config", usual_first(CONFIGS, USUAL))


def play(built: BulkSimulator, seed: int = 1) -> int:
    """Play the regression; return how many groups that were."""
    cases = find_bench(UNIT).regression(built.facts, seed=seed)
    beats = sum(
        len(made.outputs["o"]) for case in cases if check_case(built, case) for made in case.phases
    )
    return beats // beats_of_a_group(built.facts)


# --- numbers --------------------------------------------------------------------------------------


def test_numbers() -> None:
    """Sums of 4608 times significands: 7 of E5M2, 15 of E4M3, 1 of E8M0."""
    pair = AsymmetricPair()
    assert (pair.part_bound, pair.product_bound, pair.bias) == (2304, 4608 * 49, 2 + 34)
    assert (pair.product_shape.width, pair.exponent_bits) == (19, 6)
    e4m3 = AsymmetricPair(*(block_format(f"{n}mxfp4:scale_mode=e4m3") for n in ("a", "")))
    assert (e4m3.product_bound, e4m3.product_shape.width, e4m3.bias) == (4608 * 225, 21, 2 + 20)
    power = AsymmetricPair(block_format("amxfp4:scale_mode=pot"), MXFP4)
    assert (power.product_bound, power.product_shape.width, power.bias) == (4608, 14, 256)
    mixed = AsymmetricPair(AMXFP4, MXFP4)
    assert (mixed.product_bound, mixed.bias, mixed.exponent_bits) == (4608 * 7, 2 + 17 + 127, 9)


def test_classes() -> None:
    """The order pp, pn, np, nn, and which signs a beat tells."""
    assert AsymmetricPair().classes == [(0, None), (1, None)]
    both = AsymmetricPair(AMXFP4, AMXFP4)
    assert both.classes == [(0, 0), (0, 1), (1, 0), (1, 1)]
    told = {
        sums: (made.beats, made.sign_bits, made.beat_classes)
        for sums in (1, 2, 4)
        for made in [AsymmetricPair(AMXFP4, AMXFP4, sums)]
    }
    assert told[1] == (4, 2, [(None, None)])
    assert told[2] == (2, 1, [(None, 0), (None, 1)])
    assert told[4] == (1, 0, both.classes)


# --- values ---------------------------------------------------------------------------------------


def test_all_codes(emitted: Emit, sim_dir: Path) -> None:
    """Every two codes alone in a lane under every two scales of E5M2, against fractions."""
    simulator = BulkSimulator(emitted(UNIT.name, "e5m2-half"), build_dir=sim_dir)
    x, w, a, b = (g.reshape(-1) for g in np.meshgrid(*map(np.arange, (16, 16, 128, 4))))
    b = b * 37 + 5
    lane = (x + 5 * w + a) % 32
    blocks = formats(simulator.facts)
    groups = []
    for codes, scales, block in ((x, (a, 127 - a), blocks[0]), (w, (b,), blocks[1])):
        lanes = np.zeros((len(codes), 32), np.int64)
        lanes[np.arange(len(codes)), lane] = codes
        stored = np.stack(scales, -1).astype(np.uint8)
        groups.append(np.concatenate([packed_codes(lanes, block), stored], 1))
    arrays = pairs(*groups, simulator.facts) | {"first": np.ones(len(x), bool)}
    found = outputs(simulator, arrays)["acc"]
    grid, values = (
        reference.SCALE_GRIDS["e5m2"],
        [spec_of("mxfp4").element.value(c) for c in range(16)],
    )
    wanted = []
    for one, other, p, q in zip(x.tolist(), w.tolist(), a.tolist(), b.tolist(), strict=True):
        n = 127 - p
        if max(p, n, q) >= len(grid):
            wanted.append(QUIET_NAN)
            continue
        (s, m), (t, k) = values[one], values[other]
        exact = m * k * grid[n if s else p] * grid[q]
        wanted.append(reference.to_bits("fp32", (s ^ t if exact else 0, Fraction(exact))))
    wrong = np.flatnonzero(found != np.array(wanted, np.uint32))
    assert not len(wrong), (len(wrong), [v[wrong[0]] for v in (x, w, a, b)])


def outputs(simulator: BulkSimulator, arrays: Arrays) -> Arrays:
    bench = find_bench(UNIT)
    out = simulator.run(bench.encode(arrays, simulator.facts)).outputs
    return bench.decode(out, arrays, simulator.facts)


def specification(block: BlockFormat) -> reference.Spec:
    name, _, mode = block.name.partition(":scale_mode=")
    return spec_of(name, **({"scale_mode": mode} if mode else {}))


@every
def test_exact_rationals(simulator: BulkSimulator) -> None:
    """The RTL against fractions, which share nothing with the golden model."""
    facts = simulator.facts
    blocks = formats(facts)
    specs = tuple(specification(block) for block in blocks)
    for name in DISTRIBUTIONS:
        arrays = class_groups(name, facts, 12, 6, seed=3)
        found = outputs(simulator, arrays)
        codes = [
            unpacked_codes(arrays[f"{side}codes"], block)
            for side, block in zip(("a_", "w_"), blocks, strict=True)
        ]
        state, total, nan = 0, Fraction(0), False
        for row in range(len(arrays["first"])):
            if arrays["first"][row]:
                state, total, nan = 0, Fraction(0), False
            groups = tuple(
                reference.Group(
                    tuple(side[row].tolist()),
                    tuple(np.atleast_1d(arrays[f"{n}_scales"][row]).tolist()),
                    (),
                )
                for side, n in zip(codes, "aw", strict=True)
            )
            for term in reference.terms(specs, groups, 32):
                state = reference.add_fp32(state, term)
                nan |= term is None
                total += term or 0
            if facts.parameters["window"]:
                state = (
                    QUIET_NAN if nan else reference.to_bits("fp32", (int(total < 0), abs(total)))
                )
                assert not found["inexact"][row]
            assert int(found["acc"][row]) == state, (name, row)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_a_million_groups(simulator: BulkSimulator) -> None:
    groups, seed = 0, 0
    while groups < 1_000_000:
        seed += 1
        groups += play(simulator, seed)
    print(f"{simulator.facts.config}: {groups} groups")


POT = block_format("amxfp4:scale_mode=pot")
E4M3 = block_format("amxfp4:scale_mode=e4m3")


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"weight": MXFP4, "depth": 1, "chains": 1},
        {"act": E4M3, "weight": AMXFP4, "sums": 4, "chains": 4},
        {"act": POT, "weight": POT, "sums": 4, "chains": 12},
        {"act": POT, "weight": POT, "sums": 2, "chains": 4},
        {"act": POT, "weight": MXFP4, "sums": 2, "chains": 2, "depth": 1},
        {"act": E4M3, "weight": E4M3, "chains": 2},
        {"act": block_format("amxfp4:group=16"), "weight": NVFP4, "chains": 2},
        {"chains": 1, "window": window("20..40/48")},
        {"weight": AMXFP4, "chains": 1, "window": window("20..40/48")},
        {"weight": AMXFP4, "sums": 4, "chains": 1, "window": window("20..40/48")},
        {"act": POT, "weight": POT, "sums": 2, "chains": 1, "window": window("usual")},
        {"act": POT, "weight": MXFP4, "sums": 2, "chains": 1, "window": window("240..260/40")},
    ],
)
def test_other_parameters(settings: dict[str, object], sim_dir: Path) -> None:
    made = UNIT.instance(None, settings)
    built = BulkSimulator(emit(made, sim_dir / "asymmetric"), build_dir=sim_dir)
    assert play(built, seed=2) > 20_000


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["e5m2", "e4m3"])
def test_one_scale_of_these_types(mode: str, sim_dir: Path) -> None:
    """What the areas are compared with: the dot product with one scale of the same type a group."""
    block = block_format(f"mxfp4:scale_mode={mode}")
    unit = find_unit("dot_product")
    made = unit.instance("mxfp4-fp32", {"act": block, "weight": block})
    built = BulkSimulator(emit(made, sim_dir / "symmetric"), build_dir=sim_dir)
    for case in find_bench(unit).regression(built.facts, seed=1):
        check_case(built, case)


def test_a_linear_layer(sim_dir: Path) -> None:
    """Of the bundled model, AMXFP4 times MXFP4; and a wrong bit is counted."""
    run = run_dot_layer("asymmetric", sim_dir, layer="layers.0.self_attn.q_proj", tokens=3)
    assert (run.m, run.n, run.k, run.groups) == (3, 192, 192, 3 * 192 * 6)
    assert run.equal
    assert "576 results from 3456 pairs of groups" in str(run)
    assert str(run).endswith(": 0 mismatches")


@pytest.mark.slow
@pytest.mark.parametrize("config", ["micromix-16", "micromix-8"])
def test_a_mixed_linear_layer(config: str, sim_dir: Path) -> None:
    run = run_dot_layer("mixed", sim_dir, tokens=3, config=config)
    assert (run.n, run.k) == (192, 512)
    assert all(name in run.what for name in ("mxfp4", "mxfp6-e3m2", "mxfp8-e4m3"))
    assert run.equal


def test_a_wrong_bit_of_a_layer_is_counted(sim_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play = dot_layers._play

    def wrong(*given: object) -> tuple[np.ndarray, int]:
        acc, clocks = play(*given)
        acc.view(np.uint32)[5] ^= 1  # of the last group of the first result
        return acc, clocks

    monkeypatch.setattr(dot_layers, "_play", wrong)
    run = run_dot_layer("asymmetric", sim_dir, layer="layers.0.self_attn.q_proj", tokens=1)
    assert run.mismatches == 1


def test_layers_that_are_refused(sim_dir: Path) -> None:
    with pytest.raises(UnknownNameError, match="kind of layer"):
        run_dot_layer("other", sim_dir)
    with pytest.raises(UnknownNameError, match=r"layers\.0\.mlp\.gate_proj"):
        run_dot_layer("mixed", sim_dir, layer="layers.9")
    with pytest.raises(InputError, match="exact accumulation"):
        run_dot_layer("asymmetric", sim_dir, config="e5m2-half-exact")
    with pytest.raises(InputError, match="a window has 512"):
        run_dot_layer("asymmetric", sim_dir, tokens=513)
    with pytest.raises(InputError, match="multiple of 128"):
        run_dot_layer("mixed", sim_dir, layer="layers.0.self_attn.q_proj")


# --- rates ----------------------------------------------------------------------------------------


@every
def test_rates(simulator: BulkSimulator) -> None:
    """A beat a clock: as many a group as its sums are more than those of a beat."""
    facts = simulator.facts
    arrays = class_groups("near", facts, 12, 12, seed=5)
    run = simulator.run(vectors(arrays, facts, seed=5).inputs, stamps=True)
    beats = {"half": 2, "full": 1, "quarter": 4}[
        next(part for part in facts.config.split("-") if part in ("half", "full", "quarter"))
    ]
    assert beats_of_a_group(facts) == beats
    assert facts.macs_per_clock == 32 // beats
    assert run.stamps["i"].tolist() == list(range(12 * 12 * beats))


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"act": MXFP4}, "act=mxfp4: has one scale a group"),
        ({"weight": M2XFP_WEIGHT}, "without metadata"),
        ({"weight": NVFP4}, "same group size"),
        ({"act": BLOCK_FORMATS["int4-asym"]}, "scales of 8 bits"),
        ({"sums": 3}, "one of 1, 2, 4"),
        ({"sums": 4}, "has 2 sums a group; a beat takes one of: 1, 2"),
        ({"sums": 2, "chains": 3}, "a ring of one of: 2, 4, 6"),
        ({"chains": 4}, "a ring of one of: 1, 2, 3"),
        ({"depth": 3}, "1 to 2"),
        ({"window": window("2..60/92")}, "chains=1"),
        ({"window": window("2..60/70"), "chains": 1}, "needs 77"),
        ({"window": window("2..60/77"), "chains": 1, "sums": 2}, "need 78"),
    ],
)
def test_what_is_refused(given: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        AsymmetricDotProduct(**given)


def test_fp32_scales_are_golden_only() -> None:
    """The remedy is named, from the command line too."""
    with pytest.raises(InputError, match=r"scale_mode=float; give pot, e4m3 or e5m2.*golden"):
        block_format("amxfp4:scale_mode=float")


# --- faults ---------------------------------------------------------------------------------------

PARTS = "m2xfp.rtl.parts.asymmetric_"
FAULTS = [
    Mutation(
        "every lane counts",
        f"{PARTS}product",
        "taken = ~(self.x",
        "taken = self.x[lane][3] | ~(self.x",
    ),
    Mutation(
        "scale of the other sign",
        f"{PARTS}product",
        "stored[1], stored[0]))",
        "stored[0], stored[1]))",
    ),
    Mutation(
        "infinite scales are numbers",
        "m2xfp.rtl.parts.group_product",
        "code[scale.grid.mantissa_bits : -1].all()",
        "code[:-1].all()",
    ),
]
SERIES = [
    Mutation(
        "second class everywhere",
        f"{PARTS}product",
        "code[3] if sign else",
        "Const(1, 1) if sign else",
    ),
    Mutation("products not delayed", f"{PARTS}accumulation", "range(number * stages)", "range(0)"),
    Mutation("never cleared", f"{PARTS}accumulation", "(~clear[0])", "(clear[0] | ~clear[0])"),
]


def noticed(fault: Mutation, config: str, sim_dir: Path, folder: Path) -> None:
    built = BulkSimulator(emit_mutant(fault, UNIT.name, config, folder), build_dir=sim_dir)
    with pytest.raises((AssertionError, SimulationError)):
        play(built)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_regression_notices(fault: Mutation, sim_dir: Path, tmp_path: Path) -> None:
    noticed(fault, "e5m2-half", sim_dir, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("fault", SERIES, ids=lambda fault: fault.name)
def test_regression_notices_in_series(fault: Mutation, sim_dir: Path, tmp_path: Path) -> None:
    noticed(fault, "e5m2-full", sim_dir, tmp_path)


@pytest.mark.slow
def test_regression_notices_signs(sim_dir: Path, tmp_path: Path) -> None:
    fault = Mutation(
        "magnitudes alone",
        f"{PARTS}accumulation",
        "addend.o.negative ^ product[-1]",
        "addend.o.negative",
    )
    noticed(fault, "e5m2-both-half", sim_dir, tmp_path)


EXACT = "m2xfp.rtl.parts.exact_accumulation"
SUMS = [
    Mutation("the first class alone", EXACT, "[Cat(kept), *addends]", "[Cat(kept), addends[0]]"),
    Mutation(
        "NaN of the first class alone",
        EXACT,
        "(i.nan for i, _ in self._named_products())",
        "(i.nan for i, _ in self._named_products()[:1])",
    ),
    Mutation(
        "carries of full adders lost",
        "m2xfp.rtl.arith.fixed_point",
        "Cat(Const(0, 1), carried[:-1])",
        "Const(0, size)",
    ),
    Mutation(
        "both in the place of the first",
        EXACT,
        "place.eq(exponent - window.lowest)",
        "place.eq((self.i[0].exponent if self._terms > 1 else exponent) - window.lowest)",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("fault", SUMS, ids=lambda fault: fault.name)
def test_regression_notices_in_exact_sums(fault: Mutation, sim_dir: Path, tmp_path: Path) -> None:
    noticed(fault, "e5m2-full-exact", sim_dir, tmp_path)
