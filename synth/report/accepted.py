"""The accepted figures in docs/results: what a run changed against them, and accepting it.

One JSON file a library holds the rows of every unit and configuration that were accepted, with the
flow that measured them; ``m2xfp report`` draws tables and plots from it. Figures with clock gates
or no full adders have files of their own, named ``...-gated`` and ``...-no-adders``.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2xfp.errors import InputError
from m2xfp.results import read_figures, write_figures
from m2xfp.rtl.catalog import find_unit
from m2xfp.synth.flow.pdk import Pdk
from m2xfp.synth.flow.yosys import FlowOptions
from m2xfp.synth.report.figures import Row, flow_facts, markdown_table, report

__all__ = ["LIMIT", "Change", "accept", "accepted_files", "changes", "load", "plots", "tables"]

LIMIT = 0.03  # growth of area or path beyond this is a regression

# Figures that are compared; those that a run can fail on stand first.
_GUARDED = ("area_um2", "critical_path_ns")
_WATCHED = (*_GUARDED, "energy_pj_per_group")


@dataclass(frozen=True)
class Change:
    """A figure that is no longer what was accepted.

    Members
    -------
    unit, config, figure
        Which.
    before, after
        The accepted value and the new one.
    """

    unit: str
    config: str
    figure: str
    before: float
    after: float

    @property
    def growth(self) -> float:
        """Relative change, above 0 for worse; infinite for a figure that was zero."""
        if not self.before:
            return math.inf if self.after > 0 else 0.0
        return self.after / self.before - 1

    @property
    def is_regression(self) -> bool:
        """Whether the check fails on it."""
        return self.figure in _GUARDED and self.growth > LIMIT

    def __str__(self) -> str:
        """Return the change as a line of the report."""
        verdict = "REGRESSION" if self.is_regression else "worse" if self.growth > 0 else "better"
        return (
            f"{verdict}: {self.unit} {self.config} {self.figure} "
            f"{self.before:g} -> {self.after:g} "
            f"({f'{self.growth:+.1%}' if self.before else 'it was zero'})"
        )


def _name(pdk: Pdk, options: FlowOptions) -> str:
    return pdk.name + "-gated" * options.clock_gating + "-no-adders" * (not options.full_adders)


def _read(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """Return the flow and the rows of an accepted file."""
    try:
        figures = read_figures(path)
        flow = {"full_adders": False, "full_adder": None} | dict(figures["flow"])  # older files
        rows = [Row(**row) for row in figures["rows"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a report of m2xfp synth: {error}") from error
    for row in rows:
        for figure in _WATCHED:
            value = getattr(row, figure)
            is_number = isinstance(value, int | float) and math.isfinite(value) and value >= 0
            if not is_number and (value is not None or figure in _GUARDED):
                raise InputError(
                    f"{path}: {figure} of {row.unit} {row.config} is {value!r}, which is no figure "
                    f"of m2xfp synth; restore it: git checkout {path}"
                )
    return flow, rows


def accepted_files(folder: Path) -> dict[str, tuple[Mapping[str, Any], list[Row]]]:
    """Return flow and rows of every accepted library, by the name of its file.

    Raises InputError for a damaged file.
    """
    paths = sorted(folder.glob("synth-*.json"))
    return {path.stem.removeprefix("synth-"): _read(path) for path in paths}


def load(folder: Path, pdk: Pdk, options: FlowOptions) -> list[Row]:
    """Return the accepted rows of a library, none if there are none yet.

    Raises
    ------
    InputError
        The file is damaged, or was measured by another flow: figures would not compare.
    """
    path = folder / f"synth-{_name(pdk, options)}.json"
    if not path.exists():
        return []
    flow, rows = _read(path)
    present = json.loads(json.dumps(flow_facts(pdk, options)))
    if differing := [name for name in present if flow.get(name) != present[name]]:
        raise InputError(
            f"{path} was measured with another flow ({', '.join(differing)} differ); measure with "
            "its options, or accept anew after removing it"
        )
    return rows


def _key(row: Row) -> tuple[str, str]:
    return row.unit, row.config


def changes(accepted: Iterable[Row], measured: Iterable[Row]) -> list[Change]:
    """Return every watched figure that differs, regressions first, then by size."""
    before = {_key(row): row for row in accepted}
    found = []
    for row in measured:
        old = before.get(_key(row))
        for figure in _WATCHED if old else ():
            was, now = getattr(old, figure), getattr(row, figure)
            if was is not None and now is not None and was != now:
                found.append(Change(row.unit, row.config, figure, was, now))
    return sorted(found, key=lambda change: (not change.is_regression, -abs(change.growth)))


def accept(
    folder: Path,
    accepted: Sequence[Row],
    measured: Sequence[Row],
    known: Iterable[tuple[str, str]],
    pdk: Pdk,
    options: FlowOptions,
) -> Path:
    """Write the measured rows over the accepted ones; return the file.

    The rows are those of ``known``, unit and configuration of the whole catalog, in its order; an
    accepted row of a unit that is no more is dropped.
    """
    rows = {_key(row): row for row in (*accepted, *measured)}
    kept = [rows[key] for key in known if key in rows]
    path = folder / f"synth-{_name(pdk, options)}.json"
    return write_figures(path, report(kept, pdk, options))


def tables(results: Path) -> dict[str, str]:
    """Return the tables of all accepted libraries by name.

    ``synth-LIBRARY`` has everything, ``synth-LIBRARY-units`` the first configuration of each unit,
    ``synth-LIBRARY-UNIT`` one unit.
    """
    found = {}
    for name, (flow, rows) in accepted_files(results).items():
        found[f"synth-{name}"] = markdown_table(rows, flow)
        first = [row for row in rows if row.config == find_unit(row.unit).default]
        if first:
            found[f"synth-{name}-units"] = markdown_table(first, flow)
        for unit in dict.fromkeys(row.unit for row in rows):
            own = [row for row in rows if row.unit == unit]
            found[f"synth-{name}-{unit}"] = markdown_table(own, flow)
    return found


def plots(results: Path, output: Path) -> list[Path]:
    """Draw area by module, and area against throughput, of every accepted library."""
    from m2xfp.synth.report.plots import plot_area, plot_tradeoff

    drawn = []
    for name, (flow, rows) in accepted_files(results).items():
        library = flow["pdk_title"] + ", clock gates" * bool(flow["clock_gating"])
        library += ", full adders" * bool(flow["full_adder"])
        kinds = [("tradeoff", plot_tradeoff)]
        if any(row.module_area_um2 for row in rows):  # not those accepted with --no-breakdown
            kinds.insert(0, ("area", plot_area))
        for ending, plot in kinds:
            path = output / f"synth-{name}-{ending}.svg"
            plot(rows, library, path)
            drawn.append(path)
    return drawn
