"""The testbench of the accumulators: exact products in, accumulators out."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from m2xfp.facts import Facts
from m2xfp.tb.bench import Arrays, Operands, golden_of
from m2xfp.tb.fields import Bytes, pack
from m2xfp.tb.parts.accumulation import (
    from_reset,
    read_results,
    result_beats,
    run_length,
    scheduled,
    vectors_of_rows,
)
from m2xfp.tb.parts.files import check_range, load_rows
from m2xfp.tb.parts.pairs import sample as sample_dot_products
from m2xfp.tb.parts.pairs import sides
from m2xfp.tb.parts.product_stimulus import DISTRIBUTIONS, outgrown, outgrown_after, products
from m2xfp.tb.regression import Case, steady_cases
from m2xfp.tb.vectors import Beats, TestVectors

__all__ = ["decode", "encode", "expected", "load", "regression", "sample", "vectors"]

FIELDS = {"product": np.int64, "exponent": np.int64, "nan": bool, "first": bool}
# Products of a sum that outgrows its window, at most: more take too long.
MOST = 1 << 17


def _path(name: str) -> str:
    """Return the name of a user's field in the payload."""
    return name if name == "first" else f"product.{name}"


def load(path: Path, facts: Facts) -> Arrays:
    """Read exact products of groups, as the group dot product gives them, an .npz file.

    Returns
    -------
    dict
        ``product`` and ``exponent`` int64 [n]; ``nan`` bool [n]; ``first`` bool [n].

    Raises
    ------
    InputError
        If the file is no .npz file, lacks a field or has one more, a field has another type or
        shape, or a number does not fit the unit's port.
    """
    arrays = load_rows(path, facts, {name: (kind, ()) for name, kind in FIELDS.items()})
    for name in ("product", "exponent"):
        field, numbers = facts.stream("i").field(_path(name)), arrays[name]
        low = -(1 << field.width - 1) if field.signed else 0
        high = low + (1 << field.width) - 1
        check_range(path, name, numbers, low, high)
    return arrays


def _beats(arrays: Arrays, facts: Facts) -> Bytes:
    stream = facts.stream("i")
    return pack(stream, {stream.field(_path(name)): arrays[name] for name in FIELDS})


def encode(arrays: Arrays, facts: Facts) -> dict[str, Beats]:
    """Turn products into one stream, sums interleaved over the unit's accumulators."""
    table = _beats(arrays, facts)
    filler = np.zeros((1, table.shape[1]), np.uint8)  # zero changes no accumulator
    data = np.concatenate([table, filler])[scheduled(arrays["first"], 1, facts)]
    return {"i": Beats(data, np.arange(len(data)) == len(data) - 1)}


def decode(beats: Mapping[str, Beats], arrays: Arrays, facts: Facts) -> Arrays:
    """Return ``acc``, uint32 [n]: the accumulator's FP32 pattern after each product.

    From an exact accumulation ``inexact``, bool [n], as well.
    """
    slots, out = scheduled(arrays["first"], 1, facts), beats["o"].data
    found = np.zeros((len(arrays["first"]), out.shape[1]), np.uint8)
    found[slots[slots >= 0]] = out[slots >= 0]
    return read_results(found, facts)


def expected(arrays: Arrays, facts: Facts) -> Arrays:
    """Return the golden model's accumulators after each product."""
    length = run_length(arrays["first"])
    results = golden_of(facts)(*(arrays[name].reshape(-1, length) for name in FIELDS))
    return {name: array.reshape(-1) for name, array in results.items()}


def vectors(arrays: Arrays, facts: Facts, seed: int = 0) -> TestVectors:
    """Return beats and accumulators; as many sums as there are chains are a piece.

    They must be of one length, and a multiple of the chains.
    """
    inputs, outputs = _beats(arrays, facts), result_beats(expected(arrays, facts), facts)
    return vectors_of_rows(inputs[:, None], outputs[:, None], arrays["first"], facts, seed)


def sample(operands: Operands, facts: Facts) -> Arrays:
    """Return the products of the dot products that those of the dot product are."""
    from m2xfp.golden.units.group_dot import group_dot

    arrays = sample_dot_products(operands, facts)
    act, weight = facts.parameters["act"], facts.parameters["weight"]
    return {**group_dot(*sides(arrays, facts), act=act, weight=weight), "first": arrays["first"]}


def regression(facts: Facts, seed: int = 0) -> Iterator[Case]:
    """Yield all distributions of products."""
    count = 360 if facts.parameters.get("window") else 600  # exact sums are slow in Python

    def stimulus() -> Iterator[tuple[str, Arrays]]:
        for name in DISTRIBUTIONS:
            yield name, products(name, facts, count, 30, seed)
        if 0 < outgrown_after(facts) <= MOST:
            yield "outgrown", outgrown(facts, seed)

    yield from steady_cases(stimulus(), vectors, facts, seed)
    arrays = products("near", facts, 6, 12, seed)
    arrays["first"] = np.arange(72) % 12 == 0
    yield Case("from reset", (from_reset(vectors(arrays, facts, seed), facts),))
