"""What the groups of units that multiply have gone through."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Facts
from m2xfp.formats import BlockFormat
from m2xfp.golden.units.group_dot import group_dot
from m2xfp.tb.cross import Cross, cross
from m2xfp.tb.fields import Bytes, read
from m2xfp.tb.parts.groups import join_planes
from m2xfp.tb.parts.pairs import SIDES, formats
from m2xfp.tb.parts.product_stimulus import Range
from m2xfp.tb.parts.sum_cover import cover_sums
from m2xfp.tb.vectors import TestVectors

__all__ = ["cover", "cover_operands"]

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


def _packed(values: dict[str, Numbers], block: BlockFormat) -> Bytes:
    """Return groups of which a beat's lanes are the first, and the others zero."""

    def plane(name: str, width: int, count: int) -> NDArray[Any]:
        full = np.zeros((len(values[name]), count), np.uint8)
        full[:, : values[name].shape[1]] = values[name]
        bits = np.unpackbits(full[..., None], axis=2, count=width, bitorder="little")
        return np.packbits(bits.reshape(len(full), -1), axis=1, bitorder="little")

    planes = {
        "codes": plane("codes", block.element.bits, block.group),
        "scales": values["scale"].astype(np.uint8),
    }
    if block.subgroups:
        planes["meta"] = plane("meta", block.metadata.bits, block.subgroups)
    return join_planes(planes, block)


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
    (act, acts), (weight, weights) = found
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
    for side, (block, values) in zip(SIDES, found, strict=True):
        known = np.arange(1 << 8) < (1 << (8 if block.scale.grid is None else 7))
        yield cross(f"{side} scale", {"byte": range(256)}, values["scale"][:, 0], possible=known)


def cover(vectors: TestVectors, facts: Facts) -> Iterator[Cross]:
    """Yield what the operands and the sums of some beats were."""
    yield from cover_operands(vectors, facts, "operands.")
    data = vectors.inputs["i"].data
    groups = [
        _packed(_fields(data, facts, f"operands.{side}", block), block)
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
