"""Options that commands share: which units, with which parameters."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import click

from m2xfp.results import RESULTS

if TYPE_CHECKING:
    from m2xfp.rtl.catalog import Instance

__all__ = [
    "COUNT",
    "OUTPUT",
    "OUTPUT_FILE",
    "OUTPUT_FOLDER",
    "InputPath",
    "Number",
    "chosen",
    "figure_options",
    "one_instance",
    "parameter_help",
    "parameter_options",
    "parameter_options_of",
]


class _Output(click.Path):
    """Where a command writes: a place that cannot be written is refused before any work."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path; a default one is not looked at, it may not be used."""
        from m2xfp.errors import explain
        from m2xfp.files import is_special, try_place

        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        given = click.core.ParameterSource.COMMANDLINE
        if ctx is None or param is None or ctx.get_parameter_source(param.name or "") is not given:
            return path
        try:
            if is_special(path):
                self.fail(f"{path} is a device or a pipe; choose a file or a folder", param, ctx)
            try_place(path)
        except OSError as error:
            self.fail(explain(error, path), param, ctx)
        return path


class InputPath(click.Path):
    """What a command reads: a file, a folder or a pipe, but no device, which has no end."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        with suppress(OSError):  # what cannot be looked at is told when it is read
            if path.is_char_device() or path.is_block_device():
                self.fail(f"{path} is a device; give a file", param, ctx)
        return path


class Number(click.FloatRange):
    """A number that is one: neither infinity nor NaN, which no range keeps out."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


COUNT = click.IntRange(1, 1 << 30)
"""A number of things to work on: more than any machine has room for is refused before any work."""

OUTPUT = _Output(path_type=Path)
OUTPUT_FILE = _Output(dir_okay=False, path_type=Path)
OUTPUT_FOLDER = _Output(file_okay=False, path_type=Path)


def _print_parameters(
    unit: str | None, context: click.Context, _option: click.Parameter, wanted: bool
) -> None:
    """Print what can be set of ``unit``, or of the one that the command line names, and stop."""
    if not wanted:
        return
    from m2xfp.errors import InputError
    from m2xfp.rtl.catalog import find_unit

    given = context.params
    unit = unit or given.get("unit") or next(iter(given.get("units") or ()), None)
    if unit is None:
        raise InputError("--help-parameters: name the unit first, such as: m2xfp verilog gemm_core")
    click.echo(parameter_help(find_unit(unit).name), nl=False)
    context.exit()


def parameter_help(unit: str) -> str:
    """Return default, meaning and allowed values of a unit's parameters, and its configurations."""
    from m2xfp.rtl.catalog import find_unit
    from m2xfp.rtl.parameters import parameters_of

    row = find_unit(unit)
    known = parameters_of(row.component)
    lines = [f"{row.name}: {row.purpose}", "", "Parameters, with their defaults, for --set:", ""]
    for name, parameter in known.items():
        allowed = f"Allowed: {parameter.allowed}."
        lines += [f"  {name}={parameter.write(parameter.default)}"]
        for text in (parameter.text.replace("``", ""), allowed):
            lines += wrap(
                text,
                96,
                initial_indent=" " * 6,
                subsequent_indent=" " * 6,
                break_on_hyphens=False,
            )
        lines += [""]
    lines += ["Configurations, for --config, with what differs from the defaults:", ""]
    for name, given in row.configs.items():
        values = " ".join(
            f"{key}={known[key].write(value)}"
            for key, value in given.items()
            if value != known[key].default
        )
        lines += [f"  {name:<20} {values}".rstrip()]
    return "\n".join(lines) + "\n"


_Function = Callable[..., Any]


def figure_options(build_dir: str) -> Callable[[_Function], _Function]:
    """Add the options of commands that measure a unit and accept what they found.

    These are ``build_dir``, ``accepted`` and ``results``, Path, bool and Path.
    """
    places = (
        ("--build-dir", Path(build_dir), "Folder for netlists and simulations."),
        ("--results", RESULTS, "Folder of the figures."),
    )

    def decorate(function: _Function) -> _Function:
        build, results = (
            click.option(name, type=OUTPUT_FOLDER, default=place, show_default=True, help=text)
            for name, place, text in places
        )
        accept = click.option(
            "--accept", "accepted", is_flag=True, help="Write the counts into the figures."
        )
        return build(accept(results(function)))

    return decorate


def parameter_options_of(unit: str | None) -> Callable[[_Function], _Function]:
    """Return what adds ``--config``, ``--set`` and ``--help-parameters`` to a command.

    ``unit`` is the one that the command is about; None if its command line names it.
    """
    called = unit or "UNIT"

    def add(function: _Function) -> _Function:
        for option in (
            click.option(
                "--help-parameters",
                is_flag=True,
                expose_value=False,
                callback=partial(_print_parameters, unit),
                help=f"Print the parameters of {called} with types, allowed values and defaults, "
                "and stop.",
            ),
            click.option(
                "--set",
                "settings",
                multiple=True,
                metavar="PARAMETER=VALUE",
                help=f"Give a parameter of {called} another value than --config does; repeatable.",
            ),
            click.option("--config", metavar="NAME", help=f"A named parameter set of {called}."),
        ):
            function = option(function)
        return function

    return add


def parameter_options(function: _Function) -> _Function:
    """Add ``--config``, ``--set``, ``--name`` and ``--help-parameters`` to a command on UNIT."""
    name = click.option(
        "--name", metavar="NAME", help="Name of the Verilog module, for a single instance."
    )
    return parameter_options_of(None)(name(function))


def one_instance(
    unit: str, config: str | None, settings: tuple[str, ...], name: str | None = None
) -> Instance:
    """Return UNIT with the parameters of ``--config`` (else its first one) and ``--set``."""
    from m2xfp.rtl.catalog import find_unit
    from m2xfp.rtl.parameters import parse_settings

    row = find_unit(unit)
    return row.instance(config, parse_settings(row.component, settings), name=name)


def chosen(
    unit: str | None, config: str | None, settings: tuple[str, ...], name: str | None = None
) -> list[Instance]:
    """Return the instances that a command line names.

    With ``--set`` or ``--name`` that is one instance of UNIT; otherwise every configuration that
    matches.
    """
    from m2xfp.errors import InputError
    from m2xfp.rtl.catalog import select

    if not settings and name is None:
        return list(select(unit, config))
    if unit is None:
        given = "--set" if settings else "--name"
        raise InputError(f"{given}: name the UNIT whose parameters these are")
    return [one_instance(unit, config, settings, name)]
