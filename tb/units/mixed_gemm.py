"""Testbench of the mixed GEMM: matrices in segments of formats in, products out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.errors import InputError
from m2xfp.facts import Facts
from m2xfp.formats import BlockFormat
from m2xfp.pairs import FORMAT_NUMBERS, PairSet
from m2xfp.tb.arguments import Argument
from m2xfp.tb.bench import Arrays, Operands
from m2xfp.tb.parts.addend_arguments import addends
from m2xfp.tb.parts.files import check_names, load_arrays, type_name
from m2xfp.tb.parts.groups import packed_groups
from m2xfp.tb.parts.mixed_arrays import GROUP, MixedProduct, MixedStreams, Part
from m2xfp.tb.parts.mixed_cover import cover, unreached
from m2xfp.tb.parts.mixed_regression import regression
from m2xfp.tb.parts.switch_groups import BYTES, pair_numbers, side_arrays
from m2xfp.tb.vectors import Beats, TestVectors

__all__ = [
    "argued",
    "arrays_of",
    "cover",
    "decode",
    "encode",
    "expected",
    "load",
    "products_of",
    "regression",
    "sample",
    "unreached",
    "vectors",
]

_SIDES = {"acts": "a_", "weights": "w_"}


def _fields(pairs: PairSet) -> dict[str, tuple[int, ...]]:
    """Return the planes of both sides, with their shapes a group."""
    names: dict[str, tuple[int, ...]] = {"codes": (BYTES,), "scales": ()}
    if pairs.metadata:
        names["meta"] = ()
    return {f"{side}{name}": shape for side in _SIDES.values() for name, shape in names.items()}


def arrays_of(products: list[MixedProduct], facts: Facts) -> Arrays:
    """Return products as a user's file has them, see ``load``."""
    planes = list(_fields(MixedStreams(facts).pairs))
    sizes = [product.sizes[:2] for product in products]
    tables = [
        [
            (FORMAT_NUMBERS[part.act.name], FORMAT_NUMBERS[part.weight.name], part.groups)
            for part in product.parts
        ]
        for product in products
    ]
    padded = [table + [(*table[-1][:2], 0)] * (3 - len(table)) for table in tables]
    arrays: Arrays = {"sizes": np.array(sizes), "segments": np.array(padded)}
    found: dict[str, list[NDArray[Any]]] = {name: [] for name in planes}
    for part in (part for product in products for part in product.parts):
        for name, side in _SIDES.items():
            groups = getattr(part, name)
            block = part.act if name == "acts" else part.weight
            made = side_arrays(groups.reshape(-1, groups.shape[-1]), block, side)
            for plane in planes:
                if plane.startswith(side):
                    found[plane].append(made[plane])
    return arrays | {name: np.concatenate(rows) for name, rows in found.items()}


def load(path: Path, facts: Facts) -> Arrays:
    """Read one matrix product or several.

    Returns
    -------
    dict
        ``sizes`` int64 [products, 2]: m, n; ``segments`` int64 [products, 3, 3]: numbers of the
        formats of activations and weights (``m2xfp.pairs``), and groups, of each segment, empty
        ones last. ``a_codes`` and ``w_codes`` uint8 [groups, 32], ``a_scales`` and ``w_scales``
        uint8 [groups], with M2XFP among the pairs ``a_meta`` and ``w_meta``: for each product, for
        each segment, the groups of each row, codes of shorter formats as many bytes as they have.

    Raises
    ------
    InputError
        If the file is no .npz file, a field is missing, too many, or of another type or shape, or
        the core does not support a product.
    """
    arrays, streams = load_arrays(path), MixedStreams(facts)
    planes = _fields(streams.pairs)
    check_names(path, facts, arrays, ["sizes", "segments", *planes])
    count = len(arrays["sizes"]) if arrays["sizes"].ndim else 0
    shapes: dict[str, tuple[int, ...]] = {"sizes": (count, 2), "segments": (count, 3, 3)}
    for name, shape in shapes.items():
        given = arrays[name]
        if given.dtype != np.int64 or given.shape != shape or not count:
            raise InputError(
                f"input {path}: {name} is {type_name(given)} {list(given.shape)}; must be int64 "
                f"{['n', *shape[1:]]} of n products, at least 1"
            )
    for name, bound in (("sizes", 1 << 20), ("segments", 1 << 20)):
        if (arrays[name] < 0).any() or (arrays[name] >= bound).any():
            raise InputError(f"input {path}: {name} holds numbers that are not 0 to {bound - 1}")
    rows = dict.fromkeys(_SIDES.values(), 0)
    tables = zip(arrays["sizes"].tolist(), arrays["segments"].tolist(), strict=True)
    for at, ((m, n), table) in enumerate(tables):
        groups = sum(segment[2] for segment in table)
        rows["a_"] += m * groups
        rows["w_"] += n * groups
        for number, (act, weight, size) in enumerate(table):
            if size:
                label = f"input {path}: segment {number} of product {at}"
                _formats(streams.pairs, (act, weight), label, facts)
    for name, shape in planes.items():
        wanted = (rows[name[:2]], *shape)
        if arrays[name].dtype != np.uint8 or arrays[name].shape != wanted:
            raise InputError(
                f"input {path}: {name} is {type_name(arrays[name])} {list(arrays[name].shape)}; "
                f"must be uint8 {list(wanted)} beside sizes and segments"
            )
    for product in products_of(arrays, facts):
        streams.check(product)
    return arrays


def _formats(
    pairs: PairSet, numbers: tuple[int, int], label: str, facts: Facts
) -> tuple[BlockFormat, BlockFormat]:
    """Return the formats of two numbers; InputError, which begins so, for no pair of the unit."""
    for pair, known in zip(pairs.pairs, pair_numbers(pairs), strict=True):
        if known == numbers:
            return pair
    told = ", ".join(pair_numbers(pairs).values())
    raise InputError(
        f"{label} has the formats {numbers[0]} and {numbers[1]}; {facts.config} multiplies {told}"
    )


def products_of(arrays: Arrays, facts: Facts) -> list[MixedProduct]:
    """Return the products that a file holds; InputError for what the unit does not multiply."""
    pairs = MixedStreams(facts).pairs
    at = dict.fromkeys(_SIDES.values(), 0)

    def taken(side: str, block: BlockFormat, rows: int, groups: int) -> NDArray[np.uint8]:
        start, stop = at[side], at[side] + rows * groups
        at[side] = stop
        parts = [
            arrays[f"{side}codes"][start:stop, : block.group_bytes[0]],
            arrays[f"{side}scales"][start:stop, None],
        ]
        if block.metadata.bits:
            parts.append(arrays[f"{side}meta"][start:stop, None])
        return np.concatenate(parts, axis=1).reshape(rows, groups, -1)

    products: list[MixedProduct] = []
    for (m, n), table in zip(arrays["sizes"].tolist(), arrays["segments"].tolist(), strict=True):
        parts = []
        for act, weight, groups in table:
            if groups:
                label = f"a segment of product {len(products)}"
                blocks = _formats(pairs, (act, weight), label, facts)
                left = taken("a_", blocks[0], m, groups)
                parts.append(Part(*blocks, left, taken("w_", blocks[1], n, groups)))
        if not parts:
            raise InputError("segments: all of them are empty; give a product one group at least")
        products.append(MixedProduct(tuple(parts)))
    return products


def encode(arrays: Arrays, facts: Facts) -> dict[str, Beats]:
    """Turn the operands into one command a product, with its streams."""
    return MixedStreams(facts).inputs(products_of(arrays, facts))


def decode(beats: Mapping[str, Beats], arrays: Arrays, facts: Facts) -> Arrays:
    """Return ``out``: the patterns of all results, uint32 or uint16, product after product."""
    found = MixedStreams(facts).results(beats["o"], products_of(arrays, facts))
    return {"out": np.concatenate([result.reshape(-1) for result in found])}


def expected(arrays: Arrays, facts: Facts) -> Arrays:
    """Return the golden model's products."""
    streams = MixedStreams(facts)
    found = [streams.golden(product) for product in products_of(arrays, facts)]
    return {"out": np.concatenate([result.reshape(-1) for result in found])}


def vectors(arrays: Arrays, facts: Facts, seed: int = 0) -> TestVectors:
    """Return commands and results; products of one size and table after another are pieces.

    TLAST ends the operands of a command and is never random.
    """
    streams, products = MixedStreams(facts, noise=seed), products_of(arrays, facts)
    results = [streams.golden(product) for product in products]
    alike = len({(product.sizes, tuple(product.table)) for product in products}) == 1
    pieces = len(products) if alike else 1
    return TestVectors(streams.inputs(products), streams.outputs(results), pieces)


def sample(operands: Operands, facts: Facts) -> Arrays:
    """Return products of the first three pairs, one tile each, and two blocks of rows.

    One a lane; several where a lane has more groups than are under way in the array, as for a
    gate-level run: it records from when a product is done and while a command waits.
    """
    streams = MixedStreams(facts)
    pairs = streams.pairs
    groups = streams.tile // GROUP
    m, n = 2 * streams.rows * streams.chains, streams.columns
    chosen = [pairs.narrow[0], *pairs.wide][:3]

    def beats() -> int:
        return sum(groups * (1 if p in pairs.narrow else GROUP // streams.lanes) for p in chosen)

    while beats() > streams.depth:
        chosen.pop()
    number = operands.lanes
    if operands.depth > facts.latency:
        # Commands are taken up to three products ahead.
        number *= 5 + -(-operands.depth // (2 * streams.chains * beats()))
    parts = []
    for act, weight in chosen:
        count = number * groups
        acts = packed_groups(act, operands.activations, count * m)
        weights = packed_groups(weight, operands.weights, count * n)
        parts.append((act, weight, acts, weights))
    products = [
        MixedProduct(
            tuple(
                Part(
                    act,
                    weight,
                    acts.reshape(number, m, groups, -1)[product],
                    weights.reshape(number, n, groups, -1)[product],
                )
                for act, weight, acts, weights in parts
            )
        )
        for product in range(number)
    ]
    return arrays_of(products, facts)


def argued(facts: Facts) -> list[Argument]:
    """Return what is argued of the addends of all cells' sums."""
    return addends(r"unit[.]array[.]cell_\d+_\d+[.]accumulator", "placed.o", "placed.i")
