"""The regression of the GEMM core: products of random sizes, cancellations, and broken packets."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Facts
from m2xfp.formats import BlockFormat
from m2xfp.tb.bulk.simulator import Run
from m2xfp.tb.fields import Bytes, pack
from m2xfp.tb.parts.gemm_arrays import GemmStreams, Product
from m2xfp.tb.parts.gemm_directed import (
    bad_sizes,
    every_scale,
    far_sizes,
    hard_sums,
    large_products,
)
from m2xfp.tb.parts.value_stimulus import DISTRIBUTIONS, groups
from m2xfp.tb.regression import RESETS, STALLS, WARM, Case
from m2xfp.tb.vectors import Beats, TestVectors

__all__ = [
    "SHORT",
    "Accident",
    "accidents",
    "broken",
    "on_time",
    "played",
    "random_products",
    "regression",
    "resync",
]

ROUNDS = 9
# Clocks, one after the other, in which traffic of short commands is reset.
SHORT = 16


def _packed_rows(
    rng: np.random.Generator, block: BlockFormat, rows: int, count: int, spread: int
) -> Bytes:
    """Return groups of any bytes; scales within ``spread`` of one another, or any if it is 0."""
    found = rng.integers(0, 256, (rows, count, sum(block.group_bytes)), np.uint8)
    if spread:
        scales = 127 + rng.integers(-spread, spread + 1, (rows, count))
        found[..., block.group_bytes[0]] = scales
    return found


def _product(
    rng: np.random.Generator, streams: GemmStreams, m: int, n: int, count: int, spread: int
) -> Product:
    """Return random operands: any bytes, or scales near each other."""
    weights = _packed_rows(rng, streams.weight, n, count, spread)
    kind, group = streams.facts.parameters["activations"], streams.act.group
    if kind is None:
        acts: NDArray[Any] = _packed_rows(rng, streams.act, m, count, spread)
    else:
        name = str(rng.choice(list(DISTRIBUTIONS)))
        acts = groups(name, kind, m * count, int(rng.integers(1 << 30)), group).reshape(m, -1)
    return Product(acts, weights, count * group)


def _most(streams: GemmStreams) -> int:
    """Return the groups of the largest k."""
    return int(streams.facts.parameters["max_k"]) // streams.act.group


def random_products(
    rng: np.random.Generator, streams: GemmStreams, count: int, most: int
) -> list[Product]:
    """Return products of sizes at every edge of blocks and panels, with at most ``most`` groups."""
    block = streams.rows * streams.chains
    return [
        _product(
            rng,
            streams,
            int(rng.integers(1, 3 * block + 1)),
            int(rng.integers(1, 3 * streams.columns + 1)),
            int(rng.integers(1, most + 1)),
            int(rng.choice([0, 3, 12, 40])),
        )
        for _ in range(count)
    ]


def played(streams: GemmStreams, products: Sequence[Any]) -> TestVectors:
    """Return commands and their results."""
    results = [streams.golden(product) for product in products]
    return TestVectors(streams.inputs(products), streams.outputs(results), 1)


def on_time(products: Sequence[Any], streams: GemmStreams) -> Any:
    """Return what looks for a result that is not there in the clock that the model counts."""
    panels = [-(-len(product.weights) // streams.columns) for product in products]
    ends = np.cumsum([n * len(product.acts) for n, product in zip(panels, products, strict=True)])
    due = streams.due(products)

    def timing(run: Run, _: Facts) -> str:
        taken = (run.stamps["o"][ends - 1] - run.stamps["cmd"][0]).tolist()
        return "" if taken == due else f"results after {taken} clocks, {due} expected"

    return timing


@dataclass(frozen=True)
class Accident:
    """What happens to an operand stream, and from where on.

    Members
    -------
    stream
        ``acts`` or ``weights``.
    command, panel
        Where it is seen.
    what
        ``tag`` and a bit, ``last`` too early, ``open`` without its last, ``lost`` packet.
    late
        Not in the panel's first group, but in the last but one of the largest k.
    """

    stream: str
    command: int
    panel: int
    what: str
    bit: int = 0
    late: bool = False


def accidents(streams: GemmStreams, panels: int) -> Iterator[Accident]:
    """Yield accidents at the beginning of panels and late in them, and missing ends."""
    width = streams.facts.stream("cmd").field("tag").width
    for stream in ("acts", "weights"):
        for bit in range(width):
            yield Accident(stream, bit % 3, bit % panels, "tag", bit)
        yield Accident(stream, 1, panels - 1, "last")
        yield Accident(stream, 0, 0, "last")
        yield Accident(stream, 2, panels - 1, "open")
        yield Accident(stream, 1, 0, "lost")
        yield Accident(stream, 1, 0, "tag", late=True)


def broken(streams: GemmStreams, products: Sequence[Any], accident: Accident) -> TestVectors:
    """Return commands with an accident, and what must come: nothing but its report."""
    facts, inputs = streams.facts, streams.inputs(products)
    beats = inputs[accident.stream]
    assert beats.last is not None
    ends = np.flatnonzero(beats.last) + 1
    start, stop = (0, *ends)[accident.command], ends[accident.command]
    product = products[accident.command]
    m, n, _ = product.sizes
    panels = -(-n // streams.columns)
    count = streams.words(product)
    share = {"acts": (stop - start) // panels, "weights": streams.columns * count}
    data, last = beats.data.copy(), beats.last.copy()
    at = start + accident.panel * share[accident.stream]
    if accident.late:
        # Of activations, each of a block's rows has a beat a group.
        turns = min(streams.chains, -(-m // streams.rows)) if accident.stream == "acts" else 1
        at += max(0, count - 2) * turns
    delivered = accident.panel * m
    if accident.what == "tag":
        field = facts.stream(accident.stream).field("tag")
        bit = field.offset + accident.bit
        data[at, bit // 8] ^= 1 << bit % 8
    elif accident.what == "last":
        last[at] = not last[at]
    elif accident.what == "open":
        last[stop - 1] = False
        if accident.stream == "acts":
            delivered += (-(-m // streams.rows) - 1) * streams.rows
    else:
        data = np.delete(data, slice(start, stop), 0)
        last = np.delete(last, slice(start, stop))
    results = [streams.golden(one) for one in products[: accident.command + 1]]
    *clean, partial = (streams.outputs([result])["o"] for result in results)
    closing = streams.outputs([streams.closing(product)])["o"].part(0, 1 if delivered else 0)
    rest = Beats(partial.data[:delivered], np.zeros(delivered, bool))
    parts = [*clean, rest, closing]
    numbers = np.arange(len(products))
    status = facts.stream("status")
    words = {"tag": numbers % streams.tags, "misframed": numbers >= accident.command}
    return TestVectors(
        inputs | {accident.stream: Beats(data, last)},
        {
            "o": Beats(
                np.concatenate([part.data for part in parts]),
                np.concatenate([part.last for part in parts if part.last is not None]),
            ),
            "status": Beats(
                pack(status, {status.field(name): word for name, word in words.items()}),
                np.ones(len(products), bool),
            ),
        },
        1,
    )


def _bad_sizes(streams: GemmStreams, products: list[Product]) -> TestVectors:
    """Return commands that cannot be between each two that can, one of them resynchronising."""
    good, bad = played(streams, products), bad_sizes(streams)
    sizes, tags = [products[0].sizes], [0]
    faults: list[list[str]] = [[]]
    share = -(-len(bad) // (len(products) - 1))
    for number, product in enumerate(products[1:]):
        for wrong, names in bad[number * share : (number + 1) * share]:
            sizes.append(wrong)
            tags.append(7 - number)
            faults.append(names)
        sizes.append(product.sizes)
        tags.append(number + 1)
        faults.append([])
    status = streams.facts.stream("status")
    commands = np.concatenate([streams.resync_beat(5), streams.command_beats(sizes, tags)])
    values = {
        name: np.array([False, *(name in names for names in faults)])
        for name in ("bad_m", "bad_n", "bad_k")
    }
    words: dict[str, NDArray[Any]] = {**values, "tag": np.array([5, *tags]) % streams.tags}
    statuses = pack(status, {status.field(name): word for name, word in words.items()})
    return TestVectors(
        {**good.inputs, "cmd": Beats(commands)},
        {**good.outputs, "status": Beats(statuses, np.ones(len(statuses), bool))},
        1,
    )


def resync(streams: GemmStreams, tag: int) -> TestVectors:
    """Return the command that ends a failure, with a beat that is still in the engines."""
    status, out = streams.facts.stream("status"), streams.facts.stream("o")
    word = pack(status, {status.field("tag"): np.array([tag])})
    acts = np.zeros((1, streams.facts.stream("acts").bytes), np.uint8)
    return TestVectors(
        {
            "cmd": Beats(streams.resync_beat(tag)),
            "acts": Beats(acts, np.ones(1, bool)),
            "weights": Beats(np.zeros((0, streams.facts.stream("weights").bytes), np.uint8)),
        },
        {
            "status": Beats(word, np.ones(1, bool)),
            "o": Beats(np.zeros((0, out.bytes), np.uint8), np.zeros(0, bool)),
        },
        1,
    )


def regression(facts: Facts, seed: int = 0) -> Iterator[Case]:
    """Yield products, commands that are refused, and packets that are broken or lost."""
    streams, rng = GemmStreams(facts), np.random.default_rng(seed)
    for number in range(ROUNDS):
        most = _most(streams) if number < 3 else min(4, _most(streams))
        products = random_products(rng, streams, 5, most)
        stall = STALLS[number % len(STALLS)]
        timing = None if any(stall) else on_time(products, streams)
        vectors = (played(streams, products),)
        yield Case("products", vectors, stall, seed + number, timing, WARM + 7 * number)
    if facts.parameters["activations"] is None:
        for number, (name, hard) in enumerate(hard_sums(streams, seed)):
            yield Case(name, (played(streams, [hard]),), STALLS[number % 2], seed + number)
    yield Case("every scale", (played(streams, [every_scale(streams, seed)]),), STALLS[1], seed)
    wide = _product(rng, streams, 1, 16 * streams.columns, min(8, _most(streams)), 12)
    yield Case("panels", (played(streams, [wide]),))
    large = [_product(rng, streams, m, n, 1, 12) for m, n in large_products(rng, streams)]
    yield Case("large sizes", (played(streams, large),), timing=on_time(large, streams))
    tile = _product(rng, streams, streams.rows, streams.columns, min(2, _most(streams)), 3)
    far = [
        vectors
        for number, cut in enumerate(far_sizes(streams, tile))
        for vectors in (cut, resync(streams, number))
    ]
    yield Case("far sizes", tuple(far))
    for number, stall in enumerate(STALLS[:2]):
        bad = _bad_sizes(streams, random_products(rng, streams, 8, 2))
        yield Case("bad sizes", (bad,), stall, seed + number)
    some = played(streams, random_products(rng, streams, 4, min(2, _most(streams))))
    for clock, stall in enumerate(RESETS):
        yield Case(f"reset {clock}", (some,), stall, seed + clock, before=WARM + 5 * clock)
    # Commands so short that a report is about to leave in many of the clocks.
    short = played(streams, [_product(rng, streams, 1, 1, 1, 3) for _ in range(40)])
    for clock in range(SHORT):
        stall = (STALLS[1], (0.7, 0.1))[clock % 2]
        yield Case(f"reset {clock}", (short,), stall, seed + clock, before=WARM + clock)
    panels = 3
    n = (panels - 1) * streams.columns + 1
    for number, accident in enumerate(accidents(streams, panels)):
        m, count = int(rng.integers(1, 9)), min(1 + number % 3, _most(streams))
        count = _most(streams) if accident.late else count
        products = [_product(rng, streams, m, n, count, 3) for _ in range(4)]
        phases = (
            broken(streams, products, accident),
            resync(streams, number),
            played(streams, random_products(rng, streams, 3, 2)),
        )
        stall = STALLS[number % 2]
        yield Case(f"{accident.stream} {accident.what}", phases, stall, seed + number)
