"""The paper's comparison of accelerators with this project's own figures.

Clocks are those of whole accelerators of this generator, by the cycle model that equals the emitted
Verilog clock for clock; bits a value are all that is stored; energies are those of the project's
own units at gate level, in one library. DRAM and SRAM are the paper's constants. This is held
against accelerators of one other format, and against mixtures of MXFP4 and MXFP8 with the shares of
8-bit work of the paper's baselines: on MACs that fuse as the paper assumes, on units of this
generator side by side, and on its unit that switches formats.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m2xfp.synth.studies.measured_caches import cache_row
from m2xfp.synth.studies.measured_costs import (
    ENERGIES,
    KINDS,
    MIXED,
    Cost,
    block_cost,
    designs,
    mixed_cost,
)
from m2xfp.synth.studies.measured_units import PDK, Units
from m2xfp.synth.studies.paper_accelerator import BASELINES, Model, facts, share_of_8_bits

__all__ = ["CACHES", "PHASES", "compare_measured"]

CACHES = (2048, 8192, 32768, 131072)
PHASES = ("prefill", "token")


def _parts(cost: Cost, macs: int) -> dict[str, float]:
    """Return the parts of the energy, pJ a MAC."""
    return {name: round(getattr(cost, name) / macs, 5) for name in ENERGIES}


def _dram_clocks(model: Model, bits: float) -> float:
    """Return the clocks in which DRAM delivers the weights of a block."""
    return sum(n * k for n, k in model.layers) * bits / facts().dram_bits_per_clock


def _own_figures(model: Model, tokens: int, own: Cost, units: Units) -> dict[str, Any]:
    """Return what M2XFP's accelerator reaches, its products alone and with what is packed."""
    known, products = facts(), own.clocks - own.packing
    macs = tokens * sum(n * k for n, k in model.layers)
    return {
        "clocks": round(own.clocks),
        "of_peak": round(macs / (products * known.macs_per_clock), 4),
        "weights_of_bandwidth": round(_dram_clocks(model, units.m2xfp.bits) / products, 4),
        "of_bandwidth": round(own.bits / (own.clocks * known.dram_bits_per_clock), 4),
        "packing": round(own.packing / own.clocks, 6),
        "pj_per_mac": round(own.pj / macs, 4),
        "engine_share": round(own.engines / own.pj, 6),
    }


def _over(other: Cost, own: Cost) -> dict[str, float]:
    """Return the clocks and the energy of a design over M2XFP's; products: nothing packed."""
    products = (other.clocks - other.packing) / (own.clocks - own.packing)
    return {
        "speed": round(other.clocks / own.clocks, 4),
        "products": round(products, 4),
        "energy": round(other.pj / own.pj, 4),
    }


def _memory_bounds(model: Model, own: Mapping[str, Any], units: Units) -> dict[str, float]:
    """Return in which time DRAM delivers the weights of a design, over M2XFP's for its products."""
    bits = {name: cell.bits for name, cell in units.cells.items() if name != "m2xfp"}
    few, many = (units.cells[name].bits for name in MIXED)
    for design in BASELINES:
        share = share_of_8_bits(model, design)
        bits[design] = (1 - share) * few + share * many
    products = own["clocks"] * (1 - own["packing"])
    return {name: round(_dram_clocks(model, each) / products, 4) for name, each in bits.items()}


def _phase(model: Model, tokens: int, units: Units) -> dict[str, Any]:
    """Return all figures of so many tokens, design by design."""
    macs = tokens * sum(n * k for n, k in model.layers)
    costs = {name: block_cost(model, tokens, each) for name, each in designs(model, units).items()}
    for design in BASELINES:
        share = share_of_8_bits(model, design)
        for kind in KINDS:
            costs[f"{design}_{kind}"] = mixed_cost(model, tokens, share, units, kind)
    own = costs.pop("m2xfp")
    return {
        "own": _own_figures(model, tokens, own, units),
        "over": {name: _over(cost, own) for name, cost in costs.items()},
        "energy": {"m2xfp": _parts(own, macs)}
        | {name: _parts(cost, macs) for name, cost in costs.items()},
    }


def _model_row(model: Model, units: Units) -> dict[str, Any]:
    row: dict[str, Any] = {"model": model.name}
    for phase, tokens in zip(PHASES, (facts().tokens, 1), strict=True):
        row[phase] = _phase(model, tokens, units)
    row["memory"] = _memory_bounds(model, row["token"]["own"], units)
    return row


def compare_measured(results: Path) -> dict[str, Any]:
    """Return clocks and energy by this project's figures: prefill, one token, and long caches.

    InputError if ``results`` lacks figures of the project's units.
    """
    units = Units.of(results)
    models = facts().models
    llama = next(model for model in models if model.name == "llama3_8b")
    return {
        "pdk": PDK,
        "cells": {name: vars(cell) for name, cell in units.cells.items()},
        "switching": {"um2": units.switching.um2, "pj": units.switching.pj},
        "encoder_pj": units.encoder_pj,
        "models": [_model_row(model, units) for model in models],
        "caches": [cache_row(llama, length, units) for length in CACHES],
    }
