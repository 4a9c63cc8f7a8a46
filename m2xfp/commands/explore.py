"""``m2xfp explore``: trade-offs of a unit's parameters, in area, energy and accuracy."""

from pathlib import Path

import click

from m2xfp.commands.options import OUTPUT_FOLDER, InputPath, Number, parameter_options
from m2xfp.extras import require

__all__ = ["command"]


@click.command()
@click.argument("unit", is_eager=True)
@parameter_options
@click.option(
    "--sweep",
    "sweeps",
    multiple=True,
    metavar="NAME=V,V,...",
    help="Values of any parameter; repeat for several. Others keep UNIT's own sweep, see --list.",
)
@click.option("--pdk", "pdks", multiple=True, metavar="NAME", help="Library by name; repeatable.")
@click.option(
    "--liberty",
    multiple=True,
    type=InputPath(exists=True, dir_okay=False, path_type=Path),
    help="One more library, by its Liberty files.",
)
@click.option("--abc", default="default", show_default=True, help="abc script, as for synth.")
@click.option(
    "--clock-ns",
    type=Number(),
    default=1.0,
    show_default=True,
    help="Clock target of the speed script.",
)
@click.option("--clock-gating", is_flag=True, help="Clock gates, as for synth.")
@click.option(
    "--accuracy/--no-accuracy",
    default=True,
    show_default=True,
    help="Evaluate the bundled language model in each point's format.",
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Dask scheduler, such as tcp://host:8786, whose workers see the same files; workers are "
    "started on this machine if left out.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 1024),
    default=2,
    show_default=True,
    help="Processes on this machine.",
)
@click.option(
    "-o",
    "--output",
    type=OUTPUT_FOLDER,
    default=Path("build/explore"),
    show_default=True,
    help="Folder for everything that is kept, and for figures and plots.",
)
@click.option(
    "--results",
    type=OUTPUT_FOLDER,
    help="Write the figures into this folder too; docs/results accepts them.",
)
@click.option("--list", "listing", is_flag=True, help="Show what is swept of UNIT and stop.")
def command(
    unit: str,
    config: str | None,
    settings: tuple[str, ...],
    name: str | None,
    sweeps: tuple[str, ...],
    pdks: tuple[str, ...],
    liberty: tuple[Path, ...],
    abc: str,
    clock_ns: float,
    clock_gating: bool,
    accuracy: bool,
    scheduler: str | None,
    workers: int,
    output: Path,
    results: Path | None,
    listing: bool,
) -> None:
    r"""Measure UNIT for every combination of parameter values and plot what is worth building.

    Each point is emitted, mapped, timed, and simulated at gate level against the golden model.
    Points are kept: run again after an interruption, it goes on; only what changed is new.
    Parameters that change together go into one sweep, with spaces between them.

    \b
    m2xfp explore activation_quantizer
    m2xfp explore activation_quantizer --sweep lanes=8,32 --set input_type=bf16 --pdk osu035
    m2xfp explore dot_product --sweep "act weight=mxfp4 mxfp4,m2xfp-act m2xfp-weight" --set depth=2
    m2xfp explore gemm_core --sweep rows=1,2 --set columns=2 --set max_k=64 --no-accuracy
    m2xfp explore weight_encoder --scheduler tcp://cluster:8786 -o results/
    """
    from m2xfp.rtl.catalog import find_unit
    from m2xfp.rtl.parameters import parse_settings
    from m2xfp.synth.flow.pdk import DEFAULT_PDK, find_pdk, pdk_from_liberty
    from m2xfp.synth.flow.timing import find_sta
    from m2xfp.synth.flow.yosys import FlowOptions, yosys_command
    from m2xfp.synth.studies.explore import explore, parse_sweep, points_of
    from m2xfp.synth.studies.explore_report import plots, tables, write_outcomes

    if name is not None:
        raise click.UsageError("--name goes with a single instance; a sweep names its own")
    row = find_unit(unit)
    changes = parse_settings(row.component, settings)
    axes = parse_sweep(row, sweeps, changes)
    if listing:
        for swept, values in axes.items():
            click.echo(f"{swept:<20} {', '.join(values)}")
        return
    if workers < 1:
        raise click.UsageError(f"--workers {workers}: at least 1")
    require("distributed", "torch", "safetensors", "matplotlib")
    yosys_command()
    find_sta()
    options = FlowOptions(abc=abc, clock_ns=clock_ns, clock_gating=clock_gating)
    libraries = [find_pdk(library) for library in pdks or (() if liberty else (DEFAULT_PDK,))]
    if liberty:
        libraries.append(pdk_from_liberty(liberty))
    if clock_gating:  # a library without a gate is refused before any worker starts
        for library in libraries:
            _ = library.clock_gate_cell
    outcomes = explore(
        points_of(row, config, changes, axes),
        libraries,
        options,
        accuracy=accuracy,
        scheduler=scheduler,
        workers=workers,
        folder=output,
    )
    for folder in filter(None, (output, results)):
        click.echo(f"figures: {write_outcomes(outcomes, folder)}")
    for title, table in tables(output).items():
        if title.startswith(f"explore-{unit}-"):
            click.echo(f"\n{title}\n\n{table}", nl=False)
    for path in plots(output, output):
        click.echo(f"plot: {path}")
