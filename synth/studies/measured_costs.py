"""Clocks and energy of the measured comparison's work, on designs of one format or of two."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from m2xfp.rtl.parts.gemm_cycles import GemmTiming
from m2xfp.synth.studies.measured_clocks import (
    BUILT,
    Work,
    core_product,
    least_packing,
    memory_bits,
    packing,
    parameters_of,
    product,
)
from m2xfp.synth.studies.measured_units import Cell, Units
from m2xfp.synth.studies.paper_accelerator import SLOWDOWN, Model, facts

__all__ = [
    "ENERGIES",
    "HEADS",
    "INPUTS",
    "KINDS",
    "MIXED",
    "Cost",
    "Design",
    "block_cost",
    "designs",
    "mixed_cost",
]

KINDS = ("fused", "area", "switching")
MIXED = ("mxfp4", "mxfp8")

# Heads, heads of the cache and width of a head: the models' published configurations.
HEADS = {
    "llama2_7b": (32, 32, 128),
    "opt6b7": (32, 32, 128),
    "falcon_7b": (71, 1, 64),
    "llama3_8b": (32, 8, 128),
    "mistral_7b": (32, 8, 128),
    "llama3_70b": (64, 8, 128),
}
_LLAMA = (0, 0, 0, 1, 2, 2, 3)
INPUTS = {
    "llama2_7b": _LLAMA,
    "opt6b7": (0, 0, 0, 1, 2, 3),
    "falcon_7b": (0, 1, 0, 2),
    "llama3_8b": _LLAMA,
    "mistral_7b": _LLAMA,
    "llama3_70b": _LLAMA,
}
"""Of each layer of a block which tensor it takes: layers of one tensor need it packed once.

Queries, keys and values take one, gate and up another; Falcon's MLP takes what its attention does.
"""


@dataclass(frozen=True)
class Cost:
    """Clocks and energy of some work.

    Members
    -------
    clocks
        Of the whole, descriptor after descriptor.
    packing
        Of these, the clocks that pack activations, and keys and values of a cache.
    array
        Clocks in which the array is occupied.
    bits
        Between the accelerator and DRAM.
    static, dram, buffers, leakage, macs, engines
        Energy in pJ: DRAM's static power, its accesses, those of weight buffers and of the slots
        that all words go through, the leakage of all memories, the array, and quantizers and
        encoders.
    """

    clocks: float
    packing: float
    array: float
    bits: float
    static: float
    dram: float
    buffers: float
    leakage: float
    macs: float
    engines: float

    @property
    def pj(self) -> float:
        """Energy."""
        return sum(getattr(self, name) for name in ENERGIES)

    def __add__(self, other: "Cost") -> "Cost":
        """Return the cost of both, one after the other."""
        return Cost(
            *(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True))
        )

    def times(self, factor: float) -> "Cost":
        """Return the cost of so much of it."""
        return Cost(*(factor * part for part in vars(self).values()))


ENERGIES = tuple(field.name for field in fields(Cost)[4:])
"""Parts of the energy."""

_NOTHING = Cost(*[0.0] * len(fields(Cost)))


@dataclass(frozen=True)
class Design:
    """An accelerator of one format.

    Members
    -------
    name
        Of the format.
    cell
        Its MAC.
    slower
        How many times as long its array takes for the same MACs, over that of M2XFP.
    max_k
        Largest k.
    cache_pj
        Energy to pack a value of a cache.
    built
        Whether it is the accelerator of this generator; otherwise clocks are a bound, from the GEMM
        core's and the memory's.
    """

    name: str
    cell: Cell
    slower: float
    max_k: int
    cache_pj: float
    built: bool

    def _cost(self, work: Work, *, packs: bool) -> Cost:
        """Return what every descriptor costs: clocks, DRAM, slots and leakage."""
        known = facts()
        clocks = work.on_area(self.slower)
        period_us = clocks / known.clock_mhz
        sram, dram = known.sram, known.dram
        given = {**parameters_of(self.name), "max_k": self.max_k}
        kilobytes = memory_bits(given) / 8 / 1024
        read, written = 8 * work.read, 8 * work.written
        return Cost(
            clocks,
            clocks if packs else 0.0,
            self.slower * work.array,
            read + written,
            static=dram.static_mw * 1e3 * period_us,
            dram=dram.read_pj_per_bit * read + dram.write_pj_per_bit * written,
            buffers=read / sram.word_bits * (sram.write_pj + sram.read_pj),
            leakage=sram.leakage_mw / sram.kilobytes * kilobytes * 1e3 * period_us,
            macs=0.0,
            engines=0.0,
        )

    def product(self, size: tuple[int, int, int]) -> Cost:
        """Return the cost of a product [m, n, k] of packed operands.

        A block of rows of activations, as many as there are chains, reads all weights from their
        buffers.
        """
        m, n, k = size
        sram = facts().sram
        blocks = -(-m // GemmTiming.chains)
        words = n * k * self.cell.bits / sram.word_bits
        own = dict.fromkeys(ENERGIES, 0.0)
        own["buffers"] = words * (sram.write_pj + blocks * sram.read_pj)
        own["macs"] = m * n * k * self.cell.pj
        counted = product if self.built else core_product
        work = counted(self.name, size)
        return self._cost(work, packs=False) + Cost(0.0, 0.0, 0.0, 0.0, **own)

    def pack(self, rows: int, k: int, *, cache: bool = False) -> Cost:
        """Return the cost of packing values [rows, k], as activations or for a cache."""
        own = dict.fromkeys(ENERGIES, 0.0)
        own["engines"] = rows * k * (self.cache_pj if cache else self.cell.quantizer_pj)
        if self.built and BUILT[self.name][2]:
            work = packing(self.name, rows, k, encodes=cache)
        else:
            work = least_packing(self.name, rows, k)
        return self._cost(work, packs=True) + Cost(0.0, 0.0, 0.0, 0.0, **own)


def designs(model: Model, units: Units) -> Mapping[str, Design]:
    """Return accelerators of each format on the area that M2XFP's MACs take."""
    return {
        name: _design(model, units, name, cell, cell.um2 / units.m2xfp.um2, name in BUILT)
        for name, cell in units.cells.items()
    }


def _design(
    model: Model, units: Units, name: str, cell: Cell, slower: float, built: bool
) -> Design:
    largest = max(k for _, k in model.layers)
    cache_pj = units.encoder_pj / 32 if name == "m2xfp" else cell.quantizer_pj
    return Design(name, cell, slower, largest, cache_pj, built)


def block_cost(model: Model, tokens: int, design: Design) -> Cost:
    """Return the cost of a block's linear layers, packing included.

    Each tensor that layers take is packed once, and keys and values once for the cache: keys token
    by token, values along the tokens. Of one token, whose group of values is not full, the whole
    group is packed anew.
    """
    total = _NOTHING
    for n, k in model.layers:
        total += design.product((tokens, n, k))
    inputs = dict(zip(INPUTS[model.name], model.layers, strict=True))
    for _, k in inputs.values():
        total += design.pack(tokens, k)
    _, stored, width = HEADS[model.name]
    total += design.pack(tokens, stored * width, cache=True)
    return total + design.pack(stored * width, -(-tokens // 32) * 32, cache=True)


def mixed_cost(model: Model, tokens: int, share: float, units: Units, kind: str) -> Cost:
    """Return the cost of a block on a design that runs a share of all MACs in MXFP8.

    ``fused``: the paper's array, 4-bit MACs as fast as M2XFP's and 8-bit ones four times slower.
    ``area``: units of this generator for each format, on the area of M2XFP's. ``switching``: its
    unit that switches formats, on that area. There is no accelerator of either: all are bounds.
    """
    total = _NOTHING
    for name, part, slow in zip(MIXED, (1 - share, share), (1.0, float(SLOWDOWN)), strict=True):
        cell, slower = units.cells[name], slow
        if kind == "area":
            slower = cell.um2 / units.m2xfp.um2
        elif kind == "switching":
            unit = units.switching
            cell = Cell(cell.bits, unit.um2, unit.pj, cell.quantizer_pj)
            slower = slow * unit.um2 / units.m2xfp.um2
        design = _design(model, units, name, cell, slower, False)
        total += block_cost(model, tokens, design).times(part)
    return total
