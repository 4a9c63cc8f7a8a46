"""``m2xfp prove``: proofs about emitted units, each shown to fail with a fault."""

from pathlib import Path

import click

from m2xfp.commands.options import chosen, one_instance, parameter_options
from m2xfp.extras import require
from m2xfp.results import RESULTS

__all__ = ["command"]


@click.command()
@click.argument("units", nargs=-1, is_eager=True)
@parameter_options
@click.option("--job", "names", multiple=True, metavar="JOB", help="Only this job; repeatable.")
@click.option("--list", "listing", is_flag=True, help="Print the jobs, and prove nothing.")
@click.option("--slow", is_flag=True, help="The jobs of minutes too.")
@click.option("--inject", is_flag=True, help="Show of each job that a fault makes it fail.")
@click.option(
    "--engine",
    type=click.Choice(("abc", "bitwuzla")),
    default="abc",
    help="Bitwuzla takes what is about all inputs, some clocks, or an induction's step.",
)
@click.option(
    "--accept",
    is_flag=True,
    help="Do both, and put the figures into docs/results/proofs.json.",
)
def command(
    units: tuple[str, ...],
    config: str | None,
    settings: tuple[str, ...],
    name: str | None,
    names: tuple[str, ...],
    listing: bool,
    slow: bool,
    inject: bool,
    engine: str,
    accept: bool,
) -> None:
    r"""Prove properties of UNITS, or of every unit in its default configuration.

    Streams keep their rules in every state, reset takes one clock, no group is lost or made, and
    numbers equal references written from the format's definition. docs/proofs.md has the list. A
    job that does not hold makes the status 1; so does one that no fault makes fail.

    \b
    m2xfp prove fp32_accumulator
    m2xfp prove activation_quantizer --config bf16x8 --job conserved --inject
    m2xfp prove gemm_core --set rows=1 --set columns=2 --set max_k=64
    m2xfp prove pe_tile --engine bitwuzla
    m2xfp prove --list
    """
    from m2xfp.rtl.catalog import UNITS
    from m2xfp.synth.formal.job import always_slow
    from m2xfp.synth.formal.jobs import JOBS, find_job
    from m2xfp.synth.formal.record import FILE, accept_records, prove

    wanted = {find_job(each).name for each in names} or set(JOBS)
    if listing:
        for job in JOBS.values():
            told = " (--slow)" if job.slow is always_slow else " (--slow for some units)"
            click.echo(f"{job.name:<22} {job.engine:<22} {job.text}{told if job.slow else ''}")
        return
    if units:
        instances = [each for unit in units for each in chosen(unit, config, settings, name)]
        if config is None and not settings:
            instances = [one_instance(unit, None, (), name) for unit in units]
    elif config is None and not settings and name is None:
        instances = [unit.instance() for unit in UNITS.values()]
    else:
        instances = chosen(None, config, settings, name)
    if accept and engine != "abc":
        raise click.UsageError(
            f"--accept: the accepted figures are ABC's; leave out --engine {engine}"
        )
    require("torch", "safetensors", "filelock", "pyosys", "softfloatpy")
    if engine != "abc":
        require(engine)
    slow = slow or bool(names)
    failed, count = 0, 0
    for record in prove(
        instances,
        wanted,
        slow=slow,
        faults=inject or accept,
        only=inject and not accept,
        engine=engine,
    ):
        click.echo(record.line)
        failed += not record.good
        count += 1
        if accept and record.good:
            # As they come: what took minutes is kept if what follows is interrupted.
            accept_records(Path(RESULTS), [record])
    click.echo(f"{count} jobs, {failed} failed")
    if accept:
        click.echo(f"accepted: {Path(RESULTS) / FILE}")
    if failed:
        raise SystemExit(1)
