"""The regression of the mixed GEMM: random tables, sums that are hard to round, and accidents."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Facts
from m2xfp.formats import BlockFormat
from m2xfp.pairs import FORMAT_NUMBERS
from m2xfp.rtl.parts.gemm_cycles import SIZE_BITS
from m2xfp.rtl.parts.mixed_layouts import END_BITS, SEGMENTS
from m2xfp.tb.fields import pack
from m2xfp.tb.parts import pair_stimulus
from m2xfp.tb.parts.element_codes import negated, packed_codes, unpacked_codes
from m2xfp.tb.parts.gemm_directed import large_products
from m2xfp.tb.parts.gemm_regression import (
    SHORT,
    Accident,
    accidents,
    broken,
    on_time,
    played,
    resync,
)
from m2xfp.tb.parts.mixed_arrays import GROUP, MixedProduct, MixedStreams, Part, Table
from m2xfp.tb.parts.wide_stimulus import WIDE, is_wide, wide_groups
from m2xfp.tb.regression import RESETS, STALLS, WARM, Case
from m2xfp.tb.vectors import Beats, TestVectors

__all__ = ["KINDS", "drawn", "most_tiles", "random_products", "regression"]

ROUNDS = 9
# Dot products of each pair of a case of sums that are hard to round.
HARD = 96
# As many are computed at once, each with each, which takes less time than one by one.
TOGETHER = 8
KINDS = ("near", "gaps", "random_bytes", "cancelling", "nans", "extremes", "tiny")

Pair = tuple[BlockFormat, BlockFormat]


def most_tiles(streams: MixedStreams) -> int:
    """Return how many tiles fit whatever their formats."""
    return streams.depth * streams.lanes // streams.tile


def _operands(
    kind: str, pair: Pair, m: int, n: int, groups: int, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return groups of a distribution of pairs: of row i and column i, the distribution's own."""
    name = "near" if kind == "tiny" else kind
    # Two at least: each second group of some kinds is made of the one before.
    act, weight, _ = pair_stimulus.groups(name, pair, max(2, groups), max(m, n), seed)
    act, weight = act[:groups], weight[:groups]
    if kind == "tiny":  # sums about the least of FP32, and zeros of both signs
        rng = np.random.default_rng(seed)
        for side, block in ((act, pair[0]), (weight, pair[1])):
            scales = rng.integers(40, 66, side.shape[:2])
            side[..., block.group_bytes[0]] = np.maximum(scales - block.element.emax, 0)
    acts, weights = act[:, :m].swapaxes(0, 1), weight[:, :n].swapaxes(0, 1)
    return np.ascontiguousarray(acts), np.ascontiguousarray(weights)


def drawn(
    rng: np.random.Generator,
    streams: MixedStreams,
    m: int,
    n: int,
    tiles: int,
    kind: str,
    segments: int | None = None,
) -> MixedProduct:
    """Return a product of some tiles, cut anywhere into segments of any pairs, or so many."""
    most = min(SEGMENTS, tiles)
    count = int(rng.integers(1, most + 1)) if segments is None else min(segments, most)
    cuts = np.sort(rng.choice(np.arange(1, tiles), count - 1, replace=False))
    sizes = np.diff([0, *cuts, tiles]) * streams.tile // GROUP
    parts = []
    for groups in sizes.tolist():
        pair = streams.pairs.pairs[rng.integers(len(streams.pairs.pairs))]
        acts, weights = _operands(kind, pair, m, n, groups, int(rng.integers(1 << 30)))
        parts.append(Part(*pair, acts, weights))
    return MixedProduct(tuple(parts))


def random_products(
    rng: np.random.Generator, streams: MixedStreams, count: int, most: int
) -> list[MixedProduct]:
    """Return products of sizes at every edge of blocks and panels, with at most ``most`` tiles."""
    block = streams.rows * streams.chains
    return [
        drawn(
            rng,
            streams,
            int(rng.integers(1, 3 * block + 1)),
            int(rng.integers(1, 3 * streams.columns + 1)),
            int(rng.integers(1, most + 1)),
            str(rng.choice(KINDS)),
        )
        for _ in range(count)
    ]


def taken_back(rng: np.random.Generator, streams: MixedStreams, kind: str) -> MixedProduct:
    """Return a product whose second segment is the first one's negative, with one group changed.

    What is left then is the rounding of the first one's result, and the change.
    """
    pair = streams.pairs.pairs[rng.integers(len(streams.pairs.pairs))]
    groups, size = streams.tile // GROUP, pair[1].group_bytes[0]
    m, n = 3 * streams.rows * streams.chains, 3 * streams.columns
    acts, weights = _operands(kind, pair, m, n, groups, int(rng.integers(1 << 30)))
    turned, other = weights.copy(), acts.copy()
    codes = unpacked_codes(turned[..., :size], pair[1])
    turned[..., :size] = packed_codes(negated(codes, pair[1]), pair[1])
    scale = pair[0].group_bytes[0]
    lower = other[:, -1, scale].astype(np.int64) - rng.integers(0, 3, m)
    other[:, -1, scale] = np.clip(lower, 0, 255)
    return MixedProduct((Part(*pair, acts, weights), Part(*pair, other, turned)))


def pairs_in_turn(streams: MixedStreams, seed: int) -> list[MixedProduct]:
    """Return products in which each pair follows each, and is in each segment."""
    rng, tile, made = np.random.default_rng(seed), streams.tile // GROUP, []
    for one, other in combinations_with_replacement(streams.pairs.pairs, 2):
        parts = []
        for pair in (one, other, one):
            operands = _operands("near", pair, 2, 1, tile, int(rng.integers(1 << 30)))
            parts.append(Part(*pair, *operands))
        made.append(MixedProduct(tuple(parts)))
    return made


def _wholes(
    streams: MixedStreams, pair: Pair, sides: Sequence[NDArray[np.uint8]], cuts: Sequence[int]
) -> Iterator[MixedProduct]:
    """Yield dot products [steps, n, bytes] of both sides as the diagonals of some products.

    ``cuts`` are the steps of each segment; groups of zeros fill the tiles.
    """
    tile = streams.tile // GROUP
    for begin in range(0, sides[0].shape[1], TOGETHER):
        parts, step = [], 0
        for steps in cuts:
            groups = []
            for side in sides:
                given = side[step : step + steps, begin : begin + TOGETHER].swapaxes(0, 1)
                made = np.zeros((len(given), -(-steps // tile) * tile, side.shape[2]), np.uint8)
                made[:, :steps] = given
                groups.append(made)
            parts.append(Part(*pair, *groups))
            step += steps
        yield MixedProduct(tuple(parts))


def _diagonal(streams: MixedStreams, wholes: Sequence[MixedProduct]) -> TestVectors:
    """Return a product a row and column of the array for what lies on the diagonals of others."""
    count, products, results = min(streams.rows, streams.columns), [], []
    for whole in wholes:
        golden = streams.golden(whole)
        for begin in range(0, len(golden), count):
            some = slice(begin, begin + count)
            parts = [replace(p, acts=p.acts[some], weights=p.weights[some]) for p in whole.parts]
            products.append(MixedProduct(tuple(parts)))
            results.append(golden[some, some])
    return TestVectors(streams.inputs(products), streams.outputs(results), 1)


def hard_sums(streams: MixedStreams, seed: int) -> Iterator[tuple[str, list[MixedProduct]]]:
    """Yield products of pairs whose sums are hard to round, dot products on their diagonals.

    Where the last group of a sum is large it is taken back, so that what the rounding has left is
    seen in few bits too.
    """
    rng = np.random.default_rng(seed)
    for name in ("cancelling", "cancellations", "ties", "borrows", "uppers", "huge", *WIDE):
        products: list[MixedProduct] = []
        for pair in streams.pairs.pairs:
            if name in WIDE:
                # Two, of which the second takes the first back, and three.
                for steps in (2, 3) if is_wide(pair) else ():
                    made = wide_groups(name, pair, steps, HARD, seed)
                    products += _wholes(streams, pair, made[:2], [steps])
                continue
            act, weight, _ = pair_stimulus.groups(name, pair, 3, HARD, seed)
            if name in ("ties", "borrows", "uppers"):
                act, weight = (np.concatenate([side, side[2:]]) for side in (act, weight))
                codes = pair[1].group_bytes[0]
                turned = negated(unpacked_codes(weight[3, :, :codes], pair[1]), pair[1])
                weight[3, :, :codes] = packed_codes(turned, pair[1])
            products += _wholes(streams, pair, (act, weight), [len(act)])
        yield name, products
    # A one, then about as much, or a last place more, and any smaller or larger one beside it. Or
    # a lone bit, subnormal or not, then what lies in the middle between two results. Or the largest
    # power of two and more of any length, which together are infinite.
    products = []
    for pair in streams.pairs.pairs:
        near = rng.choice([-9, -8, -7, -1, 0, 0, 0, 0, 1, 7, 8, 9], HARD)
        close = np.stack([0 * near, near, rng.integers(-34, 34, HARD)]) + rng.integers(
            -60, 60, HARD
        )
        bit, apart = rng.integers(-135, -110, HARD), rng.integers(12, 70, HARD)
        middle = np.stack([bit, bit + apart, bit + apart - rng.integers(7, 10, HARD)])
        most = np.full(HARD // 4, 127)
        beyond = np.stack([most, most, most - rng.integers(1, 8, len(most))])
        for exponents in (close, middle, beyond):
            made = pair_stimulus.ones(rng, pair, exponents)
            products += _wholes(streams, pair, made[:2], [1, 2])
    yield "sums of segments", products
    # A group of zeros with the largest scales changes nothing; a one in the middle between two sums
    # of the next, larger group, at every distance that this can have.
    products = []
    for pair in streams.pairs.pairs:
        small = rng.integers(-60, 60, HARD)
        zeros = pair_stimulus.ones(rng, pair, np.stack([small, small, small - 1]))[:2]
        for side, block in zip(zeros, pair, strict=True):
            size = block.group_bytes[0]
            side[1, :, :size], side[1, :, size] = 0, 254
        large = small + rng.integers(22, 27, HARD)
        between = pair_stimulus.ones(rng, pair, np.stack([small, large, large]))[:2]
        for sides in (zeros, between):
            products += _wholes(streams, pair, sides, [3])
        # Each lone subnormal bit, and far above it the middle between two results.
        bits = np.resize(np.arange(-134, -124), HARD)
        above = bits + rng.integers(34, 70, HARD)
        lone = pair_stimulus.ones(rng, pair, np.stack([bits, above, above - 8]))[:2]
        products += _wholes(streams, pair, lone, [1, 2])
    yield "zeros and middles", products


def bad_tables(streams: MixedStreams) -> list[tuple[tuple[int, int, int], Table, list[str]]]:
    """Return commands that are refused, and their faults."""
    act, weight = streams.pairs.narrow[0]
    pair = (FORMAT_NUMBERS[act.name], FORMAT_NUMBERS[weight.name])
    act, weight = streams.pairs.wide[0]
    wide = (FORMAT_NUMBERS[act.name], FORMAT_NUMBERS[weight.name])
    tile = streams.tile // GROUP
    k = 3 * streams.tile
    good = [(end * tile, *pair) for end in (1, 2, 3)]

    def table(*ends: int, one: tuple[int, int] = pair) -> Table:
        return [(end, *one) for end in ends]

    known = {tuple(FORMAT_NUMBERS[b.name] for b in each) for each in streams.pairs.pairs}
    unknown = [(a, w) for a in range(8) for w in range(8) if (a, w) not in known]
    found: list[tuple[tuple[int, int, int], Table, list[str]]] = [
        ((0, 3, k), good, ["bad_m"]),
        ((3, 0, k), good, ["bad_n"]),
        ((3, 3, 0), table(0, 0, 0), ["bad_k"]),
        ((3, 3, k + 1), good, ["bad_k"]),
        ((3, 3, k), table(2 * tile, tile, 3 * tile), ["bad_segments"]),
        ((3, 3, k), table(tile, 3 * tile, 2 * tile), ["bad_segments"]),
        ((3, 3, k), table(4 * tile, 3 * tile, 3 * tile), ["bad_segments"]),
        ((3, 3, k), table(tile, 2 * tile, 2 * tile), ["bad_segments"]),
        ((3, 3, k), table(tile, 2 * tile, 4 * tile), ["bad_segments"]),
        ((0, 0, 7), table(3, 2, 1, one=unknown[0]), ["bad_m", "bad_n", "bad_k"]),
    ]
    found[-1][2].extend(["bad_segments", "bad_pair"])
    for bit in range(GROUP.bit_length() - 1):
        found.append(((3, 3, k | 1 << bit), good, ["bad_k"]))
    for bit in range((tile - 1).bit_length()):
        found.append(((3, 3, k), table(tile + (1 << bit), 2 * tile, 3 * tile), ["bad_segments"]))
        found.append(((3, 3, k), table(tile, 2 * tile + (1 << bit), 3 * tile), ["bad_segments"]))
    # Each bit of an end that is wrong, and of a k that the last end is not the end of.
    for bit in range((tile - 1).bit_length(), END_BITS):
        last = 3 * tile ^ 1 << bit
        if last > 2 * tile:
            found.append(((3, 3, k), table(tile, 2 * tile, last), ["bad_segments"]))
        # A high bit of all ends, that k has not.
        if 1 << bit > 3 * tile:
            ends = [(1 << bit) + end * tile for end in (1, 2, 3)]
            found.append(((3, 3, k), table(*ends), ["bad_segments"]))
    # Each end before the one before it: lengths that wrap, and whose sum takes all its bits.
    ends = [(1 << END_BITS - 1) - (step << END_BITS - 4) for step in range(SEGMENTS)]
    found.append(((3, 3, k), table(*ends, one=wide), ["bad_segments"]))
    for place in range(SEGMENTS):
        for one in unknown:
            rows = list(good)
            rows[place] = (rows[place][0], *one)
            found.append(((3, 3, k), rows, ["bad_pair"]))
    # More beats than there is room for, by the least and by far, of every rate.
    for one, beats in ((pair, 1), (wide, GROUP // streams.lanes)):
        room = streams.depth // beats // tile * tile
        for more in (room + tile, *(1 << n for n in range(SIZE_BITS - 5) if 1 << n > room)):
            if more % tile == 0:
                found.append(((3, 3, more * GROUP), table(0, 0, more, one=one), ["bad_k"]))
                found.append(((3, 3, more * GROUP), table(more, more, more, one=one), ["bad_k"]))
    return found


def far_panels(streams: MixedStreams, product: MixedProduct) -> Iterator[TestVectors]:
    """Yield commands of each power of two columns beyond a panel, cut short by TLAST, and resyncs.

    It comes with the second panel's first beat, so that a core that has lost the size's upper bit
    would have ended before. ``product`` is of two panels.
    """
    m, _, k = product.sizes
    cut = broken(streams, [product], Accident("weights", 0, 1, "last"))
    for bit in range(SIZE_BITS):
        if 1 << bit > streams.columns:
            beats = streams.table_beats([((m, 1 << bit, k), product.table)])
            yield replace(cut, inputs={**cut.inputs, "cmd": Beats(beats)})
            yield resync(streams, bit)


def refused(streams: MixedStreams, products: Sequence[MixedProduct]) -> TestVectors:
    """Return commands that cannot be between each two that can, one of them resynchronising."""
    good, bad = played(streams, products), bad_tables(streams)
    commands: list[tuple[tuple[int, int, int], Table]] = []
    tags: list[int] = []
    faults: list[list[str]] = []
    share = -(-len(bad) // (len(products) - 1))
    for number, product in enumerate(products):
        commands.append((product.sizes, product.table))
        tags.append(number)
        faults.append([])
        for sizes, table, names in bad[number * share : (number + 1) * share]:
            commands.append((sizes, table))
            tags.append(7 - number)
            faults.append(names)
    status = streams.facts.stream("status")
    beats = np.concatenate([streams.resync_beat(5), streams.table_beats(commands, tags)])
    named = [field.name for field in status.fields if field.name.startswith("bad_")]
    values: dict[str, NDArray[Any]] = {
        name: np.array([False, *(name in one for one in faults)]) for name in named
    }
    values["tag"] = np.array([5, *tags]) % streams.tags
    words = pack(status, {status.field(name): word for name, word in values.items()})
    return TestVectors(
        {**good.inputs, "cmd": Beats(beats)},
        {**good.outputs, "status": Beats(words, np.ones(len(words), bool))},
        1,
    )


def taken_late(streams: MixedStreams, product: MixedProduct) -> tuple[TestVectors, ...]:
    """Return a command that comes at once behind one that resynchronises, and then its operands.

    Before them a product is broken, and so many commands are refused that with a slow reader all of
    that one's operands are dropped before they are through. So whether the last one is taken tells
    if it was looked at before all started anew.
    """
    failed = 24
    vectors = broken(streams, [product], Accident("acts", 0, 0, "tag"))
    (sizes, table, names), *_ = bad_tables(streams)
    tags = [number % streams.tags for number in range(1, failed + 1)]
    commands = [
        vectors.inputs["cmd"].data,
        streams.table_beats([(sizes, table)] * failed, tags),
        streams.resync_beat(3),
        streams.table_beats([(product.sizes, product.table)]),
    ]
    status = streams.facts.stream("status")
    there = np.arange(failed + 1) < failed
    words = dict.fromkeys((*names, "misframed"), there) | {"tag": np.array([*tags, 3])}
    more = pack(status, {status.field(name): word for name, word in words.items()})
    reports = np.concatenate([vectors.outputs["status"].data, more])
    inputs = streams.inputs([product])
    return (
        TestVectors(
            {**vectors.inputs, "cmd": Beats(np.concatenate(commands))},
            {**vectors.outputs, "status": Beats(reports, np.ones(len(reports), bool))},
            1,
        ),
        TestVectors(
            {**inputs, "cmd": inputs["cmd"].part(0, 0)},
            dict(streams.outputs([streams.golden(product)])),
            1,
        ),
    )


def regression(facts: Facts, seed: int = 0) -> Iterator[Case]:
    """Yield products, commands that are refused, and packets that are broken or lost."""
    streams, rng = MixedStreams(facts, noise=seed), np.random.default_rng(seed)
    most = most_tiles(streams)
    for number in range(ROUNDS):
        products = random_products(rng, streams, 5, most if number < 3 else min(4, most))
        stall = STALLS[number % len(STALLS)]
        timing = None if any(stall) else on_time(products, streams)
        yield Case(
            "products", (played(streams, products),), stall, seed + number, timing, WARM + number
        )
    m, n = 6 * streams.rows * streams.chains, 6 * streams.columns
    for number, kind in enumerate(KINDS):
        hard = [drawn(rng, streams, m, n, most, kind) for _ in range(2)]
        if most > 1:
            hard += [taken_back(rng, streams, kind) for _ in range(3)]
        yield Case(kind, (played(streams, hard),), STALLS[number % 2], seed + number)
    if most >= SEGMENTS:
        yield Case("pairs in turn", (played(streams, pairs_in_turn(streams, seed)),), STALLS[1])
    for number, (name, products) in enumerate(hard_sums(streams, seed)):
        if max(product.sizes[2] for product in products) <= most * streams.tile:
            yield Case(name, (_diagonal(streams, products),), STALLS[number % 2], seed + number)
    own = np.random.default_rng(seed)
    large = [
        drawn(own, streams, rows, columns, 1, "near")
        for rows, columns in large_products(own, streams)
    ]
    yield Case("large sizes", (played(streams, large),), timing=on_time(large, streams))
    for number, stall in enumerate(STALLS[:2]):
        bad = refused(streams, random_products(rng, streams, 6, min(2, most)))
        yield Case("refused", (bad,), stall, seed + number)
    one = drawn(np.random.default_rng(seed), streams, 1, 1, 1, "near")
    yield Case("taken late", taken_late(streams, one), STALLS[2], seed)
    some = played(streams, random_products(rng, streams, 4, min(2, most)))
    for clock, stall in enumerate(RESETS):
        yield Case(f"reset {clock}", (some,), stall, seed + clock, before=WARM + 5 * clock)
    # Commands so short that one is taken, or a report leaves, in many of the clocks.
    short = played(streams, [drawn(own, streams, 1, 1, 1, "near") for _ in range(40)])
    for clock in range(SHORT):
        stall = (STALLS[1], (0.7, 0.1))[clock % 2]
        yield Case(f"short reset {clock}", (short,), stall, seed + clock, before=WARM + clock)
    tile = drawn(own, streams, streams.rows, 2 * streams.columns, 1, "near")
    yield Case("far panels", tuple(far_panels(streams, tile)))
    panels = 3
    n = (panels - 1) * streams.columns + 1
    for number, accident in enumerate(accidents(streams, panels)):
        m = int(rng.integers(1, 9))
        # A late one comes after the end of a segment, whose results are kept: none has left.
        segments = SEGMENTS if accident.late else None
        count = min(segments or 1 + number % 3, most)
        products = [drawn(rng, streams, m, n, count, "near", segments) for _ in range(4)]
        phases = (
            broken(streams, products, accident),
            resync(streams, number),
            played(streams, random_products(rng, streams, 3, min(2, most))),
        )
        stall = STALLS[number % 2]
        yield Case(f"{accident.stream} {accident.what}", phases, stall, seed + number)
