"""Options that commands share: which units, with which parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from m2xfp.rtl.catalog import Instance

__all__ = ["chosen", "one_instance", "parameter_options"]


def _print_parameters(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    """Print what can be set of the unit, and stop."""
    if not wanted:
        return
    from m2xfp.errors import InputError
    from m2xfp.rtl.catalog import find_unit

    unit = context.params.get("unit") or next(iter(context.params.get("units") or ()), None)
    if unit is None:
        raise InputError("--help-parameters: name the unit first, such as: m2xfp verilog gemm_core")
    click.echo(parameter_help(find_unit(unit).name), nl=False)
    context.exit()


def parameter_help(unit: str) -> str:
    """Return name, default, allowed values and meaning of a unit's parameters, and its sets."""
    from m2xfp.rtl.catalog import find_unit
    from m2xfp.rtl.parameters import parameters_of

    row = find_unit(unit)
    known = parameters_of(row.component)
    formatter = click.HelpFormatter(width=100)
    formatter.write(f"{row.name}: {row.purpose}\n\n")
    formatter.write("Parameters, for --set NAME=VALUE:\n")
    with formatter.indentation():
        formatter.write_dl(
            [
                (
                    name,
                    f"{parameter.text}\n\n\b\nAllowed: {parameter.allowed}.\n"
                    f"Default: {parameter.write(parameter.default)}.",
                )
                for name, parameter in known.items()
            ]
        )
    formatter.write("\nConfigurations, for --config NAME:\n")
    with formatter.indentation():
        formatter.write_dl(
            [
                (
                    name,
                    " ".join(f"{key}={known[key].write(value)}" for key, value in given.items())
                    or "all defaults",
                )
                for name, given in row.configs.items()
            ]
        )
    return formatter.getvalue()


def parameter_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--config``, ``--set``, ``--name`` and ``--help-parameters`` to a command."""
    for option in (
        click.option(
            "--help-parameters",
            is_flag=True,
            expose_value=False,
            callback=_print_parameters,
            help="Print the parameters of UNIT with types, allowed values and defaults, and stop.",
        ),
        click.option(
            "--name", metavar="NAME", help="Name of the Verilog module, for a single instance."
        ),
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="PARAMETER=VALUE",
            help="Give a parameter of UNIT another value than --config does; repeatable.",
        ),
        click.option("--config", metavar="NAME", help="A named parameter set of UNIT."),
    ):
        function = option(function)
    return function


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
