"""``m2xfp accelerator``: speed and energy of the paper's comparison of accelerators."""

from pathlib import Path

import click

from m2xfp.commands.options import OUTPUT_FOLDER, InputPath
from m2xfp.results import RESULTS

__all__ = ["command"]


@click.command()
@click.option(
    "--mode",
    type=click.Choice(["paper", "measured", "simulated", "area"]),
    default="paper",
    show_default=True,
    help="The paper's assumptions, own figures, the accelerator simulated, or its area.",
)
@click.option(
    "--results",
    type=InputPath(file_okay=False, path_type=Path),
    default=RESULTS,
    show_default=True,
    help="Folder of the accepted figures that the measured mode starts from.",
)
@click.option(
    "--config",
    "configs",
    multiple=True,
    metavar="NAME",
    help="With --mode area: only this configuration; repeat for several. The largest one takes "
    "gigabytes and long.",
)
@click.option(
    "-o",
    "--output",
    type=OUTPUT_FOLDER,
    help="Write the figures into this folder; docs/results accepts them.",
)
def command(mode: str, results: Path, configs: tuple[str, ...], output: Path | None) -> None:
    r"""Print speed and energy of M2XFP over the designs that its paper compares with.

    Mode `paper` takes the assumptions of the authors' simulator, and sets the ratios of its log
    beside them. Mode `measured` takes this project's own clocks, stored bits and energies:
    prefill, one token, and long caches. Mode `simulated` runs products on the emitted accelerator
    before a memory of limited bandwidth and 100 clocks latency, and counts the clocks of the
    models' layers: minutes. Mode `area` maps the accelerator onto ASAP7 without its memories.

    \b
    m2xfp accelerator --mode paper
    m2xfp accelerator --mode measured
    m2xfp accelerator --mode simulated
    m2xfp accelerator --mode area --config m2xfp-2x2
    """
    from m2xfp.errors import InputError
    from m2xfp.results import write_figures
    from m2xfp.synth.flow.pdk import find_pdk
    from m2xfp.synth.studies.accelerator import AREA, MEASURED, PAPER, SIMULATED
    from m2xfp.synth.studies.accelerator_area import CONFIGS, area_table, measure_area
    from m2xfp.synth.studies.accelerator_throughput import measure_throughput, throughput_tables
    from m2xfp.synth.studies.measured_accelerator import compare_measured
    from m2xfp.synth.studies.measured_tables import measured_tables
    from m2xfp.synth.studies.measured_units import PDK
    from m2xfp.synth.studies.paper_accelerator import compare, paper_table

    if configs and mode != "area":
        raise InputError(f"--config {configs[0]}: only mode area takes it, not {mode}")
    if mode == "paper":
        name, figures = PAPER, compare()
        texts = [paper_table(figures)]
    elif mode == "simulated":
        name, figures = SIMULATED, measure_throughput()
        texts = list(throughput_tables(figures).values())
    elif mode == "area":
        name, figures = AREA, measure_area(find_pdk(PDK), configs or CONFIGS)
        texts = [area_table(figures)]
    else:
        name, figures = MEASURED, compare_measured(results)
        texts = list(measured_tables(figures).values())
    click.echo("\n".join(texts), nl=False)
    if output is not None:
        click.echo(f"\nfigures: {write_figures(output / name, figures)}")
