"""The dot product of every pair of MX elements: Verilog against the golden model and fractions."""

from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import reference
from choices import usual_first
from golden_checks import spec_of
from mutation import Mutation, emit_mutant

from m2xfp.formats import BLOCK_FORMATS, E5M2, window
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
PAIRS = [pair for pair in product(NAMES, NAMES) if pair != ("mxfp4", "mxfp4")]
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


@pytest.mark.parametrize("names", PAIRS, ids="-x-".join)
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


@pytest.mark.parametrize(
    ("names", "bits"),
    [
        (("mxfp8-e4m3", "mxfp4"), 28),
        (("mxfp8-e4m3", "mxfp6-e3m2"), 33),
        (("mxfp8-e4m3", "mxfp8-e4m3"), 42),
        (("mxfp8-e5m2", "mxfp8-e5m2"), 70),
    ],
)
def test_bits_of_a_group(names: tuple[str, str], bits: int) -> None:
    assert pair_of(*(BLOCK_FORMATS[name] for name in names)).product_shape.width == bits


# --- all codes ------------------------------------------------------------------------------------

USUAL = [("mxfp8-e4m3", "mxfp8-e4m3"), ("mxint8", "mxfp8-e5m2")]


@pytest.mark.parametrize("names", usual_first(PAIRS, USUAL), ids="-x-".join)
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


def _product(a: reference.Value, b: reference.Value) -> int:
    if a[1] is None or b[1] is None:
        return 0x7FC00000
    exact = a[1] * b[1] * Fraction(2) ** (120 + 131 - 254)
    return reference.to_bits("fp32", (a[0] ^ b[0] if exact else 0, exact))


# --- groups ---------------------------------------------------------------------------------------

SMALL = [("mxfp8-e4m3", "mxfp4")]
WIDEST = ("mxfp8-e5m2", "mxfp8-e5m2")


@pytest.mark.parametrize("names", usual_first(PAIRS, SMALL), ids="-x-".join)
def test_regression(names: tuple[str, str], sim_dir: Path) -> None:
    """All distributions, FP32 accumulation."""
    play(simulator(instance(names, lanes=4), sim_dir))


@pytest.mark.slow
@pytest.mark.parametrize("names", PAIRS, ids="-x-".join)
def test_exact_accumulation(names: tuple[str, str], sim_dir: Path) -> None:
    play(simulator(instance(names, lanes=4, chains=1, window=window(WINDOW)), sim_dir))


@pytest.mark.slow
@pytest.mark.parametrize("config", ["mxfp6-fp32", "mxfp8-mxfp4-fp32", "mxfp8-fp32"])
def test_a_million_groups(config: str, sim_dir: Path) -> None:
    built = simulator(UNIT.instance(config), sim_dir)
    groups = 0
    for seed in range(26):
        for case in find_bench(UNIT).regression(built.facts, seed=seed):
            check_case(built, case)
            groups += sum(len(vectors.inputs["i"]) for vectors in case.phases)
    assert groups >= 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("names", [("mxfp8-e4m3", "mxfp8-e5m2"), ("mxfp6-e2m3", "mxint8")])
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


def _reference_group(packed: np.ndarray, block: object) -> reference.Group:
    """Read a packed group: 6-bit codes are four in three bytes, the first in the lowest bits."""
    number_ = int.from_bytes(packed[:-1].tobytes(), "little")
    bits = block.element.bits
    codes = tuple(number_ >> bits * n & ((1 << bits) - 1) for n in range(block.group))
    return reference.Group(codes, (int(packed[-1]),), ())


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


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_regression_notices(fault: Mutation, sim_dir: Path, tmp_path: Path) -> None:
    mutant = emit_mutant(fault, UNIT.name, "mxfp8-fp32", tmp_path)
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
