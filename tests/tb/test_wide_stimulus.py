"""Distributions of products longer than a sum are what their names say."""

import numpy as np
import pytest
from numpy.typing import NDArray

from m2xfp.formats import M2XFP_ACT, M2XFP_WEIGHT, BlockFormat, block_format
from m2xfp.rtl.catalog import find_unit
from m2xfp.tb.bench import find_bench
from m2xfp.tb.parts.element_codes import unpacked_codes
from m2xfp.tb.parts.pair_cover import cover_operands
from m2xfp.tb.parts.pair_stimulus import Formats
from m2xfp.tb.parts.wide_stimulus import WIDE, is_wide, wide_groups

E4M3, E3M2, E2M1 = (block_format(name) for name in ("mxfp8-e4m3", "mxfp6-e3m2", "mxfp4"))


def _integers(plane: NDArray[np.uint8], block: BlockFormat) -> NDArray[np.int64]:
    """Return elements in units of the smallest."""
    codes = unpacked_codes(plane, block)
    sign = 1 << block.element.bits - 1
    unit = block.element.magnitude(1)
    sizes = [int(block.element.magnitude(n) / unit) for n in range(block.element.max_code + 1)]
    return np.array(sizes)[codes % sign] * np.where(codes >= sign, -1, 1)


def _products(name: str, blocks: Formats) -> NDArray[np.int64]:
    """Return the groups' products without scales, in units of the smallest, [steps, n]."""
    sides = wide_groups(name, blocks, 6, 400, seed=0)[:2]
    values = [
        _integers(side[..., : block.group_bytes[0]], block)
        for side, block in zip(sides, blocks, strict=True)
    ]
    return (values[0] * values[1]).sum(-1)


def test_products_have_all_bits_and_cancel() -> None:
    found = _products("long_products", (E4M3, E2M1))
    lengths = [int(abs(value)).bit_length() for value in found.ravel()]
    assert max(lengths) == 27
    assert ((found[:1] + found[1:2]) == 0).mean() > 0.4
    assert (np.abs(found) % 2 == 1).any()


@pytest.mark.parametrize("blocks", [(E4M3, E2M1), (E4M3, E4M3), (E3M2, E4M3)])
def test_middles_are_middles(blocks: Formats) -> None:
    """Each is half a last place of FP32 from the sums beside it."""
    middle = np.abs(_products("lone", blocks)[1::2]).ravel()
    place = np.array([1 << int(value).bit_length() - 24 for value in middle])
    assert (middle % place * 2 == place).all()
    assert len(np.unique(middle // place % 2)) == 2  # beside even sums and odd ones


def test_what_is_left_is_of_every_place() -> None:
    found = _products("tails", (E4M3, E4M3))
    assert (found[::2] + found[1::2] == 0).all()
    rest = found[::2] - found[::2].astype(np.float32).astype(np.int64)
    assert {int(abs(value)).bit_length() for value in rest.ravel()} >= {*range(1, 12)}


@pytest.mark.parametrize("blocks", [(E4M3, M2XFP_WEIGHT), (M2XFP_ACT, E4M3)])
def test_metadata_is_any_and_is_taken_back(blocks: Formats) -> None:
    """Each value in each subgroup; what a group adds the next one takes back with the same."""
    side = next(n for n, block in enumerate(blocks) if block.subgroups)
    for name in ("long_products", "tails"):
        meta = wide_groups(name, blocks, 6, 400, seed=0)[side][..., -1]
        for subgroup in range(4):
            assert set((meta >> 2 * subgroup & 3).ravel()) == set(range(4)), (name, subgroup)
    assert (meta[::2] == meta[1::2]).all()


@pytest.mark.parametrize("names", [("mxfp8-e4m3", "m2xfp-weight"), ("m2xfp-act", "mxfp8-e4m3")])
def test_regression_covers_metadata(names: tuple[str, str]) -> None:
    """Each value in each subgroup, in the first distribution alone already."""
    act, weight = (block_format(name) for name in names)
    facts = find_unit("dot_product").instance(None, {"act": act, "weight": weight}).facts
    case = next(iter(find_bench(find_unit("dot_product")).regression(facts)))
    crosses = {each.name: each for each in cover_operands(case.phases[-1], facts, "operands.")}
    found = crosses["weight metadata" if weight.subgroups else "act metadata"]
    assert found.counts.shape == (4, 4)
    assert (found.counts > 0).all()


def test_short_products_have_the_other_distributions() -> None:
    assert not is_wide((E2M1, E2M1))
    for name in WIDE:
        assert (wide_groups(name, (E2M1, E2M1), 3, 4, 0)[2].sum(axis=0) == 1).all()
