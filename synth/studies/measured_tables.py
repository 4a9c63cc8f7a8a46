"""The tables of the accelerator's comparison by this project's own figures."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from m2xfp.synth.studies.measured_accelerator import CELLS, ENERGIES, KINDS
from m2xfp.synth.studies.paper_accelerator import BASELINES
from m2xfp.tables import aligned_table

__all__ = ["measured_tables"]


def _mean(figures: Mapping[str, Any], design: str, name: str) -> float:
    return fmean(row[design][name] for row in figures["models"])


def measured_tables(figures: Mapping[str, Any]) -> dict[str, str]:
    """Return the tables of the measured mode, by name."""
    models: list[tuple[str, ...]] = [
        (
            *("model", "prefill: of peak MACs", "of bandwidth", "pJ/MAC"),
            *("quantizers, encoders", "one token: of bandwidth"),
        )
    ]
    for row in figures["models"]:
        models.append(
            (
                row["model"],
                *(f"{row[name]:.2%}" for name in ("prefill_of_peak", "prefill_of_bandwidth")),
                f"{row['pj_per_mac']:.3f}",
                f"{row['engine_share']:.4%}",
                f"{row['token_of_bandwidth']:.1%}",
            )
        )
    formats: list[tuple[str, ...]] = [
        ("over an array of", "speed, equal area", "energy, equal area", "one token, DRAM-bound")
    ]
    for name in CELLS:
        if name != "m2xfp":
            means = (_mean(figures, name, key) for key in ("speed", "energy", "token_memory"))
            formats.append((name.upper(), *(f"{mean:.3f}" for mean in means)))
    ratios: list[tuple[str, ...]] = [
        (
            *("over", "speed, fused MACs", "speed, equal area", "speed, switching unit"),
            *("energy, fused MACs", "energy, equal area", "energy, switching unit"),
            "one token, DRAM-bound",
        )
    ]
    names = [f"{figure}_{kind}" for figure in ("speed", "energy") for kind in KINDS]
    for design, title in BASELINES.items():
        means = (_mean(figures, design, name) for name in (*names, "token_memory"))
        ratios.append((title, *(f"{mean:.3f}" for mean in means)))
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
    energy: list[tuple[str, ...]] = [("pJ/MAC", *ENERGIES, "sum")]
    for name in figures["models"][0]["energy"]:
        parts = [fmean(row["energy"][name][part] for row in figures["models"]) for part in ENERGIES]
        title = BASELINES.get(name, name.upper())
        energy.append((title, *(f"{part:.5f}" for part in parts), f"{sum(parts):.3f}"))
    return {
        "accelerator-cells": _cell_table(figures),
        "accelerator-models": aligned_table(models),
        "accelerator-formats": aligned_table(formats),
        "accelerator-ratios": aligned_table(ratios),
        "accelerator-energy": aligned_table(energy),
        "accelerator-caches": aligned_table(caches),
    }


def _cell_table(figures: Mapping[str, Any]) -> str:
    """Return the table of MACs."""
    cells: list[tuple[str, ...]] = [("format", "bits/value", "um2/MAC", "over M2XFP", "pJ/MAC")]
    own = figures["cells"]["m2xfp"]
    rows = [(name, f"{cell['bits']:g}", cell) for name, cell in figures["cells"].items()]
    for name, bits, cell in (*rows, ("switching, 4 bits", "4.25", figures["switching"])):
        over = f"{cell['um2'] / own['um2']:.2f}"
        cells.append((name, bits, f"{cell['um2']:.1f}", over, f"{cell['pj']:.4f}"))
    return aligned_table(cells)
