"""``m2xfp synth``: area, timing and power of units on a standard-cell library."""

from pathlib import Path

import click

from m2xfp.commands.options import OUTPUT_FILE, InputPath, Number, chosen, parameter_options
from m2xfp.extras import require

__all__ = ["command"]


def _roles(
    _context: click.Context, _option: click.Parameter, given: tuple[str, ...]
) -> dict[str, str]:
    """Split ROLE=CELL."""
    roles = {}
    for text in given:
        role, equals, cell = text.partition("=")
        if not equals or not cell:
            raise click.BadParameter(f"{text!r} is not ROLE=CELL, such as NAND2=ND2D0")
        roles[role] = cell
    return roles


@click.command()
@click.argument("units", nargs=-1, metavar="[UNIT]...", is_eager=True)
@parameter_options
@click.option("--pdk", metavar="NAME", help="A library by name (default: osu018); see --list.")
@click.option(
    "--liberty",
    multiple=True,
    type=InputPath(exists=True, dir_okay=False, path_type=Path),
    help="A library by its Liberty file, plain or gzipped; repeat for one in several files.",
)
@click.option(
    "--cell",
    "roles",
    multiple=True,
    callback=_roles,
    metavar="ROLE=CELL",
    help="With --liberty: the cell for NAND2 (gate equivalents), DRIVER (of every input) or GATE "
    "(of the clock), where the smallest by function shall not be taken.",
)
@click.option(
    "--abc",
    default="default",
    show_default=True,
    metavar="SCRIPT",
    help="default (smallest area) or speed (gates sized for --clock-ns).",
)
@click.option(
    "--clock-ns",
    type=Number(),
    default=1.0,
    show_default=True,
    help="Clock target, for slack and for speed.",
)
@click.option("--booth", is_flag=True, help="Booth-encode multipliers.")
@click.option(
    "--clock-gating",
    is_flag=True,
    help="Registers of 8 bits or more with an enable get the library's clock gate.",
)
@click.option(
    "--full-adders/--no-full-adders",
    default=None,
    help="Compressor trees of the library's full-adder cells, which abc never takes; by default "
    "where the library has such cells.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 1 << 30),
    default=0,
    show_default=True,
    help="Of a random order of abc's inputs, which is luck (m2xfp study paths); 0 for their own.",
)
@click.option("--hierarchy", is_flag=True, help="Keep submodules instead of flattening.")
@click.option(
    "--json",
    "json_file",
    type=OUTPUT_FILE,
    help="Write the report as JSON.",
)
@click.option(
    "--markdown",
    "markdown_file",
    type=OUTPUT_FILE,
    help="Write the table to a file as well.",
)
@click.option(
    "--power/--no-power",
    default=True,
    show_default=True,
    help="Run the mapped netlists on tensors of the bundled model and on random ones, compare "
    "every bit with the golden model, and report energy.",
)
@click.option(
    "--check",
    is_flag=True,
    help="Compare with the accepted figures in docs/results; exit status 1 if an area or a path "
    "grew by more than 3 %.",
)
@click.option("--accept", is_flag=True, help="Make the measured figures the accepted ones.")
@click.option(
    "--breakdown/--no-breakdown",
    default=True,
    show_default=True,
    help="With --accept: the area by module too, from a second run that keeps the hierarchy.",
)
@click.option("--list", "listing", is_flag=True, help="List the libraries by name and stop.")
def command(
    units: tuple[str, ...],
    config: str | None,
    settings: tuple[str, ...],
    name: str | None,
    pdk: str | None,
    liberty: tuple[Path, ...],
    roles: dict[str, str],
    abc: str,
    clock_ns: float,
    booth: bool,
    clock_gating: bool,
    full_adders: bool | None,
    seed: int,
    hierarchy: bool,
    json_file: Path | None,
    markdown_file: Path | None,
    power: bool,
    check: bool,
    accept: bool,
    breakdown: bool,
    listing: bool,
) -> None:
    r"""Map each UNIT, or every unit, onto a standard-cell library; report area, timing, power.

    yosys maps the emitted Verilog, OpenSTA times the netlist, and the netlist is simulated for
    power: without glitches, wires and clock tree. A netlist that is not whole (a black
    box, a latch, a loop, an undriven net) is an error, never a row. Runs are cached under
    build/synth.

    \b
    m2xfp synth activation_quantizer --config bf16x32
    m2xfp synth gemm_core --set rows=1 --set columns=4 --no-power
    m2xfp synth --check                 what changed against docs/results
    m2xfp synth --pdk sky130_fd_sc_hd --json report.json
    m2xfp synth --liberty SEQ.lib.gz --liberty SIMPLE.lib.gz --cell NAND2=NAND2xp33_ASAP7_75t_R
    """
    from m2xfp.synth.flow.pdk import DEFAULT_PDK, PDKS, find_pdk, pdk_from_liberty

    if listing:
        for row in PDKS.values():
            click.echo(f"{row.name:<16} {row.title}; from: {row.remedy}")
        return
    if pdk and liberty:
        raise click.UsageError("--pdk and --liberty exclude each other; give one of them")
    if check and accept:
        raise click.UsageError("--check and --accept exclude each other; give one of them")
    if roles and not liberty:
        raise click.UsageError("--cell names cells of the library that --liberty gives")

    from m2xfp.files import write_atomic
    from m2xfp.results import RESULTS, write_figures
    from m2xfp.rtl.catalog import select
    from m2xfp.synth.flow.timing import find_sta
    from m2xfp.synth.flow.yosys import FlowOptions, yosys_command
    from m2xfp.synth.report import accepted
    from m2xfp.synth.report.figures import flow_facts, markdown_table, measure_all, report

    if power:
        require("torch", "safetensors")
    yosys_command()
    find_sta()
    instances = [
        instance for unit in units or (None,) for instance in chosen(unit, config, settings, name)
    ]
    options = FlowOptions(
        flatten=not hierarchy,
        abc=abc,
        clock_ns=clock_ns,
        booth=booth,
        clock_gating=clock_gating,
        full_adders=full_adders is not False,
        seed=seed,
    )
    library = pdk_from_liberty(liberty, roles) if liberty else find_pdk(pdk or DEFAULT_PDK)
    if full_adders:
        _ = library.full_adder_cell  # refuses a library that has none
    known_rows = accepted.load(RESULTS, library, options) if check or accept else []
    rows = measure_all(instances, library, options, power=power, breakdown=accept and breakdown)
    table = markdown_table(rows, flow_facts(library, options))
    if json_file:
        write_figures(json_file, report(rows, library, options))
    if markdown_file:
        write_atomic(markdown_file, table)
    click.echo(table, nl=False)
    found = accepted.changes(known_rows, rows)
    for change in found:
        click.echo(str(change))
    if accept:
        known = [(instance.unit.name, instance.config) for instance in select()]
        path = accepted.accept(RESULTS, known_rows, rows, known, library, options)
        click.echo(f"accepted: {path}; draw the pages anew: m2xfp report --pages")
    elif check:
        grown = sum(change.is_regression for change in found)
        click.echo(
            f"{len(rows)} measured, {len(found)} figures changed, {grown} by more than "
            f"{accepted.LIMIT:.0%} for the worse"
        )
        if grown:
            click.echo("if this is meant: m2xfp synth --accept", err=True)
            raise SystemExit(1)
