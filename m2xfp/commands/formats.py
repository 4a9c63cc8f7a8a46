"""``m2xfp formats``: the table of formats, their quality, and where libraries disagree."""

from collections.abc import Sequence
from pathlib import Path

import click

from m2xfp.formats import BLOCK_FORMATS, BlockFormat

__all__ = ["command"]

SQNR_ROWS: tuple[tuple[str, dict[str, str]], ...] = tuple(
    (name, {"tensor_scale": "auto"} if block.scale.name == "e4m3" else {})
    for name, block in BLOCK_FORMATS.items()
)


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a markdown table, its columns aligned for reading as text."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [header, tuple("-" * width for width in widths), *rows]
    ]
    return "\n".join(lines) + "\n"


def _scale(block: BlockFormat) -> str:
    return {
        "symmetric": block.scale.name,
        "split": f"2 x {block.scale.name}",
        "affine": f"{block.scale.name} + zero point",
    }[block.scaling]


def _formats() -> str:
    """Return the table of what composes."""
    rows = [
        (
            name,
            block.element.name,
            _scale(block),
            str(block.group),
            f"{block.metadata.name} / {block.metadata.subgroup}" if block.metadata.bits else "-",
            f"{float(block.bits_per_value):g}",
            ", ".join(block.options),
        )
        for name, block in BLOCK_FORMATS.items()
    ]
    header = ("format", "element", "scale", "group", "metadata", "bits/value", "options")
    return _table(header, rows)


def _sqnr(groups: int, seed: int) -> str:
    """Return the table of SQNR on random samples."""
    from tqdm import tqdm

    from m2xfp.golden import get_format
    from m2xfp.models.quality import DISTRIBUTIONS, sample, sqnr

    samples = [sample(name, groups, seed) for name in DISTRIBUTIONS]
    rows = []
    for name, options in tqdm(SQNR_ROWS, desc="SQNR", unit="format"):
        fmt = get_format(name, **options)
        label = name + "".join(f", {key}={value}" for key, value in options.items())
        values = [f"{sqnr(fmt, x):.1f}" for x in samples]
        rows.append((label, f"{float(fmt.block.bits_per_value):g}", *values))
    return f"SQNR in dB, bfloat16, {groups} groups of 32, seed {seed}.\n\n" + _table(
        ("format", "bits/value", *DISTRIBUTIONS), rows
    )


def _libraries() -> str:
    """Return the table of agreements and disagreements with the libraries installed here."""
    from m2xfp.models.libraries import findings

    rows = [
        (f.library, f.subject, str(f.compared), str(f.different), f.first or "-")
        for f in findings()
    ]
    return _table(("library", "subject", "inputs", "different", "first difference"), rows)


@click.command()
@click.option("--sqnr", is_flag=True, help="Measure SQNR of every format on random samples.")
@click.option("--libraries", is_flag=True, help="Compare with the libraries installed here.")
@click.option("--groups", default=4000, show_default=True, type=click.IntRange(1), help="Sample.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Sample.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the table to this file instead of printing it.",
)
def command(sqnr: bool, libraries: bool, groups: int, seed: int, output: Path | None) -> None:
    r"""Print the table of number formats as markdown.

    \b
    m2xfp formats               element, scale, metadata, bits per value, options
    m2xfp formats --sqnr        quality on normal, Laplace, t (3 d.o.f.) and lognormal samples
    m2xfp formats --libraries   where ml_dtypes, torch and torchao differ from the rule

    The options are keyword arguments of m2xfp.golden.get_format.
    """
    if sqnr and libraries:
        raise click.UsageError("--sqnr and --libraries are two tables; ask for one at a time")
    text = _sqnr(groups, seed) if sqnr else _libraries() if libraries else _formats()
    if output is None:
        click.echo(text, nl=False)
        return
    from m2xfp.files import write_atomic

    write_atomic(output, text)
