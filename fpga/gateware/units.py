"""The units that boards carry: found by name, with any parameters, and as a device names them."""

import re
from collections.abc import Sequence

from m2xfp.errors import InputError, UnknownNameError
from m2xfp.rtl.catalog import UNITS, Board, Instance, Unit, find_unit
from m2xfp.rtl.parameters import bind, parameters_of, parse_settings

__all__ = [
    "board_instance",
    "board_instances",
    "board_row",
    "board_units",
    "find_board_unit",
    "folder_name",
    "instance_of_text",
    "instance_text",
]


def board_units() -> dict[str, Unit]:
    """Return the units of the catalog that have a board row, by what boards call them."""
    return {unit.board.name: unit for unit in UNITS.values() if unit.board is not None}


def find_board_unit(name: str) -> Unit:
    """Return the unit that boards, or the catalog, call ``name``.

    UnknownNameError lists those that exist.
    """
    known = board_units()
    for board_name, unit in known.items():
        if name in (board_name, unit.name):
            return unit
    raise UnknownNameError("unit of a board", name, known)


def board_row(instance: Instance) -> Board:
    """Return the board row of an instance's unit; InputError if it has none."""
    if instance.unit.board is None:
        raise InputError(
            f"{instance.unit.name} has no board row in the catalog; "
            f"boards carry: {', '.join(board_units())}"
        )
    return instance.unit.board


def board_instance(name: str, config: str | None = None, settings: Sequence[str] = ()) -> Instance:
    """Return a unit as it goes on a board.

    Parameters
    ----------
    name
        What boards, or the catalog, call it.
    config
        A configuration; None for that of its board row, with the changes there.
    settings
        ``PARAMETER=VALUE`` texts, which come last.
    """
    unit = find_board_unit(name)
    assert unit.board is not None
    changes = parse_settings(unit.component, settings)
    if config is None:
        return unit.instance(unit.board.config, {**unit.board.changes, **changes})
    return unit.instance(config, changes)


def board_instances(
    names: Sequence[str], configs: Sequence[str] = (), settings: Sequence[str] = ()
) -> list[Instance]:
    """Return the units of a design, as the command line names them.

    Parameters
    ----------
    names
        What boards, or the catalog, call them.
    configs
        ``CONFIG``, or ``UNIT.CONFIG`` where there are several units.
    settings
        ``PARAMETER=VALUE``, or ``UNIT.PARAMETER=VALUE``.

    Raises
    ------
    UnknownNameError
        A unit, configuration or parameter that does not exist.
    InputError
        A text that says of no unit, or of one that is not in the design; two configurations of
        one unit; or what the component refuses.
    """
    units = [find_board_unit(name).name for name in names]
    chosen = {
        unit: [part for owner, part in _owned(configs, units) if owner == unit] for unit in units
    }
    for unit, given in chosen.items():
        if len(given) > 1:
            raise InputError(f"--config {' and '.join(given)}: give one configuration of {unit}")
    changed = {
        unit: [part for owner, part in _owned(settings, units) if owner == unit] for unit in units
    }
    return [
        board_instance(unit, chosen[unit][-1] if chosen[unit] else None, changed[unit])
        for unit in units
    ]


def _owned(texts: Sequence[str], units: Sequence[str]) -> list[tuple[str, str]]:
    """Return (unit, rest) of texts that begin with ``UNIT.``, if there are several units."""
    found = []
    for text in texts:
        key, equals, value = text.partition("=")
        owner, dot, rest = key.rpartition(".")
        if dot:
            unit = find_board_unit(owner).name
            if unit not in units:
                raise InputError(f"{text}: unit {owner} is not built; name it with --unit")
        elif len(units) == 1:
            (unit,) = units
        else:
            raise InputError(
                f"{text}: there are {len(units)} units; say which one: "
                f"{find_unit(units[0]).board.name}.{text}"  # type: ignore[union-attr]
            )
        found.append((unit, f"{rest}{equals}{value}"))
    return found


def folder_name(instances: Sequence[Instance]) -> str:
    """Return a name for the folder of a design: its units, with what differs from the default."""
    parts = []
    for instance in instances:
        row = board_row(instance)
        if instance.parameters == board_instance(row.name).parameters:
            parts.append(row.name)
        else:
            parts.append(f"{row.name}_{re.sub(r'[^A-Za-z0-9]+', '_', instance.config)}")
    return "-".join(parts)


def instance_text(instance: Instance) -> str:
    """Return unit, all parameters, widths of the streams, and memory, as a device tells them."""
    known = parameters_of(instance.unit.component)
    parameters = [
        f"{name}={known[name].write(value)}" for name, value in instance.parameters.items()
    ]
    streams = [f"{stream.name}:{stream.data_width}" for stream in instance.facts.streams]
    memory = [f"memory:{size}"] if (size := board_row(instance).memory) else []
    return " ".join([instance.unit.name, *parameters, *streams, *memory])


def instance_of_text(text: str) -> Instance:
    """Return the instance that ``instance_text`` has written.

    The widths of the streams are not looked at; compare ``instance_text`` of the result.

    Raises
    ------
    UnknownNameError
        A unit or parameter that this version does not have.
    InputError
        A value that it does not take, or a unit without a board row.
    """
    name, *words = text.split(" ")
    unit = find_unit(name)
    if unit.board is None:
        raise InputError(f"{name} has no board row in the catalog")
    given = parse_settings(unit.component, [word for word in words if "=" in word])
    usual = bind(unit.component, unit.configs[unit.board.config])
    return unit.instance(
        unit.board.config, {key: value for key, value in given.items() if value != usual[key]}
    )
