"""``m2xfp registers``: what follows from the accelerator's register description."""

from pathlib import Path

import click

from m2xfp.commands.options import OUTPUT_FOLDER

__all__ = ["command"]


@click.command()
@click.option(
    "-o",
    "--output",
    type=OUTPUT_FOLDER,
    default=Path("build/registers"),
    show_default=True,
    help="Folder that the files are written under; `.` is a checkout's own files.",
)
def command(output: Path) -> None:
    """Write register map, C header, page and IP-XACT of the accelerator from its SystemRDL file."""
    from m2xfp.files import write_atomic
    from m2xfp.rtl.verilog.registers import register_files

    for name, text in register_files().items():
        click.echo(write_atomic(output / name, text))
