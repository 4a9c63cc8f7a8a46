"""Linear layers of the bundled model through the emitted GEMM core, and in the golden model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from m2xfp.errors import InputError, UnknownNameError
from m2xfp.formats import BlockFormat, block_format, input_type
from m2xfp.rtl.catalog import Instance, find_unit
from m2xfp.rtl.parts.gemm_cycles import GemmTiming
from m2xfp.rtl.verilog.emit import emit
from m2xfp.tb.bench import find_bench
from m2xfp.tb.bulk.simulator import BulkSimulator
from m2xfp.tb.linear import golden_linear, simulate_core

if TYPE_CHECKING:
    from torch import Tensor, nn

    from m2xfp.golden.formats.packed import PackedTensor

__all__ = ["LinearRun", "compare_losses", "default_core", "layer_reading", "run_linear"]


def default_core() -> Instance:
    """Return the core that computes the bundled model unless another is given."""
    return find_unit("gemm_core").instance("m2xfp-bf16-2x2")


@dataclass(frozen=True)
class LinearRun:
    """A linear layer through the Verilog, compared with the golden model.

    Members
    -------
    layer, config
        Name in the model, and configuration of the core with what was set otherwise.
    m, n, k
        Tokens, outputs and inputs.
    clocks, utilisation
        Clocks that the core took, and the share of its peak that this is.
    mismatches
        Results of which a bit differs; packed ones are counted by groups.
    groups, groups_mismatched
        Groups of the results, quantized again for the next layer, by the core if it does that, else
        by the activation quantizer; and how many of them differ.
    """

    layer: str
    config: str
    m: int
    n: int
    k: int
    clocks: int
    utilisation: float
    mismatches: int
    groups: int
    groups_mismatched: int

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not (self.mismatches or self.groups_mismatched)

    def __str__(self) -> str:
        """Return the result in words."""
        return (
            f"gemm_core {self.config}: {self.layer}, [{self.m}, {self.k}] x [{self.n}, {self.k}], "
            f"and quantized to packed groups again: {self.m * self.n} results and "
            f"{self.groups} groups compared bit for bit in {self.clocks} clocks, "
            f"{self.utilisation:.1%} of peak: {self.mismatches} and {self.groups_mismatched} "
            "mismatches"
        )


def run_linear(
    build_dir: Path,
    *,
    layer: str = "layers.0.mlp.gate_proj",
    tokens: int = 512,
    core: Instance | None = None,
) -> LinearRun:
    """Run a layer of the bundled model on held-out text through the emitted Verilog.

    What the layer reads, in bfloat16, is multiplied by the core's Verilog, quantized by it or, for
    a core that takes packed activations, by the golden model before. The results are quantized
    again by the activation quantizer's Verilog, unless the core gives packed ones.

    Parameters
    ----------
    build_dir
        Folder of emitted files and simulation models.
    layer
        Name of a linear layer of the model.
    tokens
        Bytes of text, in windows that are evenly spread over it.
    core
        A GEMM core with any parameters; ``default_core()`` if left out.

    Raises
    ------
    UnknownNameError
        A layer that the model does not have.
    InputError
        A layer that the core's buffers do not hold; results that the quantizer does not take;
        more bytes than there are.
    """
    from m2xfp.golden import get_format

    core = core or default_core()
    given, component = core.facts.parameters, cast(Any, core.component)

    def check(n: int, k: int) -> None:
        GemmTiming.of(component).check(tokens, n, k)

    module, read = layer_reading(layer, tokens, check)
    n, k = module.weight.shape
    packed, act = given["results"] == "packed", block_format(given["act"])
    if n % act.group:
        raise InputError(f"{layer}: its {n} outputs are no multiple of the group, {act.group}")
    quantizer = None if packed else _quantizer_of(given["results"], act)
    weight = get_format(given["weight"]).quantize(module.weight.detach())
    simulation = simulate_core(core, build_dir)
    product = simulation.product(read, weight)
    found, expected = simulation.multiply(product, progress=True), simulation.golden(product)
    wrong = (found != expected).reshape(-1, found.shape[-1] if packed else 1).any(axis=1)
    return LinearRun(
        layer,
        core.config,
        tokens,
        n,
        k,
        simulation.clocks,
        tokens * n * k / (simulation.clocks * (simulation.facts.macs_per_clock or 0)),
        int(wrong.sum()),
        tokens * n // act.group,
        _differently(found, expected, quantizer, build_dir) if quantizer else int(wrong.sum()),
    )


def layer_reading(
    layer: str, tokens: int, check: Callable[[int, int], None]
) -> tuple[nn.Linear, Tensor]:
    """Return a layer of the bundled model in bfloat16, and what it reads of held-out text.

    Parameters
    ----------
    layer
        Its name.
    tokens
        Bytes of text, in windows that are evenly spread over it.
    check
        Refuses sizes of the layer, outputs and inputs, before the model runs.

    Raises
    ------
    UnknownNameError
        A layer that the model does not have.
    InputError
        More bytes than there are.
    """
    import torch

    from m2xfp.models.lm import HELD_OUT, as_tokens, load_model
    from m2xfp.models.quantized import linear_layers
    from m2xfp.models.windows import cut_windows, spread

    model = load_model().to(torch.bfloat16)
    layers = linear_layers(model)
    if layer not in layers:
        raise UnknownNameError("linear layer", layer, layers)
    module = layers[layer]
    check(*module.weight.shape)
    text = cut_windows(as_tokens(HELD_OUT.read_bytes()), model.config.context)
    if tokens > text.numel():
        raise InputError(
            f"tokens={tokens}: the held-out text has {text.numel()}; give at most these"
        )
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    with torch.no_grad():
        for window in spread(text, -(-tokens // text.shape[1])):
            model(window[None])
    handle.remove()
    return module, torch.cat(seen)[:tokens]


def _quantizer_of(results: str, act: BlockFormat) -> Instance:
    """Return the activation quantizer from a core's results to the format of its activations."""
    unit = find_unit("activation_quantizer")
    changes = {"input_type": input_type(results), "block": act, "lanes": act.group}
    quantizer = unit.instance(None, changes)
    quantizer.component  # noqa: B018 (refuses what it does not take, before anything runs)
    return quantizer


def _differently(
    found: NDArray[Any], expected: NDArray[Any], quantizer: Instance, build_dir: Path
) -> int:
    """Return how many groups of ``found`` the quantizer's Verilog gives otherwise than golden.

    ``found`` and ``expected``, patterns [m, n], are what the core's Verilog and golden gave.
    """
    simulator = BulkSimulator(emit(quantizer, build_dir / "verilog"), build_dir=build_dir)
    bench, facts = find_bench(quantizer.unit), simulator.facts
    group = block_format(facts.parameters["block"]).group
    arrays = {"x": found.reshape(-1, group)}
    run = simulator.run(bench.encode(arrays, facts))
    planes = bench.decode(run.outputs, arrays, facts)
    again = bench.expected({"x": expected.reshape(-1, group)}, facts)
    differ = [(planes[n] != again[n]).reshape(len(again[n]), -1).any(axis=1) for n in again]
    return int(np.any(differ, axis=0).sum())


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
    build_dir: Path, windows: Tensor, *, core: Instance | None = None
) -> tuple[Tensor, Tensor, int]:
    """Return the losses of the bundled model with its linear layers in Verilog, and in golden.

    Parameters
    ----------
    build_dir
        Folder of emitted files and simulation models.
    windows
        int64 [n, length]: text.
    core
        A GEMM core of M2XFP from bf16 to bf16; ``default_core()`` if left out.

    Returns
    -------
    Nats a token of each window, float64 [n], twice; and the clocks that the core took.
    """
    import torch

    from m2xfp.models.evaluate import window_nats
    from m2xfp.models.lm import load_model
    from m2xfp.progress import track

    simulation = simulate_core(core or default_core(), build_dir)
    model = load_model().to(torch.bfloat16)
    with linear_layers_by(model, golden_linear):
        golden = window_nats(model, windows, batch=1)
    total = len(windows) * len(list(model.layers)) * 7
    with track(total=total, desc="linear layers in Verilog", unit="layer") as bar:

        def compute(x: Tensor, weight: PackedTensor) -> Tensor:
            y = simulation.linear(x, weight)
            bar.update()
            return y

        with linear_layers_by(model, compute):
            verilog = window_nats(model, windows, batch=1)
    return verilog, golden, simulation.clocks
