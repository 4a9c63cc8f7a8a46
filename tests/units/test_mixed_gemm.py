"""The mixed GEMM: Verilog against fractions, clocks, refusals, faults that must be noticed."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from choices import usual_first
from golden_checks import spec_of
from mutation import Mutation, emit_mutant

from m2xfp.errors import InputError, UnknownNameError
from m2xfp.facts import EmittedFiles
from m2xfp.formats import BLOCK_FORMATS, BlockFormat
from m2xfp.golden import PackedTensor, get_format
from m2xfp.golden.units.mixed_gemm import mixed_gemm
from m2xfp.models.mixed import Plan, Rule
from m2xfp.rtl.catalog import find_unit
from m2xfp.rtl.units.mixed_gemm import MixedGemm
from m2xfp.rtl.verilog.emit import emit
from m2xfp.synth.gate_sim.power import clocks_for, depth_for
from m2xfp.synth.studies import mixed_layers
from m2xfp.synth.studies.mixed_layers import run_mixed
from m2xfp.tb.bench import find_bench, random_operands
from m2xfp.tb.bulk.simulator import BulkSimulator, SimulationError
from m2xfp.tb.parts.mixed_arrays import MixedProduct, MixedStreams, Part, segment_table
from m2xfp.tb.parts.mixed_regression import KINDS, drawn, most_tiles, random_products
from m2xfp.tb.regression import check_case

UNIT = find_unit("mixed_gemm")
CONFIGS = list(UNIT.configs)
USUAL = ["micromix-2x2"]
PARTS = "m2xfp.rtl.parts."
Emit = Callable[[str, str], EmittedFiles]


@pytest.fixture
def simulator(emitted: Emit, sim_dir: Path, config: str) -> BulkSimulator:
    return BulkSimulator(emitted(UNIT.name, config), build_dir=sim_dir)


every = pytest.mark.parametrize("config", usual_first(CONFIGS, USUAL))


# --- the golden model against fractions -----------------------------------------------------------


def exact_sums(part: Part) -> list[list[list[Fraction | None]]]:
    """Return the exact product of each pair of groups, [m][n][groups]; None if there is none."""
    sides = []
    for name, groups in ((part.act.name, part.acts), (part.weight.name, part.weights)):
        packed = PackedTensor.from_groups(get_format(name), torch.from_numpy(groups))
        codes, scales, fields = (each.tolist() for each in packed.unpack())
        sides.append(
            [
                [
                    reference.dequantize(
                        spec_of(name), reference.Group(tuple(c), tuple(s), tuple(f))
                    )
                    for c, s, f in zip(*rows, strict=True)
                ]
                for rows in zip(codes, scales, fields, strict=True)
            ]
        )

    def dot(xa: list[reference.Value], xw: list[reference.Value]) -> Fraction | None:
        if any(m is None or n is None for (_, m), (_, n) in zip(xa, xw, strict=True)):
            return None
        return sum(
            ((-m * n if s != t else m * n) for (s, m), (t, n) in zip(xa, xw, strict=True)),
            Fraction(),
        )

    return [
        [[dot(a, w) for a, w in zip(row, column, strict=True)] for column in sides[1]]
        for row in sides[0]
    ]


def rounded_sum(result: int, part: int) -> int:
    """Return RNE_bf16(result + part) of bf16 and FP32 patterns, by IEEE 754's rules."""
    one, other = reference.from_bits("bf16", result), reference.from_bits("fp32", part)
    specials = [value for value in (one, other) if value[1] is None]
    infinite = [result & 0x7FFF == 0x7F80] * (one[1] is None)
    infinite += [part & 0x7FFFFFFF == 0x7F800000] * (other[1] is None)
    if specials:
        if not all(infinite) or len({sign for sign, _ in specials}) > 1:
            return 0x7FC0
        return specials[0][0] << 15 | 0x7F80
    total = sum((-m if s else m) for s, m in (one, other))
    sign = int(total < 0) if total else one[0] & other[0]
    return reference.to_bits("bf16", (sign, abs(total)))


def exact_results(product: MixedProduct, results: str) -> np.ndarray:
    """Return what the unit must give, from fractions."""
    sums = [exact_sums(part) for part in product.parts]
    m, n, _ = product.sizes
    found = np.zeros((m, n), np.uint32 if results == "fp32" else np.uint16)
    for i in range(m):
        for j in range(n):
            acc, result = 0, None
            for part in sums:
                acc = 0 if results == "segments" else acc
                for addend in part[i][j]:
                    acc = reference.add_fp32(acc, addend)
                if results == "segments":
                    # Alone: a value plus -0 is the value.
                    result = rounded_sum(0x8000 if result is None else result, acc)
            if results == "bf16":
                result = rounded_sum(0x8000, acc)
            found[i, j] = acc if results == "fp32" else result
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("results", ["segments", "fp32", "bf16"])
def test_golden(kind: str, results: str) -> None:
    """The golden model against fractions, pairs and tables drawn at random."""
    facts = UNIT.instance("micromix-2x2", {"tile": 32, "results": results}).facts
    streams, rng = MixedStreams(facts), np.random.default_rng(KINDS.index(kind))
    for _ in range(2):
        product = drawn(rng, streams, 3, 3, 6, kind)
        assert np.array_equal(streams.golden(product), exact_results(product, results)), product


# --- values ---------------------------------------------------------------------------------------


def run(simulator: BulkSimulator, products: list[MixedProduct], seed: int = 0) -> list[np.ndarray]:
    streams = MixedStreams(simulator.facts, noise=seed)
    for product in products:
        streams.check(product)
    out = simulator.run(streams.inputs(products), stall=0.2, seed=seed).outputs
    assert not any(int(row[0]) & 0x3F for row in out["status"].data)
    return list(streams.results(out["o"], products))


@every
def test_exact_rationals(simulator: BulkSimulator, config: str) -> None:
    """The RTL against fractions, which share nothing with the golden model."""
    streams, rng = MixedStreams(simulator.facts), np.random.default_rng(5)
    for kind in ("near", "cancelling", "extremes", "tiny"):
        products = [drawn(rng, streams, 3, 3, min(3, most_tiles(streams)), kind) for _ in range(2)]
        for product, found in zip(products, run(simulator, products), strict=True):
            wanted = exact_results(product, simulator.facts.parameters["results"])
            assert np.array_equal(found, wanted), kind


def play(simulator: BulkSimulator, seed: int) -> int:
    """Play products of all kinds; return how many groups were multiplied."""
    streams, rng = MixedStreams(simulator.facts, noise=seed), np.random.default_rng(seed)
    count, most = 0, most_tiles(streams)
    products = random_products(rng, streams, 4, min(4, most))
    m, n = 8 * streams.rows * streams.chains, 24 * streams.columns
    products += [drawn(rng, streams, m, n, most, kind) for kind in KINDS]
    for product, found in zip(products, run(simulator, products, seed), strict=True):
        assert np.array_equal(found, streams.golden(product)), (seed, product.sizes)
        m, n, k = product.sizes
        count += m * n * k // 32
    return count


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_a_million_groups(simulator: BulkSimulator) -> None:
    groups, seed = 0, 0
    while groups < 1_000_000:
        seed += 1
        groups += play(simulator, seed)
    print(f"{simulator.facts.config}: {groups} groups")


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [8, 16])
def test_segments_of_m2xfp_weights_with_fp8_activations(lanes: int, sim_dir: Path) -> None:
    """The whole regression, and products against fractions: beats bring their part of metadata."""
    changes = {"pairs": "m2xfp-fp8", "fp8_lanes": lanes, "columns": 1, "results": "segments"}
    simulator = BulkSimulator(
        emit(UNIT.instance("m2xfp-1x2", changes), sim_dir / "fp8"), build_dir=sim_dir
    )
    streams, rng = MixedStreams(simulator.facts), np.random.default_rng(7)
    products = [drawn(rng, streams, 3, 2, 4, "near") for _ in range(8)]
    pairs = {(p.act.name, p.weight.name) for x in products for p in x.parts}
    assert ("mxfp8-e4m3", "m2xfp-weight") in pairs
    for made, found in zip(products, run(simulator, products), strict=True):
        assert np.array_equal(found, exact_results(made, "segments"))
    regress(simulator)


# --- clocks ---------------------------------------------------------------------------------------


@every
def test_clocks(simulator: BulkSimulator) -> None:
    """The cycle model's count, exactly, for one command and for commands in a row."""
    streams, rng = MixedStreams(simulator.facts), np.random.default_rng(3)
    for number in range(12):
        products = random_products(rng, streams, 1 + number % 4, most_tiles(streams))
        stamps = simulator.run(streams.inputs(products), stamps=True).stamps
        panels = [-(-len(p.weights) // streams.columns) for p in products]
        ends = np.cumsum([count * len(p.acts) for count, p in zip(panels, products, strict=True)])
        taken = stamps["o"][ends - 1] - stamps["cmd"][0]
        assert taken.tolist() == streams.due(products)


@every
def test_samples_keep_a_gate_level_run_at_work(simulator: BulkSimulator) -> None:
    """Power is of clocks in which each output has delivered and each input has more to come."""
    facts, bench = simulator.facts, find_bench(UNIT)
    operands = random_operands(1, depth_for(facts), 0)
    vectors = bench.vectors(bench.sample(operands, facts), facts)
    stamps = simulator.run(vectors.inputs, stamps=True).stamps
    begin = max(stamps[stream.name][0] for stream in facts.outputs)
    end = min(stamps[stream.name][-1] for stream in facts.inputs)
    assert end - begin > clocks_for(facts)


@every
def test_latency_and_rate(simulator: BulkSimulator) -> None:
    """A result leaves as stated; FP4 takes a step a group, wider elements 32 / lanes."""
    streams = MixedStreams(simulator.facts)
    groups, chains = streams.tile // 32, streams.chains

    def stamps(m: int, pair: tuple[BlockFormat, BlockFormat]) -> dict[str, np.ndarray]:
        sides = [
            np.ones((count, groups, sum(block.group_bytes)), np.uint8)
            for count, block in zip((m, 1), pair, strict=True)
        ]
        product = MixedProduct((Part(*pair, *sides),))
        return dict(simulator.run(streams.inputs([product]), stamps=True).stamps)

    for pair, beats in ((streams.pairs.narrow[0], 1), (streams.pairs.wide[0], 32 // streams.lanes)):
        one = stamps(streams.rows, pair)
        assert one["o"][0] - one["acts"][-1] == simulator.facts.latency
        acts = stamps(streams.rows * chains, pair)["acts"]
        assert acts[-1] - acts[0] + 1 == groups * chains * beats


# --- bad input ------------------------------------------------------------------------------------

GOOD = [("mxfp4", "mxfp4", 0, 128), ("mxfp8-e4m3", "mxfp8-e4m3", 128, 256)]


@pytest.mark.parametrize(
    ("table", "k", "told"),
    [
        ([("mxint8", "mxint8", 0, 256)], 256, "multiplies mxfp4:mxfp4, mxfp6-e3m2:mxfp6-e3m2"),
        ([GOOD[1], GOOD[0]], 256, "leaves channels out.*in order"),
        ([GOOD[0], ("mxfp8-e4m3", "mxfp4", 0, 256)], 256, "overlaps the one before.*128"),
        ([GOOD[0], ("mxfp8-e4m3", "mxfp4", 128, 192)], 192, "multiple of 128"),
        ([GOOD[0], ("mxfp8-e4m3", "mxfp4", 128, 128)], 128, "leave empty segments out"),
        (GOOD, 384, "end at channel 256, k is 384"),
        ([], 0, "1 to 3"),
        ([("mxfp8-e4m3", "mxfp8-e4m3", 0, 1024)], 1024, "64 beats of k.* hold 32"),
        ([("mxfp4", "mxfp4", 0, 1152)], 1152, "36 beats of k.* hold 32"),
    ],
)
def test_the_driver_refuses(table: list, k: int, told: str) -> None:
    facts = UNIT.instance("micromix-2x2").facts
    with pytest.raises(InputError, match=told):
        segment_table(table, k, facts)


def test_the_driver_takes() -> None:
    facts = UNIT.instance("micromix-2x2").facts
    found = segment_table(GOOD, 256, facts)
    assert [(act.name, weight.name, groups) for act, weight, groups in found] == [
        ("mxfp4", "mxfp4", 4),
        ("mxfp8-e4m3", "mxfp8-e4m3", 4),
    ]
    assert segment_table([("mxfp4", "mxfp4", 0, 1024)], 1024, facts)


def test_parameters_are_refused() -> None:
    with pytest.raises(InputError, match="max_k=100: must be a multiple"):
        MixedGemm(max_k=100)
    with pytest.raises(InputError, match=r"packed.*choose one of"):
        MixedGemm(results="packed")


def test_sides_disagree() -> None:
    block = BLOCK_FORMATS["mxfp4"]
    with pytest.raises(InputError, match="one of groups a segment"):
        MixedProduct((Part(block, block, np.zeros((2, 4, 17), np.uint8), np.zeros((2, 3, 17))),))


def test_golden_needs_a_segment() -> None:
    with pytest.raises(InputError, match="parts is empty"):
        mixed_gemm([], [], [])


# --- a layer of the bundled model -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule",
    ["micromix:strength=2,tile=64", "mxquant:tile=32,share=0.1,activations=mxfp8-e4m3"],
)
def test_linear_layer(rule: str, sim_dir: Path, tmp_path: Path) -> None:
    """Ordered, quantized and multiplied in Verilog; the splits from their file too."""
    layer = "layers.1.self_attn.q_proj"
    run = run_mixed(sim_dir, rule=rule, layer=layer, tokens=5)
    assert run.equal
    assert sum(size for _, _, size in run.segments) == run.k
    if "activations" in rule:
        assert {act for act, _, _ in run.segments} == {"mxfp8-e4m3"}
    saved = tmp_path / "splits.json"
    saved.write_text(mixed_layers._plan(rule, None).as_json())
    assert run_mixed(sim_dir, splits=saved, layer=layer, tokens=5) == run


def test_no_such_layer(tmp_path: Path) -> None:
    saved = tmp_path / "splits.json"
    saved.write_text(Plan(Rule("micromix"), {}).as_json())
    with pytest.raises(UnknownNameError, match="linear layer 'head'"):
        run_mixed(tmp_path, splits=saved, layer="head")


# --- faults ---------------------------------------------------------------------------------------

MUTANTS = [
    Mutation(
        "overlap passes", f"{PARTS}segment_checker", "disorder += [count[-1], ", "disorder += ["
    ),
    Mutation("no tiles", f"{PARTS}segment_checker", ", segment.end[:part].any()]", "]"),
    Mutation("k is not covered", f"{PARTS}segment_checker", " | (before != groups)", ""),
    Mutation("any pair", f"{PARTS}segment_checker", "there & ~known", "Const(0, 1)"),
    Mutation(
        "no end of room", f"{PARTS}segment_checker", "found.groups <= self._depth", "Const(1, 1)"
    ),
    Mutation(
        "segments run on",
        f"{PARTS}slot_sequencer",
        "return Sums(opening, ",
        "return Sums(opening & (start == 0), ",
    ),
    Mutation(
        "wide groups end early",
        f"{PARTS}slot_sequencer",
        "~slot.wide | beat.all()",
        "~slot.wide | beat.any() | 1",
    ),
    Mutation(
        "products of another chain",
        f"{PARTS}switch_product",
        "range(1, self._chains)",
        "range(2, self._chains)",
    ),
    Mutation(
        "rows do not wait", f"{PARTS}segment_sums", "~self.begins & Cat(busy).any()", "Const(0, 1)"
    ),
    Mutation(
        "-0 wins",
        f"{PARTS}segment_sums",
        "part.sign & ~(part_zero & there & ~nonzero & ~earlier.sign)",
        "part.sign",
    ),
    Mutation(
        "infinities cancel",
        f"{PARTS}segment_sums",
        "(special & part_special & opposite)",
        "Const(0, 1)",
    ),
    Mutation(
        "nothing came before",
        f"{PARTS}segment_sums",
        "there = self.part, self.earlier, ~self.fresh",
        "there = self.part, self.earlier, Const(1, 1)",
    ),
    Mutation(
        "closing adds",
        "m2xfp.rtl.units.mixed_gemm",
        "fifo.now.begins | (fifo.now.lanes == 0)",
        "fifo.now.begins",
    ),
    Mutation(
        "kept results count as given",
        f"{PARTS}gemm_sequencer",
        "leaves & (~sums.kept | self.tile.last)",
        "leaves",
    ),
]


def regress(simulator: BulkSimulator) -> None:
    for case in find_bench(UNIT).regression(simulator.facts):
        check_case(simulator, case)


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTANTS, ids=lambda m: m.name)
def test_faults_are_noticed(mutation: Mutation, tmp_path: Path) -> None:
    """The regression notices each."""
    config = "micromix-2x2"
    files = emit_mutant(mutation, UNIT.name, config, tmp_path)
    simulator = BulkSimulator(files, build_dir=tmp_path)
    with pytest.raises((AssertionError, SimulationError)):
        regress(simulator)
