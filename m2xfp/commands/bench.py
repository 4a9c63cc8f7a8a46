"""``m2xfp bench``: values per second and peak extra memory of every format."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from m2xfp.errors import InputError
from m2xfp.formats import block_format

if TYPE_CHECKING:
    import torch

__all__ = ["command"]

_DTYPES = ("bfloat16", "float16", "float32")


def _device(name: str) -> "torch.device":
    """Return the device to measure; InputError if this machine has none of that kind."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch sees no CUDA device here; pass --device cpu")
    return torch.device(name)


def _describe(device: "torch.device") -> str:
    """Return the device in words."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return f"{names[0] if names else 'CPU'}, {torch.get_num_threads()} threads"


@click.command()
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--dtype", type=click.Choice(_DTYPES), default="bfloat16", show_default=True)
@click.option(
    "--values",
    type=click.IntRange(4096),
    help="Values to quantize.  [default: 2^25 on CPU, 2^29 on CUDA]",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: PyTorch's]")
@click.option("--path", type=click.Choice(["auto", "plain", "fused"]), default="auto")
@click.option(
    "--products", is_flag=True, help="Measure products and layers against PyTorch's instead."
)
@click.option("--format", "formats", multiple=True, metavar="NAME", help="Only these formats.")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write bench-DEVICE-DTYPE.md and .json into this folder too.",
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

    Prints a markdown table: 10^9 values per second, the share of a copy's speed, and the largest
    amount of memory allocated meanwhile over the size of the result. Formats without a fused path
    run on fewer values (2^22 on CPU, 2^28 on CUDA); what they need beyond the result is the same
    whatever the size of the tensor.
    """
    for name in formats:
        block_format(name)
    import torch
    from tqdm import tqdm

    from m2xfp.files import write_atomic
    from m2xfp.models.bench import ROWS, bench, table

    chosen = _device(device)
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
    measured = list(tqdm(run, total=1 + 3 * len(rows), desc="bench", unit="run"))
    facts = {
        "device": _describe(chosen),
        "dtype": dtype,
        "values": count,
        "torch": torch.__version__,
    }
    head = "".join(f"{key}: {value}\n" for key, value in facts.items())
    text = f"{head}\n{table(measured)}"
    click.echo(text, nl=False)
    if output is not None:
        stem = f"bench-{chosen.type}-{dtype}"
        write_atomic(output / f"{stem}.md", text)
        data = {**facts, "measurements": [asdict(m) for m in measured]}
        write_atomic(output / f"{stem}.json", json.dumps(data, indent=1) + "\n")


def _products(device: "torch.device", output: Path | None) -> None:
    """Measure products and layers; print the table, write bench-DEVICE-products.md and .json."""
    import torch
    from tqdm import tqdm

    from m2xfp.files import write_atomic
    from m2xfp.models.bench_products import bench_layers, bench_products, ratio_table

    cuda = device.type == "cuda"
    shape = (4096, 4096, 4096) if cuda else (512, 2048, 2048)
    layers = bench_layers(device) if cuda else bench_layers(device, (1, 256), ((2048, 2048),))
    measured = [*tqdm(bench_products(device, shape), desc="products", unit="run")]
    measured += tqdm(layers, desc="layers", unit="run")
    head = f"device: {_describe(device)}\ntorch: {torch.__version__}\n"
    text = f"{head}\n{ratio_table(measured)}"
    click.echo(text, nl=False)
    if output is not None:
        stem = output / f"bench-{device.type}-products"
        write_atomic(stem.with_suffix(".md"), text)
        data = json.dumps([asdict(m) for m in measured], indent=1)
        write_atomic(stem.with_suffix(".json"), data + "\n")
