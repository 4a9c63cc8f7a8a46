"""Plots of synthesis reports, as SVG that is the same for the same figures."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from m2xfp.files import atomic_path
from m2xfp.synth.report.figures import Row

__all__ = ["draw", "plot_area", "plot_tradeoff"]

_SHOWN = 9  # modules with a colour of their own; the rest are "other"


def draw(path: Path, size: tuple[float, float], paint: Callable[[Any], None]) -> None:
    """Draw on one axes and write it; no date and no random ids, so that files compare."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "m2xfp", "svg.fonttype": "none"}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure.subplots())
        with atomic_path(path) as temporary:
            figure.savefig(temporary, metadata={"Date": None})


def _label(row: Row) -> str:
    return f"{row.unit} {row.config}"


def plot_area(rows: Sequence[Row], library: str, path: Path) -> None:
    """Stack the area of every configuration by module, from the runs that keep the hierarchy."""
    parts = [(row, row.module_area_um2) for row in rows if row.module_area_um2]
    totals: dict[str, float] = {}
    for _, areas in parts:
        for module, area in areas.items():
            totals[module] = totals.get(module, 0.0) + area
    shown = sorted(totals, key=lambda module: -totals[module])[:_SHOWN]

    def paint(axes: Any) -> None:
        labels = [_label(row) for row, _ in parts]
        left = [0.0] * len(parts)
        for module in (*shown, "other"):
            widths = [
                sum(
                    area
                    for name, area in areas.items()
                    if name == module or (module == "other" and name not in shown)
                )
                for _, areas in parts
            ]
            if any(widths):
                axes.barh(labels, widths, left=left, label=module.replace("_", " "))
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axes.invert_yaxis()
        axes.set_xlabel(f"area, um2 ({library}; hierarchy kept)")
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))

    draw(path, (9, 1.6 + 0.3 * len(parts)), paint)


def plot_tradeoff(rows: Sequence[Row], library: str, path: Path) -> None:
    """Draw area against throughput at the highest clock, one point a configuration."""

    def paint(axes: Any) -> None:
        for unit in dict.fromkeys(row.unit for row in rows):
            own = [row for row in rows if row.unit == unit]
            rates = [row.fmax_mhz * row.groups_per_clock for row in own]
            axes.scatter(rates, [row.area_um2 for row in own], label=unit.replace("_", " "))
            for row, rate in zip(own, rates, strict=True):
                axes.annotate(
                    row.config,
                    (rate, row.area_um2),
                    fontsize="x-small",
                    textcoords="offset points",
                    xytext=(4, 3),
                )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("million groups a second at the highest clock")
        axes.set_ylabel(f"area, um2 ({library})")
        axes.legend(fontsize="small")

    draw(path, (8, 5.5), paint)
