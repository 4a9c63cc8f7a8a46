"""Tables and plots of the accelerator's comparison, from the accepted figures."""

from pathlib import Path
from statistics import fmean
from typing import Any

from m2xfp.results import read_figures
from m2xfp.synth.studies.accelerator_area import area_table
from m2xfp.synth.studies.accelerator_throughput import throughput_tables
from m2xfp.synth.studies.measured_accelerator import measured_tables
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
    """Draw the mean speed over each design, by what is assumed."""
    if not (results / PAPER).exists() or not (results / MEASURED).exists():
        return []
    from m2xfp.synth.report.plots import draw

    paper, measured = read_figures(results / PAPER), read_figures(results / MEASURED)

    def means(figure: str) -> list[float]:
        return [fmean(row[design][figure] for row in measured["models"]) for design in BASELINES]

    published = [
        fmean(row["speed_log"] for row in paper["rows"] if row["design"] == design)
        for design in BASELINES
    ]
    bars = (
        ("the log", published),
        ("own clocks, fused MACs", means("speed_fused")),
        ("own units, equal area", means("speed_area")),
        ("one token, DRAM-bound", means("token_memory")),
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

    path = output / "accelerator-speed.svg"
    draw(path, (8, 4.5), paint)
    return [path]
