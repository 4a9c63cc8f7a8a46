"""What a long cache costs for one token of a block: accelerators of each format, and the driver."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from m2xfp.rtl.parts.descriptor_checker import BF16_VALUES, GEMM
from m2xfp.synth.studies.measured_clocks import count, parameters_of
from m2xfp.synth.studies.measured_costs import (
    ENERGIES,
    HEADS,
    Cost,
    Design,
    block_cost,
    designs,
)
from m2xfp.synth.studies.measured_units import Units
from m2xfp.synth.studies.paper_accelerator import Model, facts

__all__ = ["cache_cost", "cache_row", "driver_clocks"]


def cache_cost(model: Model, length: int, design: Design) -> tuple[Cost, Cost, Cost]:
    """Return what a cache costs for one token of a block: keys, values, and packing.

    Each head of the cache lies by itself, without gaps, and the queries that share it are
    multiplied together. Values are met along the cache: where it is longer than the weight buffers,
    the product is cut, and its parts are added by the host. Queries and probabilities are packed;
    softmax is the host's.
    """
    heads, stored, width = HEADS[model.name]
    queries, most = heads // stored, design.max_k // 32 * 32
    keys = design.product((queries, length, width)).times(stored)
    values = [
        design.product((queries, width, min(most, length - start))).times(stored)
        for start in range(0, length, most)
    ]
    packs = design.pack(1, heads * width) + design.pack(heads, length)
    return keys, sum(values[1:], values[0]), packs


def driver_clocks(model: Model, length: int, max_k: int) -> int | None:
    """Return the clocks of both products as `m2xfp.accelerator.attention` submits them.

    Its keys of all heads lie side by side, a token a row, and each head of queries is a product of
    its own. None for a cache of more than ``max_k`` tokens, which it refuses.
    """
    if length > max_k:
        return None
    heads, stored, width = HEADS[model.name]
    given = parameters_of("m2xfp")
    groups = {"keys": stored * width // 32, "values": length // 32}  # of a row
    rows = {"keys": length, "values": stored * width}
    total = 0
    for name, n, k in (("keys", length, width), ("values", width, length)):
        pitches = {"codes": 16 * groups[name], "scales": groups[name]}
        codes, plane = 1 << 24, rows[name] * groups[name]
        words = {
            **{"operation": GEMM, "kind": BF16_VALUES, "m": 1, "n": n, "k": k},
            **{"a_codes": 0, "a_scales": 1 << 20, "a_meta": 2 << 20},
            **{f"{side}_{part}_pitch": at for side in "aw" for part, at in pitches.items()},
            **{"w_codes": codes, "w_scales": codes + 16 * plane, "w_meta": codes + 17 * plane},
            **{"out": codes + 18 * plane, "out_pitch": 2 * n},
        }
        total += heads * count(given, words).clocks
    return total


def _figures(parts: tuple[Cost, Cost, Cost]) -> dict[str, Any]:
    keys, values, packs = parts
    whole = keys + values + packs
    return {
        **{"keys": round(keys.clocks), "values": round(values.clocks)},
        **{"packing": round(packs.clocks), "clocks": round(whole.clocks)},
        "pj": round(whole.pj),
        "energy": {name: round(getattr(whole, name)) for name in ENERGIES},
    }


def cache_row(model: Model, length: int, units: Units) -> dict[str, Any]:
    """Return what a cache of so many tokens costs, design by design, on M2XFP's area.

    Beside M2XFP's accelerator stands its bound, which those of the formats without one are held
    against.
    """
    _, stored, width = HEADS[model.name]
    known: Mapping[str, Design] = designs(model, units)
    own = known["m2xfp"]
    values = 2 * stored * length * width
    parts = {name: cache_cost(model, length, design) for name, design in known.items()}
    parts["m2xfp_bound"] = cache_cost(model, length, replace(own, built=False))
    weights = block_cost(model, 1, own)
    clocks = sum(part.clocks for part in parts["m2xfp"])
    return {
        "model": model.name,
        "cache": length,
        "cache_bytes": round(values * own.cell.bits / 8),
        "bf16_bytes": values * 2,
        "dram_clocks": round(values * own.cell.bits / facts().dram_bits_per_clock),
        "weight_clocks": round(weights.clocks),
        "of_token": round(clocks / (clocks + weights.clocks), 4),
        "driver_clocks": driver_clocks(model, length, own.max_k),
        "designs": {name: _figures(each) for name, each in parts.items()},
    }
