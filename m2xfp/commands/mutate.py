"""``m2xfp mutate``: faults in a unit's netlist, and whether its regression notices them."""

from pathlib import Path

import click

from m2xfp.commands.options import COUNT, figure_options, one_instance, parameter_options
from m2xfp.errors import InputError
from m2xfp.extras import require

__all__ = ["command"]


@click.command()
@click.argument("unit", is_eager=True)
@parameter_options
@click.option("--count", type=COUNT, default=300, show_default=True, help="Number of mutants.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**31 - 1),
    default=1,
    show_default=True,
    help="Seed of their places.",
)
@click.option(
    "--seconds",
    type=COUNT,
    default=20,
    show_default=True,
    help="Time that a proof may take, in seconds.",
)
@click.option(
    "--only",
    type=COUNT,
    multiple=True,
    help="Number of a mutant to look at, and no others; repeatable. Nothing is accepted then.",
)
@figure_options("build/mutants")
def command(
    unit: str,
    config: str | None,
    settings: tuple[str, ...],
    name: str | None,
    count: int,
    seed: int,
    seconds: int,
    only: tuple[int, ...],
    build_dir: Path,
    accepted: bool,
    results: Path,
) -> None:
    r"""Play UNIT's regression through faults in its netlist, one at a time.

    A mutant is killed if a case of the regression fails. Those that live are tried for equivalence
    by SAT, and held against what the testbench argues. Printed are the counts and, for each mutant
    that is neither killed nor equivalent, its number, its fault, its place in the emitted Verilog
    and what is known of it.

    \b
    m2xfp mutate activation_decoder
    m2xfp mutate gemm_core --set rows=1 --set columns=1 --set max_k=64 --count 200 --accept
    m2xfp mutate fp32_accumulator --only 17 --only 203 --seconds 120
    """
    require("torch", "safetensors", "filelock", "pyosys")
    from m2xfp.synth.mutants.kill import measure
    from m2xfp.synth.mutants.report import accept, row_of, summary

    if only and accepted:
        raise InputError("--only looks at some mutants: the counts of all are what --accept writes")
    if only and max(only) > count:
        raise InputError(f"--only {max(only)}: there are {count} mutants (--count)")
    instance = one_instance(unit, config, settings, name)
    folder = build_dir / f"{instance.top}-{count}-{seed}"
    outcomes = measure(instance, count, seed, folder, seconds=seconds, only=only, progress=True)
    row = row_of(instance, seed, outcomes)
    for each in outcomes:
        if each.fate in ("argued", "alive"):
            fault = each.mutant
            place = f"line {fault.line}, {fault.place} {fault.mode}"
            click.echo(f"{fault.number}, {place}: {each.fate}, {each.by}")
            click.echo(f"    {fault.text}")
    click.echo(summary(row))
    if accepted:
        click.echo(f"accepted: {accept(results, [row])}")
