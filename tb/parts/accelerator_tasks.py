"""What an accelerator is given to do: products and values to pack, placed in a memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Facts
from m2xfp.formats import BlockFormat, block_format
from m2xfp.rtl.catalog import find_unit
from m2xfp.rtl.parameters import parse_settings
from m2xfp.rtl.parts.descriptor_checker import (
    BF16_VALUES,
    ENCODE,
    FP32_VALUES,
    GEMM,
    PACKED,
    QUANTIZE,
)
from m2xfp.tb.bench import golden_of
from m2xfp.tb.fields import Bytes
from m2xfp.tb.parts.accelerator_traffic import PAGE, Descriptor, Memory, Traffic
from m2xfp.tb.parts.gemm_arrays import GemmStreams, Product
from m2xfp.tb.parts.gemm_regression import random_products
from m2xfp.tb.parts.value_stimulus import DISTRIBUTIONS, groups

__all__ = [
    "Task",
    "core_of",
    "kinds_of",
    "place",
    "random_tasks",
    "read_results",
    "task_results",
    "written",
]

_SHARED = ("act", "weight", "rows", "columns", "max_k", "depth", "chains")
_NAMES = {GEMM: "gemm", QUANTIZE: "quantize", ENCODE: "encode"}
_KINDS = {FP32_VALUES: "fp32", BF16_VALUES: "bf16", PACKED: "packed"}


@cache
def _core(settings: tuple[str, ...]) -> Facts:
    unit = find_unit("gemm_core")
    return unit.instance(None, parse_settings(unit.component, settings)).facts


def core_of(facts: Facts) -> Facts:
    """Return the facts of the GEMM core inside."""
    return _core(tuple(f"{name}={facts.parameters[name]}" for name in _SHARED))


@dataclass(frozen=True)
class Task:
    """A product, or values to pack.

    Members
    -------
    operation, kind
        As in a descriptor.
    product
        The operands of a product.
    values
        Patterns [m, k] of other operations, of ``kind``.
    """

    operation: int
    kind: int = FP32_VALUES
    product: Product | None = None
    values: NDArray[Any] | None = None

    @property
    def sizes(self) -> tuple[int, int, int]:
        """m, n and k; n is 1 where there is none."""
        if self.product is not None:
            return self.product.sizes
        assert self.values is not None
        return len(self.values), 1, self.values.shape[1]

    @property
    def packed(self) -> bool:
        """Whether results are packed groups."""
        return self.operation != GEMM or self.kind == PACKED


def kinds_of(facts: Facts) -> list[tuple[int, int]]:
    """Return the operations that a build can do, with their kinds."""
    given = facts.parameters
    found = [(GEMM, FP32_VALUES), (GEMM, BF16_VALUES)]
    if given["quantizer"] == "fp32" and given["columns"] == block_format(given["act"]).group:
        found.append((GEMM, PACKED))
    for operation, name in ((QUANTIZE, "quantizer"), (ENCODE, "encoder")):
        if given[name] is not None:
            found.append((operation, BF16_VALUES))
        if given[name] == "fp32":
            found.append((operation, FP32_VALUES))
    return found


def random_tasks(
    rng: np.random.Generator,
    facts: Facts,
    count: int,
    most: int,
    able: Sequence[tuple[int, int]] | None = None,
) -> list[Task]:
    """Return tasks of sizes at every edge, with at most ``most`` groups a row.

    They are of every operation and kind that a build can do, or of those in ``able``.
    """
    streams, able = GemmStreams(core_of(facts)), able or kinds_of(facts)
    tasks = []
    for _ in range(count):
        operation, kind = able[int(rng.integers(len(able)))]
        if operation == GEMM:
            (product,) = random_products(rng, streams, 1, most)
            if kind == PACKED:  # whole groups of results
                rows = -(-len(product.weights) // streams.act.group) * streams.act.group
                shape = (rows, *product.weights.shape[1:])
                product = replace(product, weights=np.resize(product.weights, shape))
            tasks.append(Task(operation, kind, product))
            continue
        rows, number = int(rng.integers(1, 6)), int(rng.integers(1, most + 1))
        name, seed = str(rng.choice(list(DISTRIBUTIONS))), int(rng.integers(1 << 30))
        values = groups(name, _KINDS[kind], rows * number, seed, streams.act.group)
        tasks.append(Task(operation, kind, values=values.reshape(rows, -1)))
    return tasks


def task_results(task: Task, facts: Facts) -> NDArray[Any]:
    """Return the golden model's results: patterns [m, n], or packed groups [m, groups, bytes]."""
    names = {"operation": _NAMES[task.operation], "kind": _KINDS[task.kind]}
    if task.product is None:
        found = golden_of(facts)(task.values, **names)["out"]
    else:
        found = golden_of(facts)(task.product.acts, task.product.weights, **names)["out"]
    return np.asarray(found)


def _planes(block: BlockFormat) -> dict[str, int]:
    """Return the planes of a format, with the bytes of a group in each."""
    names = ("codes", "scales", "meta")
    return {name: n for name, n in zip(names, block.group_bytes, strict=False) if n}


def place(task: Task, facts: Facts, memory: Memory, base: int, index: int = 0) -> Descriptor:
    """Store the operands of a task in memory; return the descriptor that runs it.

    Rows have gaps between them, planes begin at odd places, and codes shortly before a page ends.

    Parameters
    ----------
    task
        What is to be done.
    facts
        The accelerator.
    memory
        Where the operands go.
    base
        First address, a multiple of a page.
    index
        Number of the descriptor.
    """
    m, n, k = task.sizes
    words = {"operation": task.operation, "m": m, "n": n, "k": k, "kind": task.kind}
    at = base + PAGE - 48
    if task.product is None:
        assert task.values is not None
        rows = np.ascontiguousarray(task.values).view(np.uint8)
        group = rows.shape[1] // (k // block_format(facts.parameters["act"]).group)
        at = base + PAGE - group
        words |= {"a_codes": at, "a_codes_pitch": rows.shape[1] + group}
        memory.write_rows(at, rows.shape[1] + group, rows)
        at += len(rows) * (rows.shape[1] + group)
    else:
        traffic = Traffic(facts, memory)
        for side, groups_ in (("a", task.product.acts), ("w", task.product.weights)):
            at = _place_operand(words, side, groups_, traffic.planes(side), memory, at)
    value_bytes = Descriptor(words).value_bytes
    words["out"] = at + value_bytes
    words["out_pitch"] = (n + 1) * value_bytes
    if task.packed:
        words |= _planar(task, facts, at)
    return Descriptor(words, index)


def _place_operand(
    words: dict[str, int],
    side: str,
    groups_: Bytes,
    sizes: dict[str, int],
    memory: Memory,
    at: int,
) -> int:
    """Store an operand plane by plane from an address on; return where what follows may begin."""
    first = 0
    for plane, size in sizes.items():
        rows = groups_[:, :, first : first + size].reshape(len(groups_), -1)
        pitch = rows.shape[1] + (16 if plane == "codes" else 3)
        words[f"{side}_{plane}"] = at
        words[f"{side}_{'codes' if plane == 'codes' else 'scales'}_pitch"] = pitch
        memory.write_rows(at, pitch, rows)
        at += len(rows) * pitch
        at += 5 if plane == "codes" else 0
        first += size
    return -(-at // 16) * 16 + 32


def _planar(task: Task, facts: Facts, at: int) -> dict[str, int]:
    """Return the words of packed results from an address on."""
    m, n, k = task.sizes
    block = block_format(facts.parameters["weight" if task.operation == ENCODE else "act"])
    count = (n if task.operation == GEMM else k) // block.group
    code_bytes = block.group_bytes[0]
    codes = -(-at // code_bytes) * code_bytes + code_bytes
    pitch = (count + 1) * code_bytes
    scales = codes + m * pitch + 7
    return {
        "out": codes,
        "out_pitch": pitch,
        "out_scales": scales,
        "out_meta": scales + m * (count + 3) + 1,
        "out_scales_pitch": count + 3,
    }


def written(task: Task, facts: Facts, descriptor: Descriptor) -> Iterator[tuple[int, int]]:
    """Yield start and end of the bytes that a descriptor writes."""
    m, n, k = task.sizes
    if not task.packed:
        for row in range(m):
            start = descriptor["out"] + row * descriptor["out_pitch"]
            yield start, start + n * descriptor.value_bytes
        return
    block = block_format(facts.parameters["weight" if task.operation == ENCODE else "act"])
    count = (n if task.operation == GEMM else k) // block.group
    for plane, size in _planes(block).items():
        codes = plane == "codes"
        base = descriptor["out" if codes else f"out_{plane}"]
        pitch = descriptor["out_pitch" if codes else "out_scales_pitch"]
        for row in range(m):
            yield base + row * pitch, base + row * pitch + count * size


def read_results(task: Task, facts: Facts, descriptor: Descriptor, memory: Memory) -> NDArray[Any]:
    """Return what memory has as the results of a task, as ``task_results`` gives them."""
    m, n, k = task.sizes
    rows = [
        memory.read(start, end - start).reshape(1, -1)
        for start, end in written(task, facts, descriptor)
    ]
    if not task.packed:
        return np.concatenate(rows).view(f"<u{descriptor.value_bytes}")
    group = block_format(facts.parameters["act"]).group
    count = (n if task.operation == GEMM else k) // group
    planes = [
        np.concatenate(rows[first : first + m]).reshape(m, count, -1)
        for first in range(0, len(rows), m)
    ]
    return np.concatenate(planes, axis=2)
