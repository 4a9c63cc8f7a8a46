"""``m2xfp fpga``: boards."""

import click

from m2xfp.commands.fpga_run import command as run

__all__ = ["command"]


@click.group("fpga")
def command() -> None:
    """Build for boards, prove bitstreams, and run arrays on a board."""


command.add_command(run)
