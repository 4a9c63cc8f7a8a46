"""The tables of the accelerator's comparison by this project's own figures."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from m2xfp.synth.studies.measured_accelerator import PHASES
from m2xfp.synth.studies.measured_clocks import BUILT
from m2xfp.synth.studies.measured_costs import ENERGIES, KINDS
from m2xfp.synth.studies.measured_units import CELLS
from m2xfp.synth.studies.paper_accelerator import BASELINES
from m2xfp.tables import aligned_table

__all__ = ["measured_tables"]

_KIND_TITLES = {
    "fused": "that fuse, as fast as the paper's",
    "area": "side by side, equal area",
    "switching": "that switch, equal area",
}
_OVER_HEADS = (
    *("prefill: speed", "energy", "one token: speed", "nothing packed", "DRAM-bound", "energy"),
)


def _over_cells(figures: Mapping[str, Any], name: str, memory: str) -> tuple[str, ...]:
    """Return the cells of a design: means over the models."""

    def mean(phase: str, figure: str) -> float:
        return fmean(row[phase]["over"][name][figure] for row in figures["models"])

    means = (
        *(mean("prefill", figure) for figure in ("speed", "energy")),
        *(mean("token", figure) for figure in ("speed", "products")),
        fmean(row["memory"][memory] for row in figures["models"]),
        mean("token", "energy"),
    )
    return tuple(f"{each:.3f}" for each in means)


def measured_tables(figures: Mapping[str, Any]) -> dict[str, str]:
    """Return the tables of the measured mode, by name."""
    formats: list[tuple[str, ...]] = [("over", "clocks", *_OVER_HEADS)]
    for name in CELLS:
        if name != "m2xfp":
            kind = "accelerator" if name in BUILT else "bound"
            formats.append((name.upper(), kind, *_over_cells(figures, name, name)))
    ratios: list[tuple[str, ...]] = [("over", "MACs", *_OVER_HEADS)]
    for design, title in BASELINES.items():
        for each in KINDS:
            cells = _over_cells(figures, f"{design}_{each}", design)
            ratios.append((title, _KIND_TITLES[each], *cells))
    energy = {f"accelerator-{phase}-energy": _energy_table(figures, phase) for phase in PHASES}
    return {
        "accelerator-cells": _cell_table(figures),
        "accelerator-models": _model_table(figures),
        "accelerator-formats": aligned_table(formats),
        "accelerator-ratios": aligned_table(ratios),
        **energy,
        "accelerator-caches": _cache_table(figures),
        "accelerator-cache-formats": _cache_formats(figures),
    }


def _model_table(figures: Mapping[str, Any]) -> str:
    """Return the table of what M2XFP's accelerator reaches, model by model."""
    models: list[tuple[str, ...]] = [
        (
            *("model", "tokens", "clocks", "products: of peak MACs", "weights: of bandwidth"),
            *("all bytes: of bandwidth", "packing: of clocks", "pJ/MAC", "engines: of energy"),
        )
    ]
    for row in figures["models"]:
        for phase, tokens in zip(PHASES, ("2048", "1"), strict=True):
            own = row[phase]["own"]
            models.append(
                (
                    *(row["model"], tokens, str(own["clocks"])),
                    f"{own['of_peak']:.2%}",
                    f"{own['weights_of_bandwidth']:.1%}",
                    f"{own['of_bandwidth']:.1%}",
                    f"{own['packing']:.2%}",
                    f"{own['pj_per_mac']:.3f}",
                    f"{own['engine_share']:.4%}",
                )
            )
    return aligned_table(models)


def _energy_table(figures: Mapping[str, Any], phase: str) -> str:
    """Return where the energy goes: means over the models, mixtures of units side by side."""
    energy: list[tuple[str, ...]] = [("pJ/MAC", *ENERGIES, "sum")]
    names = {name: name.upper() for name in CELLS}
    names |= {f"{design}_area": title for design, title in BASELINES.items()}
    for name, title in names.items():
        parts = [
            fmean(row[phase]["energy"][name][part] for row in figures["models"])
            for part in ENERGIES
        ]
        energy.append((title, *(f"{part:.5f}" for part in parts), f"{sum(parts):.3f}"))
    return aligned_table(energy)


def _cache_table(figures: Mapping[str, Any]) -> str:
    """Return the table of M2XFP's clocks by the length of the cache."""
    caches: list[tuple[str, ...]] = [
        (
            *("cache", "bytes a block", "of bf16", "keys", "values", "packing", "clocks"),
            *("of a token's clocks", "products, DRAM-bound", "products, this driver"),
        )
    ]
    for row in figures["caches"]:
        own, driver = row["designs"]["m2xfp"], row["driver_clocks"]
        caches.append(
            (
                *(str(row["cache"]), str(row["cache_bytes"])),
                f"{row['cache_bytes'] / row['bf16_bytes']:.1%}",
                *(str(own[name]) for name in ("keys", "values", "packing", "clocks")),
                f"{row['of_token']:.1%}",
                str(row["dram_clocks"]),
                "refused" if driver is None else str(driver),
            )
        )
    return aligned_table(caches)


def _cache_formats(figures: Mapping[str, Any]) -> str:
    """Return the table of a cache's clocks and energy, format by format."""
    table: list[tuple[str, ...]] = [
        ("cache", "format", "clocks are", "clocks", "over M2XFP", "uJ", "over M2XFP")
    ]
    for row in figures["caches"]:
        designs = row["designs"]
        for name in ("m2xfp", "mxfp4", "nvfp4", "m2xfp_bound", "mxfp8"):
            each = designs[name]
            own = designs["m2xfp" if name in BUILT else "m2xfp_bound"]
            table.append(
                (
                    str(row["cache"]),
                    name.removesuffix("_bound").upper(),
                    "the accelerator's" if name in BUILT else "a bound",
                    str(each["clocks"]),
                    f"{each['clocks'] / own['clocks']:.3f}",
                    f"{each['pj'] / 1e6:.0f}",
                    f"{each['pj'] / own['pj']:.3f}",
                )
            )
    return aligned_table(table)


def _cell_table(figures: Mapping[str, Any]) -> str:
    """Return the table of MACs."""
    cells: list[tuple[str, ...]] = [("format", "bits/value", "um2/MAC", "over M2XFP", "pJ/MAC")]
    own = figures["cells"]["m2xfp"]
    rows = [(name, f"{cell['bits']:g}", cell) for name, cell in figures["cells"].items()]
    for name, bits, cell in (*rows, ("switching, 4 bits", "4.25", figures["switching"])):
        over = f"{cell['um2'] / own['um2']:.2f}"
        cells.append((name, bits, f"{cell['um2']:.1f}", over, f"{cell['pj']:.4f}"))
    return aligned_table(cells)
