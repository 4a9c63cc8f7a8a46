"""``m2xfp docs``: the documentation site."""

from pathlib import Path

import click

from m2xfp.commands.options import OUTPUT_FOLDER, InputPath
from m2xfp.extras import require

__all__ = ["command"]


@click.command()
@click.option(
    "--root",
    type=InputPath(exists=True, file_okay=False, path_type=Path),
    default=Path("."),
    show_default=True,
    help="The repository.",
)
@click.option(
    "-o",
    "--output",
    type=OUTPUT_FOLDER,
    default=Path("build/site"),
    show_default=True,
    help="Folder for the site.",
)
@click.option("--pictures", is_flag=True, help="Draw the pictures of docs/pictures anew instead.")
def command(root: Path, output: Path, pictures: bool) -> None:
    r"""Build the documentation site: the pages of docs/, a page a unit, Python, command line.

    The pages of units are drawn from the units themselves: ports, fields, a timing diagram from a
    simulation, parameters, figures, status. A warning of Sphinx is an error. No network is needed.

    \b
    m2xfp docs
    m2xfp docs -o /srv/www/m2xfp
    """
    require("torch", "safetensors", "sphinx", "myst_parser", "sphinx_click", "furo", "wavedrom")
    from m2xfp.manual.pictures import write_pictures
    from m2xfp.manual.site import build

    if pictures:
        for path in write_pictures(root / "docs" / "pictures"):
            click.echo(path)
        return
    click.echo(build(root, output))
