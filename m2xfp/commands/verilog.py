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
    "--list", "listing", is_flag=True, help="List units and configurations, write nothing."
)
def command(unit: str | None, config: str | None, output: Path, listing: bool) -> None:
    r"""Write UNIT, or every unit, as Verilog with a JSON description and a FuseSoC core.

    Each configuration gives three files named <unit>_<config>: .v with AXI4-Stream ports, .json
    with the same facts as its header, .core for FuseSoC. The same version writes the same bytes.

    \b
    m2xfp verilog --list
    m2xfp verilog activation_quantizer --config bf16x32 -o rtl/
    """
    from tqdm import tqdm

    from m2xfp.rtl.catalog import UNITS, select
    from m2xfp.rtl.emit import emit

    chosen = list(select(unit, config))
    if listing:
        for name in dict.fromkeys(row.name for row, _ in chosen):
            click.echo(f"{name}: {UNITS[name].purpose}")
            click.echo(f"    {' '.join(c for row, c in chosen if row.name == name)}")
        return
    for row, name in tqdm(chosen, desc="Verilog", unit="file", disable=None):
        emit(row, name, output)
    click.echo(f"{len(chosen)} configuration{'s'[: len(chosen) - 1]} written to {output}")
