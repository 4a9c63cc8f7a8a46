"""The dot product of every pair of MX elements: Verilog against the golden model and fractions.

M2XFP goes with elements other than E2M1 too, with its multipliers as weights and its refinement as
activations.
"""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import reference
from choices import usual_first
from golden_checks import spec_of
from mutation import Mutation, emit_mutant

from m2xfp.errors import InputError
from m2xfp.formats import (
    BLOCK_FORMATS,
    E5M2,
    M2NVFP4_WEIGHT,
    M2XFP_ACT,
    M2XFP_WEIGHT,
    MXFP4,
    MXFP8_E4M3,
    BlockFormat,
    window,
)
from m2xfp.rtl.catalog import Instance, find_unit
from m2xfp.rtl.parts.mixed_pair import MixedPair, largest_integer, pair_of, unit_bits
from m2xfp.rtl.verilog.emit import emit
from m2xfp.tb.bench import find_bench
from m2xfp.tb.bulk.simulator import BulkSimulator, SimulationError
from m2xfp.tb.fields import number, pack, read
from m2xfp.tb.parts import pair_stimulus
from m2xfp.tb.regression import check_case
from m2xfp.tb.vectors import Beats

UNIT = find_unit("dot_product")
NAMES = ("mxfp4", "mxfp6-e2m3", "mxfp6-e3m2", "mxfp8-e4m3", "mxfp8-e5m2", "mxint8")
PLAIN = [pair for pair in product(NAMES, NAMES) if pair != ("mxfp4", "mxfp4")]
MULTIPLIED = [(name, "m2xfp-weight") for name in NAMES[1:]]
REFINED = [("m2xfp-act", name) for name in NAMES[1:]]
PAIRS = [*PLAIN, *MULTIPLIED, *REFINED]
WINDOW = "200..240/150"


def instance(pair: tuple[str, str], **changes: object) -> Instance:
    act, weight = (BLOCK_FORMATS[name] for name in pair)
    return UNIT.instance("m2xfp-fp32", {"act": act, "weight": weight, **changes})


def simulator(made: Instance, sim_dir: Path) -> BulkSimulator:
    return BulkSimulator(emit(made, sim_dir / "pairs"), build_dir=sim_dir)


def play(built: BulkSimulator) -> None:
    for case in find_bench(UNIT).regression(built.facts, seed=1):
        check_case(built, case)


# --- widths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", PLAIN, ids="-x-".join)
def test_bounds_are_reached_and_hold(names: tuple[str, str]) -> None:
    """Integers and units by the values of all codes; D by all lanes at the largest product."""
    elements = [spec_of(name).element for name in names]
    blocks = [BLOCK_FORMATS[name] for name in names]
    for element, block in zip(elements, blocks, strict=True):
        values = [element.value(code)[1] for code in range(1 << block.element.bits)]
        whole = [v * 2 ** unit_bits(block.element) for v in values if v is not None]
        assert all(v.denominator == 1 for v in whole)
        assert any(v.numerator % 2 for v in whole)
        assert max(whole) == largest_integer(block.element)
    pair = pair_of(*blocks)
    assert isinstance(pair, MixedPair)
    largest = [largest_integer(block.element) for block in blocks]
    assert pair.product_bound == 32 * largest[0] * largest[1]


@pytest.mark.parametrize("names", [*MULTIPLIED, *REFINED], ids="-x-".join)
def test_bounds_with_metadata_are_reached(names: tuple[str, str]) -> None:
    """All lanes at the largest product with the largest metadata, by fractions; D is an integer."""
    blocks = [BLOCK_FORMATS[name] for name in names]
    pair = pair_of(*blocks)
    largest = [
        reference.dequantize(
            spec_of(name),
            reference.Group((_largest(block),) * 32, (127,), (3,) * block.subgroups),
        )
        for name, block in zip(names, blocks, strict=True)
    ]
    total = sum((x * w for (_, x), (_, w) in zip(*largest, strict=True)), Fraction())
    assert total * 2 ** (pair.bias - 254) == pair.product_bound


def _largest(block: BlockFormat) -> int:
    """Return the code of the largest magnitude: of INT8 the most negative one."""
    return 0x80 if block.element.name == "int8" else block.element.max_code


@pytest.mark.parametrize(
    ("names", "bits"),
    [
        (("mxfp8-e4m3", "mxfp4"), 28),
        (("mxfp8-e4m3", "mxfp6-e3m2"), 33),
        (("mxfp8-e4m3", "mxfp8-e4m3"), 42),
        (("mxfp8-e5m2", "mxfp8-e5m2"), 70),
        (("mxfp8-e4m3", "m2xfp-weight"), 31),
        (("mxfp8-e5m2", "m2xfp-weight"), 45),
        (("mxint8", "m2xfp-weight"), 20),
        (("m2xfp-act", "mxfp8-e4m3"), 30),
    ],
)
def test_bits_of_a_group(names: tuple[str, str], bits: int) -> None:
    assert pair_of(*(BLOCK_FORMATS[name] for name in names)).product_shape.width == bits


def test_multipliers_cost_three_bits() -> None:
    """And the last bit is two places lower, whatever the other element is."""
    for act, weight in MULTIPLIED:
        multiplied = pair_of(BLOCK_FORMATS[act], BLOCK_FORMATS[weight])
        plain = pair_of(BLOCK_FORMATS[act], BLOCK_FORMATS["mxfp4"])
        assert multiplied.product_shape.width == plain.product_shape.width + 3
        assert multiplied.bias == plain.bias + 2


@pytest.mark.parametrize(
    ("act", "weight", "says"),
    [
        (replace(MXFP8_E4M3, metadata=M2XFP_ACT.metadata), MXFP4, "beside e4m3 elements"),
        (MXFP8_E4M3, replace(M2XFP_WEIGHT, metadata=M2XFP_ACT.metadata), "takes E2M1 .* sg-em"),
        (M2XFP_WEIGHT, MXFP8_E4M3, "takes E2M1 .* elem-em"),
        (MXFP8_E4M3, replace(M2XFP_WEIGHT, scale=M2NVFP4_WEIGHT.scale), "one E8M0 scale"),
        (MXFP8_E4M3, replace(M2XFP_WEIGHT, group=16), "same group size"),
    ],
)
def test_what_is_refused(act: BlockFormat, weight: BlockFormat, says: str) -> None:
    with pytest.raises(InputError, match=says):
        pair_of(act, weight)


# --- all codes ------------------------------------------------------------------------------------

USUAL = [("mxfp8-e4m3", "mxfp8-e4m3"), ("mxint8", "mxfp8-e5m2")]


@pytest.mark.parametrize("names", usual_first(PLAIN, USUAL), ids="-x-".join)
def test_all_codes(names: tuple[str, str], sim_dir: Path) -> None:
    """The product of every two codes, against fractions: 65 536 of 8-bit elements."""
    built = simulator(instance(names, lanes=1, depth=1, chains=1), sim_dir)
    stream = built.facts.stream("i")
    blocks = [BLOCK_FORMATS[name] for name in names]
    x, w = np.meshgrid(*(np.arange(1 << block.element.bits) for block in blocks), indexing="ij")
    count = x.size
    fields = {
        "operands.act.codes": x.reshape(-1, 1),
        "operands.weight.codes": w.reshape(-1, 1),
        "operands.act.scale": np.full(count, 120),
        "operands.weight.scale": np.full(count, 131),
        "first": np.ones(count, bool),
    }
    beats = pack(stream, {stream.field(name): array for name, array in fields.items()})
    out = built.run({"i": Beats(beats)}).outputs["o"]
    found = read(number(built.facts.stream("o")), out.data)
    tables = [
        [spec_of(name).element.value(code) for code in range(1 << block.element.bits)]
        for name, block in zip(names, blocks, strict=True)
    ]
    wanted = [_product(a, b) for a in tables[0] for b in tables[1]]
    assert found.tolist() == wanted


WITH_METADATA = [("mxfp8-e4m3", "m2xfp-weight"), ("m2xfp-act", "mxfp6-e3m2")]


@pytest.mark.parametrize(
    "names", usual_first([*MULTIPLIED, *REFINED], WITH_METADATA), ids="-x-".join
)
def test_all_codes_with_metadata(names: tuple[str, str], sim_dir: Path) -> None:
    """Every two codes with every metadata, alone in a subgroup, against fractions: 16 384 of E4M3.

    So the element of M2XFP activations is the top-1 element of its subgroup; of zeros that is the
    first.
    """
    built = simulator(instance(names, lanes=8, depth=1, chains=1), sim_dir)
    stream = built.facts.stream("i")
    blocks = [BLOCK_FORMATS[name] for name in names]
    ranges = [*(range(1 << block.element.bits) for block in blocks), range(4)]
    x, w, k = (grid.reshape(-1) for grid in np.meshgrid(*ranges, indexing="ij"))
    lane = np.where(x & 7, (x + 3 * w + 5 * k) % 8, 0)
    side = "act" if blocks[0].subgroups else "weight"
    fields = {
        "operands.act.scale": np.full(x.size, 120),
        "operands.weight.scale": np.full(x.size, 131),
        f"operands.{side}.meta": k[:, None],
        "first": np.ones(x.size, bool),
    }
    for name, codes in (("act", x), ("weight", w)):
        lanes = fields[f"operands.{name}.codes"] = np.zeros((x.size, 8), np.int64)
        lanes[np.arange(x.size), lane] = codes
    beats = pack(stream, {stream.field(name): array for name, array in fields.items()})
    out = built.run({"i": Beats(beats)}).outputs["o"]
    found = read(number(built.facts.stream("o")), out.data)
    values = [_values(name) for name in names]
    wanted = [
        _product(values[0](a, m), values[1](b, m))
        for a, b, m in zip(x.tolist(), w.tolist(), k.tolist(), strict=True)
    ]
    assert found.tolist() == wanted


def _values(name: str) -> Callable[[int, int], reference.Value]:
    """Return what a code is with metadata (docs/format.md 4 and 5), times one scale."""
    element = spec_of(name).element
    refined = spec_of("mxfp6-e2m3").element

    def value(code: int, meta: int) -> reference.Value:
        sign, magnitude = element.value(code)
        if name == "m2xfp-weight":
            return sign, magnitude * Fraction(4 + meta, 4)
        if name == "m2xfp-act":
            return sign, refined.value(max(4 * (code & 7) + meta - 1, 0))[1]
        return sign, magnitude

    return value


def _product(a: reference.Value, b: reference.Value) -> int:
    if a[1] is None or b[1] is None:
        return 0x7FC00000
    exact = a[1] * b[1] * Fraction(2) ** (120 + 131 - 254)
    return reference.to_bits("fp32", (a[0] ^ b[0] if exact else 0, exact))


# --- groups ---------------------------------------------------------------------------------------

SMALL = [("mxfp8-e4m3", "mxfp4"), *WITH_METADATA]
WIDEST = ("mxfp8-e5m2", "mxfp8-e5m2")


@pytest.mark.parametrize("names", usual_first(PAIRS, SMALL), ids="-x-".join)
def test_regression(names: tuple[str, str], sim_dir: Path) -> None:
    """All distributions, FP32 accumulation."""
    play(simulator(instance(names, lanes=_few(names)), sim_dir))


def _few(names: tuple[str, str]) -> int:
    """Return a few lanes: with metadata those of a subgroup."""
    return max([4, *(BLOCK_FORMATS[name].metadata.subgroup for name in names)])


@pytest.mark.slow
@pytest.mark.parametrize("names", PAIRS, ids="-x-".join)
def test_exact_accumulation(names: tuple[str, str], sim_dir: Path) -> None:
    made = instance(names, lanes=_few(names), chains=1, window=window(WINDOW))
    play(simulator(made, sim_dir))


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", ["mxfp6-fp32", "mxfp8-mxfp4-fp32", "mxfp8-fp32", "mxfp8-m2xfp-fp32"]
)
def test_a_million_groups(config: str, sim_dir: Path) -> None:
    built = simulator(UNIT.instance(config), sim_dir)
    groups = 0
    for seed in range(26):
        for case in find_bench(UNIT).regression(built.facts, seed=seed):
            check_case(built, case)
            groups += sum(len(vectors.inputs["i"]) for vectors in case.phases)
    assert groups >= 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        ("mxfp8-e4m3", "mxfp8-e5m2"),
        ("mxfp6-e2m3", "mxint8"),
        ("mxfp8-e4m3", "m2xfp-weight"),
        ("m2xfp-act", "mxfp8-e5m2"),
    ],
)
def test_exact_rationals(names: tuple[str, str], sim_dir: Path) -> None:
    """The RTL against fractions, which share nothing with the golden model."""
    built = simulator(instance(names), sim_dir)
    blocks = tuple(BLOCK_FORMATS[name] for name in names)
    specs = tuple(spec_of(name) for name in names)
    for name in pair_stimulus.DISTRIBUTIONS:
        act, weight, first = pair_stimulus.groups(name, blocks, 10, 3, seed=6)
        vectors = pair_stimulus.pair_vectors(built.facts, act, weight, first)
        acc = built.run(vectors.inputs).outputs["o"].data.view("<u4").reshape(10, 3)
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


def _reference_group(packed: np.ndarray, block: BlockFormat) -> reference.Group:
    """Read a packed group: 6-bit codes are four in three bytes, the first in the lowest bits."""
    size, bits = block.group_bytes[0], block.element.bits
    number_ = int.from_bytes(packed[:size].tobytes(), "little")
    codes = tuple(number_ >> bits * n & ((1 << bits) - 1) for n in range(block.group))
    fields = tuple(int(packed[-1]) >> 2 * n & 3 for n in range(block.subgroups))
    return reference.Group(codes, (int(packed[size]),), fields)


# --- faults ---------------------------------------------------------------------------------------

PRODUCT, ADD = "m2xfp.rtl.parts.mixed_product", "m2xfp.rtl.parts.fp32_addition"

PLACED = "Cat(Const(0, width - _SIGNIFICAND), acc_significand)"

FAULTS = [
    Mutation("largest code is NaN", PRODUCT, "bit_length() - 1 : -1", "bit_length() : -1"),
    Mutation("NaN codes are numbers", PRODUCT, "special.eq(Cat(specials).any())", "special.eq(0)"),
    Mutation("subnormals a binade low", PRODUCT, "field - field.any()", "field"),
    Mutation("no hidden bit", PRODUCT, "code[bits:-1].any()", "Const(0, 1)"),
    Mutation("negation one short", PRODUCT, "as_signed() + sign", "as_signed()"),
    Mutation("sum of the exponents cut", PRODUCT, "range(largest + 1)", "range(largest // 2 + 1)"),
    # Of more than 31 places all is sticky, however wide the operands are: 5 would do.
    Mutation("near addends far", ADD, "(width + 1).bit_length()", "4"),
    Mutation("accumulator below its place", ADD, PLACED, "acc_significand"),
]


GROUP, PAIR = "m2xfp.rtl.parts.group_product", "m2xfp.rtl.parts.mixed_pair"

# Of what is there with M2XFP weights alone.
MULTIPLIED_FAULTS = [
    Mutation("subgroups exchanged", GROUP, "eq(weight.meta[part])", "eq(weight.meta[part ^ 1])"),
    Mutation("no quarters in the bias", PAIR, "units + 2 * self.multiplied + 254", "units + 254"),
]


@pytest.mark.slow
@pytest.mark.parametrize("fault", [*FAULTS, *MULTIPLIED_FAULTS], ids=lambda fault: fault.name)
def test_regression_notices(fault: Mutation, sim_dir: Path, tmp_path: Path) -> None:
    config = "mxfp8-m2xfp-fp32" if fault in MULTIPLIED_FAULTS else "mxfp8-fp32"
    mutant = emit_mutant(fault, UNIT.name, config, tmp_path)
    built = BulkSimulator(mutant, build_dir=sim_dir)
    with pytest.raises((AssertionError, SimulationError)):
        play(built)


def test_infinities_poison(sim_dir: Path) -> None:
    """E5M2 has infinities; one is as good as a NaN, whatever the other side is."""
    assert E5M2.max_code == 123
    blocks = (BLOCK_FORMATS["mxfp8-e5m2"],) * 2
    facts = instance(WIDEST, lanes=4).facts
    act, weight, first = pair_stimulus.groups("near", blocks, 3, 3, seed=8)
    for groups in (act, weight):
        groups[..., :32] &= 0xFB
    act[1, :, 5] = 0x7C
    arrays = pair_stimulus.pair_arrays(facts, act, weight, first)
    acc = find_bench(UNIT).expected(arrays, facts)["acc"].reshape(3, 3)
    assert (acc[:, 1:] == 0x7FC00000).all()
    assert (acc[:, 0] != 0x7FC00000).all()
    built = simulator(instance(WIDEST, lanes=4), sim_dir)
    vectors = pair_stimulus.pair_vectors(facts, act, weight, first)
    assert np.array_equal(built.run(vectors.inputs).outputs["o"].data, vectors.outputs["o"].data)
