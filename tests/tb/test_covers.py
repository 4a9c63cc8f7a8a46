"""What coverage counts of numbers: it is read back rightly, and directed cases count."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import islice

import numpy as np
import pytest

from m2xfp.facts import Facts
from m2xfp.formats import block_format
from m2xfp.golden.units.group_dot import group_dot
from m2xfp.rtl.catalog import find_unit
from m2xfp.rtl.parameters import parse_settings
from m2xfp.rtl.parts.descriptor_checker import GEMM
from m2xfp.tb.bench import Cover, find_bench
from m2xfp.tb.cross import Cross, merged
from m2xfp.tb.parts import gemm_operands, mixed_operands, mixed_regression
from m2xfp.tb.parts.accelerator_faults import responses
from m2xfp.tb.parts.accelerator_numbers import wrong_words
from m2xfp.tb.parts.accelerator_read import done, joined
from m2xfp.tb.parts.accelerator_refused import refused
from m2xfp.tb.parts.accelerator_regression import hard_values, mixtures
from m2xfp.tb.parts.accelerator_tasks import task_results
from m2xfp.tb.parts.accelerator_traffic import Descriptor
from m2xfp.tb.parts.channel_cover import faults_of
from m2xfp.tb.parts.channel_tables import table_of
from m2xfp.tb.parts.class_cover import SCALES, scale_kinds
from m2xfp.tb.parts.gemm_arrays import GemmStreams
from m2xfp.tb.parts.gemm_regression import random_products
from m2xfp.tb.parts.mixed_arrays import MixedStreams
from m2xfp.tb.parts.sum_cover import ROUNDED, exact_sum, rounding_of
from m2xfp.tb.regression import Case


def facts_of(name: str, config: str, *settings: str) -> Facts:
    unit = find_unit(name)
    return unit.instance(config, parse_settings(unit.component, settings)).facts


ASYMMETRIC = ("asymmetric_dot_product", "e5m2-half")
GEMM_CORE = ("gemm_core", "m2xfp-2x2", "max_k=64")
MIXED = ("mixed_gemm", "micromix-2x2", "rows=1", "columns=1", "max_k=128", "chains=2", "tile=32")
PERMUTER = ("channel_permuter", "bf16x8", "lanes=2", "max_k=8")
ACCELERATOR = (
    *("accelerator", "m2xfp-2x2", "rows=2", "columns=1", "max_k=160", "chunk=2", "slots=2"),
    *("outstanding=4", "queue=2", "quantizer=bf16", "encoder=none"),
)


def crosses(facts: Facts, cases: Iterable[Case]) -> dict[str, Cross]:
    """Return what some cases cover, streams aside."""
    said = Cover(find_unit(facts.unit))

    def found() -> Iterator[Cross]:
        for case in cases:
            yield from said.cover_case(case.phases, facts)
            for vectors in case.phases:
                yield from said.cover(vectors, facts)

    return merged(found())


def named(facts: Facts, *names: str) -> list[Case]:
    """Return the first case of each of some names."""
    every: dict[str, Case] = {}
    for case in find_bench(find_unit(facts.unit)).regression(facts):
        every.setdefault(case.name, case)
        if all(name in every for name in names):
            break
    return [every[name] for name in names]


# --- roundings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropped", [0, 16])
def test_rounding(dropped: int) -> None:
    """Against fractions: sums of numbers far from and near each other, ties and subnormals too."""
    rng = np.random.default_rng(dropped)
    count = 4000
    place = rng.integers(-150, 70, count)
    one = np.ldexp(rng.integers(0, 1 << 24, count).astype(float), place)
    apart = rng.integers(-30, 30, count)
    other = np.ldexp(rng.choice([1, 1, 3, 255, (1 << 24) - 1], count).astype(float), place + apart)
    other *= rng.choice([-1, 1], count)
    # Halves of last places: ties of both ways.
    ties = np.arange(0, count, 4)
    whole = rng.integers(1 << 23 - dropped, 1 << 24 - dropped, len(ties))
    one[ties] = np.ldexp(whole.astype(float), place[ties])
    other[ties] = np.ldexp(0.5, place[ties])
    other[::8] = 0.0
    high, low = exact_sum(one, other)
    # Rounded by hand, to even, from fractions; of any way now and then.
    result, wanted = np.zeros(count), np.zeros(count, int)
    for at in range(count):
        exact = Fraction(one[at]) + Fraction(other[at])
        size = abs(exact)
        # Denominators are powers of two.
        length = size.numerator.bit_length() - size.denominator.bit_length() + 1
        unit = Fraction(2) ** (max(length - 24, -149) + dropped)
        below, rest = divmod(size, unit)
        up = rest * 2 > unit or (rest * 2 == unit and below % 2 == 1)
        case = (0 if not rest else 2 if rest * 2 == unit else 1) if not up else 4
        wanted[at] = 3 if up and rest * 2 == unit else case
        result[at] = float((below + up) * unit) * (-1 if exact < 0 else 1)
    assert np.array_equal(rounding_of(high, low, result, dropped), wanted)
    assert set(wanted.tolist()) == set(range(len(ROUNDED)))
    # A neighbour is no rounding of it.
    beside = np.nextafter(np.abs(result).astype(np.float32), np.float32(np.inf)).astype(float)
    beside = np.ldexp(np.ceil(np.ldexp(beside, 149 - dropped)), dropped - 149) * 2
    assert (rounding_of(high, low, np.copysign(beside, high), dropped)[result != 0] == -1).all()


# --- reading back ---------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [(), ("rows=3", "chains=2"), ("weight_rows=2",)])
def test_products_of_beats(settings: tuple[str, ...]) -> None:
    """What is read back is what was given, refused and broken commands aside."""
    facts = facts_of(*GEMM_CORE, *settings)
    streams = GemmStreams(facts)
    for case in named(facts, "products", "bad sizes", "acts tag"):
        vectors = case.phases[0]
        products = list(gemm_operands.given_products(vectors, facts))
        assert case.name == "acts tag" or len(products) >= 5
        results = [streams.golden(product) for product in products]
        wanted = vectors.outputs["o"].data
        found = streams.outputs(results)["o"].data if results else wanted[:0]
        assert np.array_equal(found, wanted[: len(found)])
        assert case.name == "acts tag" or len(found) == len(wanted)


def test_quantized_products_of_beats() -> None:
    """Values are quantized as the core does."""
    facts = facts_of("gemm_core", "m2xfp-bf16-2x2", "max_k=64")
    packed = facts_of("gemm_core", "m2xfp-2x2", "max_k=64", "results=bf16")
    streams, core = GemmStreams(facts), GemmStreams(packed)
    given = random_products(np.random.default_rng(0), streams, 4, 2)
    [case] = named(facts, "products")
    products = list(gemm_operands.given_products(case.phases[0], facts))
    assert len(products) > len(given)
    out = core.outputs([core.golden(product) for product in products])["o"]
    assert np.array_equal(out.data, case.phases[0].outputs["o"].data)


@pytest.mark.parametrize("config", [MIXED, ("mixed_gemm", "m2xfp-1x2")])
def test_segments_of_beats(config: tuple[str, ...]) -> None:
    facts = facts_of(*config)
    streams = MixedStreams(facts)
    [case] = named(facts, "products")
    some = mixed_regression.random_products(np.random.default_rng(0), streams, 6, 2)
    for vectors in (case.phases[0], mixed_regression.refused(streams, some)):
        products = list(mixed_operands.given_products(vectors, facts))
        assert len(products) >= 5
        out = streams.outputs([streams.golden(product) for product in products])["o"]
        assert np.array_equal(out.data, vectors.outputs["o"].data)


def test_tasks_of_buses() -> None:
    """Operands and results that are read back belong together, and none is left out."""
    facts = facts_of(*ACCELERATOR)
    for case in islice(mixtures(facts, 0), 2):
        found = list(done(joined(case.phases), facts))
        assert len(found) == 8
        for at, task, results in found:
            assert at["operation"] != GEMM or task.product is not None
            assert np.array_equal(results, task_results(task, facts))


@pytest.mark.parametrize(
    "name", ["mxfp4:scale_mode=e5m2", "mxfp4:scale_mode=e4m3", "nvfp4", "mxfp4"]
)
def test_scale_kinds(name: str) -> None:
    """NaN is what the golden model has as such, infinities among them."""
    block = block_format(name)
    groups = np.zeros((256, sum(block.group_bytes)), np.uint8)
    groups[:, block.group_bytes[0]] = np.arange(256)
    one = block.scale.bias << (block.scale.grid.mantissa_bits if block.scale.grid else 0)
    other = np.full_like(groups, 0)
    other[:, block.group_bytes[0]] = one
    kinds = scale_kinds(block)
    assert np.array_equal(kinds > 2, group_dot(groups, other, act=name, weight=name)["nan"])
    assert {SCALES[kind] for kind in kinds} >= {"normal", "NaN"}


def test_faults_of_tables() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert not faults_of(table_of(rng.permutation(8), 2), 4)
    table = table_of(rng.permutation(8), 2)
    assert faults_of(table, 3) == [("long", 0)]
    for name in ("to", "source"):
        wrong = {each: array.copy() for each, array in table.items()}
        wrong[name][2] = 1
        assert faults_of(wrong, 4) == [(name, 0)]
    wrong = {each: array.copy() for each, array in table.items()}
    wrong["address"][:, 1] = [0, 1, 2, 2]
    assert faults_of(wrong, 4) == [("address", 1)]
    wrong["address"][:, 1] = [0, 1, 2, 4]
    assert faults_of(wrong, 4) == [("beyond", 1)]


# --- directed cases count -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "others", "directed", "name"),
    [
        (ASYMMETRIC, ["near", "nans"], "every scale", "act scale"),
        (ASYMMETRIC, ["near", "nans"], "every scale", "weight scale"),
        (ASYMMETRIC, ["gaps"], "distances", "binades from addend to sum"),
        (GEMM_CORE, ["products"], "every scale", "weight scale"),
        (GEMM_CORE, ["products"], "every scale", "NaN scale"),
        (MIXED, ["products"], "sums of segments", "rounding of a segment"),
        (PERMUTER, ["rows", "refused"], "each place", "channel at each place"),
    ],
)
def test_directed_case(
    config: tuple[str, ...], others: list[str], directed: str, name: str
) -> None:
    """Without it there are holes, and it fills them all."""
    facts = facts_of(*config)
    cases = named(facts, *others, directed)
    poor, more = crosses(facts, cases[:-1])[name], crosses(facts, cases)[name]
    assert poor.holes
    assert not more.holes
    assert not more.surprises


def test_wrong_tables_and_rows() -> None:
    """All of them come with the cases that are refused, and none without."""
    facts = facts_of(*PERMUTER)
    every = list(find_bench(find_unit(facts.unit)).regression(facts))
    whole = crosses(facts, every)
    assert not [hole for each in whole.values() for hole in each.holes]
    assert not [what for each in whole.values() for what in each.surprises]
    good = crosses(facts, [case for case in every if case.name in ("one table", "rows")])
    assert good["what is wrong with a table"].covered == 0
    assert good["length of a row"].covered == 1


@pytest.mark.parametrize("config", [ASYMMETRIC, GEMM_CORE, MIXED])
def test_a_poor_regression_has_holes(config: tuple[str, ...]) -> None:
    """A case or two reach some of each, and not all of sums."""
    facts = facts_of(*config)
    first = next(iter(find_bench(find_unit(facts.unit)).regression(facts)))
    found = crosses(facts, [first])
    for name in ("result", "binades from addend to sum"):
        assert 0 < found[name].covered < found[name].bins


def test_errors_of_planes() -> None:
    """Each plane's comes with the case of its bus alone."""
    facts = facts_of(*ACCELERATOR)
    reads, writes = responses(facts, 0)
    name = "error of a plane"
    missing = crosses(facts, [reads])[name].holes
    assert {hole.split(": ")[1].split(", ")[0] for hole in missing} == {
        *("gemm out", "quantize out", "quantize out_scales", "quantize out_meta")
    }
    assert not crosses(facts, [reads, writes])[name].holes
    causes = "cause of an operation's error"
    assert any("zero" in hole for hole in crosses(facts, [reads, writes])[causes].holes)
    [wrong] = refused(facts, 0)
    found = crosses(facts, [wrong])
    assert not found["word that is wrong"].holes
    assert all("read" in h or "write" in h or "timeout" in h for h in found[causes].holes)


def test_wrong_words() -> None:
    facts = facts_of(*ACCELERATOR)
    words = {"operation": GEMM, "kind": 0, "m": 1, "n": 1, "k": 32}
    assert not wrong_words(Descriptor(words), facts)
    for changes, found in (
        ({"m": 0}, "zero: m"),
        ({"n": 1 << 20}, "large: n"),
        ({"k": 192}, "large: k"),
        ({"k": 33}, "multiple: k"),
        ({"w_codes_pitch": 8}, "misaligned: w_codes_pitch"),
        ({"out": 2}, "misaligned: out"),
        ({"a_meta": 1 << 63}, "address: a_meta"),
    ):
        assert wrong_words(Descriptor({**words, **changes}), facts) == [found]


def test_values_of_tasks() -> None:
    """Special values are not in each lane but by the case that has them there."""
    facts = facts_of(*ACCELERATOR)
    name = "quantize bf16: NaN of one bit in each lane"
    assert crosses(facts, islice(mixtures(facts, 0), 2))[name].holes
    assert not crosses(facts, islice(hard_values(facts, 0), 1))[name].holes
