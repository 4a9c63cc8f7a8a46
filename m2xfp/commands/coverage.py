"""``m2xfp coverage``: what a unit's regression covers, and what nothing can."""

from pathlib import Path

import click

from m2xfp.commands.options import figure_options, one_instance, parameter_options
from m2xfp.extras import require

__all__ = ["command"]


@click.command()
@click.argument("units", nargs=-1, is_eager=True)
@parameter_options
@click.option(
    "--depth",
    type=click.IntRange(1, 64),
    default=3,
    show_default=True,
    help="Clocks that proofs look back, at most.",
)
@click.option(
    "--seconds",
    type=click.IntRange(1, 1 << 20),
    default=120,
    show_default=True,
    help="Time that a step of a proof may take.",
)
@figure_options("build/coverage")
def command(
    units: tuple[str, ...],
    config: str | None,
    settings: tuple[str, ...],
    name: str | None,
    depth: int,
    seconds: int,
    build_dir: Path,
    accepted: bool,
    results: Path,
) -> None:
    r"""Play the regression of UNITS, or of every unit in its default configuration, and count.

    Counted are lines, branches and bits that change, by Verilator, and the cases of numbers and
    streams. What was not covered and cannot be, by proof or by an argument in the unit's testbench,
    is told apart. Anything else is printed, and makes the status 1; so does what was covered though
    it is argued to be out of reach.

    \b
    m2xfp coverage activation_decoder
    m2xfp coverage gemm_core --set rows=1 --set columns=1 --set max_k=64 --accept
    """
    require("torch", "safetensors", "filelock", "pyosys")
    from m2xfp.errors import InputError
    from m2xfp.rtl.catalog import UNITS
    from m2xfp.synth.coverage.measure import measure
    from m2xfp.synth.coverage.record import accept, row_of, summary

    if len(units) != 1 and (config is not None or settings or name is not None):
        raise InputError("--config, --set and --name: name the one UNIT whose parameters these are")
    failed = False
    for unit in units or UNITS:
        instance = one_instance(unit, config, settings, name)
        measured = measure(
            instance, build_dir / instance.top, depth=depth, seconds=seconds, progress=True
        )
        for hole in measured.holes:
            click.echo(f"not covered: {hole}")
        for surprise in measured.surprises:
            click.echo(f"covered, though listed as out of reach: {surprise}")
        failed |= bool(measured.holes or measured.surprises)
        row = row_of(measured)
        click.echo(summary(row))
        if accepted and not measured.surprises:
            click.echo(f"accepted: {accept(results, [row])}")
    if failed:
        raise SystemExit(1)
