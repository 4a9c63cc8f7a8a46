"""The accepted results of checks, in docs/results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m2xfp.results import read_figures, write_figures
from m2xfp.rtl.catalog import UNITS, Instance
from m2xfp.synth.checks.measure import Checked

__all__ = ["FILE", "accept", "row_of"]

FILE = "checks.json"


def row_of(instance: Instance, found: Sequence[Checked]) -> dict[str, Any]:
    """Return the figures of an instance; none of a check that found a fault."""
    counts = {each.name: each.count for each in found if not each.fault}
    return {"unit": instance.unit.name, "config": instance.config, **counts}


def accept(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write rows into the accepted ones, in the order of the catalog; return the file.

    A row takes the place of what it has figures of: a check that was not made keeps what it had.
    """
    path = folder / FILE
    known = read_figures(path)["rows"] if path.exists() else []
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for row in (*known, *rows):
        merged.setdefault((row["unit"], row["config"]), {}).update(row)
    order = list(UNITS)
    kept = [row for row in merged.values() if row["unit"] in UNITS]
    kept.sort(key=lambda row: (order.index(row["unit"]), row["config"]))
    return write_figures(path, {"rows": kept})
