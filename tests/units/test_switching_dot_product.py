"""The switching dot product: Verilog against the golden model and fractions, rates, refusals."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import reference
from choices import usual_first
from golden_checks import spec_of
from mutation import Mutation, emit_mutant

from m2xfp.errors import InputError
from m2xfp.facts import EmittedFiles
from m2xfp.formats import BLOCK_FORMATS, window
from m2xfp.pairs import FORMAT_NUMBERS, pair_set
from m2xfp.rtl.catalog import find_unit
from m2xfp.rtl.parts.switch_pair import SwitchPair
from m2xfp.rtl.units.switching_dot_product import SwitchingDotProduct
from m2xfp.rtl.verilog.emit import emit
from m2xfp.tb.bench import Arrays, find_bench
from m2xfp.tb.bulk.simulator import BulkSimulator, SimulationError
from m2xfp.tb.parts.element_codes import packed_codes
from m2xfp.tb.parts.switch_groups import group_counts, side_arrays, vectors
from m2xfp.tb.parts.switch_stimulus import mixed
from m2xfp.tb.regression import check_case
from m2xfp.tb.vectors import Beats

UNIT = find_unit("switching_dot_product")
CONFIGS = list(UNIT.configs)
USUAL = ["micromix-8"]
QUIET_NAN = 0x7FC00000
Emit = Callable[[str, str], EmittedFiles]


@pytest.fixture
def simulator(emitted: Emit, sim_dir: Path, config: str) -> BulkSimulator:
    return BulkSimulator(emitted(UNIT.name, config), build_dir=sim_dir)


every = pytest.mark.parametrize("config", usual_first(CONFIGS, USUAL))


# --- widths ---------------------------------------------------------------------------------------


def test_bits() -> None:
    """A row of 37 bits and 42 of D for E4M3 x E4M3, E5M2 aligned with it two more than its own."""
    micromix = SwitchPair(pairs=pair_set("micromix"))
    assert (micromix.row_bits, micromix.product_shape.width, micromix.bias) == (37, 42, 272)
    assert SwitchPair(pairs=pair_set("all"), lanes=8).row_bits == 67
    narrow = SwitchPair(pairs=pair_set("mxfp4:mxfp4+mxfp8-e4m3:mxfp4"))
    assert narrow.product_shape.width == 28
    integers = SwitchPair(pairs=pair_set("mxfp4:mxfp4+mxint8:mxint8"))
    assert integers.row_bits == 16


def test_multipliers_widen_significands_alone() -> None:
    """Of E4M3 x 21 instead of 15; rows and D stay as E4M3 x E4M3 has them, without it 3 bits more.

    The unit of a pair of E4M3 and M2XFP is 2^-12: two bits lower than that of E2M1 weights.
    """
    fp8 = SwitchPair(pairs=pair_set("m2xfp-fp8"), lanes=8)
    assert (fp8.row_bits, fp8.product_shape.width, fp8.significand_bound) == (37, 42, 15 * 21)
    alone = SwitchPair(pairs=pair_set("mxfp4:mxfp4+mxfp8-e4m3:m2xfp-weight"))
    assert (alone.product_shape.width, alone.bias) == (28 + 3, 254 + 12)
    assert alone.row_bound == 229376 * 12 * 7
    integers = SwitchPair(pairs=pair_set("mxfp4:mxfp4+mxint8:m2xfp-weight"))
    assert integers.row_bound == 128 * 12 * 7


def play(built: BulkSimulator, seed: int = 1) -> int:
    """Play the regression; return how many groups that were."""
    cases = find_bench(UNIT).regression(built.facts, seed=seed)
    return sum(
        len(made.outputs["o"]) for case in cases if check_case(built, case) for made in case.phases
    )


# --- values ---------------------------------------------------------------------------------------


def all_products(pair: tuple[str, str]) -> tuple[Arrays, list[int]]:
    """Return every product of two codes, each alone in its group, and its FP32 pattern.

    Of weights with multipliers by each of these, and other subgroups have other multipliers.
    """
    blocks = [BLOCK_FORMATS[name] for name in pair]
    sizes = [*(1 << block.element.bits for block in blocks), 4 if blocks[1].subgroups else 1]
    x, w, k = (grid.reshape(-1) for grid in np.indices(sizes))
    lane = (x + 5 * w + 9 * k) % 32
    arrays: Arrays = {}
    for codes, block, side, scale in zip((x, w), blocks, ("a_", "w_"), (120, 131), strict=True):
        lanes = np.zeros((len(codes), 32), np.int64)
        lanes[np.arange(len(codes)), lane] = codes
        plane = packed_codes(lanes, block)
        groups = np.concatenate([plane, np.full((len(plane), 1), scale, np.uint8)], axis=1)
        arrays |= side_arrays(groups.astype(np.uint8), block, side)
    values = [
        [spec_of(name).element.value(code) for code in range(1 << block.element.bits)]
        for name, block in zip(pair, blocks, strict=True)
    ]
    fourths = [Fraction(4 + n, 4) for n in range(sizes[2])]
    wanted = [_product(a, b, factor) for a in values[0] for b in values[1] for factor in fourths]
    arrays["w_meta"] = (0x55 * (3 - k) ^ 3 << 2 * (lane // 8)).astype(np.uint8)
    return arrays | {"first": np.ones(len(x), bool)}, wanted


def _product(a: reference.Value, b: reference.Value, factor: Fraction) -> int:
    if a[1] is None or b[1] is None:
        return QUIET_NAN
    exact = a[1] * b[1] * factor * Fraction(2) ** (120 + 131 - 254)
    return reference.to_bits("fp32", (a[0] ^ b[0] if exact else 0, exact))


@every
def test_all_codes(simulator: BulkSimulator, config: str) -> None:
    """The product of every two codes of every pair, against fractions: 65 536 of 8-bit elements."""
    bench = find_bench(UNIT)
    for act, weight in pair_set(simulator.facts.parameters["pairs"]).pairs:
        if act.metadata.bits:
            continue  # of these a code alone is not the whole input; the golden model has them
        arrays, wanted = all_products((act.name, weight.name))
        if not pair_set(simulator.facts.parameters["pairs"]).metadata:
            arrays = {name: array for name, array in arrays.items() if "meta" not in name}
        out = simulator.run(bench.encode(arrays, simulator.facts)).outputs
        found = bench.decode(out, arrays, simulator.facts)
        if config.endswith("exact"):  # zeros are +0, and the window is wide enough for any of these
            assert not found["inexact"].any()
        wrong = np.flatnonzero(found["acc"] != np.array(wanted, np.uint32))
        assert not len(wrong), (act.name, weight.name, len(wrong), wrong[0])
        assert not found["refused"].any()


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_a_million_groups(simulator: BulkSimulator) -> None:
    groups, seed = 0, 0
    while groups < 1_000_000:
        seed += 1
        groups += play(simulator, seed)
    print(f"{simulator.facts.config}: {groups} groups")


@pytest.mark.parametrize("config", usual_first([c for c in CONFIGS if "exact" not in c], USUAL))
def test_exact_rationals(simulator: BulkSimulator) -> None:
    """The RTL against fractions, which share nothing with the golden model."""
    facts = simulator.facts
    names = {number: name for name, number in FORMAT_NUMBERS.items()}
    for kind in ("near", "cancelling"):
        arrays = mixed(facts, kind, seed=3)
        arrays = {name: array[:360] for name, array in arrays.items()}  # 30 dot products
        out = simulator.run(find_bench(UNIT).encode(arrays, facts)).outputs
        found = find_bench(UNIT).decode(out, arrays, facts)["acc"]
        state = 0
        for row in range(360):
            state = 0 if arrays["first"][row] else state
            specs, groups = [], []
            for side, m2xfp in (("a_", "m2xfp-act"), ("w_", "m2xfp-weight")):
                number = int(arrays[f"{side}formats"][row])
                name = m2xfp if number == 6 else names[number]
                block = BLOCK_FORMATS[name]
                packed = int.from_bytes(arrays[f"{side}codes"][row].tobytes(), "little")
                bits = block.element.bits
                codes = tuple(packed >> bits * n & ((1 << bits) - 1) for n in range(32))
                meta = int(arrays[f"{side}meta"][row]) if block.subgroups else 0
                fields = tuple(meta >> 2 * n & 3 for n in range(block.subgroups))
                specs.append(spec_of(name))
                scale = int(arrays[f"{side}scales"][row])
                groups.append([reference.Group(codes, (scale,), fields)])
            state = reference.dot(tuple(specs), tuple(groups), "fp32", state, None)
            assert int(found[row]) == state, (kind, row)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"pairs": "float", "chains": 2},
        {"pairs": "mxfp4:mxfp4+mxint8:mxint8+mxint8:mxfp8-e5m2", "fp8_lanes": 8},
        {"pairs": "all", "chains": 1, "window": window("230..250/200")},
        {"pairs": "m2xfp", "chains": 1},
        {"pairs": "m2xfp-fp8", "chains": 3},
        {"pairs": "mxfp4:mxfp4+mxfp6-e3m2:m2xfp-weight+mxint8:m2xfp-weight", "chains": 2},
        {"chains": 3},
        {"pairs": "mxfp4:mxfp4+mxfp6-e2m3:mxfp4", "chains": 2, "fp8_lanes": 8},
    ],
)
def test_other_parameters(settings: dict[str, object], sim_dir: Path) -> None:
    made = UNIT.instance(None, settings)
    built = BulkSimulator(emit(made, sim_dir / "switching"), build_dir=sim_dir)
    assert play(built, seed=2) > 20_000


# --- rates and pauses -----------------------------------------------------------------------------


@every
def test_clocks(simulator: BulkSimulator) -> None:
    """FP4 takes a clock a group and wider elements 32 / lanes, a switch none; pauses two more."""
    facts = simulator.facts
    arrays = mixed(facts, "near", seed=5)
    made = vectors(arrays, facts, seed=5)
    counts = group_counts(arrays, facts)
    assert set(counts) == {1, 32 // facts.parameters["fp8_lanes"]}
    run = simulator.run(made.inputs, stamps=True)
    assert run.stamps["i"].tolist() == list(range(counts.sum()))
    # A writer that comes every fourth clock or so is never kept waiting for more than two.
    slow = simulator.run(made.inputs, stall={"i": 0.75}, seed=1, stamps=True)
    assert np.array_equal(slow.outputs["o"].data, made.outputs["o"].data)


@every
def test_results_come_out_in_a_pause(simulator: BulkSimulator) -> None:
    """Within a group, after one, and after any number of groups in the ring."""
    facts = simulator.facts
    arrays = mixed(facts, "near", seed=6)
    made = vectors(arrays, facts, seed=6)
    starts = np.cumsum(np.r_[0, _stream_counts(made.inputs["i"], facts)])
    for beats in range(1, 24):
        out = simulator.run({"i": made.inputs["i"].part(0, beats)}).outputs["o"]
        whole = int(np.searchsorted(starts, beats, side="right")) - 1
        assert np.array_equal(out.data, made.outputs["o"].data[:whole]), beats


def _stream_counts(beats: Beats, facts: object) -> list[int]:
    """Return the beats of the groups of a stream, by the modes that its beats say."""
    start = facts.stream("i").field("operands.mode.act").offset
    bits = np.unpackbits(beats.data, axis=1, bitorder="little")[:, start : start + 6]
    act, weight = (bits[:, n : n + 3] @ [1, 2, 4] for n in (0, 3))
    names = pair_set(facts.parameters["pairs"])
    wide = {(FORMAT_NUMBERS[a.name], FORMAT_NUMBERS[w.name]) for a, w in names.wide}
    found, at = [], 0
    while at < len(beats):
        here = (int(act[at]), int(weight[at])) in wide
        found.append(32 // facts.parameters["fp8_lanes"] if here else 1)
        at += found[-1]
    return found


# --- what is refused ------------------------------------------------------------------------------


@every
def test_a_mode_that_there_is_not(simulator: BulkSimulator) -> None:
    """NaN with the status, until a sum begins anew; the other chains go on."""
    facts = simulator.facts
    turns = facts.parameters["chains"]
    ones = np.zeros((5 * turns, 17), np.uint8)
    ones[:, 0], ones[:, 16] = 2, 127
    mxfp4 = BLOCK_FORMATS["mxfp4"]
    arrays = side_arrays(ones, mxfp4, "a_") | side_arrays(ones, mxfp4, "w_")
    if not pair_set(facts.parameters["pairs"]).metadata:
        arrays = {name: array for name, array in arrays.items() if "meta" not in name}
    arrays["first"] = np.arange(5 * turns) % 5 == 0
    arrays["w_formats"][1] = 7
    arrays["first"][3] = True  # of the first dot product
    bench = find_bench(UNIT)
    stream = bench.encode(arrays, facts)
    found = bench.decode(simulator.run(stream).outputs, arrays, facts)
    one, two, three, four, five = (0x3F800000, 0x40000000, 0x40400000, 0x40800000, 0x40A00000)
    assert found["acc"][:5].tolist() == [one, QUIET_NAN, QUIET_NAN, one, two]
    assert found["refused"][:5].tolist() == [False, True, True, False, False]
    for start in range(5, 5 * turns, 5):
        assert found["acc"][start : start + 5].tolist() == [one, two, three, four, five]
    assert not found["refused"][5:].any()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"pairs": "mxfp4:mxfp4"}, "wider one"),
        ({"pairs": "nothing"}, "ACT:WEIGHT"),
        ({"pairs": "mxfp4:mxfp4+amxfp4:mxfp4"}, "format of activations"),
        ({"fp8_lanes": 4}, "one of 8, 16"),
        ({"chains": 5}, "1 to 4"),
        ({"window": window("usual")}, "chains=1"),
        ({"window": window("usual"), "chains": 1}, "bits"),
    ],
)
def test_what_is_refused(given: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        SwitchingDotProduct(**given)


# --- faults ---------------------------------------------------------------------------------------

PARTS = "m2xfp.rtl.parts.switch_"
FAULTS = [
    Mutation("chain order by steps", f"{PARTS}framing", "turning | whole | pause", "1"),
    Mutation("no way round", f"{PARTS}framing", "turning | whole | pause", "turning | whole"),
    Mutation("unknown modes multiply", f"{PARTS}framing", "~(wide | narrow))", "0)"),
    Mutation("changes within pass", f"{PARTS}framing", "bad | changed", "bad"),
    Mutation("only the last beat counts", f"{PARTS}framing", "bad | changed", "changed"),
    Mutation("status stays", f"{PARTS}accumulation", "(status[-1] & ~clear)", "status[-1]"),
    Mutation("results twice", f"{PARTS}accumulation", "results[-1] & moved", "results[-1]"),
    Mutation("earlier beats lost", f"{PARTS}total", "~(self.opening | self.narrow)", "Const(0, 1)"),
    Mutation(
        "earlier group added", f"{PARTS}total", "~(self.opening | self.narrow)", "~self.narrow"
    ),
    Mutation(
        "digits lose carries",
        f"{PARTS}total",
        'rows += [named(m, "earlier_bits", earlier), carried',
        'rows += [named(m, "earlier_bits", earlier), carried & 0',
    ),
    Mutation("-x for ~x", f"{PARTS}total", "Mux(zero, minus, ~own)", "minus"),
    Mutation("carry into D lost", f"{PARTS}total", "Mux(carry, made[1], made[0])", "made[0]"),
    Mutation("offset of four products", f"{PARTS}total", "bit_length() - 2", "bit_length() - 1"),
    Mutation(
        "NaN of the last beat alone", f"{PARTS}product", "kept.nan | (spoilt & ~begin)", "kept.nan"
    ),
    Mutation("pause loses a beat", f"{PARTS}product", "m.If(step & valid)", "m.If(step)"),
    Mutation("no NaN elements", f"{PARTS}front", "nan | (special & ~self.narrow)", "nan"),
    Mutation("one bias for all", f"{PARTS}front", 'named(m, "raised", offset)', "0"),
    Mutation(
        "mantissa at the lower end",
        f"{PARTS}lanes",
        "side.mantissa_bits - bits), magnitude",
        "0), magnitude, Const(0, side.mantissa_bits - bits)",
    ),
    Mutation(
        "no hidden bit",
        f"{PARTS}lanes",
        "code.mantissa, code.exponent.any()]",
        "code.mantissa, Const(0, 1)]",
    ),
    Mutation(
        "negation one short",
        f"{PARTS}lanes",
        "negative.replicate(bits)) + negative",
        "negative.replicate(bits))",
    ),
    Mutation(
        "shifts two too far",
        f"{PARTS}lanes",
        "product[_TOO_FAR:].as_signed()",
        "product[: len(self.product)]",
    ),
    Mutation(
        "448 is NaN",
        f"{PARTS}lanes",
        "(code.exponent == 15) & code.mantissa.all()",
        "(code.exponent == 15) & code.mantissa[1:].all()",
    ),
    Mutation(
        "carry between digits lost",
        "m2xfp.rtl.arith.fixed_point",
        "Mux(carry, with_one, without)",
        "without",
    ),
]


# Of what is there with M2XFP weights beside FP8 activations alone.
MULTIPLIED = [
    Mutation("multipliers of MXFP4", f"{PARTS}front", " & has.replicate(2)", ""),
    Mutation("5, 6, 7 and 8 quarters", f"{PARTS}front", "Const(1, 1))", "Const(1, 1)) + 1"),
    Mutation("multiples below 16", f"{PARTS}lanes", "multiple[4]", "Const(0, 1)"),
    Mutation("hidden bit of 16", f"{PARTS}lanes", "bits[1] & ~code.carry", "bits[1]"),
]


@pytest.mark.slow
@pytest.mark.parametrize("fault", [*FAULTS, *MULTIPLIED], ids=lambda fault: fault.name)
def test_regression_notices(fault: Mutation, sim_dir: Path, tmp_path: Path) -> None:
    config = "m2xfp-fp8-8" if fault in MULTIPLIED else "micromix-8"
    mutant = emit_mutant(fault, UNIT.name, config, tmp_path)
    built = BulkSimulator(mutant, build_dir=sim_dir)
    with pytest.raises((AssertionError, SimulationError)):
        play(built)
