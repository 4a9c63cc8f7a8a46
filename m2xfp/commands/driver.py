"""``m2xfp driver``: the accelerator's driver in C, with an example and a device to run it on."""

from pathlib import Path

import click

from m2xfp.commands.options import OUTPUT_FOLDER, one_instance, parameter_options_of
from m2xfp.extras import require

__all__ = ["command"]

_UNIT = "accelerator"


@click.command()
@click.option(
    "--simulated",
    is_flag=True,
    help="Also build the accelerator's Verilog as a library that the example runs on.",
)
@parameter_options_of(_UNIT)
@click.option(
    "-o",
    "--output",
    type=OUTPUT_FOLDER,
    default=Path("build/driver"),
    show_default=True,
    help="Folder that the files are written into.",
)
@click.option(
    "--build-dir",
    type=OUTPUT_FOLDER,
    default=Path("build"),
    show_default=True,
    help="Folder for the Verilog and for what later runs find again.",
)
def command(
    simulated: bool,
    config: str | None,
    settings: tuple[str, ...],
    output: Path,
    build_dir: Path,
) -> None:
    r"""Write the accelerator's driver in C, a header, with its registers and an example.

    With --simulated the folder also has the accelerator as a shared library, from its emitted
    Verilog with a memory, and `make -C build/driver` compiles the example against it.

    \b
    m2xfp driver
    m2xfp driver --simulated --config m2xfp-2x2 -o build/driver
    """
    require("torch", "systemrdl", "peakrdl_cheader", "peakrdl_markdown", "peakrdl_ipxact")
    from m2xfp.accelerator.driver import driver_files, simulated_library
    from m2xfp.rtl.verilog.emit import emit

    for path in driver_files(output):
        click.echo(path)
    if simulated:
        files = emit(one_instance(_UNIT, config, settings), build_dir / "verilog")
        click.echo(simulated_library(files, output, build_dir / "sim"))
