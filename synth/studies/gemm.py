"""Clocks of a GEMM core on the linear layers of language models, by its cycle model.

The cycle model equals the emitted Verilog clock for clock while no stream pauses.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from m2xfp.rtl.parts.gemm_cycles import GemmTiming
from m2xfp.tables import aligned_table

__all__ = ["LARGEST_K", "MODELS", "Layer", "layer_table", "shape_table", "tables"]


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
    count: int = 1


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
MODELS: Mapping[str, tuple[Layer, ...]] = {
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

LARGEST_K = max(layer.k for layers in MODELS.values() for layer in layers)
"""Inputs of the widest of these layers."""

# What the table of shapes compares: 32 cells in different shapes, and larger arrays.
_SHAPES = ((1, 32), (2, 16), (4, 8), (8, 4), (8, 32), (32, 32))
_TOKENS = 2048


def _layer_rows(
    timing: GemmTiming, tokens: int, models: Mapping[str, Sequence[Layer]]
) -> Iterator[tuple[str, ...]]:
    """Yield a row for each layer, and one for each model of several as a whole."""
    for model, layers in models.items():
        clocks = products = 0
        for layer in layers:
            size = f"{layer.n} x {layer.k}"
            if layer.k > timing.max_k:
                yield model, layer.name, size, str(layer.count), f"k > {timing.max_k}", ""
                continue
            taken = timing.clocks(tokens, layer.n, layer.k)
            clocks += layer.count * taken
            products += layer.count * layer.n * layer.k
            share = timing.utilisation(tokens, layer.n, layer.k)
            yield model, layer.name, size, str(layer.count), str(taken), f"{share:.2%}"
        if len(layers) > 1 and all(layer.k <= timing.max_k for layer in layers):
            share = tokens * products / (clocks * timing.macs_per_clock)
            count = str(sum(layer.count for layer in layers))
            yield model, "all", "", count, str(clocks), f"{share:.2%}"


def layer_table(
    timing: GemmTiming, tokens: int, models: Mapping[str, Sequence[Layer]] = MODELS
) -> str:
    """Return clocks and share of peak by layer, as markdown, under a line that names the array.

    Parameters
    ----------
    timing
        The core's.
    tokens
        Activation rows.
    models
        Layers by the name of their model.
    """
    titles = ("model", "layer", "n x k", "layers", "clocks each", "of peak")
    return (
        f"Linear layers on {timing.rows} x {timing.columns} cells of {timing.group} MACs, "
        f"{timing.chains} chains, k up to {timing.max_k}, {tokens} tokens. Clocks by the cycle "
        "model, which equals the Verilog clock for clock.\n\n"
        f"{aligned_table([titles, *_layer_rows(timing, tokens, models)])}"
    )


def _shape_row(rows: int, columns: int, tokens: int) -> tuple[str, ...]:
    layers = [layer for model in MODELS.values() for layer in model]
    timing = GemmTiming(rows, columns, max_k=LARGEST_K)
    shares = [timing.utilisation(tokens, layer.n, layer.k) for layer in layers]
    buffers = (
        f"{GemmTiming(rows, columns, max_k=k).weight_bytes / 1024:.0f}"
        for k in (4096, 11008, LARGEST_K)
    )
    return (
        f"{rows} x {columns}",
        str(timing.macs_per_clock),
        *buffers,
        f"{rows * 18}",
        f"{rows * columns * 18 / tokens:.2f}",
        f"{rows * columns * 4 / (4096 / 32):.0f}",
        f"{min(shares):.2%}",
    )


def shape_table(tokens: int) -> str:
    """Return what shapes of the array cost and reach, as markdown."""
    titles = (
        *("cells", "MACs/clock", "buffers KB, k 4096", "k 11008", f"k {LARGEST_K}"),
        *("activations B/clock", "weights B/clock", "FP32 results B/clock", "worst layer"),
    )
    rows = [_shape_row(rows, columns, tokens) for rows, columns in _SHAPES]
    return (
        f"Shapes of the array at {tokens} tokens: both weight buffers for the largest k of the "
        "layers, what the streams carry on average (results for k = 4096), and the share of peak "
        f"that the worst layer of all models reaches.\n\n{aligned_table([titles, *rows])}"
    )


def tables(_results: Path) -> dict[str, str]:
    """Return the tables of the paper's array, 1 x 32 cells, which need no accepted figures."""
    return {
        "gemm-layers": layer_table(GemmTiming(1, 32, LARGEST_K), _TOKENS),
        "gemm-shapes": shape_table(_TOKENS),
    }
