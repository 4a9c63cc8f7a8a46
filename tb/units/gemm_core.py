"""Testbench of the GEMM core: matrices in, products out."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.errors import InputError
from m2xfp.facts import Facts
from m2xfp.formats import input_type
from m2xfp.tb.bench import Arrays, Operands
from m2xfp.tb.fields import Bytes
from m2xfp.tb.parts.files import as_patterns, check_names, load_arrays, type_name
from m2xfp.tb.parts.gemm_arrays import GemmStreams, Product, golden_product, timing_of
from m2xfp.tb.parts.gemm_cover import cover, unreached
from m2xfp.tb.parts.gemm_regression import regression
from m2xfp.tb.parts.groups import check_planes, group_arrays, packed_groups, plane_shapes
from m2xfp.tb.vectors import Beats, TestVectors

__all__ = [
    "cover",
    "decode",
    "encode",
    "expected",
    "golden_product",
    "joined",
    "load",
    "period",
    "products_of",
    "regression",
    "sample",
    "unreached",
    "vectors",
]


def _planes(facts: Facts) -> dict[str, tuple[int, ...]]:
    """Return the fields of the user's file with their shapes a group; ``x`` is one of values."""
    streams = GemmStreams(facts)
    blocks = {"w_": streams.weight}
    if facts.parameters["activations"] is None:
        blocks = {"a_": streams.act} | blocks
    shapes = {
        f"{side}{name}": shape
        for side, block in blocks.items()
        for name, shape in plane_shapes(block).items()
    }
    return shapes if "a_scales" in shapes else shapes | {"x": (streams.act.group,)}


def _type(name: str, facts: Facts) -> np.dtype[Any]:
    kind = facts.parameters["activations"]
    return np.dtype(f"uint{input_type(kind).width}" if name == "x" else np.uint8)


def load(path: Path, facts: Facts) -> Arrays:
    """Read the two operands of a matrix product, or of several.

    Returns
    -------
    dict
        ``w_codes`` uint8 [n, k/2], ``w_scales`` and, if the format has metadata, ``w_meta`` uint8
        [n, groups]; ``a_codes``, ``a_scales``, ``a_meta`` likewise for m rows, or ``x`` uint16
        (uint32 for fp32) [m, k], raw patterns, if the configuration quantizes activations.
        Of several products ``sizes``, int64 [products, 3], m, n and k of each, and all their groups
        behind one another as the rows of the other fields.

    Raises
    ------
    InputError
        If the file is no .npz file, lacks a field or has one that the configuration does not
        take, a field has another type or shape, or the core does not support the sizes.
    """
    arrays, planes = load_arrays(path), _planes(facts)
    several = "sizes" in arrays
    check_names(path, facts, arrays, [*planes, *(["sizes"] if several else [])])
    group = GemmStreams(facts).act.group
    acts = "x" if "x" in planes else "a_scales"
    if not several:
        if any(arrays[name].ndim != 2 for name in (acts, "w_scales")):
            raise InputError(f"input {path}: scales and values must have two dimensions")
        m, n = (len(arrays[name]) for name in (acts, "w_scales"))
        groups = arrays["w_scales"].shape[1]
        sizes = [(m, n, groups * group)]
        shapes: dict[str, tuple[int, ...]] = {
            name: (n if name[0] == "w" else m, groups * prod(shape))
            for name, shape in planes.items()
        }
        beside = f"w_scales of {[n, groups]}"
    else:
        given = arrays["sizes"]
        if given.dtype != np.int64 or given.ndim != 2 or given.shape[1] != 3 or not len(given):
            raise InputError(
                f"input {path}: sizes is {given.dtype} {list(given.shape)}; must be int64 [n, 3]"
            )
        sizes = [(m, n, k) for m, n, k in given.tolist()]
        rows = [sum(size[at] * (size[2] // group) for size in sizes) for at in (0, 1)]
        shapes = {name: (rows[name[0] == "w"], *shape) for name, shape in planes.items()}
        beside = f"sizes of {len(sizes)} products"
    timing = timing_of(facts)
    for size in sizes:
        timing.check(*size)
    if "x" in planes:
        arrays["x"] = as_patterns(arrays["x"], input_type(facts.parameters["activations"]))
    for name, shape in shapes.items():
        dtype, found = _type(name, facts), arrays[name]
        if found.dtype != dtype or found.shape != shape:
            raise InputError(
                f"input {path}: {name} is {type_name(found)} {list(found.shape)}; must be "
                f"{dtype} {list(shape)} beside {beside}"
            )
    streams = GemmStreams(facts)
    for side, block in (("a_", streams.act), ("w_", streams.weight)):
        own = {name: array for name, array in arrays.items() if name.startswith(side)}
        check_planes(path, own, block)
    return arrays


def products_of(arrays: Arrays, facts: Facts) -> list[Product]:
    """Return the products that a file holds, their planes joined to groups."""
    group, planes = GemmStreams(facts).act.group, _planes(facts)
    if "sizes" in arrays:
        sizes = [(m, n, k // group) for m, n, k in arrays["sizes"].tolist()]
    else:
        groups = arrays["w_scales"].shape[1]
        m = len(arrays["x" if "x" in planes else "a_scales"])
        sizes = [(m, len(arrays["w_scales"]), groups)]

    def cut(side: str, at: int) -> list[NDArray[Any]]:
        """Return matrices of groups [rows, groups, bytes or values]."""
        flat = [
            arrays[name].reshape(-1, prod(shape))
            for name, shape in planes.items()
            if name[0] == side
        ]
        joined = np.concatenate(flat, axis=1)
        ends = np.cumsum([size[at] * size[2] for size in sizes])
        return [
            piece.reshape(size[at], size[2], -1)
            for size, piece in zip(sizes, np.split(joined, ends[:-1]), strict=True)
        ]

    acts = [x.reshape(len(x), -1) for x in cut("x", 0)] if "x" in planes else cut("a", 0)
    return [
        Product(a, w, size[2] * group) for a, w, size in zip(acts, cut("w", 1), sizes, strict=True)
    ]


def encode(arrays: Arrays, facts: Facts) -> dict[str, Beats]:
    """Turn the operands into one command a product, with its streams."""
    return GemmStreams(facts).inputs(products_of(arrays, facts))


def joined(results: list[NDArray[Any]], arrays: Arrays) -> Arrays:
    """Return ``out``: the one result, or several behind one another, a row a number or group."""
    if "sizes" not in arrays:
        return {"out": results[0]}
    rest = results[0].shape[2:]
    return {"out": np.concatenate([result.reshape(-1, *rest) for result in results])}


def decode(beats: Mapping[str, Beats], arrays: Arrays, facts: Facts) -> Arrays:
    """Return ``out``: uint32 or uint16 [m, n] patterns, or uint8 [m, n / group, bytes] groups.

    Of several products all numbers or groups, behind one another.
    """
    found = GemmStreams(facts).results(beats["o"], products_of(arrays, facts))
    return joined(list(found), arrays)


def expected(arrays: Arrays, facts: Facts) -> Arrays:
    """Return the golden model's products."""
    return joined([golden_product(p, facts) for p in products_of(arrays, facts)], arrays)


def period(sizes: list[tuple[int, int, int]]) -> int:
    """Return after how many products their sizes begin anew."""
    count = len(sizes)
    return next(
        n for n in range(1, count + 1) if count % n == 0 and sizes == sizes[:n] * (count // n)
    )


def vectors(arrays: Arrays, facts: Facts, seed: int = 0) -> TestVectors:
    """Return commands and results; what repeats in the sizes is a piece.

    TLAST ends the operands of a command and is never random.
    """
    streams, products = GemmStreams(facts), products_of(arrays, facts)
    results = [golden_product(product, facts) for product in products]
    pieces = len(products) // period([product.sizes for product in products])
    return TestVectors(streams.inputs(products), streams.outputs(results), pieces)


def sample(operands: Operands, facts: Facts) -> Arrays:
    """Return four products a lane: a gate-level run records the second, all cells multiply in it.

    The first lets every output deliver a beat. The last two keep all inputs waiting, with one group
    of weights to load: beside a product of many rows the weights rest.
    """
    from m2xfp.golden.bits import round_to_bits

    streams, given = GemmStreams(facts), facts.parameters
    blocks = 3  # one of them whole within the record, wherever that begins
    small = (1, 1, 1)
    large = (
        blocks * streams.rows * streams.chains,
        streams.columns,
        given["max_k"] // streams.act.group,
    )
    sizes = np.array([small, large, small, small] * operands.lanes)
    acts, weights = (int((sizes[:, at] * sizes[:, 2]).sum()) for at in (0, 1))
    arrays: Arrays = {"sizes": sizes * [1, 1, streams.act.group]}
    packed = packed_groups(streams.weight, operands.weights, weights)
    arrays |= group_arrays(packed, streams.weight, "w_")
    if given["activations"] is None:
        groups: Bytes = packed_groups(streams.act, operands.activations, acts)
        return arrays | group_arrays(groups, streams.act, "a_")
    raw = round_to_bits(given["activations"], operands.activations).reshape(-1, streams.act.group)
    return arrays | {"x": raw.take(np.arange(acts), axis=0, mode="wrap")}
