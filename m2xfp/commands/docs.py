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
@click.option("--explorer", is_flag=True, help="Write the explorer page alone.")
@click.option("--pictures", is_flag=True, help="Draw the pictures of docs/pictures anew instead.")
def command(root: Path, output: Path, explorer: bool, pictures: bool) -> None:
    r"""Build the documentation site: the pages of docs/, a page a unit, Python, command line.

    The pages of units are drawn from the units themselves: ports, fields, a timing diagram from a
    simulation, parameters, figures, status. A warning of Sphinx is an error. No network is needed.
    The explorer is a page of its own that works from a file: values in every format, and a plot of
    what the units cost.

    \b
    m2xfp docs
    m2xfp docs --explorer -o build/page
    m2xfp docs -o /srv/www/m2xfp
    """
    require("torch", "safetensors", "sphinx", "myst_parser", "sphinx_click", "furo", "wavedrom")
    require("plotly", "ziglang")
    from m2xfp.files import write_atomic
    from m2xfp.manual.explorer import explorer_page
    from m2xfp.manual.pictures import write_pictures
    from m2xfp.manual.site import build

    if pictures:
        for path in write_pictures(root / "docs" / "pictures"):
            click.echo(path)
        return
    if explorer:
        page = explorer_page(root / "docs" / "results", output.with_name(f"{output.name}-cache"))
        output.mkdir(parents=True, exist_ok=True)
        click.echo(write_atomic(output / "explorer.html", page))
        return
    click.echo(build(root, output))
