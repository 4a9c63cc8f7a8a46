"""Testbench of the Hadamard unit with the quantizer: blocks and signs in, packed groups out."""

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np

from m2xfp.facts import Facts
from m2xfp.formats import BF16, BlockFormat, FloatElement, block_format
from m2xfp.golden.units.activation_quantizer import activation_quantizer
from m2xfp.golden.units.hadamard import hadamard
from m2xfp.tb.arguments import Argument
from m2xfp.tb.bench import Arrays, golden_of
from m2xfp.tb.cross import Cross
from m2xfp.tb.parts.block_cover import block_operands, cover_blocks, cover_sums
from m2xfp.tb.parts.blocks import encode, load, regression_of, sample, vectors_of
from m2xfp.tb.parts.groups import group_beats, planes_of_beats, user_planes
from m2xfp.tb.parts.value_cover import cover_groups, half_rate
from m2xfp.tb.regression import Case
from m2xfp.tb.vectors import Beats, TestVectors

__all__ = [
    "argued",
    "cover",
    "decode",
    "encode",
    "expected",
    "load",
    "negligible",
    "places",
    "regression",
    "sample",
    "unreached",
    "vectors",
]


def _block(facts: Facts) -> BlockFormat:
    return block_format(facts.parameters["block"])


def decode(beats: Mapping[str, Beats], arrays: Arrays, facts: Facts) -> Arrays:
    """Return the planes of the packed groups: ``codes``, ``scales`` and, if any, ``meta``."""
    return planes_of_beats(facts.stream("o"), beats["o"].data, _block(facts))


def expected(arrays: Arrays, facts: Facts) -> Arrays:
    """Return the golden model's planes."""
    return user_planes(golden_of(facts)(arrays["x"], arrays["flips"]), _block(facts))


def vectors(arrays: Arrays, facts: Facts, seed: int = 0) -> TestVectors:
    """Return beats and packed groups, a piece a block."""
    results = group_beats(facts.stream("o"), expected(arrays, facts), _block(facts))
    return vectors_of(results, arrays, facts, seed)


def regression(facts: Facts, seed: int = 0) -> Iterator[Case]:
    """Yield blocks of all distributions, and what is hard for the rounding."""
    return regression_of(vectors, facts, seed)


def cover(vectors: TestVectors, facts: Facts) -> Iterator[Cross]:
    """Yield what the values and sums of some blocks were, and the groups that these became."""
    block = _block(facts)
    x, flips = block_operands(vectors, facts)
    y = hadamard(x.astype(np.uint16), flips.astype(bool), bits=facts.parameters["bits"])["y"]
    planes = planes_of_beats(facts.stream("o"), vectors.outputs["o"].data, block)
    given = {name: facts.parameters[name] for name in ("block", "scale_rule", "zero_scale")}
    quantize = partial(activation_quantizer, input_type=BF16.name, **given)
    yield from cover_blocks(vectors, facts)
    yield from cover_sums(vectors, facts, y.astype(np.int64))
    groups = y.reshape(-1, block.group).astype(np.int64)
    yield from cover_groups(groups, planes, block, BF16, quantize)


def unreached(facts: Facts) -> dict[str, str]:
    """Return what follows from how blocks go through the unit."""
    if facts.beats_per_group == 1:
        return {}
    # Registers wake up with such a peak now and then, so the way back is seen.
    below = r"unit[.]quantizer[.]u_scale[.]t1\[[89]\]:0->1"
    why = "the largest exponent of a group begins at 2, so that no scale is below 0"
    return half_rate(facts) | {below: why}


def negligible(facts: Facts) -> list[int] | None:
    """Return for each lane how many binades below the block's largest a result makes no difference.

    A block's largest result is at least its largest value times the transform's own scale: each
    value is the mean of all results, with signs and that scale. A group of as many results has it,
    and a result up to half of the least value beside it becomes zero whatever it is, but for its
    sign. That of a top element is by the metadata's bits finer; of codes of zero it is the first.

    None if blocks are of several groups, of which some may have small results only, if each sign
    has a scale of its own, or if another rule puts the scale elsewhere.
    """
    block, lanes = _block(facts), facts.parameters["lanes"]
    element = block.element
    if facts.parameters["points"] != block.group or not isinstance(element, FloatElement):
        return None
    if block.scaling == "split" or facts.parameters["scale_rule"] != "floor":
        return None
    least = element.emax + element.bias + element.mantissa_bits
    part = block.metadata.subgroup if block.metadata.bits else 0
    return [least + (2 if part and lane % part == 0 else 0) for lane in range(lanes)]


def argued(facts: Facts) -> list[Argument]:
    """Return what is argued of results that become zero or are not finite, and of impossible ones.

    The latter have bits below the last place of the block's fixed point, see ``places``, or an
    exponent above the group's largest. One that is not finite makes all its group NaN.
    """
    binades = negligible(facts)
    if binades is None:
        return []
    points, emax = facts.parameters["points"], _block(facts).element.emax
    found = []
    for lane, below in enumerate(binades):
        # Below the largest exponent field of the block's values.
        apart = below + (points.bit_length() // 2)
        small = f"""
  // The largest bfloat16 pattern that becomes zero, half of the least value that there is. Blocks
  // of subnormals have no such largest result.
  wire signed [9:0] field = $signed({{2'b00, largest}}) - {apart};
  wire [15:0] limit = field >= 1 ? field << 7 : field >= -6 & largest > 1 ? 1 << (field + 6) : 0;
  assign alike = (right[15] == wrong[15] & right[14:0] <= limit & wrong[14:0] <= limit)
    | (&right[14:7] & &wrong[14:7]);
"""
        why = "a result so small beside the block's largest that its code is zero, or not finite"
        reads = {"largest": "transformed_1_largest"}
        found.append(Argument(r"unit[.]hadamard", (f"round_{lane}.acc",), small, why, reads))
        none = f"""
  wire [7:0] low = value[14:7] == 0 ? 1 : value[14:7];
  wire signed [9:0] zeros = $signed({{2'b00, origin}}) - $signed({{2'b00, low}}) - {places(facts)};
  wire [7:0] significand = {{value[14:7] != 0, value[6:0]}};
  wire lost = zeros >= 8 ? significand != 0 : (significand & ((1 << zeros) - 1)) != 0;
  assign alike = $bits(value) == 16
    & (value[14:7] > origin | (origin > {emax} & zeros > 0 & lost));
"""
        why = "the code of a result beyond the largest or with bits below the block's last place"
        reads = {"value": f"lane_{lane}.value", "origin": f"lane_{lane}.origin"}
        word = (f"lane_{lane}.magnitude",)
        found.append(Argument(r"unit[.]quantizer", word, none, why, reads))
    return found


def places(facts: Facts) -> int:
    """Return how far a result's exponent may be below the largest with all bits of its significand.

    Of one that is farther below as many bits are zeros: a result is a number of last places of the
    block, and the largest one is at most so many values of all ones, which is exact.
    """
    points, bits = facts.parameters["points"], facts.parameters["bits"]
    return int(points).bit_length() - 1 + int(bits) - BF16.mantissa_bits - 1
