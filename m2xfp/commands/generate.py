"""``m2xfp generate``: the bundled language model generates text on the accelerator."""

import sys
from pathlib import Path

import click

from m2xfp.commands.options import OUTPUT_FOLDER, Number, one_instance, parameter_options_of
from m2xfp.extras import require

__all__ = ["command"]

_UNIT = "accelerator"


@click.command()
@click.argument("prompt")
@click.option(
    "--on",
    "place",
    type=click.Choice(["rtl", "golden"]),
    default="rtl",
    show_default=True,
    help="The accelerator's emitted Verilog under Verilator, or the golden model alone.",
)
@click.option(
    "--tokens",
    type=click.IntRange(1, 4096),
    default=32,
    show_default=True,
    help="Bytes to generate; with the prompt at most 512.",
)
@click.option(
    "--temperature",
    type=Number(0, 100),
    default=0.0,
    show_default=True,
    help="0 takes the most likely byte; more draws among them.",
)
@click.option(
    "--seed", type=click.IntRange(0, (1 << 63) - 1), default=0, show_default=True, help="Of draws."
)
@click.option(
    "--check/--no-check",
    default=True,
    show_default=True,
    help="Compare tokens, logits and cache with the golden model's, bit for bit.",
)
@click.option(
    "--latency",
    type=click.IntRange(0, 100_000),
    default=0,
    show_default=True,
    help="Of the simulated memory: clocks from an address to the first word.",
)
@click.option(
    "--rate",
    type=Number(0, 1e6),
    default=0.0,
    show_default=True,
    help="Of the simulated memory: bytes a clock that all buses together move; 0 for no limit.",
)
@parameter_options_of(_UNIT)
@click.option(
    "--build-dir",
    type=OUTPUT_FOLDER,
    default=Path("build"),
    show_default=True,
    help="Folder for the Verilog and for what later runs find again.",
)
def command(
    prompt: str,
    place: str,
    tokens: int,
    temperature: float,
    seed: int,
    check: bool,
    latency: int,
    rate: float,
    config: str | None,
    settings: tuple[str, ...],
    build_dir: Path,
) -> None:
    r"""Let the bundled language model go on with PROMPT, on the accelerator.

    Every linear layer and both products of the attention run in the emitted Verilog of the
    accelerator, from packed operands in a simulated memory: activations and queries are packed by
    its quantizer, the attention's cache by its encoder. Norms, RoPE and softmax are the host's.
    Tokens, logits and cache are then compared with the golden model's; exit status 1 if a bit
    differs.

    \b
    m2xfp generate "It was a dark and stormy night"
    m2xfp generate "def main():" --tokens 64 --temperature 0.7 --on golden
    m2xfp generate "The sea" --set rows=1 --set columns=8 --latency 100 --rate 32
    """
    require("torch", "safetensors")
    if place == "rtl":
        from m2xfp.tb.verilator import find_verilator

        require("filelock")
        find_verilator()
    from m2xfp.accelerator.generation import (
        Text,
        differences,
        generate_golden,
        generate_simulated,
    )
    from m2xfp.models.lm import load_model
    from m2xfp.rtl.verilog.emit import emit

    text = Text(prompt.encode("utf-8", "surrogateescape"), tokens, temperature, seed)
    model = load_model()
    text.check(model.config.context)
    golden = generate_golden(model, text) if check or place == "golden" else None
    if place == "golden":
        assert golden is not None
        click.echo(_shown(text.prompt + golden.text))
        return
    files = emit(one_instance(_UNIT, config, settings), build_dir / "verilog")
    found = generate_simulated(files, model, text, build_dir / "sim", latency=latency, rate=rate)
    click.echo(_shown(text.prompt + found.text))
    click.echo(f"\n{files.top}: {found.summary()}")
    if golden is None:
        return
    different = differences(found, golden)
    for line in different:
        click.echo(line)
    if different:
        sys.exit(1)
    click.echo(
        f"equal to the golden model's: {tokens} tokens, {found.logits} logits, "
        f"{found.cache_bytes} bytes of cache"
    )


def _shown(text: bytes) -> str:
    """Return text for a terminal: what is no text becomes a replacement character."""
    return "".join(
        mark if mark.isprintable() or mark in "\n\t" else "\ufffd"
        for mark in text.decode("utf-8", "replace")
    )
