"""The accepted figures of mutants, and the tables that are drawn from them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m2xfp.results import read_figures, write_figures
from m2xfp.rtl.catalog import UNITS, Instance
from m2xfp.synth.mutants.kill import Outcome
from m2xfp.tables import aligned_table

__all__ = ["accept", "row_of", "summary", "tables"]

_FILE = "mutants.json"
_FATES = ("killed", "equivalent", "argued", "alive")


def row_of(instance: Instance, seed: int, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the figures of a unit."""
    fates = [outcome.fate for outcome in outcomes]
    return {
        "unit": instance.unit.name,
        "config": instance.config,
        "seed": seed,
        "mutants": len(outcomes),
        **{fate: fates.count(fate) for fate in _FATES},
        "survivors": _places(outcomes, "alive"),
        "spared": _places(outcomes, "argued"),
    }


def _places(outcomes: Sequence[Outcome], fate: str) -> list[list[str | int]]:
    """Return where the mutants of a fate are, and what is known of them."""
    return [
        [each.mutant.mode, each.mutant.place, each.mutant.line, each.mutant.text, each.by]
        for each in outcomes
        if each.fate == fate
    ]


def _share(row: dict[str, Any]) -> str:
    """Return the share that was killed of the mutants that are not equivalent or argued to be."""
    counted = row["killed"] + row["alive"]
    return f"{row['killed'] / counted:.1%}" if counted else "-"


def summary(row: dict[str, Any]) -> str:
    """Return a line for people."""
    return (
        f"{row['unit']} {row['config']}, seed {row['seed']}: {row['killed']} of {row['mutants']} "
        f"killed, {row['equivalent']} equivalent, {row['argued']} argued to be, {row['alive']} "
        f"alive; {_share(row)} of those that are neither equivalent nor argued to be"
    )


def accept(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write rows over the accepted ones, in the order of the catalog; return the file."""
    path = folder / _FILE
    known = read_figures(path)["rows"] if path.exists() else []
    merged = {(row["unit"], row["config"]): row for row in (*known, *rows)}
    order = list(UNITS)
    kept = [row for row in merged.values() if row["unit"] in UNITS]
    kept.sort(key=lambda row: (order.index(row["unit"]), row["config"]))
    return write_figures(path, {"rows": kept})


def tables(results: Path) -> dict[str, str]:
    """Return ``mutants``, a row a unit, and a row a mutant that lives or is argued about.

    Their names: ``mutants-alive`` and ``mutants-argued``.
    """
    path = results / _FILE
    if not path.exists():
        return {}
    rows = read_figures(path)["rows"]
    columns = ["unit", "configuration", "seed", "mutants", *_FATES, "share"]
    counts = [columns]
    for row in rows:
        numbers = [str(row[name]) for name in columns[2:-1]]
        counts.append([f"`{row['unit']}`", row["config"], *numbers, _share(row)])
    return {
        "mutants": aligned_table(counts),
        "mutants-alive": _listed(rows, "survivors", "known of it"),
        "mutants-argued": _listed(rows, "spared", "what differs"),
    }


def _listed(rows: Sequence[dict[str, Any]], which: str, last: str) -> str:
    """Return a table of mutants of all units."""
    found = [["unit", "fault", "where", "line of the Verilog", last]]
    for row in rows:
        for mode, place, line, text, by in row[which]:
            code = text.replace("|", "\\|")
            found.append([f"`{row['unit']}`", mode, f"`{place}`", f"{line}: `{code}`", by])
    return aligned_table(found)
