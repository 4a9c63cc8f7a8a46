"""A chip's worth of instances: a TOML file with a table for each Verilog module."""

import tomllib
from pathlib import Path
from typing import Any

from m2xfp.errors import InputError
from m2xfp.rtl.catalog import Instance, find_unit
from m2xfp.rtl.parameters import parameters_of

__all__ = ["read_chip"]


def read_chip(path: Path) -> list[Instance]:
    """Return the instances that a file names, in its order; nothing is written.

    Each table is called like its module. Its keys are ``unit``, ``config`` (the unit's first if
    left out) and parameters, as TOML values or as the texts that ``--set`` takes.

    Raises
    ------
    InputError
        The file is not there, is no TOML, or a table is not an instance that can be built; the text
        names the table.
    """
    try:
        tables = tomllib.loads(path.read_text())
    except OSError as error:
        raise InputError(f"--from {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # syntax, encoding, nesting
        raise InputError(f"--from {path}: not a TOML file ({error})") from error
    if not tables:
        raise InputError(f"--from {path}: no table; give each module one, such as [quantizer]")
    return [_instance(name, table, path) for name, table in tables.items()]


def _instance(name: str, table: Any, path: Path) -> Instance:
    if not isinstance(table, dict) or not isinstance(table.get("unit"), str):
        raise InputError(f'--from {path}: [{name}] needs unit = "..."; m2xfp verilog --list')
    given = {key: value for key, value in table.items() if key not in ("unit", "config")}
    config = table.get("config")
    try:
        if config is not None and not isinstance(config, str):
            raise InputError(f"config={config!r}: give the name of a configuration")
        row = find_unit(table["unit"])
        known = parameters_of(row.component)
        values = {
            key: known[key].parse(value) if key in known and isinstance(value, str) else value
            for key, value in given.items()
        }
        return row.instance(config, values, name=name)
    except ValueError as error:  # InputError and UnknownNameError
        raise InputError(f"--from {path}: [{name}]: {error}") from error
