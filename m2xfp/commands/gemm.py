"""``m2xfp gemm``: clocks and utilisation of a GEMM core on the layers of language models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from m2xfp.rtl.parts.gemm_cycles import GemmTiming

__all__ = ["MODELS", "Layer", "command"]


@dataclass(frozen=True)
class Layer:
    """A linear layer [n, k], or several that are alike.

    Members
    -------
    name
        What it makes.
    n, k
        Outputs and inputs.
    count
        How many of them the model has.
    """

    name: str
    n: int
    k: int
    count: int


def _llama(layers: int, width: int, keys: int, hidden: int, vocabulary: int) -> tuple[Layer, ...]:
    """Return the linear layers of a model of the Llama family."""
    return (
        Layer("query, output", width, width, 2 * layers),
        Layer("key, value", keys, width, 2 * layers),
        Layer("gate, up", hidden, width, 2 * layers),
        Layer("down", width, hidden, layers),
        Layer("logits", vocabulary, width, 1),
    )


# From the models' published configurations.
MODELS = {
    "Llama-2-7B": _llama(32, 4096, 4096, 11008, 32000),
    "Llama-3-8B": _llama(32, 4096, 1024, 14336, 128256),
    "Llama-3-70B": _llama(80, 8192, 1024, 28672, 128256),
    "Mistral-7B": _llama(32, 4096, 1024, 14336, 32000),
    "OPT-6.7B": (
        Layer("query, key, value, output", 4096, 4096, 4 * 32),
        Layer("up", 16384, 4096, 32),
        Layer("down", 4096, 16384, 32),
        Layer("logits", 50272, 4096, 1),
    ),
    "Falcon-7B": (
        Layer("query, key, value", 4672, 4544, 32),
        Layer("output", 4544, 4544, 32),
        Layer("up", 18176, 4544, 32),
        Layer("down", 4544, 18176, 32),
        Layer("logits", 65024, 4544, 1),
    ),
}


# Bytes of text that the model reads at a time in Verilog: some 20 s of simulation.
_WINDOW = 128


def layer_rows(timing: GemmTiming, tokens: int) -> Iterator[tuple[str, ...]]:
    """Yield a row for each layer, and one for each model as a whole."""
    for model, layers in MODELS.items():
        clocks = products = 0
        for layer in layers:
            taken = timing.clocks(tokens, layer.n, layer.k)
            clocks += layer.count * taken
            products += layer.count * layer.n * layer.k
            share = timing.utilisation(tokens, layer.n, layer.k)
            size = f"{layer.n} x {layer.k}"
            yield model, layer.name, size, str(layer.count), str(taken), f"{share:.2%}"
        share = tokens * products / (clocks * timing.macs_per_clock)
        yield model, "all", "", str(sum(x.count for x in layers)), str(clocks), f"{share:.2%}"


def size_rows(tokens: int) -> Iterator[tuple[str, ...]]:
    """Yield a row for each shape of an array of 32 cells, and for larger ones: what it costs."""
    from m2xfp.rtl.parts.gemm_cycles import GemmTiming

    layers = [layer for model in MODELS.values() for layer in model]
    largest = max(layer.k for layer in layers)
    for rows, columns in ((1, 32), (2, 16), (4, 8), (8, 4), (8, 32), (32, 32)):
        timing = GemmTiming(rows, columns, max_k=largest)
        shares = [timing.utilisation(tokens, layer.n, layer.k) for layer in layers]
        smallest = [
            f"{GemmTiming(rows, columns, max_k=k).weight_bytes / 1024:.0f}"
            for k in (4096, 11008, largest)
        ]
        yield (
            f"{rows} x {columns}",
            str(timing.macs_per_clock),
            *smallest,
            f"{rows * 18}",
            f"{rows * columns * 18 / tokens:.2f}",
            f"{rows * columns * 4 / (4096 / 32):.0f}",
            f"{min(shares):.2%}",
        )


def report(rows: int, columns: int, chains: int, tokens: int) -> str:
    """Return the two tables as markdown."""
    from m2xfp.rtl.parts.gemm_cycles import GemmTiming
    from m2xfp.synth.report.figures import aligned_table

    largest = max(layer.k for layers in MODELS.values() for layer in layers)
    timing = GemmTiming(rows, columns, largest, chains=chains)
    layers = aligned_table(
        [
            ("model", "layer", "n x k", "layers", "clocks each", "of peak"),
            *layer_rows(timing, tokens),
        ]
    )
    sizes = aligned_table(
        [
            (
                *("cells", "MACs/clock", "buffers KB, k 4096", "k 11008", f"k {largest}"),
                *("activations B/clock", "weights B/clock", "FP32 results B/clock", "worst layer"),
            ),
            *size_rows(tokens),
        ]
    )
    return (
        f"Linear layers of language models on {rows} x {columns} cells of {timing.group} MACs, "
        f"{chains} chains, {tokens} tokens. Clocks by the cycle model, which equals the Verilog "
        f"clock for clock.\n\n{layers}\n"
        f"Shapes of the array at {tokens} tokens: both weight buffers for the largest k of the "
        "layers, what the streams carry on average (results for k = 4096), and the share of peak "
        f"that the worst layer of all models reaches.\n\n{sizes}"
    )


def area_report(pdk_name: str, build: Path) -> str:
    """Return what a row's decoders and a cell cost in M2XFP and in MXFP4, as markdown.

    Arrays of one row and one and two columns are mapped; their difference is a cell, the rest is
    what the columns of a row share. All registers are counted, weight buffers and results not:
    a second table has the weight buffers, and those of the paper, by a model.
    """
    from tqdm import tqdm

    from m2xfp.files import write_atomic
    from m2xfp.formats import M2XFP_ACT, M2XFP_WEIGHT, MXFP4
    from m2xfp.rtl.parts.gemm_array import GemmArray
    from m2xfp.rtl.parts.gemm_cycles import GemmTiming
    from m2xfp.rtl.units.group_dot import DotPair
    from m2xfp.rtl.verilog.emit import verilog_text
    from m2xfp.synth.flow.pdk import find_pdk
    from m2xfp.synth.flow.yosys import FlowOptions, synthesize
    from m2xfp.synth.report.figures import aligned_table
    from m2xfp.synth.studies.paper import BUFFERS
    from m2xfp.synth.studies.sram import Buffer, buffer_table

    pdk, options = find_pdk(pdk_name), FlowOptions()
    pairs = {"mxfp4": DotPair(MXFP4, MXFP4), "m2xfp": DotPair(M2XFP_ACT, M2XFP_WEIGHT)}
    measured: dict[str, list[float]] = {}
    with tqdm(total=4, desc="synthesis", unit="array") as bar:
        for name, pair in pairs.items():
            for columns in (1, 2):
                top = f"gemm_array_{name}_1x{columns}"
                text = verilog_text(GemmArray(pair, 1, columns, depth=2, chains=3), top)
                source = write_atomic(build / f"{top}.v", text)
                netlist = synthesize(source, top, pdk, options, build)
                measured.setdefault(name, []).append(netlist.area_um2)
                bar.update()
    sizes = (1, 8, 32)
    rows = []
    base = [0.0] * len(sizes)
    for name, (one, two) in measured.items():
        cell, shared = two - one, 2 * one - two
        arrays = [shared + columns * cell for columns in sizes]
        base = base if any(base) else arrays
        rows.append(
            [
                name,
                f"{shared:.0f}",
                f"{cell:.0f}",
                *(
                    f"{area:.0f} ({area / least - 1:+.1%})"
                    for area, least in zip(arrays, base, strict=True)
                ),
            ]
        )
    titles = ["format", "shared by a row um2", "cell um2", *(f"1 x {n} um2" for n in sizes)]
    columns, core = sizes[-1], f"the 1 x {sizes[-1]} array in M2XFP"
    own = [
        Buffer(f"both weight buffers for k up to {k}", GemmTiming(1, columns, k).weight_bytes)
        for k in (4096, 11008, max(layer.k for layers in MODELS.values() for layer in layers))
    ]
    return (
        f"{pdk.title}: arrays of one row, FP32 accumulators included, over that of MXFP4.\n\n"
        f"{aligned_table([titles, *rows])}\n"
        f"{buffer_table(pdk.name, [*own, *BUFFERS], arrays[-1], core)}"
    )


def perplexity_report(windows: int, build: Path) -> tuple[str, bool]:
    """Return what the bundled model's perplexity is in Verilog and in golden, and if it is one."""
    import torch

    from m2xfp.models.evaluate import cut_windows, perplexity, spread
    from m2xfp.models.lm import HELD_OUT, as_tokens
    from m2xfp.synth.studies.linear_layers import compare_losses

    text = spread(cut_windows(as_tokens(HELD_OUT.read_bytes()), _WINDOW), windows)
    verilog, golden, clocks = compare_losses(build, text)
    equal = torch.equal(verilog, golden)
    return (
        f"Perplexity a byte on {windows} windows of {_WINDOW} bytes, every linear layer with "
        "M2XFP activations and weights:\n"
        f"  Verilog  {perplexity(verilog)!r} in {clocks} clocks\n"
        f"  golden   {perplexity(golden)!r}\n"
        f"{'equal' if equal else 'NOT equal'} to the last bit, window by window\n"
    ), equal


@click.command()
@click.option("--rows", type=click.IntRange(1), default=1, show_default=True, help="Rows of cells.")
@click.option(
    "--columns", type=click.IntRange(1), default=32, show_default=True, help="Columns of cells."
)
@click.option(
    "--chains",
    type=click.IntRange(1, 3),
    default=3,
    show_default=True,
    help="Accumulators a cell.",
)
@click.option(
    "--tokens", type=click.IntRange(1), default=2048, show_default=True, help="Activation rows."
)
@click.option(
    "--area",
    "pdk",
    metavar="PDK",
    help="Instead: area of the array in M2XFP and MXFP4 on a library of `m2xfp synth --list`.",
)
@click.option(
    "--mac",
    metavar="PDK",
    help="Instead: area of the dot product by module, in both formats, and energy a MAC.",
)
@click.option(
    "--perplexity",
    "windows",
    type=click.IntRange(1),
    metavar="WINDOWS",
    help="Instead: the bundled model's perplexity on so many windows of 128 bytes of held-out "
    "text, every linear layer in Verilog, and in the golden model.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the tables to this file instead of printing them.",
)
def command(
    rows: int,
    columns: int,
    chains: int,
    tokens: int,
    pdk: str | None,
    mac: str | None,
    windows: int | None,
    output: Path | None,
) -> None:
    r"""Print how many clocks a GEMM core needs for the linear layers of language models.

    A cell multiplies one group of 32 a clock; 1 x 32 cells are 1024 MACs. The count is that of the
    cycle model, which equals the emitted Verilog clock for clock while no stream pauses.

    \b
    m2xfp gemm                                      1 x 32 cells, 2048 tokens
    m2xfp gemm --rows 4 --columns 8 --tokens 512
    m2xfp gemm -o docs/results/gemm.md              the page in the documentation
    m2xfp gemm --area osu018                        what the metadata costs in the array
    m2xfp gemm --mac osu018                         what it costs in one dot product; energy
    m2xfp gemm --perplexity 2                       the Verilog's perplexity, and golden's
    """
    if sum(map(bool, (pdk, mac, windows))) > 1:
        raise click.UsageError("--area, --mac and --perplexity exclude each other; give one")
    equal = True
    if windows:
        text, equal = perplexity_report(windows, Path("build/sim"))
    elif mac:
        from m2xfp.synth.studies.mac import mac_report

        text = mac_report(mac, Path("build/synth"))
    elif pdk:
        text = area_report(pdk, Path("build/synth"))
    else:
        text = report(rows, columns, chains, tokens)
    if output is None:
        click.echo(text, nl=False)
    else:
        from m2xfp.files import write_atomic

        write_atomic(output, text)
    if not equal:
        raise SystemExit(1)
