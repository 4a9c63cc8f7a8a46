"""``m2xfp status``: what has been done for each unit."""

from pathlib import Path

import click

from m2xfp.commands.options import InputPath
from m2xfp.results import RESULTS

__all__ = ["command"]


@click.command()
@click.option(
    "--results",
    type=InputPath(exists=True, file_okay=False, path_type=Path),
    default=RESULTS,
    show_default=True,
    help="Folder of the figures.",
)
def command(results: Path) -> None:
    r"""Print what has been done for each unit, with its stages of design and verification.

    Every entry is drawn from figures that a command wrote: m2xfp check, coverage, mutate, prove,
    synth and fpga table. What no command has measured is a dash. docs/status.md explains the
    columns and the stages.
    """
    from m2xfp.commands.report import tables_of

    click.echo("\n".join(tables_of("m2xfp.synth.checks.status", results).values()), nl=False)
