"""The accepted results: figures as JSON in docs/results, and nothing that can be drawn from them.

Commands that measure write figures there; ``m2xfp report`` draws all tables and plots from them,
into build/report and into the pages. A line of a file is a row of figures, so that a change of one
figure is a change of one line.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m2xfp.errors import InputError
from m2xfp.files import write_atomic
from m2xfp.plain import read_json

__all__ = ["RESULTS", "read_figures", "to_json", "write_figures"]

RESULTS = Path("docs/results")


def to_json(figures: Mapping[str, Any]) -> str:
    """Return figures as JSON text: members, rows of a list and parts of a member in lines."""

    def line(key: str, value: Any) -> str:
        return f" {json.dumps(key)}: {member(value)}"

    def member(value: Any) -> str:
        if isinstance(value, list) and value and isinstance(value[0], (dict, list)):
            return "[\n" + ",\n".join(f"  {json.dumps(row)}" for row in value) + "\n ]"
        if isinstance(value, dict) and any(
            isinstance(part, (dict, list)) for part in value.values()
        ):
            parts = (f"  {json.dumps(key)}: {json.dumps(part)}" for key, part in value.items())
            return "{\n" + ",\n".join(parts) + "\n }"
        return json.dumps(value)

    return "{\n" + ",\n".join(line(key, value) for key, value in figures.items()) + "\n}\n"


def write_figures(path: str | os.PathLike[str], figures: Mapping[str, Any]) -> Path:
    """Write figures to a file in one step and return its path."""
    return write_atomic(path, to_json(figures))


def read_figures(path: Path) -> dict[str, Any]:
    """Return what ``write_figures`` has written; InputError for a file of another kind."""
    try:
        figures = read_json(path)
    except InputError as error:
        raise InputError(f"{error}; restore it: git checkout {path}") from error
    if not isinstance(figures, dict):
        raise InputError(f"{path} holds no figures by name; restore it: git checkout {path}")
    return figures
