"""The paper's comparison of accelerators with this project's own figures.

Clocks are those of the GEMM core's cycle model, which equals the emitted Verilog clock for clock;
bits a value are all that is stored; energies are those of the project's own units at gate level, in
one library. DRAM and SRAM are the paper's constants. The designs that this is held against are
mixtures of MXFP4 and MXFP8 on units of this generator, with the shares of 8-bit work of the paper's
baselines.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
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
from m2xfp.tables import aligned_table

__all__ = ["PDK", "compare_measured", "measured_tables"]

PDK = "asap7"
CACHES = (2048, 8192, 32768, 131072)

# The array that the paper gives M2XFP has 1024 MACs; ours has them as 1 x 32 cells.
_ROWS, _COLUMNS = 1, 32
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


@dataclass(frozen=True)
class Cell:
    """A MAC of one format in the library.

    Members
    -------
    bits
        Stored bits a value.
    um2, pj
        Area and energy of a MAC, its share of FP32 accumulation included.
    """

    bits: float
    um2: float
    pj: float


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
    pj
        Energy.
    """

    clocks: float
    busy: float
    bits: float
    pj: float

    def __add__(self, other: "Cost") -> "Cost":
        """Return the cost of both, one after the other."""
        return Cost(
            self.clocks + other.clocks,
            self.busy + other.busy,
            self.bits + other.bits,
            self.pj + other.pj,
        )


_NOTHING = Cost(0, 0, 0, 0)


@dataclass(frozen=True)
class Units:
    """What the project's units take in the library.

    Members
    -------
    m2xfp, mxfp4, mxfp8
        A MAC of the formats.
    quantizer_pj, encoder_pj
        A group through the activation quantizer, and through the encoder of a cache.
    """

    m2xfp: Cell
    mxfp4: Cell
    mxfp8: Cell
    quantizer_pj: float
    encoder_pj: float

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
        def cell(name: str, config: str) -> Cell:
            row, block = rows["dot_product", config], block_format(name)
            return Cell(
                float(block.bits_per_value),
                row["area_um2"] / block.group,
                row["energy_pj_per_mac"],
            )

        return cls(
            cell("m2xfp-act", "m2xfp-fp32"),
            cell("mxfp4", "mxfp4-fp32"),
            cell("mxfp8-e4m3", "mxfp8-fp32"),
            rows["activation_quantizer", "bf16x32"]["energy_pj_per_group"],
            rows["weight_encoder", "bf16-kv"]["energy_pj_per_group"],
        )


def _timing(model: Model) -> GemmTiming:
    """Return the array with weight buffers for the model's largest k."""
    return GemmTiming(_ROWS, _COLUMNS, max_k=max(k for _, k in model.layers))


def _gemm(
    timing: GemmTiming, size: tuple[int, int, int], cell: Cell, slower: float, quantizer_pj: float
) -> Cost:
    """Return the cost of a product [m, n, k] of packed weights and bf16 activations.

    The array runs ``slower`` times as long as that of M2XFP. It keeps weights and no activations:
    these are read once for each panel of columns.
    """
    known = facts()
    m, n, k = size
    macs = m * n * k
    busy = timing.clocks(m, n, k) * slower
    panels = -(-n // timing.columns)
    read = (n * k + panels * m * k) * cell.bits
    written = m * n * _RESULT_BITS
    clocks = max(busy, (read + written) / known.dram_bits_per_clock)
    leakage_mw = known.sram.leakage_mw * timing.weight_bytes / 1024 / known.sram.kilobytes
    blocks = -(-m // (timing.rows * timing.chains))
    weight_words = n * k * cell.bits / known.sram.word_bits
    pj = (
        (known.dram.static_mw + leakage_mw) * 1e3 / known.clock_mhz * clocks
        + known.dram.read_pj_per_bit * read
        + known.dram.write_pj_per_bit * written
        + weight_words * (known.sram.write_pj + blocks * known.sram.read_pj)
        + macs * cell.pj
        + m * k / timing.group * quantizer_pj
    )
    return Cost(clocks, busy, read + written, pj)


def _mixed(model: Model, tokens: int, share: float, units: Units, fused: bool) -> Cost:
    """Return the cost of a block on a design that runs a share of all MACs in MXFP8.

    ``fused``: the paper's array, 4-bit MACs as fast as M2XFP's and 8-bit ones four times slower;
    otherwise units of this generator on the area of M2XFP's.
    """
    timing, own = _timing(model), units.m2xfp
    total = _NOTHING
    for cell, part, slow in ((units.mxfp4, 1 - share, 1), (units.mxfp8, share, SLOWDOWN)):
        slower = slow if fused else cell.um2 / own.um2
        for n, k in model.layers:
            cost = _gemm(timing, (tokens, n, k), cell, slower, units.quantizer_pj)
            total += Cost(*(part * figure for figure in vars(cost).values()))
    return total


def _own(model: Model, tokens: int, units: Units) -> Cost:
    """Return the cost of a block in M2XFP."""
    total, timing = _NOTHING, _timing(model)
    for n, k in model.layers:
        total += _gemm(timing, (tokens, n, k), units.m2xfp, 1, units.quantizer_pj)
    return total


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
    keys = _gemm(timing, (queries, length, width), cell, 1, units.quantizer_pj)
    values = _NOTHING
    for start in range(0, length, timing.max_k // timing.group * timing.group):
        k = min(timing.max_k // timing.group * timing.group, length - start)
        values += _gemm(timing, (queries, width, k), cell, 1, units.quantizer_pj)
    each = keys + values
    cached = 2 * stored * length * width * cell.bits
    entry_pj = 2 * stored * width / timing.group * units.encoder_pj
    weights = _own(model, 1, units)
    return {
        "model": model.name,
        "cache": length,
        "cache_bytes": round(cached / 8),
        "bf16_bytes": 2 * stored * length * width * 2,
        "clocks": round(each.busy * stored),
        "dram_clocks": round(cached / facts().dram_bits_per_clock),
        "of_token": round(each.busy * stored / (each.busy * stored + weights.busy), 4),
        "encoder_share": round(entry_pj / (each.pj * stored + entry_pj), 6),
    }


def _model_row(model: Model, units: Units) -> dict[str, Any]:
    tokens = facts().tokens
    own, token = _own(model, tokens, units), _own(model, 1, units)
    macs = tokens * sum(n * k for n, k in model.layers)
    quantized = tokens * sum(k for _, k in model.layers) / 32 * units.quantizer_pj
    row: dict[str, Any] = {
        "model": model.name,
        "prefill_of_peak": round(macs / (own.busy * facts().macs_per_clock), 4),
        "prefill_of_bandwidth": round(own.bits / (own.busy * facts().dram_bits_per_clock), 4),
        "pj_per_mac": round(own.pj / macs, 4),
        "quantizer_share": round(quantized / own.pj, 6),
        "token_of_bandwidth": round(token.bits / (token.clocks * facts().dram_bits_per_clock), 4),
    }
    for design in BASELINES:
        share = share_of_8_bits(model, design)
        other = {name: _mixed(model, tokens, share, units, name == "fused") for name in _KINDS}
        mixed_bits = (1 - share) * units.mxfp4.bits + share * units.mxfp8.bits
        row[design] = {
            **{f"speed_{name}": round(cost.clocks / own.clocks, 4) for name, cost in other.items()},
            **{f"energy_{name}": round(cost.pj / own.pj, 4) for name, cost in other.items()},
            "token_memory": round(
                _memory_bound(model, mixed_bits) / _memory_bound(model, units.m2xfp.bits), 4
            ),
        }
    return row


_KINDS = ("fused", "area")


def compare_measured(results: Path) -> dict[str, Any]:
    """Return clocks and energy by this project's figures: prefill, one token, and long caches."""
    units = Units.of(results)
    models = facts().models
    llama = next(model for model in models if model.name == "llama3_8b")
    return {
        "pdk": PDK,
        "cells": {name: vars(getattr(units, name)) for name in ("m2xfp", "mxfp4", "mxfp8")},
        "quantizer_pj": units.quantizer_pj,
        "encoder_pj": units.encoder_pj,
        "models": [_model_row(model, units) for model in models],
        "caches": [_cache(llama, length, units) for length in CACHES],
    }


def _mean(figures: Mapping[str, Any], design: str, name: str) -> float:
    return fmean(row[design][name] for row in figures["models"])


def measured_tables(figures: Mapping[str, Any]) -> dict[str, str]:
    """Return the tables of the measured mode, by name."""
    models: list[tuple[str, ...]] = [
        (
            *("model", "prefill: of peak MACs", "of bandwidth", "pJ/MAC", "quantizers"),
            "one token: of bandwidth",
        )
    ]
    for row in figures["models"]:
        models.append(
            (
                row["model"],
                *(f"{row[name]:.2%}" for name in ("prefill_of_peak", "prefill_of_bandwidth")),
                f"{row['pj_per_mac']:.3f}",
                f"{row['quantizer_share']:.4%}",
                f"{row['token_of_bandwidth']:.1%}",
            )
        )
    ratios: list[tuple[str, ...]] = [
        (
            *("over", "speed, fused MACs", "speed, equal area", "energy, fused MACs"),
            *("energy, equal area", "one token, DRAM-bound"),
        )
    ]
    names = ("speed_fused", "speed_area", "energy_fused", "energy_area", "token_memory")
    for design, title in BASELINES.items():
        ratios.append((title, *(f"{_mean(figures, design, name):.3f}" for name in names)))
    caches: list[tuple[str, ...]] = [
        (
            *("cache", "bytes a block", "of bf16", "clocks", "clocks, DRAM-bound"),
            *("of a token's clocks", "encoder's energy"),
        )
    ]
    for row in figures["caches"]:
        caches.append(
            (
                *(str(row["cache"]), str(row["cache_bytes"])),
                f"{row['cache_bytes'] / row['bf16_bytes']:.1%}",
                *(str(row["clocks"]), str(row["dram_clocks"])),
                f"{row['of_token']:.1%}",
                f"{row['encoder_share']:.4%}",
            )
        )
    cells: list[tuple[str, ...]] = [("format", "bits/value", "um2/MAC", "over M2XFP", "pJ/MAC")]
    own = figures["cells"]["m2xfp"]
    for name, cell in figures["cells"].items():
        over = f"{cell['um2'] / own['um2']:.2f}"
        cells.append((name, f"{cell['bits']:g}", f"{cell['um2']:.1f}", over, f"{cell['pj']:.4f}"))
    return {
        "accelerator-cells": aligned_table(cells),
        "accelerator-models": aligned_table(models),
        "accelerator-ratios": aligned_table(ratios),
        "accelerator-caches": aligned_table(caches),
    }
