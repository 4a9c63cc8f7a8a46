"""What the commands of the GEMM core have gone through."""

from collections.abc import Iterator

import numpy as np

from m2xfp.facts import Facts
from m2xfp.formats import BlockFormat
from m2xfp.tb.cross import Cross, cross
from m2xfp.tb.fields import read
from m2xfp.tb.parts.gemm_arrays import GemmStreams, Product
from m2xfp.tb.parts.gemm_operands import given_products
from m2xfp.tb.parts.pair_cover import cover_dots
from m2xfp.tb.vectors import TestVectors

__all__ = ["cover", "cover_product", "unreached"]


def cover(vectors: TestVectors, facts: Facts) -> Iterator[Cross]:
    """Yield what some commands, their operands and their reports were."""
    streams, command, status = GemmStreams(facts), facts.stream("cmd"), facts.stream("status")
    given, told = vectors.inputs["cmd"].data, vectors.outputs["status"].data
    m, n, k, tag = (
        np.asarray(read(command.field(name), given), np.int64) for name in ("m", "n", "k", "tag")
    )
    group, block = streams.act.group, streams.rows * streams.chains
    most = int(facts.parameters["max_k"]) // group
    yield cross("groups of k", {"groups": range(1, most + 1)}, k // group - 1, where=k % group == 0)
    yield cross("rows beyond whole blocks", {"rows": range(block)}, m % block)
    yield cross(
        "columns beyond whole panels", {"columns": range(streams.columns)}, n % streams.columns
    )
    yield cross("tag of a command", {"tag": range(streams.tags)}, tag)
    names = [field.name for field in status.fields if field.name != "tag"]
    faults = np.array([np.asarray(read(status.field(name), told), bool) for name in names])
    for name, seen in zip(names, faults, strict=True):
        yield cross(f"report of {name}", {"reported": ("no", "yes")}, seen)
    for side, fmt, path in (("acts", streams.act, "rows"), ("weights", streams.weight, "group")):
        fields = {field.name: field for field in facts.stream(side).fields}
        none = not len(vectors.inputs[side])
        if none or f"{path}.codes" not in fields:  # values that the core quantizes itself
            continue
        data, bits = vectors.inputs[side].data, fmt.element.bits
        codes = np.asarray(read(fields[f"{path}.codes"], data), np.int64)
        yield cross(
            f"code of {side} in each lane",
            {"code": range(1 << bits), "lane": range(codes.shape[-1])},
            codes,
            np.arange(codes.shape[-1]),
        )
        if fmt.subgroups:
            meta = np.asarray(read(fields[f"{path}.meta"], data), np.int64)
            yield cross(
                f"metadata of {side}",
                {"value": range(1 << fmt.metadata.bits), "subgroup": range(meta.shape[-1])},
                meta,
                np.arange(meta.shape[-1]),
            )
    for product in given_products(vectors, facts):
        yield from cover_product(product, streams.act, streams.weight)


def cover_product(product: Product, act: BlockFormat, weight: BlockFormat) -> Iterator[Cross]:
    """Yield what the sums of a product's cells were, of packed activations."""
    m, n = len(product.acts), len(product.weights)
    yield from cover_dots(
        np.repeat(product.acts, n, axis=0), np.tile(product.weights, (m, 1, 1)), act, weight
    )


def unreached(facts: Facts) -> dict[str, str]:
    """Return what follows from how reports leave, and from the bounds of products."""
    streams = GemmStreams(facts)
    found = {
        "beats of status: 0, (none|no ready)": "no report is there in the clock after one was "
        "taken (job apart)"
    }
    if streams.act.metadata.name == "elem-em":
        found[r"unit[.].*u_addend[.]normalised_1\[0\]:.*"] = (
            "a refined element adds last bits only where it is small, and so is the sum of its "
            "subgroup, of which it is the largest"
        )
    return found
