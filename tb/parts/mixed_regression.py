"""The regression of the mixed GEMM: random tables, sums that are hard to round, and accidents."""

from collections.abc import Iterator, Sequence
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
from m2xfp.tb.parts.gemm_regression import accidents, broken, on_time, played, resync
from m2xfp.tb.parts.mixed_arrays import GROUP, MixedProduct, MixedStreams, Part, Table
from m2xfp.tb.regression import RESETS, STALLS, WARM, Case
from m2xfp.tb.vectors import Beats, TestVectors

__all__ = ["KINDS", "drawn", "most_tiles", "random_products", "regression"]

ROUNDS = 9
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
    for number, stall in enumerate(STALLS[:2]):
        bad = refused(streams, random_products(rng, streams, 6, min(2, most)))
        yield Case("refused", (bad,), stall, seed + number)
    some = played(streams, random_products(rng, streams, 4, min(2, most)))
    for clock, stall in enumerate(RESETS):
        yield Case(f"reset {clock}", (some,), stall, seed + clock, before=WARM + 5 * clock)
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
