"""``m2xfp report``: every table and plot from the accepted figures, and those of the pages."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import click

from m2xfp.commands.options import OUTPUT_FOLDER, InputPath
from m2xfp.extras import require
from m2xfp.results import RESULTS

__all__ = ["DRAWERS", "PAGES", "all_tables", "command", "pages", "tables_of"]

# Each module has `tables(results)`, texts by name, and perhaps `plots(results, output)`, files.
DRAWERS = (
    "m2xfp.commands.formats",
    "m2xfp.models.bench",
    "m2xfp.models.bench_products",
    "m2xfp.models.libraries",
    "m2xfp.models.quality",
    "m2xfp.models.family_study",
    "m2xfp.models.perplexity_study",
    "m2xfp.synth.checks.status",
    "m2xfp.synth.coverage.record",
    "m2xfp.synth.formal.record",
    "m2xfp.synth.mutants.report",
    "m2xfp.synth.report.accepted",
    "m2xfp.synth.studies.accelerator",
    "m2xfp.synth.studies.array",
    "m2xfp.synth.studies.explore_report",
    "m2xfp.synth.studies.fractions",
    "m2xfp.synth.studies.gemm",
    "m2xfp.synth.studies.mac",
    "m2xfp.synth.studies.paper",
    "m2xfp.synth.studies.paths",
    "m2xfp.synth.studies.peers",
    "m2xfp.fpga.flow.tables",
)
PAGES = Path("docs")

# What drawing may raise over figures that are not those that it was written for.
_DAMAGE = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError),
    *(StopIteration, TypeError, ValueError),
)


def all_tables(results: Path) -> dict[str, str]:
    """Return every table that the figures in a folder give, by name."""
    found: dict[str, str] = {}
    for module in DRAWERS:
        found |= tables_of(module, results)
    return found


def tables_of(module: str, results: Path) -> dict[str, str]:
    """Return the tables of one of ``DRAWERS``; InputError where the figures are not its own."""
    with _figures_of(module, results):
        found: dict[str, str] = import_module(module).tables(results)
    return found


@contextmanager
def _figures_of(module: str, results: Path) -> Iterator[None]:
    """Within the block, figures that cannot be drawn are an InputError that says whose they are."""
    from m2xfp.errors import InputError, M2xfpError

    try:
        yield
    except M2xfpError:
        raise
    except _DAMAGE as error:
        raise InputError(
            f"{results}: figures for {module} are damaged ({type(error).__name__}: {error}); "
            f"restore them: git checkout {results}"
        ) from error


def pages(folder: Path, tables: dict[str, str]) -> dict[Path, str]:
    """Return the text of every page with a place for a table, README.md too, filled in."""
    from m2xfp.tables import embed, table_names

    found = [*sorted(folder.glob("*.md")), folder.parent / "README.md"]
    texts = {path: path.read_text() for path in found if path.is_file()}
    return {path: embed(text, tables) for path, text in texts.items() if table_names(text)}


@click.command()
@click.option(
    "--results",
    type=InputPath(exists=True, file_okay=False, path_type=Path),
    default=RESULTS,
    show_default=True,
    help="Folder of the figures.",
)
@click.option(
    "-o",
    "--output",
    type=OUTPUT_FOLDER,
    default=Path("build/report"),
    show_default=True,
    help="Folder for tables and plots.",
)
@click.option(
    "--pages",
    "in_pages",
    is_flag=True,
    help="Write the tables into README.md and docs/ instead, between their marks.",
)
def command(results: Path, output: Path, in_pages: bool) -> None:
    r"""Draw all tables and plots from the accepted figures.

    Commands that measure write figures as JSON: `m2xfp synth --accept`, `m2xfp fpga table`,
    `m2xfp bench` and `m2xfp study` with -o docs/results, `m2xfp explore` with --results. The same
    figures give the same bytes.

    \b
    m2xfp report             everything, into build/report
    m2xfp report --pages     after new figures: the tables that stand in the pages
    """
    require("torch", "matplotlib")
    from m2xfp.files import write_atomic

    tables = all_tables(results)
    if in_pages:
        for path, text in pages(PAGES, tables).items():
            if text != path.read_text():
                click.echo(write_atomic(path, text))
        return
    written = [write_atomic(output / f"{name}.md", text) for name, text in tables.items()]
    for module in map(import_module, DRAWERS):
        if hasattr(module, "plots"):
            with _figures_of(module.__name__, results):
                written += module.plots(results, output)
    click.echo(f"{len(written)} tables and plots written to {output}")
