"""What has been done for each unit: a row a unit, an entry the result of a command.

Every entry is drawn from figures that a command wrote into docs/results; what no command has
measured is a dash.
"""

from pathlib import Path
from typing import Any

from m2xfp.results import read_figures
from m2xfp.rtl.catalog import UNITS, Unit
from m2xfp.synth.checks.record import FILE
from m2xfp.tables import aligned_table

__all__ = ["tables"]

_NONE = "-"
_AIM = 0.99  # of the mutants that are not equivalent


def _rows(results: Path, file: str, key: str, unit: Unit) -> list[dict[str, Any]]:
    path = results / file
    rows = read_figures(path)[key] if path.exists() else []
    return [row for row in rows if row["unit"] == unit.name]


def _checks(results: Path, unit: Unit) -> list[str]:
    """Return the cells of configurations, lint, regression, streams, second simulator."""
    rows = _rows(results, FILE, "rows", unit)
    names = ("lint", "regression", "streams", "second")
    cells = []
    for name in names:
        counts = [row[name] for row in rows if name in row]
        whole = len(counts) == len(rows) and rows
        cells.append(_NONE if not whole else "clean" if name == "lint" else str(sum(counts)))
    if rows and not any(instance.facts.streams for instance in [unit.instance()]):
        cells[2] = "no streams"
    return [f"{len(rows)} of {len(unit.configs)}", *cells]


def _coverage(results: Path, unit: Unit) -> str:
    rows = _rows(results, "coverage.json", "rows", unit)
    if not rows:
        return _NONE
    holes = sum(len(row["holes"]) for row in rows)
    return "whole" if not holes else f"{holes} hole{'s'[: holes - 1]}"


def _mutants(results: Path, unit: Unit) -> tuple[str, bool]:
    """Return the share that is noticed, and whether it is what is aimed at."""
    rows = _rows(results, "mutants.json", "rows", unit)
    counted = sum(row["mutants"] - row["equivalent"] for row in rows)
    if not counted:
        return _NONE, False
    share = sum(row["killed"] for row in rows) / counted
    return f"{share:.1%}", share >= _AIM


def _proofs(results: Path, unit: Unit) -> tuple[str, bool]:
    """Return the number of proofs, and whether each is shown to fail with a fault."""
    rows = _rows(results, "proofs.json", "proofs", unit)
    return (str(len(rows)) if rows else _NONE), bool(rows) and all(row["fault"] for row in rows)


def _silicon(results: Path, unit: Unit) -> list[str]:
    """Return the libraries with figures, and the groups that went through mapped gates."""
    libraries, groups = 0, 0
    for path in sorted(results.glob("synth-*.json")):
        if path.stem.endswith(("-gated", "-no-adders")):
            continue
        rows = _rows(results, path.name, "rows", unit)
        libraries += bool(rows)
        groups += sum(row.get("gate_level_groups") or 0 for row in rows)
    return [str(libraries) if libraries else _NONE, str(groups) if groups else _NONE]


def _boards(results: Path, unit: Unit) -> str:
    """Return how many boards' routed designs were read back with the unit in them."""
    path = results / "fpga.json"
    checks = read_figures(path)["checks"] if path.exists() and unit.board else []
    builds = [check["build"] for check in checks]
    name = unit.board.name if unit.board else ""
    boards = {build["board"] for build in builds if name in build["units"]}
    return str(len(boards)) if boards else _NONE


def _stage(first: bool, second: bool, third: bool) -> str:
    """Return how far the verification is, in the manner of OpenTitan's checklists."""
    if not first:
        return "V0"
    if not second:
        return "V1"
    return "V3" if third else "V2"


def tables(results: Path) -> dict[str, str]:
    """Return the table ``status``: a row a unit, an entry a command's result."""
    rows = [
        [
            *("unit", "stage", "configurations", "lint", "regression", "streams"),
            *(
                "second simulator",
                "coverage",
                "mutants",
                "proofs",
                "libraries",
                "gate level",
                "boards",
            ),
        ]
    ]
    for unit in UNITS.values():
        configs, lint, regression, streams, second = _checks(results, unit)
        coverage = _coverage(results, unit)
        (mutants, enough), (proofs, each) = _mutants(results, unit), _proofs(results, unit)
        stage = _stage(
            _NONE not in (lint, regression, streams),
            second != _NONE and coverage == "whole",
            enough and each,
        )
        rows.append(
            [
                *(f"`{unit.name}`", stage, configs, lint, regression, streams, second),
                *(coverage, mutants, proofs, *_silicon(results, unit), _boards(results, unit)),
            ]
        )
    return {"status": aligned_table(rows)}
