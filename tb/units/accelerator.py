"""Testbench of the accelerator: matrices into a memory, products out of it."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Facts
from m2xfp.rtl.catalog import find_unit
from m2xfp.rtl.parameters import parse_settings
from m2xfp.rtl.parts.descriptor_checker import BF16_VALUES, FP32_VALUES, GEMM
from m2xfp.tb.bench import Arrays, Operands, golden_of
from m2xfp.tb.parts.accelerator_traffic import PAGE, Descriptor, Memory, Traffic
from m2xfp.tb.parts.gemm_arrays import GemmStreams, Product
from m2xfp.tb.parts.gemm_regression import random_products
from m2xfp.tb.parts.groups import group_arrays, packed_groups
from m2xfp.tb.regression import WARM, Case
from m2xfp.tb.units import gemm_core
from m2xfp.tb.vectors import Beats, TestVectors

__all__ = [
    "core_of",
    "decode",
    "encode",
    "expected",
    "golden_product",
    "load",
    "place",
    "regression",
    "sample",
    "vectors",
]

ROUNDS = 6
# With six outputs one is held nearly always where each pauses in nine clocks of ten.
STALLS = ((0.0, 0.0), (0.25, 0.25), (0.0, 0.5), (0.7, 0.0))
RESETS = ((0.5, 0.5), (0.8, 0.2), (0.2, 0.6)) * 6


_SHARED = ("act", "weight", "rows", "columns", "max_k", "depth", "chains")


@cache
def _core(settings: tuple[str, ...]) -> Facts:
    unit = find_unit("gemm_core")
    return unit.instance(None, parse_settings(unit.component, settings)).facts


def core_of(facts: Facts) -> Facts:
    """Return the facts of the GEMM core inside."""
    return _core(tuple(f"{name}={facts.parameters[name]}" for name in _SHARED))


def place(
    product: Product, facts: Facts, memory: Memory, base: int, index: int = 0, kind: int = 0
) -> Descriptor:
    """Store the operands of a product in memory; return the descriptor that multiplies them.

    Rows have gaps between them, planes begin at odd places, and codes shortly before a page ends.

    Parameters
    ----------
    product
        The operands.
    facts
        The accelerator.
    memory
        Where they go.
    base
        First address, a multiple of a page.
    index
        Number of the descriptor.
    kind
        Of the results.
    """
    traffic = Traffic(facts, memory)
    m, n, k = product.sizes
    words = {"operation": GEMM, "m": m, "n": n, "k": k, "kind": kind}
    value_bytes = Descriptor(words).value_bytes
    at = base + PAGE - 48
    for side, groups in (("a", product.acts), ("w", product.weights)):
        sizes = traffic.planes(side)
        first = 0
        for plane, size in sizes.items():
            rows = groups[:, :, first : first + size].reshape(len(groups), -1)
            gap = 16 if plane == "codes" else 3
            pitch = rows.shape[1] + gap
            words[f"{side}_{plane}"] = at
            words[f"{side}_{'codes' if plane == 'codes' else 'scales'}_pitch"] = pitch
            memory.write_rows(at, pitch, rows)
            at += len(rows) * pitch
            at += 5 if plane == "codes" else 0
            first += size
        at = -(-at // 16) * 16 + 32
    words["out"] = at + value_bytes
    words["out_pitch"] = (n + 1) * value_bytes
    return Descriptor(words, index)


def _descriptors(
    products: list[Product], facts: Facts, memory: Memory, kinds: Sequence[int] = (FP32_VALUES,)
) -> Iterator[tuple[Product, Descriptor]]:
    """Place products behind one another, each in as many pages as the largest one needs.

    Their results have ``kinds`` in turn.
    """
    largest = max(
        m * (k + 40) + n * (k + 40) + m * (n + 1) * 4
        for m, n, k in (product.sizes for product in products)
    )
    step = (-(-largest // PAGE) + 3) * PAGE
    for index, product in enumerate(products):
        kind = kinds[index % len(kinds)]
        yield product, place(product, facts, memory, index * step, index, kind)


def load(path: Path, facts: Facts) -> Arrays:
    """Read the two operands of a matrix product, or of several, as ``gemm_core`` does."""
    return gemm_core.load(path, core_of(facts))


def encode(arrays: Arrays, facts: Facts) -> dict[str, Beats]:
    """Return what a processor and memories put on the buses for the products."""
    traffic = Traffic(facts, Memory())
    for product, descriptor in _descriptors(
        gemm_core.products_of(arrays, core_of(facts)), facts, traffic.memory
    ):
        m, n, _ = product.sizes
        traffic.configure(descriptor)
        traffic.run(descriptor, np.zeros((m, n), f"u{descriptor.value_bytes}"))
    return traffic.streams(facts.inputs)


def decode(beats: Mapping[str, Beats], arrays: Arrays, facts: Facts) -> Arrays:
    """Return ``out``, uint32 patterns, [m, n] or of several products all of them."""
    traffic = Traffic(facts, Memory())
    placed = list(
        _descriptors(gemm_core.products_of(arrays, core_of(facts)), facts, traffic.memory)
    )
    traffic.store(beats["results_aw"], beats["results_w"])
    found = []
    for product, descriptor in placed:
        m, n, _ = product.sizes
        rows = traffic.memory.read_rows(
            descriptor["out"], descriptor["out_pitch"], m, n * descriptor.value_bytes
        )
        found.append(np.ascontiguousarray(rows).view(f"<u{descriptor.value_bytes}"))
    return gemm_core.joined(found, arrays)


def expected(arrays: Arrays, facts: Facts) -> Arrays:
    """Return the golden model's products."""
    products = gemm_core.products_of(arrays, core_of(facts))
    return gemm_core.joined([golden_product(product, facts) for product in products], arrays)


def golden_product(product: Product, facts: Facts, kind: int = FP32_VALUES) -> NDArray[Any]:
    """Return the golden model's product, patterns [m, n] of a kind."""
    name = "bf16" if kind == BF16_VALUES else "fp32"
    found: NDArray[Any] = golden_of(facts)(product.acts, product.weights, kind=name)["out"]
    return found


def _played(products: list[Product], facts: Facts, pieces: int, seed: int) -> TestVectors:
    """Return the traffic of products that follow one another."""
    traffic = Traffic(facts, Memory(seed))
    kinds = (FP32_VALUES, BF16_VALUES)
    for product, descriptor in _descriptors(products, facts, traffic.memory, kinds):
        traffic.configure(descriptor)
        traffic.run(descriptor, golden_product(product, facts, descriptor["kind"]))
    return TestVectors(traffic.streams(facts.inputs), traffic.streams(facts.outputs), pieces)


def vectors(arrays: Arrays, facts: Facts, seed: int = 0) -> TestVectors:
    """Return the traffic of the products; what repeats in the sizes is a piece.

    TLAST is RLAST or WLAST, and never random.
    """
    products = gemm_core.products_of(arrays, core_of(facts))
    sizes = [product.sizes for product in products]
    return _played(products, facts, len(products) // gemm_core.period(sizes), seed)


def sample(operands: Operands, facts: Facts) -> Arrays:
    """Return two products a lane: of one group, and one beyond a block, a panel and a chunk."""
    streams = GemmStreams(core_of(facts))
    given = facts.parameters
    groups = min(given["chunk"] + 1, given["max_k"] // streams.act.group)
    large = (streams.rows * streams.chains + 1, streams.columns + 1, groups)
    sizes = np.array([(1, 1, 1), large] * operands.lanes)
    acts, weights = (int((sizes[:, at] * sizes[:, 2]).sum()) for at in (0, 1))
    arrays: Arrays = {"sizes": sizes * [1, 1, streams.act.group]}
    packed = packed_groups(streams.weight, operands.weights, weights)
    arrays |= group_arrays(packed, streams.weight, "w_")
    packed = packed_groups(streams.act, operands.activations, acts)
    return arrays | group_arrays(packed, streams.act, "a_")


def regression(facts: Facts, seed: int = 0) -> Iterator[Case]:
    """Yield products of sizes at every edge, with each pattern of stalls, and after resets."""
    rng, streams = np.random.default_rng(seed), GemmStreams(core_of(facts))
    most = min(3 * facts.parameters["chunk"], facts.parameters["max_k"] // streams.act.group)
    for number in range(ROUNDS):
        made = _played(random_products(rng, streams, 4, most), facts, 1, seed + number)
        yield Case(f"products {number}", (made,), STALLS[number % len(STALLS)], seed + number)
    few = _played(random_products(rng, streams, 2, 2), facts, 1, seed)
    for clock, stall in enumerate(RESETS):
        yield Case(f"reset {clock}", (few,), stall, seed + clock, before=WARM + 7 * clock)
