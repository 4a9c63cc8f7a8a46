"""``m2xfp bench``: values per second and peak extra memory of every format."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from m2xfp.commands.options import OUTPUT_FOLDER
from m2xfp.extras import require

if TYPE_CHECKING:
    import torch

from m2xfp.formats import block_format

__all__ = ["command"]

_DTYPES = ("bfloat16", "float16", "float32")


@click.command()
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--dtype", type=click.Choice(_DTYPES), default="bfloat16", show_default=True)
@click.option(
    "--values",
    type=click.IntRange(4096, 1 << 40),
    help="Values to quantize.  [default: 2^25 on CPU, 2^29 on CUDA]",
)
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads.  [default: PyTorch's]")
@click.option("--path", type=click.Choice(["auto", "plain", "fused"]), default="auto")
@click.option(
    "--products", is_flag=True, help="Measure products and layers against PyTorch's instead."
)
@click.option("--format", "formats", multiple=True, metavar="NAME", help="Only these formats.")
@click.option(
    "-o",
    "--output",
    type=OUTPUT_FOLDER,
    help="Write the figures, bench-DEVICE-DTYPE.json, into this folder; docs/results accepts them.",
)
def command(
    device: str,
    dtype: str,
    values: int | None,
    threads: int | None,
    path: str,
    products: bool,
    formats: tuple[str, ...],
    output: Path | None,
) -> None:
    r"""Measure speed and memory of the golden model against a memory copy.

    \b
    m2xfp bench                                      every format, bfloat16
    m2xfp bench --format m2xfp-act --dtype float32   one format
    m2xfp bench --path plain                         without the fused kernels
    m2xfp bench --products                           products and layers

    Prints a markdown table: 10^9 values per second, the share of a copy's speed, the largest
    amount of memory allocated meanwhile over the size of the result, and the time of the first
    call, which compiles. The plain path runs on fewer values (2^22 on CPU, 2^28 on CUDA); what it
    needs beyond the result is the same whatever the size of the tensor.
    """
    require("torch")
    for name in formats:
        block_format(name)
    import torch

    from m2xfp.models.bench import ROWS, bench, bench_table
    from m2xfp.models.devices import describe_device, find_device
    from m2xfp.progress import track
    from m2xfp.results import write_figures

    chosen = find_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    if products:
        _products(chosen, output)
        return
    cuda = chosen.type == "cuda"
    count = values or (1 << 29 if cuda else 1 << 25)
    rows = tuple(row for row in ROWS if not formats or row[0] in formats)
    plain = min(count, 1 << (28 if cuda else 22))
    run = bench(chosen, getattr(torch, dtype), count, rows, path, plain_values=plain)
    measured = list(track(run, total=1 + 3 * len(rows), desc="bench", unit="run"))
    figures = {
        "device": describe_device(chosen),
        "dtype": dtype,
        "values": count,
        "torch": torch.__version__,
        "measurements": [asdict(m) for m in measured],
    }
    click.echo(bench_table(figures), nl=False)
    if output is not None:
        click.echo(write_figures(output / f"bench-{chosen.type}-{dtype}.json", figures))


def _products(device: "torch.device", output: Path | None) -> None:
    """Measure products and layers; print the table, write products-DEVICE.json."""
    import torch

    from m2xfp.models.bench_products import bench_layers, bench_products, products_table
    from m2xfp.models.devices import describe_device
    from m2xfp.progress import track
    from m2xfp.results import write_figures

    cuda = device.type == "cuda"
    shape = (4096, 4096, 4096) if cuda else (512, 2048, 2048)
    layers = bench_layers(device) if cuda else bench_layers(device, (1, 256), ((2048, 2048),))
    measured = [*track(bench_products(device, shape), desc="products", unit="run")]
    measured += track(layers, desc="layers", unit="run")
    figures = {
        "device": describe_device(device),
        "torch": torch.__version__,
        "measurements": [asdict(m) for m in measured],
    }
    click.echo(products_table(figures), nl=False)
    if output is not None:
        click.echo(write_figures(output / f"products-{device.type}.json", figures))
