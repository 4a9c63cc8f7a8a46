"""Tables and plots of the accelerator's comparison, from the accepted figures."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from m2xfp.results import read_figures
from m2xfp.synth.studies.accelerator_area import area_table
from m2xfp.synth.studies.accelerator_throughput import throughput_tables
from m2xfp.synth.studies.measured_clocks import BUILT
from m2xfp.synth.studies.measured_costs import ENERGIES
from m2xfp.synth.studies.measured_tables import measured_tables
from m2xfp.synth.studies.measured_units import CELLS
from m2xfp.synth.studies.paper_accelerator import BASELINES, paper_table

__all__ = ["AREA", "MEASURED", "PAPER", "SIMULATED", "plots", "tables"]

PAPER, MEASURED = "accelerator-paper.json", "accelerator-measured.json"
SIMULATED, AREA = "accelerator-simulated.json", "accelerator-area.json"


def tables(results: Path) -> dict[str, str]:
    """Return the comparison in both modes, and the throughput, as far as they were accepted."""
    found: dict[str, str] = {}
    if (results / PAPER).exists():
        found["accelerator-paper"] = paper_table(read_figures(results / PAPER))
    if (results / MEASURED).exists():
        found |= measured_tables(read_figures(results / MEASURED))
    if (results / SIMULATED).exists():
        found |= throughput_tables(read_figures(results / SIMULATED))
    if (results / AREA).exists():
        found["accelerator-area"] = area_table(read_figures(results / AREA))
    return found


def plots(results: Path, output: Path) -> list[Path]:
    """Draw speed by what is assumed, where energy goes, and what a cache costs."""
    if not (results / PAPER).exists() or not (results / MEASURED).exists():
        return []
    from m2xfp.synth.report.plots import draw

    paper, measured = read_figures(results / PAPER), read_figures(results / MEASURED)
    drawn = {
        "accelerator-speed.svg": _speed(paper, measured),
        "accelerator-energy.svg": _energy(measured),
        "accelerator-caches.svg": _caches(measured),
    }
    for name, paint in drawn.items():
        draw(output / name, (8, 4.5), paint)
    return [output / name for name in drawn]


Paint = Callable[[Any], None]


def _speed(paper: Mapping[str, Any], measured: Mapping[str, Any]) -> Paint:
    """Return what draws the mean speed over each design."""

    def means(phase: str, kind: str) -> list[float]:
        return [
            fmean(row[phase]["over"][f"{design}_{kind}"]["speed"] for row in measured["models"])
            for design in BASELINES
        ]

    published = [
        fmean(row["speed_log"] for row in paper["rows"] if row["design"] == design)
        for design in BASELINES
    ]
    bars = (
        ("the log", published),
        ("own clocks, fused MACs", means("prefill", "fused")),
        ("own units, equal area", means("prefill", "area")),
        ("own switching unit, equal area", means("prefill", "switching")),
        ("one token, fused MACs", means("token", "fused")),
        ("one token, own units, equal area", means("token", "area")),
    )

    def paint(axes: Any) -> None:
        width = 0.8 / len(bars)
        for index, (label, heights) in enumerate(bars):
            places = [place + index * width for place in range(len(BASELINES))]
            axes.bar(places, heights, width, label=label)
        axes.axhline(1, color="0.4", linewidth=0.8)
        axes.set_xticks(
            [place + 0.4 - width / 2 for place in range(len(BASELINES))], list(BASELINES.values())
        )
        axes.set_ylabel("speed of M2XFP over the design, mean of six models")
        axes.legend(fontsize="small")

    return paint


_TITLES = {
    "static": "DRAM, static",
    "dram": "DRAM, accesses",
    "buffers": "weight buffers, slots",
    "leakage": "leakage of memories",
    "macs": "array",
    "engines": "quantizers, encoders",
}


def _energy(measured: Mapping[str, Any]) -> Paint:
    """Return what stacks the parts of the energy of a MAC, design by design."""
    titles = {name: name.upper() for name in CELLS}
    titles |= {f"{design}_area": title for design, title in BASELINES.items()}
    names, labels = list(titles), list(titles.values())

    def paint(axes: Any) -> None:
        left = [0.0] * len(names)
        for part in ENERGIES:
            widths = [
                fmean(row["prefill"]["energy"][name][part] for row in measured["models"])
                for name in names
            ]
            axes.barh(labels, widths, left=left, label=_TITLES[part])
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axes.invert_yaxis()
        axes.set_xlabel("pJ/MAC, prefill, equal area, mean of six models")
        axes.legend(fontsize="small")

    return paint


def _clocks(rows: Sequence[Mapping[str, Any]], name: str) -> list[int]:
    return [row["designs"][name]["clocks"] for row in rows]


def _caches(measured: Mapping[str, Any]) -> Paint:
    """Return what draws the clocks of one token against the length of its cache."""
    rows = measured["caches"]
    lengths = [row["cache"] for row in rows]
    bf16 = [row["dram_clocks"] * row["bf16_bytes"] / row["cache_bytes"] for row in rows]
    lines = (
        *((f"attention, {name.upper()}", _clocks(rows, name)) for name in BUILT),
        ("attention, DRAM-bound, M2XFP", [row["dram_clocks"] for row in rows]),
        ("attention, DRAM-bound, bf16", bf16),
        ("linear layers, M2XFP", [row["weight_clocks"] for row in rows]),
    )

    def paint(axes: Any) -> None:
        for label, clocks in lines:
            axes.plot(lengths, clocks, marker="o", label=label)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("tokens in the cache")
        axes.set_ylabel("clocks a token and block, Llama-3-8B")
        axes.legend(fontsize="small")

    return paint
