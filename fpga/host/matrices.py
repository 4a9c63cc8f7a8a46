"""Units that multiply matrices in memory: products of any size, tile by tile.

Each call begins with a reset of the unit, and its operands lie where others may have lain: whoever
uses the unit through `SerialTransport` beside begins anew afterwards.
"""

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.errors import InputError
from m2xfp.facts import Facts
from m2xfp.formats import BlockFormat
from m2xfp.fpga.host.link import FaultError
from m2xfp.fpga.host.patterns import operands, with_any_codes
from m2xfp.fpga.host.remote_unit import RemoteUnit, slices
from m2xfp.fpga.host.serial_transport import SerialTransport
from m2xfp.rtl.parts.accelerator_map import OFFSETS
from m2xfp.rtl.parts.descriptor_checker import CAUSES, GEMM
from m2xfp.tb.bench import Arrays
from m2xfp.tb.parts.accelerator_tasks import Task, core_of, place, read_results
from m2xfp.tb.parts.accelerator_traffic import PAGE, Memory
from m2xfp.tb.parts.gemm_arrays import GemmStreams, Product
from m2xfp.tb.parts.groups import group_arrays, packed_groups
from m2xfp.tb.units import gemm_core

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["count", "run", "sample"]

PATIENCE = 60.0
"""Seconds without the end of a product, after which the unit has stalled."""

_GAPS = 24
"""Bytes that a row takes beside its groups, where the testbench places it."""


class _BoardMemory(Memory):
    """The memory on the board, as the testbench fills and reads one."""

    def __init__(self, transport: SerialTransport) -> None:
        super().__init__()
        self._transport = transport

    def write(self, address: int, content: NDArray[np.uint8]) -> None:
        """Store bytes."""
        self._transport.store(address, content)

    def read(self, address: int, length: int) -> NDArray[np.uint8]:
        """Return bytes."""
        return self._transport.load(address, length)


def run(unit: RemoteUnit, arrays: Arrays, progress: bool = False) -> Arrays:
    """Return ``out`` of one product, or of several, as the unit's testbench decodes it."""
    from m2xfp.progress import track

    products = gemm_core.products_of(arrays, core_of(unit.facts))
    transport = SerialTransport(unit)
    parts = [(product, *tile) for product in products for tile in _tiles(unit, product)]
    tiles = [
        _tile(unit, transport, product, rows, columns)
        for product, rows, columns in track(parts, desc=unit.name, unit="tile", quiet=not progress)
    ]
    found = []
    for product in products:
        m, n, _ = product.sizes
        out = np.zeros((m, n), np.uint32)
        for _, rows, columns in (part for part in parts if part[0] is product):
            out[rows, columns] = tiles.pop(0)
        found.append(out)
    return gemm_core.joined(found, arrays)


def sample(rng: np.random.Generator, size: int, facts: Facts) -> Arrays:
    """Return one product of ``size`` groups of activations or some more, and up to 3 columns.

    Half of the packed groups are quantized values, the others have any codes and metadata.
    """
    streams = GemmStreams(core_of(facts))
    depth = int(rng.integers(1, 1 + min(4, facts.parameters["max_k"] // streams.act.group)))
    m, n = -(-size // depth), int(rng.integers(1, 4))
    values = operands(rng, max(m, n) * depth)

    def packed(side: str, block: BlockFormat, rows: int, numbers: "Tensor") -> Arrays:
        groups = group_arrays(packed_groups(block, numbers, rows * depth), block, side)
        planes = with_any_codes(rng, groups, side, block)
        return {name: plane.reshape(rows, -1) for name, plane in planes.items()}

    arrays = packed("w_", streams.weight, n, values.weights)
    return arrays | packed("a_", streams.act, m, values.activations)


def count(arrays: Arrays, facts: Facts) -> int:
    """Return the pairs of groups."""
    group = GemmStreams(core_of(facts)).act.group
    products = gemm_core.products_of(arrays, core_of(facts))
    return sum(m * n * k // group for m, n, k in (product.sizes for product in products))


def _tiles(unit: RemoteUnit, product: Product) -> list[tuple[slice, slice]]:
    """Return rows and columns of the results that are computed together."""
    m, n, k = product.sizes
    most = int(unit.facts.parameters["max_k"])
    if k > most:
        raise InputError(f"K = {k}: unit {unit.name} multiplies rows of K = {most} at most")
    row = product.weights.shape[1] * product.weights.shape[2] + _GAPS
    room = unit.memory - PAGE
    # As many rows of both operands as fit with their results, which take 4 bytes each.
    edge = max(1, int(((row / 4) ** 2 + room / 4) ** 0.5 - row / 4) - 1)
    return [(rows, columns) for columns in slices(n, edge) for rows in slices(m, edge)]


def _tile(
    unit: RemoteUnit, transport: SerialTransport, product: Product, rows: slice, columns: slice
) -> NDArray[Any]:
    """Return the results of some rows and columns."""
    part = replace(product, acts=product.acts[rows], weights=product.weights[columns])
    task, memory = Task(GEMM, product=part), _BoardMemory(transport)
    descriptor = place(task, unit.facts, memory, 0)
    ended = transport.read(OFFSETS["completed"])
    for offset, word in descriptor.writes():
        transport.write(offset, word)
    began = time.monotonic()
    while transport.read(OFFSETS["completed"]) == ended:
        if time.monotonic() - began > PATIENCE:
            raise unit.fault(f"a product has not ended for {PATIENCE:g} s")
    if error := transport.read(OFFSETS["error"]):
        transport.write(OFFSETS["error"], 1 << 31)
        names = {number: name for name, number in CAUSES.items()}
        raise _failed(unit, names.get(error & 0xFF, f"cause {error & 0xFF}"))
    return read_results(task, unit.facts, descriptor, memory)


def _failed(unit: RemoteUnit, cause: str) -> FaultError:
    return unit.fault(f"a product ended with: {cause}")
