"""Linear layers of the bundled model through the emitted GEMM core, and in the golden model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from m2xfp.rtl.catalog import find_unit
from m2xfp.rtl.verilog.emit import emit
from m2xfp.tb.bench import find_bench
from m2xfp.tb.bulk.simulator import BulkSimulator
from m2xfp.tb.linear import golden_linear, simulate_core

if TYPE_CHECKING:
    from torch import Tensor, nn

    from m2xfp.golden.formats.packed import PackedTensor

__all__ = ["LinearRun", "compare_losses", "run_linear"]


@dataclass(frozen=True)
class LinearRun:
    """A linear layer through the Verilog, compared with the golden model.

    Members
    -------
    layer, config
        Name in the model, and configuration of the core.
    m, n, k
        Tokens, outputs and inputs.
    clocks, utilisation
        Clocks that the core took, and the share of its peak that this is.
    mismatches
        Results of which a bit differs.
    groups_mismatched
        Groups that differ after the results were quantized again, for the next layer.
    """

    layer: str
    config: str
    m: int
    n: int
    k: int
    clocks: int
    utilisation: float
    mismatches: int
    groups_mismatched: int

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not (self.mismatches or self.groups_mismatched)


def run_linear(
    build_dir: Path,
    *,
    layer: str = "layers.0.mlp.gate_proj",
    tokens: int = 512,
    config: str = "m2xfp-bf16-2x2",
) -> LinearRun:
    """Run a layer of the bundled model on held-out text through the emitted Verilog.

    What the layer reads, in bfloat16, is quantized and multiplied by the core's Verilog, and its
    results are quantized again by the activation quantizer's.

    Parameters
    ----------
    build_dir
        Folder of emitted files and simulation models.
    layer
        Name of a linear layer of the model.
    tokens
        Bytes of text.
    config
        A configuration of the core from bf16 to bf16.
    """
    import torch

    from m2xfp.golden import get_format
    from m2xfp.golden.bits import to_bits
    from m2xfp.models.lm import HELD_OUT, as_tokens, load_model

    model = load_model().to(torch.bfloat16)
    module = model.get_submodule(layer)
    assert isinstance(module, torch.nn.Linear)
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(as_tokens(HELD_OUT.read_bytes()[:tokens]).long()[None])
    handle.remove()

    weight = get_format("m2xfp-weight").quantize(module.weight.detach())
    core = simulate_core(config, build_dir)
    x = seen[0][0]
    found, expected = core.linear(x, weight, progress=True), golden_linear(x, weight)
    n, k = weight.shape

    unit = find_unit("activation_quantizer")
    emitted, bench = emit(unit.instance("bf16x32"), build_dir / "verilog"), find_bench(unit)
    simulator = BulkSimulator(emitted, build_dir=build_dir)
    facts, arrays = simulator.facts, {"x": to_bits(found).reshape(-1, 32)}
    run = simulator.run(bench.encode(arrays, facts))
    planes = bench.decode(run.outputs, arrays, facts)
    again = bench.expected({"x": to_bits(expected).reshape(-1, 32)}, facts)
    differ = [(planes[n] != again[n]).reshape(len(again[n]), -1).any(axis=1) for n in again]
    return LinearRun(
        layer,
        config,
        len(x),
        n,
        k,
        core.clocks,
        len(x) * n * k / (core.clocks * (core.facts.macs_per_clock or 0)),
        int((to_bits(found) != to_bits(expected)).sum()),
        int(np.any(differ, axis=0).sum()),
    )


def _with_weight(
    compute: Callable[[Tensor, PackedTensor], Tensor], weight: PackedTensor
) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        return compute(x, weight)

    return forward


@contextmanager
def linear_layers_by(
    model: nn.Module, compute: Callable[[Tensor, PackedTensor], Tensor]
) -> Iterator[None]:
    """Within this context every linear layer of the model is ``compute(x, packed weight)``."""
    from m2xfp.golden import get_format
    from m2xfp.models.quantized import linear_layers

    layers = linear_layers(model)
    for layer in layers.values():
        weight = get_format("m2xfp-weight").quantize(layer.weight.detach())
        layer.__dict__["forward"] = _with_weight(compute, weight)  # in front of the class's own
    try:
        yield
    finally:
        for layer in layers.values():
            del layer.__dict__["forward"]


def compare_losses(
    build_dir: Path, windows: Tensor, *, config: str = "m2xfp-bf16-2x2"
) -> tuple[Tensor, Tensor, int]:
    """Return the losses of the bundled model with its linear layers in Verilog, and in golden.

    Parameters
    ----------
    build_dir
        Folder of emitted files and simulation models.
    windows
        int64 [n, length]: text.
    config
        A configuration of the core from bf16 to bf16.

    Returns
    -------
    Nats a token of each window, float64 [n], twice; and the clocks that the core took.
    """
    import torch

    from m2xfp.models.evaluate import window_nats
    from m2xfp.models.lm import load_model
    from m2xfp.progress import track

    core, model = simulate_core(config, build_dir), load_model().to(torch.bfloat16)
    with linear_layers_by(model, golden_linear):
        golden = window_nats(model, windows, batch=1)
    total = len(windows) * len(list(model.layers)) * 7
    with track(total=total, desc="linear layers in Verilog", unit="layer") as bar:

        def compute(x: Tensor, weight: PackedTensor) -> Tensor:
            y = core.linear(x, weight)
            bar.update()
            return y

        with linear_layers_by(model, compute):
            verilog = window_nats(model, windows, batch=1)
    return verilog, golden, core.clocks
