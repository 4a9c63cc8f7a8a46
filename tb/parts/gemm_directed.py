"""Directed cases of the GEMM core: sums that are hard to round, and sizes that count far."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from m2xfp.formats import input_type
from m2xfp.rtl.parts.gemm_cycles import SIZE_BITS
from m2xfp.tb.fields import Bytes, pack
from m2xfp.tb.parts.element_codes import largest_code, negated, packed_codes
from m2xfp.tb.parts.gemm_arrays import GemmStreams, Product, golden_product
from m2xfp.tb.parts.pair_stimulus import DISTRIBUTIONS, groups
from m2xfp.tb.vectors import Beats, TestVectors

__all__ = ["bad_sizes", "every_scale", "far_sizes", "hard_sums", "large_products"]

# Rows of a product of hard sums: each distance of ``cancellations`` some times.
ROWS = 6 * 97
# Each second bit of a counter, and the others when it has counted down.
LARGE = 0b1010101010101
# Sizes from here on only begin.
FIRST_FAR = 4
# Values of a part of a group whose sum has a multiplier of its own.
PART = 8


def hard_sums(streams: GemmStreams, seed: int) -> Iterator[tuple[str, Product]]:
    """Yield a product for each distribution of pairs, a dot product a row.

    The pair's groups are in the activations, signs of both sides included; weights are ones, and
    minus ones in every other column, with any metadata. What is far from 1 in both scales is in
    the weights' one.
    """
    most = int(streams.facts.parameters["max_k"]) // streams.act.group
    steps = min(12, most // 3 * 3 or most)
    for name in DISTRIBUTIONS:
        act, weight, _ = groups(name, (streams.act, streams.weight), steps, ROWS, seed)
        yield name, _with_ones(streams, act, weight)
    for name in ("extremes", "dense"):
        act, weight, _ = groups(name, (streams.act, streams.weight), steps, ROWS // 4, seed)
        yield f"{name} of both", _with_both(streams, act, weight[:, : streams.columns])
    yield "all but a part", _with_both(streams, *_but_a_part(streams, steps, seed))


def every_scale(streams: GemmStreams, seed: int) -> Product:
    """Return two rows, the second of them NaN, times weights of each scale there is."""
    rng = np.random.default_rng(seed)
    kind, weight, act = streams.facts.parameters["activations"], streams.weight, streams.act
    weights = rng.integers(0, 256, (256, 1, sum(weight.group_bytes)), np.uint8)
    weights[:, 0, weight.group_bytes[0]] = np.arange(256)
    if kind is not None:
        of = input_type(kind)
        values = rng.integers(0, 2, (2, act.group)) << of.width - 1
        values |= np.array([[of.bias << of.mantissa_bits], [(1 << of.width - 1) - 1]])
        return Product(values.astype(f"uint{of.width}"), weights, act.group)
    acts = rng.integers(0, 256, (2, 1, sum(act.group_bytes)), np.uint8)
    grid = act.scale.grid
    one = act.scale.bias << (grid.mantissa_bits if grid else 0)
    acts[:, 0, act.group_bytes[0]] = one, act.scale.nan
    return Product(acts, weights, act.group)


def _but_a_part(
    streams: GemmStreams, steps: int, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return pairs of largest values, but for a part of one small element: long odd sums."""
    rng = np.random.default_rng(seed)
    begin = PART * rng.integers(0, streams.act.group // PART, steps)
    made = []
    for block, count in ((streams.act, ROWS // 4), (streams.weight, streams.columns)):
        codes = np.full((steps, count, block.group), largest_code(block))
        inside = np.arange(block.group) // PART == begin[:, None, None] // PART
        codes = np.where(inside, 0, codes)
        small = rng.integers(1, 4, (steps, count))
        codes[np.arange(steps), :, begin] = np.where(
            rng.random((steps, count)) < 0.5, small, negated(small, block)
        )
        side = rng.integers(0, 256, (steps, count, sum(block.group_bytes)), np.uint8)
        at = block.group_bytes[0]
        side[..., :at] = packed_codes(codes, block)
        # Largest multipliers, and any refinement of the small one.
        side[..., at + 1 :] |= np.where(rng.random((steps, count, 1)) < 0.5, 0xFF, 0).astype(
            np.uint8
        )
        made.append(side)
    return made[0], made[1]


def _with_ones(streams: GemmStreams, act: NDArray[np.uint8], weight: NDArray[np.uint8]) -> Product:
    """Return a product of pairs [steps, rows, bytes]."""
    at, codes = streams.act.group_bytes[0], streams.weight.group_bytes[0]
    ones = np.zeros((streams.columns, len(act), weight.shape[2]), np.uint8)
    ones[0::2, :, :codes] = 0x22  # E2M1
    ones[1::2, :, :codes] = 0xAA
    act[..., :at] ^= weight[..., :codes] & 0x88
    if streams.act.scale.name == "e8m0":
        total = act[..., at].astype(np.int64) + weight[..., codes]
        lost = (act[..., at] == 255) | (weight[..., codes] == 255)
        shared = int(np.clip(np.median(total) - 127, 0, 254))
        act[..., at] = np.where(lost, 255, np.clip(total - shared, 0, 254))
    else:
        shared = 0x38  # 1.0 in E4M3
    ones[..., codes] = shared
    # Any multipliers, the same in all steps, so that what is added can be taken back.
    ones[..., codes + 1 :] = weight[0, 0, codes + 1 :]
    return Product(np.ascontiguousarray(act.swapaxes(0, 1)), ones, len(act) * streams.act.group)


def _with_both(streams: GemmStreams, act: NDArray[np.uint8], weight: NDArray[np.uint8]) -> Product:
    """Return a product of all rows and columns of two sides, scales near one."""
    for side, block in ((act, streams.act), (weight, streams.weight)):
        if block.scale.name == "e8m0":
            at = block.group_bytes[0]
            side[..., at] = block.scale.bias + side[..., at] % 4
    acts, weights = (np.ascontiguousarray(side.swapaxes(0, 1)) for side in (act, weight))
    return Product(acts, weights, len(act) * streams.act.group)


def large_products(rng: np.random.Generator, streams: GemmStreams) -> Iterator[tuple[int, int]]:
    """Yield m and n that count through each bit of the lower thirteen, with one group of k."""
    small = int(rng.integers(1, 4))
    yield LARGE * streams.rows, streams.columns + 1
    yield small, LARGE * streams.columns
    yield LARGE >> 6, (LARGE >> 7) * streams.columns


def bad_sizes(streams: GemmStreams) -> list[tuple[tuple[int, int, int], list[str]]]:
    """Return sizes that are refused, and their faults: zeros, and each bit of k that is wrong."""
    group, most = streams.act.group, int(streams.facts.parameters["max_k"])
    alone = [1 << bit for bit in range(SIZE_BITS)]
    wrong = [0, group + 1, *(k for k in alone if k % group or k > most)]
    wrong += [most + group, *(most | k for k in alone if k > most)]
    return [
        *(((0, 3, group), ["bad_m"]) for _ in range(2)),  # in both places of the FIFO
        ((3, 0, group), ["bad_n"]),
        ((0, 0, group // 2), ["bad_m", "bad_n", "bad_k"]),
        *(((3, 3, k), ["bad_k"]) for k in wrong),
    ]


def far_sizes(streams: GemmStreams, first: Product) -> Iterator[TestVectors]:
    """Yield commands of each power of two rows and columns more than one step, cut short by TLAST.

    What comes after the first tile has TLAST, so the core reports it misframed: one that has lost
    the size's upper bit would have ended with the first one. ``first`` is a tile's product: all
    rows and columns of the array, and some groups.
    """
    rows, columns, k, group = streams.rows, streams.columns, first.k, streams.act.group
    # Of one group, so that the first tile ends with the first beat, whatever the chains.
    one = Product(
        first.acts[:, : group if first.acts.ndim == 2 else 1], first.weights[:, :1], group
    )
    for bit in range(FIRST_FAR, SIZE_BITS):
        more = 1 << bit
        if more > rows:
            cut = Product(np.concatenate([one.acts, one.acts]), one.weights, group)
            yield _cut_short(streams, one, cut, (rows + more, columns, group))
        if more > 1:
            weights = np.concatenate([first.weights, first.weights[:1]])
            cut = Product(first.acts, weights, k)
            yield _cut_short(streams, first, cut, (rows, columns + more, k))


def _cut_short(
    streams: GemmStreams, first: Product, given: Product, sizes: tuple[int, int, int]
) -> TestVectors:
    """Return a command of some sizes with the operands of a smaller one."""
    facts = streams.facts
    inputs = streams.inputs([given])
    zero = Product(first.acts[:1] * 0, first.weights[:1] * 0, first.k)
    result, closing = (
        streams.outputs([golden_product(product, facts)])["o"] for product in (first, zero)
    )
    last = np.arange(len(result) + 1) == len(result)
    status = facts.stream("status")
    report: Bytes = pack(status, {status.field("misframed"): np.ones(1, bool)})
    acts = inputs["acts"]
    if len(given.weights) > streams.columns:
        # Those of the first panel, none of which is the last: the next one is not wanted any more.
        count = first.k // streams.act.group
        acts = Beats(acts.data[:count], np.zeros(count, bool))
    return TestVectors(
        {**inputs, "acts": acts, "cmd": Beats(streams.command_beats([sizes]))},
        {
            "o": Beats(np.concatenate([result.data, closing.data]), last),
            "status": Beats(report, np.ones(1, bool)),
        },
        1,
    )
