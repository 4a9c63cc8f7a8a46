"""Speed of products and of quantized layers, against those of PyTorch in the same run.

On CUDA a CUDA graph of each is timed: Python takes longer to launch small products than they run.
Layers come several after each other, with weights of their own, as a model has them: a graph of one
small product measures its launch, and the same weights again come out of the cache.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from m2xfp.golden import get_format, matmul
from m2xfp.models.bench import seconds
from m2xfp.models.inputs import InputQuantizer
from m2xfp.models.linear import QuantLinear
from m2xfp.results import read_figures
from m2xfp.tables import aligned_table

__all__ = [
    "LAYERS",
    "PRODUCTS",
    "Ratio",
    "bench_layers",
    "bench_products",
    "products_table",
    "tables",
]

PRODUCTS = (
    ("m2xfp-act", "m2xfp-weight", "fp32"),
    ("m2xfp-act", "m2xfp-weight", "fp32_subgroup"),
    ("m2xfp-act", "m2xfp-weight", "exact"),
    ("mxfp4", "mxfp4", "fp32"),
    ("mxfp4", "mxfp4", "exact"),
    ("nvfp4", "nvfp4", "fp32"),
    ("nvfp4:tensor_scale=auto", "nvfp4:tensor_scale=auto", "fp32"),
    ("nvfp4", "nvfp4", "exact"),
    ("m2nvfp4-act", "m2nvfp4-weight", "fp32"),
    ("m2nvfp4-act", "m2nvfp4-weight", "fp32_subgroup"),
    ("mxint8", "mxint8", "fp32"),
    ("mxfp6-e2m3", "mxfp6-e2m3", "fp32"),
    ("mxfp6-e3m2", "mxfp6-e3m2", "fp32"),
    ("mxfp8-e4m3", "mxfp8-e4m3", "fp32"),
    ("mxfp8-e4m3", "mxfp8-e4m3", "exact"),
    ("mxfp8-e5m2", "mxfp4", "fp32"),
    ("mxfp8-e5m2", "mxfp8-e5m2", "exact"),
)
"""Formats of both operands, and the accumulator."""

LAYERS = ((4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336))
"""Outputs and inputs of the linear layers of Llama-3-8B."""


@dataclass(frozen=True)
class Ratio:
    """One measurement.

    Members
    -------
    what, shape
        What was multiplied, M x N x K.
    tflops
        10^12 operations a second, two for each product of elements, in the best of several runs.
    of_torch
        That, over the same for PyTorch's product of the shape, in ``reference``.
    first_seconds
        The first call: what compiling takes where nothing is kept yet.
    """

    what: str
    shape: tuple[int, int, int]
    tflops: float
    of_torch: float
    reference: str
    first_seconds: float


def _first(run: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call."""
    begin = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def _repeated(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Return what to time: on CUDA a graph of the launches, so that none waits for Python."""
    if device.type != "cuda":
        return run
    aside = torch.cuda.Stream(device)
    with torch.cuda.stream(aside):
        run()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    replay: Callable[[], object] = graph.replay
    return replay


def _reference(device: torch.device) -> torch.dtype:
    """Return the type that PyTorch multiplies in: the fastest one that models use there."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _ratio(
    what: str,
    shape: tuple[int, int, int],
    run: Callable[[], object],
    plain: Callable[[], object],
    device: torch.device,
    count: int = 1,
) -> Ratio:
    """Measure ``run`` and ``plain``, each ``count`` products of that shape."""
    first = _first(run, device)
    base, mine = (seconds(_repeated(way, device), device) / count for way in (plain, run))
    m, n, k = shape
    kind = str(_reference(device)).removeprefix("torch.")
    return Ratio(what, shape, 2 * m * n * k / mine / 1e12, base / mine, kind, first)


def bench_products(
    device: torch.device,
    shape: tuple[int, int, int],
    products: tuple[tuple[str, str, str], ...] = PRODUCTS,
) -> Iterator[Ratio]:
    """Measure ``matmul`` of packed normal values [M, K] and [N, K]."""
    m, n, k = shape
    generator = torch.Generator(device=device).manual_seed(0)
    x, w = (
        torch.empty(rows, k, dtype=_reference(device), device=device).normal_(generator=generator)
        for rows in (m, n)
    )
    for act, weight, accumulator in products:
        qa, qw = get_format(act).quantize(x), get_format(weight).quantize(w)
        yield _ratio(
            f"{act} x {weight}, {accumulator}",
            shape,
            lambda qa=qa, qw=qw, how=accumulator: matmul(qa, qw, how),  # type: ignore[misc]
            lambda: x @ w.T,
            device,
        )


_FEW = 16  # tokens, up to which layers come in turn
_WEIGHT_BYTES = 1 << 29
"""What the weights of the layers that are timed take at least in PyTorch's type, on CUDA."""


def _in_turn(layers: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Callable[[], object]:
    """Return a run of all layers; each gets a view, whose quantized values were not kept."""
    return lambda: [layer(x[:]) for layer in layers]


@torch.no_grad()
def bench_layers(
    device: torch.device,
    tokens: tuple[int, ...] = (1, 16, 2048),
    layers: tuple[tuple[int, int], ...] = LAYERS,
) -> Iterator[Ratio]:
    """Measure M2XFP layers on packed weights: weights alone, and the hardware's arithmetic.

    The first includes decoding, the second quantizing the inputs.
    """
    kind = _reference(device)
    inputs = InputQuantizer(get_format("m2xfp-act"))
    weights = get_format("m2xfp-weight")
    for n, k in layers:
        count = max(1, _WEIGHT_BYTES // (n * k * kind.itemsize)) if device.type == "cuda" else 1
        plain = [
            nn.Linear(k, n, bias=False, dtype=kind, device=device).requires_grad_(False)
            for _ in range(count)
        ]
        ways = {
            "weights alone": [QuantLinear.from_linear(layer, weights) for layer in plain],
            "hardware": [
                QuantLinear.from_linear(layer, weights, inputs, "hardware") for layer in plain
            ],
        }
        for m in tokens:
            x = torch.randn(m, k, dtype=kind, device=device)
            some = count if m <= _FEW else 1
            for name, quantized in ways.items():
                yield _ratio(
                    f"layer, {name}",
                    (m, n, k),
                    _in_turn(quantized[:some], x),
                    _in_turn(plain[:some], x),
                    device,
                    some,
                )


def products_table(figures: Mapping[str, Any]) -> str:
    """Return figures of ``m2xfp bench --products`` as markdown.

    Parameters
    ----------
    figures
        Device, torch, and measurements as ``Ratio`` has them.
    """
    found = [Ratio(**row) for row in figures["measurements"]]
    rows = [("what", "M x N x K", "TFLOPS", "of torch", "its type", "first call, s")]
    rows += [
        (
            r.what,
            " x ".join(map(str, r.shape)),
            f"{r.tflops:.3g}",
            f"{r.of_torch:.3f}",
            r.reference,
            f"{r.first_seconds:.2f}",
        )
        for r in found
    ]
    return f"{figures['device']}, torch {figures['torch']}.\n\n{aligned_table(rows)}"


def tables(results: Path) -> dict[str, str]:
    """Return the accepted tables by name, ``products-DEVICE``."""
    paths = sorted(results.glob("products-*.json"))
    return {path.stem: products_table(read_figures(path)) for path in paths}
