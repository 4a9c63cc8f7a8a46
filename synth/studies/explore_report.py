"""Table and plots of a sweep."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from m2xfp.results import read_figures, write_figures
from m2xfp.synth.report.plots import draw
from m2xfp.synth.studies.explore import Outcome, front
from m2xfp.tables import aligned_table

__all__ = ["plots", "sweep_table", "tables", "write_outcomes"]

# File ending, then name and meaning of what is drawn across and up; small is good in all.
_PLOTS = (
    ("area-accuracy", ("area_um2", "area, um2"), ("perplexity_ratio", "perplexity ratio")),
    (
        "energy-accuracy",
        ("energy_pj_per_group", "energy, pJ a group"),
        ("perplexity_ratio", "perplexity ratio"),
    ),
    ("area-time", ("area_um2", "area, um2"), ("ns_per_group", "ns a group at the highest clock")),
)


def _figure(outcome: Outcome, name: str) -> float | None:
    if name == "perplexity_ratio":
        return outcome.perplexity_ratio
    if name == "ns_per_group":
        return float(outcome.row["critical_path_ns"] / outcome.row["groups_per_clock"])
    value = outcome.row[name]
    return None if value is None else float(value)


def _varied(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the parameters that not all points have alike."""
    return [
        name
        for name in outcomes[0].parameters
        if len({outcome.parameters[name] for outcome in outcomes}) > 1
    ]


def write_outcomes(outcomes: Sequence[Outcome], folder: Path) -> Path:
    """Write the points as figures, ``explore-UNIT.json``."""
    points = [asdict(outcome) for outcome in outcomes]
    return write_figures(folder / f"explore-{outcomes[0].unit}.json", {"points": points})


def _read(results: Path) -> Iterator[tuple[str, list[Outcome]]]:
    """Yield the outcomes of each sweep and library, by their name."""
    for path in sorted(results.glob("explore-*.json")):
        outcomes = [Outcome(**point) for point in read_figures(path)["points"]]
        for pdk in dict.fromkeys(outcome.pdk for outcome in outcomes):
            yield f"{path.stem}-{pdk}", [outcome for outcome in outcomes if outcome.pdk == pdk]


def tables(results: Path) -> dict[str, str]:
    """Return the table of each sweep and library, ``explore-UNIT-LIBRARY``."""
    return {name: sweep_table(own) for name, own in _read(results)}


def plots(results: Path, output: Path) -> list[Path]:
    """Draw what is worth building of each sweep: Pareto fronts, where there are figures."""
    drawn = []
    for name, own in _read(results):
        for ending, across, up in _PLOTS:
            points = [(_figure(outcome, across[0]), _figure(outcome, up[0])) for outcome in own]
            known = [
                (outcome, (x, y))
                for outcome, (x, y) in zip(own, points, strict=True)
                if x is not None and y is not None
            ]
            if known:
                path = output / f"{name}-{ending}.svg"
                _plot(known, across[1], up[1], path)
                drawn.append(path)
    return drawn


def sweep_table(outcomes: Sequence[Outcome]) -> str:
    """Return the points of a sweep on one library, as markdown."""
    names = list(outcomes[0].parameters)
    lines = [[*names, "bits", "area um2", "path ns", "ns/group", "pJ/group", "perplexity ratio"]]
    for outcome in outcomes:
        energy, ratio = outcome.row["energy_pj_per_group"], outcome.perplexity_ratio
        lines.append(
            [
                *outcome.parameters.values(),
                "" if outcome.bits_per_value is None else f"{outcome.bits_per_value:g}",
                f"{outcome.row['area_um2']:.0f}",
                f"{outcome.row['critical_path_ns']:.3f}",
                f"{_figure(outcome, 'ns_per_group'):.3f}",
                "" if energy is None else f"{energy:.4g}",
                "" if ratio is None else f"{ratio:.4f}",
            ]
        )
    return aligned_table(lines)


def _plot(
    known: Sequence[tuple[Outcome, tuple[float, float]]], across: str, up: str, path: Path
) -> None:
    points = [point for _, point in known]
    best = front(points)
    varied = _varied([outcome for outcome, _ in known])

    def paint(axes: Any) -> None:
        axes.scatter(*zip(*points, strict=True), color="0.6", label="points")
        axes.plot(
            *zip(*(points[i] for i in best), strict=True), "o-", color="C1", label="Pareto front"
        )
        for index in best:
            outcome, point = known[index]
            axes.annotate(
                " ".join(outcome.parameters[name] for name in varied),
                point,
                fontsize="x-small",
                textcoords="offset points",
                xytext=(4, 3),
            )
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        unit, pdk = known[0][0].unit.replace("_", " "), known[0][0].pdk
        axes.set_title("; ".join(filter(None, (f"{unit}, {pdk}", ", ".join(varied)))))
        axes.legend(fontsize="small")

    draw(path, (8, 5.5), paint)
