"""What the numbers of a mixed GEMM have gone through: codes, scales, sums, segments, results."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from m2xfp.facts import Facts
from m2xfp.golden.bits import to_bits
from m2xfp.golden.formats.format import get_format
from m2xfp.golden.formats.numeric import add_to_odd, round_once, widen
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.formats.running import group_sums, running_fp32_sum
from m2xfp.pairs import pair_set
from m2xfp.tb.cross import Cross, cross
from m2xfp.tb.parts.element_codes import unpacked_codes
from m2xfp.tb.parts.groups import elements
from m2xfp.tb.parts.mixed_arrays import MixedProduct, Part
from m2xfp.tb.parts.pairs import SIDES
from m2xfp.tb.parts.sum_cover import (
    RESULTS,
    ROUNDED,
    SIGNS,
    Sums,
    cover_running,
    exact_sum,
    kind_of,
    rounding_of,
)

__all__ = ["cover_numbers"]

BF16_DROPS = 16  # bits of FP32 that bf16 has not


def cover_numbers(products: Sequence[MixedProduct], facts: Facts) -> Iterator[Cross]:
    """Yield what the operands, the sums and the results of some products were."""
    for act, weight in pair_set(facts.parameters["pairs"]).pairs:  # so that none is forgotten
        none = [np.zeros((0, 1, sum(block.group_bytes)), np.uint8) for block in (act, weight)]
        yield from _operands(Part(act, weight, *none))
    alike: dict[tuple[object, ...], list[list[Part]]] = defaultdict(list)
    for product in products:
        # Each with each: a dot product a row.
        m, n, _ = product.sizes
        parts = [
            Part(p.act, p.weight, np.repeat(p.acts, n, axis=0), np.tile(p.weights, (m, 1, 1)))
            for p in product.parts
        ]
        alike[tuple((p.act.name, p.weight.name, p.groups) for p in parts)].append(parts)
    for several in alike.values():
        dots = [
            Part(
                parts[0].act,
                parts[0].weight,
                np.concatenate([part.acts for part in parts]),
                np.concatenate([part.weights for part in parts]),
            )
            for parts in zip(*several, strict=True)
        ]
        for part in dots:
            yield from _operands(part)
        yield from _dots(dots, facts.parameters["results"])


def _operands(part: Part) -> Iterator[Cross]:
    """Yield what the codes, scales and metadata of a segment were."""
    name, nan = f"{part.act.name}:{part.weight.name}", []
    for side, block, groups in zip(
        SIDES, (part.act, part.weight), (part.acts, part.weights), strict=True
    ):
        flat, size = groups.reshape(-1, groups.shape[2]), block.group_bytes[0]
        codes = unpacked_codes(flat[:, :size], block)
        yield cross(f"{side} code of {name}", {"code": range(1 << block.element.bits)}, codes)
        yield cross(f"{side} scale", {"byte": range(256)}, flat[:, size].astype(np.int64))
        nan.append(flat[:, size] == block.scale.nan)
        if block.subgroups:
            meta = elements(flat[:, size + 1 :], block.metadata.bits, block.subgroups)
            values = range(1 << block.metadata.bits)
            yield cross(f"{side} metadata of {name}", {"value": values}, meta.astype(np.int64))
    yield cross(f"NaN scale of {name}", {"act": ("no", "yes"), "weight": ("no", "yes")}, *nan)


@dataclass(frozen=True)
class _Addends:
    """What the groups of dot products add, [dots, groups]: exactly, in two parts."""

    product: NDArray[np.float64]
    rest: NDArray[np.float64]
    factor: NDArray[np.float64]

    @classmethod
    def of(cls, part: Part) -> "_Addends":
        """Return those of a segment."""
        sides = (
            PackedTensor.from_groups(get_format(block.name), torch.from_numpy(groups))
            for block, groups in ((part.act, part.acts), (part.weight, part.weights))
        )
        terms, factor = group_sums(*sides)
        product, *rest = (term.numpy() for term in terms)
        return cls(product, rest[0] if rest else np.zeros_like(product), factor.numpy())

    @classmethod
    def joined(cls, parts: Sequence["_Addends"]) -> "_Addends":
        """Return those of segments one after the other."""
        names = ("product", "rest", "factor")
        return cls(*(np.concatenate([getattr(each, n) for each in parts], 1) for n in names))

    def sums(self) -> Sums:
        """Return the sums after each, in FP32."""
        addends, rests = (
            torch.from_numpy(part * self.factor)[..., None] for part in (self.product, self.rest)
        )
        some = bool(rests.nan_to_num(1.0).any())
        after = to_bits(running_fp32_sum(addends, None, rests if some else None))
        nan = np.isnan(self.product * self.factor)
        exponent = np.frexp(np.where(np.isnan(self.factor), 1.0, self.factor))[1] - 1
        return Sums(
            np.nan_to_num(self.product),
            exponent.astype(np.int64),
            nan,
            np.broadcast_to(np.arange(nan.shape[1]) == 0, nan.shape),
            0,
            after[..., 0].view(np.uint32),
            np.where(nan, 0.0, self.rest * np.nan_to_num(self.factor)),
        )


def _dots(parts: Sequence[Part], results: str) -> Iterator[Cross]:
    """Yield what the sums and the results of dot products were, the parts one after the other."""
    addends = [_Addends.of(part) for part in parts]
    if results != "segments":
        sums = _Addends.joined(addends).sums()
        yield from cover_running(sums)
        exact = sums.result[:, -1]
        if results == "fp32":
            yield _results(sums.after[:, -1])
            return
        rounded = round_once(torch.from_numpy(exact), torch.bfloat16)
        yield _rounding("rounding of a result", exact, np.zeros_like(exact), rounded)
        yield _results(_fp32(rounded))
        return
    result: torch.Tensor | None = None
    for each in addends:
        sums = each.sums()
        yield from cover_running(sums)
        segment = sums.result[:, -1]
        before = np.zeros_like(segment) if result is None else widen(result).numpy()
        total = torch.from_numpy(segment)
        total = total if result is None else add_to_odd(widen(result), total)
        first, result = result is None, round_once(total, torch.bfloat16)
        yield _rounding(
            f"rounding of {'the first' if first else 'a'} segment", before, segment, result
        )
    assert result is not None
    yield _results(_fp32(result))


def _fp32(values: torch.Tensor) -> NDArray[np.uint32]:
    return to_bits(values.float()).view(np.uint32)


def _rounding(
    name: str, one: NDArray[np.float64], other: NDArray[np.float64], rounded: torch.Tensor
) -> Cross:
    """Return how sums of two numbers were rounded to bf16."""
    result = widen(rounded).numpy()
    return cross(
        name,
        {"case": ROUNDED, "sign": SIGNS},
        rounding_of(*exact_sum(one, other), result, BF16_DROPS),
        np.signbit(result),
        where=np.isfinite(one) & np.isfinite(other) & np.isfinite(result),
    )


def _results(patterns: NDArray[np.uint32]) -> Cross:
    """Return what kinds of numbers leave, of their FP32 patterns."""
    return cross(
        "result of a product",
        {"kind": RESULTS, "sign": SIGNS},
        kind_of(patterns),
        (patterns >> 31).astype(np.int64),
        possible=np.array([[1, 1]] * 4 + [[1, 0]], bool),
    )
