"""The accepted figures of coverage, and the tables that are drawn from them."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m2xfp.results import read_figures, write_figures
from m2xfp.rtl.catalog import UNITS
from m2xfp.synth.coverage.measure import Measured
from m2xfp.tables import aligned_table
from m2xfp.tb.points import KINDS

__all__ = ["accept", "row_of", "summary", "tables"]

_FILE = "coverage.json"


def row_of(measured: Measured) -> dict[str, Any]:
    """Return the figures of a unit."""
    reasons = Counter([*measured.argued.values(), *measured.argued_cases.values()])
    return {
        "unit": measured.instance.unit.name,
        "config": measured.instance.config,
        "cases": measured.cases,
        **{kind: list(measured.of(kind)) for kind in KINDS},
        "argued": dict(reasons),
        "crosses": {
            each.name: [
                each.bins - sum(hole in measured.argued_cases for hole in each.holes),
                each.covered,
            ]
            for each in measured.crosses
        },
        "holes": measured.holes,
    }


def _numbers(row: dict[str, Any]) -> tuple[int, int]:
    """Return combinations that there can be, and those that came up."""
    bins = [found[0] for found in row["crosses"].values()]
    covered = [found[1] for found in row["crosses"].values()]
    return sum(bins), sum(covered)


def summary(row: dict[str, Any]) -> str:
    """Return a line for people."""
    parts = []
    for kind in KINDS:
        total, covered, shown, argued = row[kind]
        parts.append(f"{kind} {covered} of {total}, {shown} proved and {argued} argued unreachable")
    bins, covered = _numbers(row)
    parts.append(f"numbers and streams {covered} of {bins}")
    return f"{row['unit']} {row['config']}: {'; '.join(parts)}; {len(row['holes'])} holes"


def accept(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write rows over the accepted ones, in the order of the catalog; return the file."""
    path = folder / _FILE
    known = read_figures(path)["rows"] if path.exists() else []
    merged = {(row["unit"], row["config"]): row for row in (*known, *rows)}
    order = list(UNITS)
    kept = [row for row in merged.values() if row["unit"] in UNITS]
    kept.sort(key=lambda row: (order.index(row["unit"]), row["config"]))
    return write_figures(path, {"rows": kept})


def _share(total: int, covered: int, out_of_reach: int = 0) -> str:
    within = total - out_of_reach
    return f"{covered} of {within}" + ("" if covered == within else f" ({covered / within:.2%})")


def tables(results: Path) -> dict[str, str]:
    """Return the tables of the accepted figures.

    ``coverage`` has a row a unit, ``coverage-numbers`` one for each kind of cases,
    ``coverage-argued`` the reasons, ``coverage-holes`` what is left.
    """
    path = results / _FILE
    if not path.exists():
        return {}
    rows = read_figures(path)["rows"]
    units = [
        ["unit", "configuration", *KINDS, "out of reach: proved", "argued", "numbers, streams"]
    ]
    numbers = [["unit", "cases of", "came up"]]
    reasons = [["unit", "points", "why nothing legal reaches them"]]
    holes = [["unit", "not covered"]]
    for row in rows:
        name = f"`{row['unit']}`"
        reached = [
            _share(total, covered, p + a) for total, covered, p, a in (row[k] for k in KINDS)
        ]
        shown, argued = (str(sum(row[kind][at] for kind in KINDS)) for at in (2, 3))
        units.append([name, row["config"], *reached, shown, argued, _share(*_numbers(row))])
        numbers += [[name, what, _share(*found)] for what, found in row["crosses"].items()]
        reasons += [[name, str(count), why] for why, count in row["argued"].items()]
        holes += [[name, f"`{hole}`"] for hole in row["holes"]]
    return {
        "coverage": aligned_table(units),
        "coverage-numbers": aligned_table(numbers),
        "coverage-argued": aligned_table(reasons),
        "coverage-holes": aligned_table(holes) if len(holes) > 1 else "None.\n",
    }
