"""What has been done for each unit: a row a unit, an entry the result of a command.

Every entry is drawn from figures that a command wrote into docs/results; what no command has
measured is a dash.
"""

from pathlib import Path
from typing import Any

from m2xfp.results import read_figures
from m2xfp.rtl.catalog import UNITS, Unit
from m2xfp.rtl.parameters import parameters_of
from m2xfp.synth.checks.record import FILE
from m2xfp.synth.flow.lint import LINTERS
from m2xfp.tables import aligned_table

__all__ = ["own_rows", "tables"]

_NONE = "-"
_AIM = 0.99  # of the mutants that are neither equivalent nor argued to be
_LIBRARIES = 3


def _rows(results: Path, file: str, key: str, unit: Unit) -> list[dict[str, Any]]:
    path = results / file
    rows = read_figures(path)[key] if path.exists() else []
    return [row for row in rows if row["unit"] == unit.name]


def _sum(rows: list[dict[str, Any]], name: str) -> str:
    """Return what a check counted in all configurations that it was made for."""
    counts = [row[name] for row in rows if name in row]
    return str(sum(counts)) if counts else _NONE


def _is_clean(row: dict[str, Any]) -> bool:
    """Whether every linter has read a configuration; fewer are those of an earlier time."""
    return int(row.get("lint", 0)) >= len(LINTERS)


def _clean(rows: list[dict[str, Any]], unit: Unit) -> tuple[int, str]:
    """Return how many configurations all linters found clean, alone and of how many."""
    clean = sum(map(_is_clean, rows))
    return clean, f"{clean}/{len(unit.configs)}" if clean else _NONE


def _parameters(rows: list[dict[str, Any]], unit: Unit) -> tuple[int, str, str]:
    """Return what is left to describe, and how many parameters are described, and varied.

    A parameter is varied if configurations that the linters found clean differ in it.
    """
    known = parameters_of(unit.component)
    described = sum(bool(parameter.text.strip()) for parameter in known.values())
    checked = [unit.configs[row["config"]] for row in rows if _is_clean(row)]
    varied = sum(
        len({str(given.get(name, parameter.default)) for given in checked}) > 1
        for name, parameter in known.items()
    )
    return (
        len(known) - described,
        f"{described}/{len(known)}" if known else "none to set",
        f"{varied}/{len(known)}" if checked and known else _NONE,
    )


def _coverage(results: Path, unit: Unit) -> str:
    rows = _rows(results, "coverage.json", "rows", unit)
    if not rows:
        return _NONE
    holes = sum(len(row["holes"]) for row in rows)
    return "whole" if not holes else f"{holes} hole{'s'[: holes - 1]}"


def _features(results: Path, unit: Unit) -> str:
    """Return how many features the cases of a regression reach as a whole, of how many."""
    found = [
        reached == total
        for row in _rows(results, "coverage.json", "rows", unit)
        for total, reached in row.get("crosses", {}).values()
    ]
    return f"{sum(found)}/{len(found)}" if found else _NONE


def _mutants(results: Path, unit: Unit) -> tuple[str, bool]:
    """Return the share that is noticed, and whether it is what is aimed at."""
    rows = _rows(results, "mutants.json", "rows", unit)
    counted = sum(row["killed"] + row["alive"] for row in rows)
    if not counted:
        return _NONE, False
    share = sum(row["killed"] for row in rows) / counted
    return f"{share:.1%}", share >= _AIM


def _proofs(results: Path, unit: Unit) -> tuple[str, bool]:
    """Return the number of proofs, and whether each is shown to fail with a fault."""
    rows = _rows(results, "proofs.json", "proofs", unit)
    return (str(len(rows)) if rows else _NONE), bool(rows) and all(row["fault"] for row in rows)


def _silicon(results: Path, unit: Unit) -> tuple[str, str]:
    """Return the libraries with figures, and the groups that went through mapped gates."""
    files = sorted(results.glob("synth-*.json"))
    rows = [row for path in files for row in _rows(results, path.name, "rows", unit)]
    libraries = {row["pdk"] for row in rows}
    groups = sum(row.get("gate_level_groups") or 0 for row in rows)
    return str(len(libraries)) if libraries else _NONE, str(groups) if groups else _NONE


def _boards(results: Path, unit: Unit) -> str:
    """Return how many boards' routed designs were read back with the unit in them."""
    path = results / "fpga.json"
    checks = read_figures(path)["checks"] if path.exists() and unit.board else []
    builds = [check["build"] for check in checks]
    name = unit.board.name if unit.board else ""
    boards = {build["board"] for build in builds if name in build["units"]}
    return str(len(boards)) if boards else _NONE


def _stage(letter: str, *steps: bool) -> str:
    """Return how many steps are done in a row, in the manner of OpenTitan's checklists."""
    done = next((number for number, step in enumerate(steps) if not step), len(steps))
    return f"{letter}{done}"


def _design(results: Path, unit: Unit) -> dict[str, str]:
    rows = _rows(results, FILE, "rows", unit)
    clean, lint = _clean(rows, unit)
    left, described, varied = _parameters(rows, unit)
    libraries, gates = _silicon(results, unit)
    core = _sum(rows, "core")
    default = any(row["config"] == unit.default and _is_clean(row) for row in rows)
    stage = _stage(
        "D",
        default and not left,
        clean == len(unit.configs) and core != _NONE and libraries != _NONE,
        libraries.isdigit() and int(libraries) >= _LIBRARIES and gates != _NONE,
    )
    return {
        "unit": f"`{unit.name}`",
        "D": stage,
        "described": described,
        "varied": varied,
        "lint": lint,
        "core": core,
        "libraries": libraries,
        "gate level": gates,
        "boards": _boards(results, unit),
    }


def _verification(results: Path, unit: Unit) -> dict[str, str]:
    rows = _rows(results, FILE, "rows", unit)
    regression, streams, second = (_sum(rows, name) for name in ("regression", "streams", "second"))
    if streams != _NONE and not unit.instance().facts.streams:
        streams = "no streams"
    coverage, features = _coverage(results, unit), _features(results, unit)
    (mutants, enough), (proofs, each) = _mutants(results, unit), _proofs(results, unit)
    _, lint = _clean(rows, unit)
    stage = _stage(
        "V",
        _NONE not in (lint, regression, streams),
        second != _NONE and coverage == "whole",
        enough and each,
    )
    return {
        "unit": f"`{unit.name}`",
        "V": stage,
        "regression": regression,
        "streams": streams,
        "second": second,
        "coverage": coverage,
        "features": features,
        "mutants": mutants,
        "proofs": proofs,
    }


def own_rows(results: Path, unit: Unit) -> dict[str, str]:
    """Return the cells of a unit in both tables, by the names of the columns."""
    return {**_design(results, unit), **_verification(results, unit)}


def tables(results: Path) -> dict[str, str]:
    """Return the tables ``status-design`` and ``status-verification``: a row a unit.

    Every entry is a command's result.
    """
    found = {}
    for name, row_of in (("design", _design), ("verification", _verification)):
        rows = [row_of(results, unit) for unit in UNITS.values()]
        cells = [list(rows[0]), *(list(row.values()) for row in rows)]
        found[f"status-{name}"] = aligned_table(cells)
    return found
