"""What the groups of units that multiply have gone through."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Facts
from m2xfp.formats import BlockFormat
from m2xfp.golden.formats.operands import product_bias
from m2xfp.golden.units.dot_product import dot_product
from m2xfp.golden.units.group_dot import group_dot
from m2xfp.tb.cross import Cross, cross
from m2xfp.tb.fields import Bytes, read
from m2xfp.tb.parts.groups import elements, group_arrays, packed_values
from m2xfp.tb.parts.pairs import SIDES, formats
from m2xfp.tb.parts.product_stimulus import Range
from m2xfp.tb.parts.sum_cover import Sums, cover_running, cover_sums
from m2xfp.tb.vectors import TestVectors

__all__ = ["cover", "cover_dots", "cover_operands"]

Numbers = NDArray[np.int64]


def _fields(data: Bytes, facts: Facts, path: str, block: BlockFormat) -> dict[str, Numbers]:
    """Return codes, scales and metadata of one side of beats, each [beats, values]."""
    names = ["codes", "scale", *(["meta"] if block.subgroups else [])]
    stream = facts.stream("i")
    return {
        name: np.asarray(read(stream.field(f"{path}.{name}"), data), np.int64).reshape(
            len(data), -1
        )
        for name in names
    }


def cover_operands(vectors: TestVectors, facts: Facts, prefix: str = "") -> Iterator[Cross]:
    """Yield what the operands of some beats were; ``prefix`` is where they are in the payload."""
    data, found = vectors.inputs["i"].data, []
    for side, block in zip(SIDES, formats(facts), strict=True):
        values = _fields(data, facts, f"{prefix}{side}", block)
        codes, lanes = values["codes"], values["codes"].shape[1]
        yield cross(
            f"{side} code in each lane",
            {"code": range(1 << block.element.bits), "lane": range(lanes)},
            codes,
            np.arange(lanes),
        )
        if block.subgroups:
            meta = values["meta"]
            yield cross(
                f"{side} metadata",
                {"value": range(1 << block.metadata.bits), "subgroup": range(meta.shape[1])},
                meta,
                np.arange(meta.shape[1]),
            )
        found.append((block, values))
    yield from _pairs(*found)


def _pairs(
    one: tuple[BlockFormat, dict[str, Numbers]], other: tuple[BlockFormat, dict[str, Numbers]]
) -> Iterator[Cross]:
    """Yield which pairs of codes, metadata and scales there were; values are [n, values]."""
    (act, acts), (weight, weights) = one, other
    yield cross(
        "pair of codes",
        {"act": range(1 << act.element.bits), "weight": range(1 << weight.element.bits)},
        acts["codes"],
        weights["codes"],
    )
    if act.subgroups and weight.subgroups:
        yield cross(
            "pair of metadata",
            {"act": range(1 << act.metadata.bits), "weight": range(1 << weight.metadata.bits)},
            acts["meta"],
            weights["meta"],
        )
    yield cross(
        "NaN scale",
        {"act": ("no", "yes"), "weight": ("no", "yes")},
        acts["scale"] == act.scale.nan,
        weights["scale"] == weight.scale.nan,
    )
    for side, (block, values) in zip(SIDES, (one, other), strict=True):
        known = np.arange(1 << 8) < (1 << (8 if block.scale.grid is None else 7))
        yield cross(f"{side} scale", {"byte": range(256)}, values["scale"][:, 0], possible=known)


def cover_dots(
    act_groups: Bytes, weight_groups: Bytes, act: BlockFormat, weight: BlockFormat
) -> Iterator[Cross]:
    """Yield what the operands of dot products were, and their sums in FP32.

    Parameters
    ----------
    act_groups, weight_groups
        uint8 [n, steps, bytes]: packed groups, each row a dot product.
    act, weight
        Their formats.
    """
    count, steps = act_groups.shape[:2]
    flat = [side.reshape(count * steps, -1) for side in (act_groups, weight_groups)]
    yield from _pairs((act, _values(flat[0], act)), (weight, _values(flat[1], weight)))
    first = np.broadcast_to(np.arange(steps) == 0, (count, steps))
    products = group_dot(flat[0], flat[1], act=act.name, weight=weight.name)
    product, exponent, nan = (
        products[name].reshape(count, steps) for name in ("product", "exponent", "nan")
    )
    after = dot_product(act_groups, weight_groups, first.copy(), act=act.name, weight=weight.name)[
        "acc"
    ]
    yield from cover_running(
        Sums(
            product.astype(np.int64),
            exponent.astype(np.int64),
            nan.astype(bool),
            first,
            product_bias(act, weight),
            after.reshape(count, steps).astype(np.uint32),
        )
    )


def _values(groups: Bytes, block: BlockFormat) -> dict[str, Numbers]:
    """Return codes, scales and metadata of packed groups [n, bytes], each [n, values]."""
    planes = group_arrays(groups, block)
    found = {"codes": elements(planes["codes"], block.element.bits, block.group)}
    found["scale"] = planes["scales"][:, None]
    if block.subgroups:
        found["meta"] = elements(planes["meta"], block.metadata.bits, block.subgroups)
    return {name: values.astype(np.int64) for name, values in found.items()}


def cover(vectors: TestVectors, facts: Facts) -> Iterator[Cross]:
    """Yield what the operands and the sums of some beats were."""
    yield from cover_operands(vectors, facts, "operands.")
    data = vectors.inputs["i"].data
    groups = [
        packed_values(_fields(data, facts, f"operands.{side}", block), block)
        for side, block in zip(SIDES, formats(facts), strict=True)
    ]
    given = facts.parameters
    products = group_dot(*groups, act=given["act"], weight=given["weight"])
    first = np.asarray(read(facts.stream("i").field("first"), data), bool)
    yield from cover_sums(
        vectors,
        facts,
        products["product"].astype(np.int64),
        products["exponent"].astype(np.int64),
        products["nan"].astype(bool),
        first,
        Range.of(facts).one,
    )
