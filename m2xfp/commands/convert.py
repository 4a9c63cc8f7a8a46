"""``m2xfp convert``: checkpoint folders from one layout to another."""

from __future__ import annotations

import re
from pathlib import Path

import click

from m2xfp.commands.options import OUTPUT_FOLDER, InputPath
from m2xfp.extras import require

__all__ = ["command"]


def _bytes(_context: click.Context, _option: click.Parameter, text: str) -> int:
    """Return a number of bytes, as in 500MB or 2GiB."""
    units = {"B": 1, "MB": 10**6, "GB": 10**9, "MIB": 1 << 20, "GIB": 1 << 30}
    number = text.rstrip("BGIMbgim")
    unit = text[len(number) :].upper() or "B"
    if not re.fullmatch("[0-9]{1,18}", number) or unit not in units or not int(number):
        raise click.BadParameter(f"{text!r} is no size such as 500MB or 2GiB")
    return int(number) * units[unit]


@click.command()
@click.argument("source", type=InputPath(path_type=Path))
@click.argument("target", type=OUTPUT_FOLDER)
@click.option(
    "--to",
    required=True,
    metavar="FORMAT",
    help="A format of `m2xfp formats` (a packed folder), a layout of another library "
    "(mxfp4-pack-quantized, nvfp4-pack-quantized, modelopt-nvfp4, gpt-oss-mxfp4, "
    "torchao-mxfp4, ...), gguf-mxfp4 or gguf-nvfp4 (a file of llama.cpp), or bfloat16, float16, "
    "float32 (a plain checkpoint).",
)
@click.option(
    "--skip",
    multiple=True,
    metavar="NAME",
    help="Layers to leave plain, by name or pattern such as '*.o_proj'. The layer that makes the "
    "logits is left plain unless the source has it quantized.",
)
@click.option("--allow-nan", is_flag=True, help="Go on when weights hold NaN or infinity.")
@click.option(
    "--shard-size",
    default="2GiB",
    show_default=True,
    callback=_bytes,
    metavar="SIZE",
    help="Size of a weight file; an interrupted run goes on with the first that is missing.",
)
def command(
    source: Path, target: Path, to: str, skip: tuple[str, ...], allow_nan: bool, shard_size: int
) -> None:
    r"""Write the checkpoint SOURCE in another layout as TARGET, a folder or a file NAME.gguf.

    SOURCE is a folder of the Hugging Face layout with safetensors files: plain, quantized by
    compressed-tensors, NVIDIA Model-Optimizer, torchao or as gpt-oss is, or packed by m2xfp; or a
    file of llama.cpp, NAME.gguf.
    Weights that are in the target's format already keep their bytes; others are decoded and
    quantized.

    Weights are read and written one at a time. TARGET is there when all of it is; until then the
    work stands in TARGET.part, and the same command goes on after an interruption.

    \b
    m2xfp convert ~/models/Llama-3.2-1B llama-m2xfp --to m2xfp-weight
    m2xfp convert ~/models/Llama-3.2-1B llama-nvfp4 --to nvfp4-pack-quantized
    m2xfp convert ~/models/gpt-oss-20b gpt-oss-m2xfp --to m2xfp-weight
    m2xfp convert ~/models/Llama-3.2-1B llama.gguf --to gguf-mxfp4
    m2xfp eval llama-m2xfp --text wiki.test.raw
    """
    require("torch", "safetensors", "transformers")
    from m2xfp.models.exchange.convert import convert_folder, find_target

    covered = convert_folder(
        source, target, find_target(to), skip, allow_nan, shard_size, quiet=False
    )
    click.echo(f"{target}: {covered}" if covered.quantized else f"{target}: plain, {to}")
