"""The committed figures in docs/results: what a run changed against them, and accepting it.

One JSON file a library holds the rows of every unit and configuration that were accepted, with the
flow that measured them; the table and the plots beside it are drawn from it. Figures with clock
gates have files of their own, named ``...-gated``.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from m2xfp.errors import InputError
from m2xfp.files import write_atomic
from m2xfp.rtl.catalog import find_unit
from m2xfp.synth.flow.pdk import Pdk
from m2xfp.synth.flow.yosys import FlowOptions
from m2xfp.synth.report.figures import Row, flow_facts, markdown_table
from m2xfp.synth.studies.paper import paper_table

__all__ = ["LIMIT", "RESULTS", "Change", "accept", "changes", "load"]

RESULTS = Path("docs/results")
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
        """Relative change, above 0 for worse."""
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
            f"{self.before:g} -> {self.after:g} ({self.growth:+.1%})"
        )


def _name(pdk: Pdk, options: FlowOptions) -> str:
    return pdk.name + "-gated" * options.clock_gating


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
    try:
        report = json.loads(path.read_text())
        rows = [Row(**row) for row in report["rows"]]
        flow = report["flow"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a report of m2xfp synth: {error}") from error
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
) -> list[Path]:
    """Write the measured rows over the accepted ones, with table and plots; return the files.

    The rows are those of ``known``, unit and configuration of the whole catalog, in its order; an
    accepted row of a unit that is no more is dropped.
    """
    from m2xfp.synth.report.plots import plot_area, plot_tradeoff

    rows = {_key(row): row for row in (*accepted, *measured)}
    kept = [rows[key] for key in known if key in rows]
    report: dict[str, Any] = {
        "flow": flow_facts(pdk, options),
        "rows": [asdict(row) for row in kept],
    }
    name = _name(pdk, options)
    files = [
        write_atomic(folder / f"synth-{name}.json", json.dumps(report, indent=1) + "\n"),
        write_atomic(folder / f"synth-{name}.md", markdown_table(kept, pdk, options)),
    ]
    macs = {
        (unit, config): facts.macs_per_clock
        for unit, config in map(_key, kept)
        if (facts := find_unit(unit).instance(config).facts).macs_per_clock
    }
    if compared := paper_table(kept, pdk, macs):
        files.append(write_atomic(folder / f"paper-{name}.md", compared))
    drawn = replace(pdk, title=f"{pdk.title}, clock gates") if options.clock_gating else pdk
    for ending, plot in (("area", plot_area), ("tradeoff", plot_tradeoff)):
        path = folder / f"synth-{name}-{ending}.svg"
        plot(kept, drawn, path)
        files.append(path)
    return files
