"""``m2xfp formats``: the table of number formats."""

from pathlib import Path

import click

from m2xfp.formats import BLOCK_FORMATS, BlockFormat
from m2xfp.presets import PRESETS
from m2xfp.tables import aligned_table

__all__ = ["command", "format_table", "preset_table", "tables"]


def _scale(block: BlockFormat) -> str:
    return {
        "symmetric": block.scale.name,
        "split": f"2 x {block.scale.name}",
        "affine": f"{block.scale.name} + zero point",
    }[block.scaling]


def format_table() -> str:
    """Return what every format is made of, as markdown."""
    titles = ("format", "element", "scale", "group", "metadata", "bits/value", "options")
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
    return aligned_table([titles, *rows]) + f"\n{_LEVELS}\n"


_LEVELS = (
    "NVFP4 and its variants have one level of scales unless `tensor_scale` is given: a block whose "
    "largest value is at most 6/1024 becomes zeros, and normal weights with standard deviation "
    "0.002 keep an SQNR of 0.4 dB, with two levels 20.4. `m2xfp eval --weights nvfp4` "
    "and `quantize_model(weights=NAME)` therefore take `tensor_scale=auto`; `tensor_scale=none` is "
    "one level there too. For activations, caches and operands `auto` is refused, since it depends "
    "on the batch: `token` is a scale for each row, a number one that was calibrated."
)


def tables(_results: Path) -> dict[str, str]:
    """Return the table, ``formats``; it needs no accepted figures."""
    return {"formats": format_table()}


def preset_table(library: str) -> str:
    """Return the formats of a library with what stands for them here, as markdown."""
    rows = [("there", "here", "differs in")]
    rows += [(each.theirs, each.ours, each.differs or "-") for each in PRESETS[library]]
    return aligned_table(rows)


@click.command()
@click.option(
    "--like",
    type=click.Choice(tuple(PRESETS)),
    help="Print the formats of a library, and the options that reproduce them.",
)
def command(like: str | None) -> None:
    r"""Print the table of number formats: element, scale, metadata, bits per value, options.

    The options are keyword arguments of m2xfp.golden.get_format. `m2xfp study sqnr` measures the
    quality of every format, `m2xfp study libraries` holds libraries against the definitions.
    """
    click.echo(format_table() if like is None else preset_table(like), nl=False)
