"""The paper's comparison of accelerators with this project's own figures.

Clocks are those of the GEMM core's cycle model, which equals the emitted Verilog clock for clock;
bits a value are all that is stored; energies are those of the project's own units at gate level, in
one library. DRAM and SRAM are the paper's constants. This is held against arrays of one other
format, and against mixtures of MXFP4 and MXFP8 with the shares of 8-bit work of the paper's
baselines: on MACs that fuse as the paper assumes, on units of this generator side by side, and on
its unit that switches formats.
"""

from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

from m2xfp.errors import InputError
from m2xfp.formats import block_format
from m2xfp.results import read_figures
from m2xfp.rtl.parts.gemm_cycles import GemmTiming
from m2xfp.synth.studies.paper_accelerator import (
    BASELINES,
    SLOWDOWN,
    Model,
    facts,
    share_of_8_bits,
)

__all__ = ["CELLS", "ENERGIES", "KINDS", "PDK", "compare_measured"]

PDK = "asap7"
CACHES = (2048, 8192, 32768, 131072)

# The array that the paper gives M2XFP has 1024 MACs; ours has them as 1 x 32 cells, and loads as
# many rows of weights together as a bus of 1024 bits brings.
_ROWS, _COLUMNS, _WEIGHT_ROWS = 1, 32, 8
_RESULT_BITS = 16  # bf16

# Heads, heads of the cache and width of a head: the models' published configurations.
_HEADS = {
    "llama2_7b": (32, 32, 128),
    "opt6b7": (32, 32, 128),
    "falcon_7b": (71, 1, 64),
    "llama3_8b": (32, 8, 128),
    "mistral_7b": (32, 8, 128),
    "llama3_70b": (64, 8, 128),
}


# Of a format: configurations of its dot product and its activation quantizer.
CELLS = {
    "m2xfp": ("m2xfp-act", "m2xfp-fp32", ("activation_quantizer", "bf16x32")),
    "mxfp4": ("mxfp4", "mxfp4-fp32", ("activation_quantizer", "mxfp4-bf16x32")),
    "nvfp4": ("nvfp4", "nvfp4-fp32", ("minifloat_quantizer", "nvfp4-bf16x16")),
    "mxfp8": ("mxfp8-e4m3", "mxfp8-fp32", ("activation_quantizer", "mxfp8-e4m3-bf16x32")),
}
# The unit that switches between MXFP4, MXFP6 and MXFP8, whose wide groups take four clocks.
_SWITCHING = "micromix-8"


@dataclass(frozen=True)
class Cell:
    """A MAC of one format in the library.

    Members
    -------
    bits
        Stored bits a value.
    um2, pj
        Area and energy of a MAC, its share of FP32 accumulation included.
    quantizer_pj
        Energy of the activation quantizer, a value.
    """

    bits: float
    um2: float
    pj: float
    quantizer_pj: float


@dataclass(frozen=True)
class Cost:
    """Clocks and energy of some work.

    Members
    -------
    clocks
        Of the whole, the slower of array and DRAM.
    busy
        Of the array alone.
    bits
        Through DRAM.
    static, dram, buffers, leakage, macs, engines
        Energy in pJ: DRAM's static power, its accesses, those of the weight buffers, their leakage,
        the array, and quantizers and encoders.
    """

    clocks: float
    busy: float
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
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def times(self, factor: float) -> "Cost":
        """Return the cost of so much of it."""
        return Cost(*(factor * part for part in astuple(self)))


ENERGIES = tuple(field.name for field in fields(Cost)[3:])
"""Parts of the energy."""

_NOTHING = Cost(*[0.0] * len(fields(Cost)))


@dataclass(frozen=True)
class Units:
    """What the project's units take in the library.

    Members
    -------
    cells
        A MAC of each format.
    switching
        One of the unit that switches formats, as large and as costly for each of them: area is that
        of a MAC of 4 bits, energy the mean over its regression's formats.
    encoder_pj
        A group through the encoder of a cache.
    """

    cells: Mapping[str, Cell]
    switching: Cell
    encoder_pj: float

    @property
    def m2xfp(self) -> Cell:
        """A MAC of M2XFP."""
        return self.cells["m2xfp"]

    @classmethod
    def of(cls, results: Path) -> "Units":
        """Return the accepted figures of the library."""
        path = results / f"synth-{PDK}.json"
        try:
            return cls._of(
                {(row["unit"], row["config"]): row for row in read_figures(path)["rows"]}
            )
        except (LookupError, TypeError, ZeroDivisionError) as error:
            raise InputError(
                f"{path} lacks figures of this project's units ({type(error).__name__}: {error}); "
                f"restore it: git checkout {path}"
            ) from error

    @classmethod
    def _of(cls, rows: Mapping[tuple[str, str], Mapping[str, Any]]) -> "Units":
        def cell(name: str, config: str, quantizer: tuple[str, str]) -> Cell:
            row, block = rows["dot_product", config], block_format(name)
            return Cell(
                float(block.bits_per_value),
                row["area_um2"] / block.group,
                row["energy_pj_per_mac"],
                rows[quantizer]["energy_pj_per_group"] / block.group,
            )

        cells = {name: cell(*known) for name, known in CELLS.items()}
        row = rows["switching_dot_product", _SWITCHING]
        mac = row["area_um2"] / 32, row["energy_pj_per_group"] / 32
        switching = Cell(0.0, *mac, cells["mxfp8"].quantizer_pj)
        return cls(cells, switching, rows["weight_encoder", "bf16-kv"]["energy_pj_per_group"])


def _timing(model: Model) -> GemmTiming:
    """Return the array with weight buffers for the model's largest k."""
    largest = max(k for _, k in model.layers)
    return GemmTiming(_ROWS, _COLUMNS, max_k=largest, weight_rows=_WEIGHT_ROWS)


def _gemm(timing: GemmTiming, size: tuple[int, int, int], cell: Cell, slower: float = 1.0) -> Cost:
    """Return the cost of a product [m, n, k] of packed weights and bf16 activations.

    The array runs ``slower`` times as long as that of M2XFP. It keeps weights and no activations:
    these are read once for each panel of columns.
    """
    known = facts()
    m, n, k = size
    busy = timing.clocks(m, n, k) * slower
    panels = -(-n // timing.columns)
    read = (n * k + panels * m * k) * cell.bits
    written = m * n * _RESULT_BITS
    clocks = max(busy, (read + written) / known.dram_bits_per_clock)
    leakage_mw = known.sram.leakage_mw * timing.weight_bytes / 1024 / known.sram.kilobytes
    blocks = -(-m // (timing.rows * timing.chains))
    weight_words = n * k * cell.bits / known.sram.word_bits
    period_us = clocks / known.clock_mhz
    return Cost(
        clocks,
        busy,
        read + written,
        static=known.dram.static_mw * 1e3 * period_us,
        dram=known.dram.read_pj_per_bit * read + known.dram.write_pj_per_bit * written,
        buffers=weight_words * (known.sram.write_pj + blocks * known.sram.read_pj),
        leakage=leakage_mw * 1e3 * period_us,
        macs=m * n * k * cell.pj,
        engines=m * k * cell.quantizer_pj,
    )


def _block(model: Model, tokens: int, cell: Cell, slower: float = 1.0) -> Cost:
    """Return the cost of the linear layers of a block in one format."""
    total, timing = _NOTHING, _timing(model)
    for n, k in model.layers:
        total += _gemm(timing, (tokens, n, k), cell, slower)
    return total


def _mixed(model: Model, tokens: int, share: float, units: Units, kind: str) -> Cost:
    """Return the cost of a block on a design that runs a share of all MACs in MXFP8.

    ``fused``: the paper's array, 4-bit MACs as fast as M2XFP's and 8-bit ones four times slower.
    ``area``: units of this generator for each format, on the area of M2XFP's. ``switching``: its
    unit that switches formats, on that area.
    """
    own, total = units.m2xfp, _NOTHING
    for name, part, slow in (("mxfp4", 1 - share, 1), ("mxfp8", share, SLOWDOWN)):
        cell, slower = units.cells[name], float(slow)
        if kind == "area":
            slower = cell.um2 / own.um2
        elif kind == "switching":
            unit = units.switching
            cell = Cell(cell.bits, unit.um2, unit.pj, cell.quantizer_pj)
            slower = slow * unit.um2 / own.um2
        total += _block(model, tokens, cell, slower).times(part)
    return total


def _own(model: Model, tokens: int, units: Units) -> Cost:
    """Return the cost of a block in M2XFP; its keys and values are encoded for the cache."""
    _, stored, width = _HEADS[model.name]
    encoded = tokens * 2 * stored * width / 32 * units.encoder_pj
    return _block(model, tokens, units.m2xfp) + replace(_NOTHING, engines=encoded)


def _memory_bound(model: Model, bits: float) -> float:
    """Return the clocks in which DRAM delivers the weights of a block."""
    return sum(n * k for n, k in model.layers) * bits / facts().dram_bits_per_clock


def _cache(model: Model, length: int, units: Units) -> dict[str, Any]:
    """Return what a cache costs for one token of a block: both products, and encoding its entry.

    Probabilities meet values along the cache: a product longer than the weight buffers is cut, and
    its parts added by the host.
    """
    heads, stored, width = _HEADS[model.name]
    timing = _timing(model)
    cell, queries = units.m2xfp, heads // stored
    keys = _gemm(timing, (queries, length, width), cell)
    values = _NOTHING
    for start in range(0, length, timing.max_k // timing.group * timing.group):
        k = min(timing.max_k // timing.group * timing.group, length - start)
        values += _gemm(timing, (queries, width, k), cell)
    each = keys + values
    cached = 2 * stored * length * width * cell.bits
    entry_pj = 2 * stored * width / timing.group * units.encoder_pj
    weights = _own(model, 1, units)
    return {
        "model": model.name,
        "cache": length,
        "cache_bytes": round(cached / 8),
        "bf16_bytes": 2 * stored * length * width * 2,
        "clocks": round(each.clocks * stored),
        "dram_clocks": round(cached / facts().dram_bits_per_clock),
        "weight_clocks": round(weights.clocks),
        "of_token": round(each.clocks * stored / (each.clocks * stored + weights.clocks), 4),
        "encoder_share": round(entry_pj / (each.pj * stored + entry_pj), 6),
    }


def _model_row(model: Model, units: Units) -> dict[str, Any]:
    tokens = facts().tokens
    own, token = _own(model, tokens, units), _own(model, 1, units)
    macs = tokens * sum(n * k for n, k in model.layers)
    row: dict[str, Any] = {
        "model": model.name,
        "prefill_of_peak": round(macs / (own.busy * facts().macs_per_clock), 4),
        "prefill_of_bandwidth": round(own.bits / (own.busy * facts().dram_bits_per_clock), 4),
        "pj_per_mac": round(own.pj / macs, 4),
        "engine_share": round(own.engines / own.pj, 6),
        "token_of_bandwidth": round(token.bits / (token.clocks * facts().dram_bits_per_clock), 4),
        "energy": {"m2xfp": _parts(own, macs)},
    }
    for name, cell in units.cells.items():
        if name == "m2xfp":
            continue
        other = _block(model, tokens, cell, cell.um2 / units.m2xfp.um2)
        row[name] = {
            "speed": round(other.clocks / own.clocks, 4),
            "energy": round(other.pj / own.pj, 4),
            "token_memory": round(cell.bits / units.m2xfp.bits, 4),
        }
        row["energy"][name] = _parts(other, macs)
    for design in BASELINES:
        share = share_of_8_bits(model, design)
        others = {kind: _mixed(model, tokens, share, units, kind) for kind in KINDS}
        cells = units.cells
        mixed_bits = (1 - share) * cells["mxfp4"].bits + share * cells["mxfp8"].bits
        row[design] = {
            **{
                f"speed_{kind}": round(cost.clocks / own.clocks, 4) for kind, cost in others.items()
            },
            **{f"energy_{kind}": round(cost.pj / own.pj, 4) for kind, cost in others.items()},
            "token_memory": round(
                _memory_bound(model, mixed_bits) / _memory_bound(model, units.m2xfp.bits), 4
            ),
        }
        row["energy"][design] = _parts(others["area"], macs)
    return row


def _parts(cost: Cost, macs: int) -> dict[str, float]:
    """Return the parts of the energy, pJ a MAC."""
    return {name: round(getattr(cost, name) / macs, 5) for name in ENERGIES}


KINDS = ("fused", "area", "switching")


def compare_measured(results: Path) -> dict[str, Any]:
    """Return clocks and energy by this project's figures: prefill, one token, and long caches."""
    units = Units.of(results)
    models = facts().models
    llama = next(model for model in models if model.name == "llama3_8b")
    return {
        "pdk": PDK,
        "cells": {name: vars(cell) for name, cell in units.cells.items()},
        "switching": {"um2": units.switching.um2, "pj": units.switching.pj},
        "encoder_pj": units.encoder_pj,
        "models": [_model_row(model, units) for model in models],
        "caches": [_cache(llama, length, units) for length in CACHES],
    }
