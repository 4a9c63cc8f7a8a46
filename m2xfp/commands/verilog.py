"""``m2xfp verilog``: write units as Verilog."""

from pathlib import Path

import click

__all__ = ["command"]


@click.command()
@click.argument("unit", required=False)
@click.option("--config", metavar="NAME", help="One configuration; all of them if left out.")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("build/verilog"),
    show_default=True,
    help="Folder for the files.",
)
@click.option(
    "--rules",
    is_flag=True,
    help="Write <unit>_<config>_rules.sv too: the stream rules as assertions, for simulation.",
)
@click.option(
    "--list", "listing", is_flag=True, help="List units and configurations, write nothing."
)
def command(unit: str | None, config: str | None, output: Path, rules: bool, listing: bool) -> None:
    r"""Write UNIT, or every unit, as Verilog with a JSON description and a FuseSoC core.

    Each configuration gives three files named <unit>_<config>: .v with AXI4-Stream ports, .json
    with the same facts as its header, .core for FuseSoC. The same version writes the same bytes.

    With --rules a testbench that drops or changes a beat before it is taken, or a unit that does,
    ends the simulation at that clock: compile the file beside the unit's, it binds itself to it.

    \b
    m2xfp verilog --list
    m2xfp verilog activation_quantizer --config bf16x32 -o rtl/
    m2xfp verilog dot_product --config m2xfp-fp32 --rules
    """
    from tqdm import tqdm

    from m2xfp.files import write_atomic
    from m2xfp.rtl.catalog import UNITS, select
    from m2xfp.rtl.emit import emit
    from m2xfp.tb.description import Description
    from m2xfp.tb.rules import rules_text

    chosen = list(select(unit, config))
    if listing:
        for name in dict.fromkeys(row.name for row, _ in chosen):
            click.echo(f"{name}: {UNITS[name].purpose}")
            click.echo(f"    {' '.join(c for row, c in chosen if row.name == name)}")
        return
    for row, name in tqdm(chosen, desc="Verilog", unit="file", disable=None):
        emitted = emit(row, name, output)
        if rules:
            text = rules_text(Description.load(emitted.json))
            write_atomic(output / f"{emitted.top}_rules.sv", text)
    click.echo(f"{len(chosen)} configuration{'s'[: len(chosen) - 1]} written to {output}")
