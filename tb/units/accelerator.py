"""Testbench of the accelerator: matrices into a memory, products and packed values out of it."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from m2xfp.facts import Facts
from m2xfp.rtl.parts.descriptor_checker import GEMM
from m2xfp.tb.bench import Arrays, Operands
from m2xfp.tb.parts.accelerator_arguments import argued
from m2xfp.tb.parts.accelerator_cover import cover, unreached
from m2xfp.tb.parts.accelerator_numbers import cover_case
from m2xfp.tb.parts.accelerator_regression import regression
from m2xfp.tb.parts.accelerator_tasks import Task, core_of, place, read_results, task_results
from m2xfp.tb.parts.accelerator_traffic import PAGE, Descriptor, Memory, Traffic
from m2xfp.tb.parts.gemm_arrays import GemmStreams
from m2xfp.tb.parts.groups import group_arrays, packed_groups
from m2xfp.tb.units import gemm_core
from m2xfp.tb.vectors import Beats, TestVectors

__all__ = [
    "argued",
    "cover",
    "cover_case",
    "decode",
    "encode",
    "expected",
    "load",
    "regression",
    "sample",
    "unreached",
    "vectors",
]


def _tasks(arrays: Arrays, facts: Facts) -> list[Task]:
    """Return the products that arrays hold."""
    return [Task(GEMM, product=each) for each in gemm_core.products_of(arrays, core_of(facts))]


def _descriptors(
    tasks: list[Task], facts: Facts, memory: Memory
) -> Iterator[tuple[Task, Descriptor]]:
    """Place tasks behind one another, each in as many pages as the largest one needs."""
    largest = max(
        m * (5 * k + 200) + n * (k + 40) + m * (n + 1) * 4
        for m, n, k in (task.sizes for task in tasks)
    )
    step = (-(-largest // PAGE) + 3) * PAGE
    for index, task in enumerate(tasks):
        yield task, place(task, facts, memory, index * step, index)


def load(path: Path, facts: Facts) -> Arrays:
    """Read the two operands of a matrix product, or of several, as ``gemm_core`` does."""
    return gemm_core.load(path, core_of(facts))


def encode(arrays: Arrays, facts: Facts) -> dict[str, Beats]:
    """Return what a processor and memories put on the buses for the products."""
    traffic = Traffic(facts, Memory())
    for task, descriptor in _descriptors(_tasks(arrays, facts), facts, traffic.memory):
        m, n, _ = task.sizes
        traffic.configure(descriptor)
        traffic.run(descriptor, np.zeros((m, n), np.uint32))
    return traffic.streams(facts.inputs)


def decode(beats: Mapping[str, Beats], arrays: Arrays, facts: Facts) -> Arrays:
    """Return ``out``, uint32 patterns, [m, n] or of several products all of them."""
    traffic = Traffic(facts, Memory())
    placed = list(_descriptors(_tasks(arrays, facts), facts, traffic.memory))
    traffic.store(beats["results_aw"], beats["results_w"])
    found = [read_results(task, facts, at, traffic.memory) for task, at in placed]
    return gemm_core.joined(found, arrays)


def expected(arrays: Arrays, facts: Facts) -> Arrays:
    """Return the golden model's products."""
    found = [task_results(task, facts) for task in _tasks(arrays, facts)]
    return gemm_core.joined(found, arrays)


def _played(tasks: list[Task], facts: Facts, pieces: int, seed: int) -> TestVectors:
    """Return the traffic of tasks that follow one another."""
    traffic = Traffic(facts, Memory(seed))
    for task, descriptor in _descriptors(tasks, facts, traffic.memory):
        traffic.configure(descriptor)
        traffic.run(descriptor, task_results(task, facts))
    return TestVectors(traffic.streams(facts.inputs), traffic.streams(facts.outputs), pieces)


def vectors(arrays: Arrays, facts: Facts, seed: int = 0) -> TestVectors:
    """Return the traffic of the products; what repeats in the sizes is a piece.

    TLAST is RLAST or WLAST, and never random.
    """
    tasks = _tasks(arrays, facts)
    sizes = [task.sizes for task in tasks]
    return _played(tasks, facts, len(tasks) // gemm_core.period(sizes), seed)


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
