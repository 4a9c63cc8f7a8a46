"""The weight encoder's Verilog against the golden model, and its parts against exact fractions."""

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from amaranth.hdl import Module
from amaranth.sim import Simulator
from mutation import Mutation, emit_mutant
from stream_checks import check, regress, value_vectors
from torch.nn import functional as F  # noqa: N812 - the name PyTorch's documentation uses

from m2xfp.errors import InputError
from m2xfp.facts import EmittedFiles, Facts
from m2xfp.formats import BF16, E2M1, FP16, M2XFP_ACT, M2XFP_WEIGHT
from m2xfp.golden import PackedTensor, get_format
from m2xfp.golden.bits import quantize_bits, to_bits
from m2xfp.models.attention import QuantAttention
from m2xfp.models.lm import HELD_OUT, as_tokens, load_model
from m2xfp.rtl.catalog import UNITS, find_unit
from m2xfp.rtl.parts.code_ladder import Ladder
from m2xfp.rtl.parts.multiplier_search import LaneTerms, lane_layout
from m2xfp.rtl.parts.search_study import LATENCY, GainSearch, SquareSearch
from m2xfp.rtl.parts.subgroup_codes import SubgroupCodes
from m2xfp.rtl.units.weight_encoder import WeightEncoder
from m2xfp.tb.bench import bench_of
from m2xfp.tb.bulk.simulator import BulkSimulator, SimulationError
from m2xfp.tb.parts import value_stimulus
from m2xfp.tb.parts.search_stimulus import near_choices
from m2xfp.tb.protocol.harness import TestbenchError, run_testbench
from m2xfp.tb.vectors import TestVectors

UNIT = "weight_encoder"
CONFIGS = list(UNITS[UNIT].configs)

# Every input type, one and three clocks a beat, adaptive and fixed, the smallest F; the others
# differ in numbers only and are slow tests.
USUAL = [
    "bf16-adaptive-6",
    "bf16-kv",
    "bf16-adaptive-4-f5",
    "bf16-fixed-4",
    "fp16-adaptive-12",
    "fp32-adaptive-12",
]

GROUPS = 3000
SLOW_GROUPS = 70_000  # of fifteen distributions: more than a million groups of each input type

# The multipliers and thresholds of E2M1 with two bits, as the format page has them.
MULTIPLIERS = [Fraction(4 + k, 4) for k in range(4)]
VALUES = [Fraction(n, 2) for n in (0, 1, 2, 3, 4, 6, 8, 12)]

Emit = Callable[[str, str], EmittedFiles]


def marked(usual: list[str]) -> list[object]:
    """Return all configurations as parameters, those that are not usual marked slow."""
    return [
        pytest.param(name, marks=[] if name in usual else [pytest.mark.slow]) for name in CONFIGS
    ]


@pytest.fixture
def simulator(emitted: Emit, sim_dir: Path, config: str) -> BulkSimulator:
    return BulkSimulator(emitted(UNIT, config), build_dir=sim_dir)


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", marked(USUAL))
def test_values(simulator: BulkSimulator) -> None:
    assert regress(simulator, GROUPS, seed=1) >= 45_000


@pytest.mark.slow
@pytest.mark.parametrize("config", ["bf16-adaptive", "fp16-adaptive", "fp32-adaptive"])
def test_values_at_length(simulator: BulkSimulator) -> None:
    """A million groups of each input type, where the default F also equals the exact search."""
    kind = simulator.facts.parameters["input_type"]
    for seed in range(20, 20 + SLOW_GROUPS // 10_000):
        assert regress(simulator, 10_000, seed) == 150_000
        for name in value_stimulus.DISTRIBUTIONS:
            raw = value_stimulus.groups(name, kind, 10_000, seed)
            fixed = quantize_bits(get_format("m2xfp-weight", search="fixed"), kind, raw)
            exact = quantize_bits("m2xfp-weight", kind, raw)
            for found, expected in zip(fixed, exact, strict=True):
                assert np.array_equal(found, expected)


@pytest.mark.parametrize("config", ["bf16-kv", "fp16-adaptive-12"])
def test_all_patterns(simulator: BulkSimulator) -> None:
    """All 65 536 patterns, each beside a fixed largest magnitude."""
    kind = simulator.facts.parameters["input_type"]
    smallest = {"bf16": 2.0**-126, "fp16": 2.0**-24}[kind]
    for amax in (1.0, 1.9375, 6.0, smallest):
        raw = value_stimulus.all_patterns(kind, amax)
        assert len(np.unique(raw)) == 65536
        check(simulator, value_vectors(simulator.facts, raw), stall={}, seed=0)


@pytest.mark.parametrize("config", ["bf16-kv"])
def test_real_weights(simulator: BulkSimulator) -> None:
    """The bundled model's weights as they are stored, every group of every layer."""
    model = load_model()
    rows = [p.detach().to(torch.bfloat16) for p in model.parameters() if p.ndim == 2]
    raw = np.concatenate([to_bits(row).reshape(-1, 32) for row in rows])
    assert len(raw) * 32 == sum(row.numel() for row in rows) > 500_000
    check(simulator, value_vectors(simulator.facts, raw), stall={}, seed=0)


# --- key/value cache ------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("config", ["bf16-kv"])
def test_attention_with_a_cache_from_the_hardware(simulator: BulkSimulator) -> None:
    """Attention of the bundled model: keys and values from the Verilog, the rest golden.

    Keys are packed as they come, a vector after the other; values by channel, since the product
    with the probabilities sums over tokens. The output equals that of the golden attention bit for
    bit, and is nearer to the unquantized one than MXFP4 is.
    """
    model = load_model().bfloat16()
    calls: list[tuple[torch.Tensor, ...]] = []

    class Recorder(QuantAttention):
        def _attention(self, query, key, value, *rest, **options):  # type: ignore[no-untyped-def]
            calls.append((query, key, value))
            return super()._attention(query, key, value, *rest, **options)

    tokens = as_tokens(HELD_OUT.read_bytes())[None, :64].long()
    with Recorder() as mode:
        model(tokens)
    assert len(calls) == mode.calls == model.config.layers

    fmt, bench = get_format("m2xfp-weight"), bench_of(simulator.facts)

    def through_hardware(x: torch.Tensor) -> torch.Tensor:
        beats = bench.encode({"x": to_bits(x.reshape(-1, 32))}, simulator.facts)
        packed = torch.from_numpy(simulator.run(beats).outputs["o"].data)
        groups = packed.reshape(*x.shape[:-1], x.shape[-1] // 32, 18)
        return PackedTensor.from_groups(fmt, groups).dequantize(x.dtype)

    for query, key, value in calls:
        assert key.shape[-1] == 32
        cached_key = through_hardware(key)
        cached_value = through_hardware(value.transpose(-1, -2).contiguous()).transpose(-1, -2)
        with QuantAttention():
            golden = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        act = get_format("m2xfp-act")
        scores = act.fake_quantize(query) @ cached_key.transpose(-1, -2)
        scores = scores.float() * key.shape[-1] ** -0.5
        hidden = torch.ones(scores.shape[-2:]).triu(1).bool()
        probabilities = scores.masked_fill(hidden, -torch.inf).softmax(-1).to(query.dtype)
        found = act.fake_quantize(probabilities) @ cached_value
        assert torch.equal(found, golden)
        plain = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        assert not torch.equal(found, plain)
        with QuantAttention("mxfp4", "mxfp4"):
            coarse = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        error, coarse_error = (
            float((x.double() - plain.double()).square().mean()) for x in (found, coarse)
        )
        assert error < 0.75 * coarse_error


# --- streams --------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", marked(USUAL))
def test_rate_and_latency(simulator: BulkSimulator) -> None:
    """A group in the stated number of clocks, each after the stated latency."""
    facts = simulator.facts
    kind, beats = facts.parameters["input_type"], facts.beats_per_group
    vectors = value_vectors(facts, value_stimulus.groups("normal", kind, 1000, seed=2))
    stamps = simulator.run(vectors.inputs, stamps=True).stamps
    period = facts.clocks_per_group
    assert set(np.diff(stamps["o"]).tolist()) == {period}
    assert stamps["o"][0] == stamps["i"][beats - 1] + facts.latency
    if period == beats:
        assert np.array_equal(stamps["i"], np.arange(1000 * beats))


@pytest.mark.parametrize("config", ["bf16-kv", "bf16-adaptive-6"])
def test_stalls_change_nothing(simulator: BulkSimulator) -> None:
    kind = simulator.facts.parameters["input_type"]
    vectors = value_vectors(simulator.facts, value_stimulus.groups("wide", kind, 3000, seed=3))
    for seed, stall in enumerate(
        [{"i": 0.9}, {"o": 0.9}, {"i": 0.1, "o": 0.9}, {"i": 0.9, "o": 0.1}, {"i": 0.5, "o": 0.5}]
    ):
        check(simulator, vectors, stall, seed)


def protocol_vectors(emitted: EmittedFiles) -> TestVectors:
    """Return 90 groups of all distributions, mixed."""
    facts = Facts.load(emitted.json)
    kind = facts.parameters["input_type"]
    raw = np.vstack(
        [value_stimulus.groups(name, kind, 6, seed=4) for name in value_stimulus.DISTRIBUTIONS]
    )
    return value_vectors(facts, np.random.default_rng(4).permutation(raw))


# --- parts ----------------------------------------------------------------------------------------


def nearest(w: Fraction) -> tuple[int, list[int]]:
    """Return the nearest code of w, the lower at a tie, and all nearest codes."""
    best = min(abs(w - value) for value in VALUES)
    codes = [code for code, value in enumerate(VALUES) if abs(w - value) == best]
    return codes[0], codes


@pytest.mark.parametrize(
    ("fraction", "integer", "offsets"), [(4, 4, 1), (7, 3, 1), (6, 2, 3), (8, 2, 3)]
)
def test_lane_terms(fraction: int, integer: int, offsets: int) -> None:
    """Every magnitude: the terms make up the largest gain of every multiplier and offset."""
    ladder = Ladder(M2XFP_WEIGHT, fraction, integer, offsets)
    dut = LaneTerms(ladder)

    async def bench(ctx) -> None:  # type: ignore[no-untyped-def]
        for u in range(1 << ladder.width):
            ctx.set(dut.u, u)
            terms = {name: int(ctx.get(dut.terms[name])) for name in lane_layout(ladder).members}
            product = square = 0
            for n, multiplier in enumerate(reversed(MULTIPLIERS)):
                product += terms[f"product_{n}"]
                square += terms[f"square_{n}"]
                for offset in range(offsets):
                    found = product - 4 * multiplier * square * 2 ** (fraction - 4)
                    found += sum(
                        terms.get(f"excess_{n}_{band}", 0) for band in range(1, offset + 1)
                    )
                    found *= 2 ** (offsets - 1 - offset)
                    for level in range(offset, offsets - 1):
                        tent = terms[f"tent_{n}_{level}"] + terms[f"falls_{n}_{level}"]
                        found += tent * 2 ** (level - offset)
                    here = fraction - (offsets - 1 - offset)  # fraction bits of w with this offset
                    w = Fraction(u, 2**here)
                    gain = max(q * multiplier * (2 * w - q * multiplier) for q in VALUES)
                    assert found * 4 * multiplier == gain * 2 ** (here + 2), (u, n, offset)

    simulate(dut, bench)


@pytest.mark.parametrize("integer", [3, 4])
def test_subgroup_codes(integer: int) -> None:
    """Every magnitude, offset and multiplier: the nearest code, ties to even, saturating."""
    ladder = Ladder(M2XFP_WEIGHT, 4, integer)
    dut = SubgroupCodes(ladder)
    offsets = integer - 1  # 3 integer bits at the highest offset of a search

    async def bench(ctx) -> None:  # type: ignore[no-untyped-def]
        for offset in range(offsets if integer > 3 else 1):
            for k, multiplier in enumerate(MULTIPLIERS):
                ctx.set(dut.offset, offset)
                ctx.set(dut.k, k)
                for x in range(0, 2 << ladder.width, 8):
                    for n in range(8):
                        ctx.set(dut.magnitudes[n], x + n)
                    for n in range(8):
                        # The lowest bit says: a little more than the bits above it.
                        w = Fraction((x + n) >> 1, 16) + Fraction((x + n) & 1, 1000)
                        codes = nearest(w / multiplier / 2**offset)[1]
                        even = [code for code in codes if code % 2 == 0]
                        assert ctx.get(dut.codes[n]) == (codes[0] if len(codes) == 1 else even[0])

    simulate(dut, bench)


def test_search_equals_one_with_squares() -> None:
    """Random subgroups of all sizes: the same multipliers as from squared differences."""
    ladder = Ladder(M2XFP_WEIGHT, 6, 2, 3)
    m = Module()
    m.submodules.gains = gains = GainSearch(ladder)
    m.submodules.squares = squares = SquareSearch(ladder)
    rng = np.random.default_rng(7)

    async def bench(ctx) -> None:  # type: ignore[no-untyped-def]
        for _ in range(300):
            for n, u in enumerate(rng.integers(0, rng.choice([8, 30, 100, 256]), 8)):
                ctx.set(gains.u[n], int(u))
                ctx.set(squares.u[n], int(u))
            await ctx.tick().repeat(LATENCY)
            for offset in range(3):
                assert ctx.get(gains.k[offset]) == ctx.get(squares.k[offset])

    simulate(m, bench, clocked=True)


def simulate(dut, bench, clocked: bool = False) -> None:  # type: ignore[no-untyped-def]
    simulator = Simulator(dut)
    if clocked:
        simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


def test_ladder_is_that_of_the_format() -> None:
    ladder = Ladder(M2XFP_WEIGHT, 10, 3)
    assert [Fraction(m, 2) for m in ladder.multiples] == VALUES
    assert [E2M1.magnitude(code) for code in range(8)] == VALUES
    for k, multiplier in enumerate(MULTIPLIERS):
        middles = [(a + b) / 2 * multiplier for a, b in pairwise(VALUES)]
        wanted = [middle * 2**10 for middle in middles if middle < 8]
        assert list(ladder.thresholds(4 + k)) == wanted


def test_gain_fits_its_bits() -> None:
    """The bound of the largest gain: all lanes at the largest magnitude, the best candidate."""
    for ladder in (Ladder(M2XFP_WEIGHT, 11, 4), Ladder(M2XFP_WEIGHT, 11, 2, 3)):
        for offset in range(ladder.offsets):
            here = ladder.fraction_bits - (ladder.offsets - 1 - offset)
            w = Fraction((1 << ladder.width) - 1, 1 << here)
            gains = [8 * q * (2 * w - q) for m in MULTIPLIERS for q in (v * m for v in VALUES)]
            assert max(gains) * 2 ** (here + 2) < 1 << ladder.gain_bits(offset)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"block": M2XFP_ACT}, "m2xfp-act"),
        ({"clocks_per_group": 5}, "1, 2, 3, 4, 6, 12"),
        ({"clocks_per_group": 3, "adaptive": False}, "1, 2, 4"),
        ({"fraction_bits": 4}, "5 to 32"),
        ({"fraction_bits": 33}, "5 to 32"),
    ],
)
def test_wrong_parameters(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        WeightEncoder(input_type=BF16, **arguments)


def test_lanes_and_clocks() -> None:
    for clocks, lanes, each in (
        (1, 32, 1),
        (2, 16, 1),
        (3, 32, 3),
        (4, 8, 1),
        (6, 16, 3),
        (12, 8, 3),
    ):
        unit = WeightEncoder(input_type=FP16, clocks_per_group=clocks)
        assert (unit.lanes, unit.clocks_per_beat) == (lanes, each)
        assert unit.fraction_bits == 13


def test_catalog_states_the_rate() -> None:
    row = find_unit(UNIT)
    for name, options in row.configs.items():
        unit = row.instance(name).component
        assert isinstance(unit, WeightEncoder)
        assert unit.clocks_per_group == options.get("clocks_per_group", 1)


# --- what the tests notice ------------------------------------------------------------------------

ENCODER, STORE, SEARCH, OFFSET, ALIGNMENT, CODES = (
    f"m2xfp.rtl.{name}"
    for name in (
        "units.weight_encoder",
        "parts.beat_store",
        "parts.multiplier_search",
        "parts.offset_choice",
        "parts.alignment",
        "parts.subgroup_codes",
    )
)

FAULTS = [
    Mutation("ties away", CODES, "2 * reach[code] + 1 - code % 2", "2 * reach[code]"),
    Mutation("ties to zero", CODES, "2 * reach[code] + 1 - code % 2", "2 * reach[code] + 1"),
    Mutation(
        "largest k of equals",
        SEARCH,
        "Mux(a[:key_bits] < b[:key_bits], b, a)",
        "Mux(a[:key_bits] <= b[:key_bits], b, a)",
    ),
    Mutation(
        "no sticky bit", ALIGNMENT, "Cat(value[: step + 1].any(), value", "Cat(value[step], value"
    ),
    Mutation(
        "offset below scale 0",
        OFFSET,
        "if offsets[index] >= 0 else group.token.scale.any()",
        "",
    ),
    Mutation("squares left out", SEARCH, "products - ((squares", "products - ((0"),
    Mutation("NaN ignored", ENCODER, "choice.poisoned.eq(poisoned)", "choice.poisoned.eq(0)"),
    Mutation("totals never start anew", OFFSET, "Mux(beat.token.first, 0, ring", "Mux(0, 0, ring"),
    Mutation("pipeline runs through a stall", ENCODER, "~output.i.valid | output.i.ready", "1"),
    Mutation(
        "TLAST inverted",
        STORE,
        "group_last.eq(i.payload.last)",
        "group_last.eq(~i.payload.last)",
    ),
    Mutation("tents one too low", SEARCH, 'if kind == "tent":', 'if kind == "none":'),
    Mutation("no excess", SEARCH, "range(1, offset + 1)", "range(1, 1)"),
]

PROTOCOL_FAULTS = [
    Mutation(
        "reset forgets the beat counter",
        STORE,
        "fill = Signal(range(beats))",
        "fill = Signal(range(beats), reset_less=True)",
    ),
    Mutation("latency misstated", ENCODER, "2 + clocks_per_group", "3 + clocks_per_group"),
]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_regression_notices(fault: Mutation, sim_dir: Path, tmp_path: Path) -> None:
    mutant = emit_mutant(fault, UNIT, "bf16-kv", tmp_path)
    simulator = BulkSimulator(mutant, build_dir=sim_dir)
    with pytest.raises((AssertionError, SimulationError)):
        regress(simulator, 300, seed=5)


@pytest.mark.slow
@pytest.mark.parametrize("fault", PROTOCOL_FAULTS, ids=lambda fault: fault.name)
def test_protocol_notices(fault: Mutation, sim_dir: Path, tmp_path: Path) -> None:
    mutant = emit_mutant(fault, UNIT, "bf16-adaptive-12", tmp_path)
    with pytest.raises(TestbenchError):
        run_testbench(mutant, protocol_vectors(mutant), build_dir=sim_dir)


def test_near_choices_are_near() -> None:
    """Nearly all subgroups have two multipliers whose squared errors are alike."""
    patterns = near_choices("bf16", M2XFP_WEIGHT, seed=3)
    values = (patterns.astype(np.uint32) << 16).view(np.float32).astype(float)
    largest = np.abs(values).max(1, keepdims=True)
    x = np.abs(values / np.exp2(np.floor(np.log2(largest)) - 2)).reshape(-1, 8)
    grid = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    errors = [((x[..., None] - grid * (1 + k / 4)) ** 2).min(-1).sum(-1) for k in range(4)]
    best, second = np.sort(errors, axis=0)[:2]
    # A last place of a sum is 2^-10 of these units.
    assert np.mean(second - best < 2.0**-6) > 0.9
    assert len({row.tobytes() for row in patterns}) > 0.9 * len(patterns)
