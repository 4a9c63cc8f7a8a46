"""Linear layers of the bundled model through the emitted GEMM core, and in the golden model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.rtl.catalog import find_unit
from m2xfp.rtl.verilog.emit import emit
from m2xfp.tb.bench import find_bench
from m2xfp.tb.bulk.simulator import BulkSimulator, Run
from m2xfp.tb.parts.gemm_arrays import GemmStreams, Product, status_names, timing_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from m2xfp.golden.formats.packed import PackedTensor

__all__ = [
    "GemmSimulation",
    "LinearRun",
    "compare_losses",
    "golden_linear",
    "run_linear",
    "simulate_core",
]


class GemmSimulation:
    """A GEMM core in simulation.

    Parameters
    ----------
    simulator
        The emitted core.

    Members
    -------
    facts, streams, timing
        The core, the order of its beats, and its clocks.
    clocks
        That all linear layers took so far.
    """

    def __init__(self, simulator: BulkSimulator) -> None:
        self.simulator, self.facts = simulator, simulator.facts
        self.streams = GemmStreams(self.facts)
        self.clocks = 0
        self.timing = timing_of(self.facts)

    def run(
        self,
        products: list[Product],
        *,
        stall: float = 0.0,
        seed: int = 0,
        stamps: bool = False,
        progress: bool = False,
    ) -> tuple[list[NDArray[Any]], Run]:
        """Multiply; return the results, see ``GemmStreams.results``, and the run.

        Parameters
        ----------
        products
            One command each, played one after the other.
        stall, seed, stamps, progress
            As for ``BulkSimulator.run``.

        Raises
        ------
        InputError
            Sizes that the core does not support.
        AssertionError
            Results are missing, or a status is not success.
        """
        clocks = self.timing.finish([product.sizes for product in products])[-1]
        run = self.simulator.run(
            self.streams.inputs(products),
            stall=stall,
            seed=seed,
            stamps=stamps,
            progress=progress,
            cycle_limit=int((8 * clocks + 20_000) / (1 - stall) ** 3),
        )
        statuses = [status_names(int(row[0]), self.facts) for row in run.outputs["status"].data]
        assert statuses == [[] for _ in products], f"statuses {statuses}"
        return list(self.streams.results(run.outputs["o"], products)), run

    def linear(self, x: Tensor, weight: PackedTensor, *, progress: bool = False) -> Tensor:
        """Return x [..., k], quantized by the core, times the rows of ``weight`` [n, k].

        The core takes values of x's type; it gives fp32 or bf16, the type of the result.
        """
        import torch

        from m2xfp.golden.bits import from_bits, round_to_bits

        given = self.facts.parameters
        assert given["results"] in ("fp32", "bf16"), given["results"]
        group = self.streams.act.group
        rows = torch.nn.functional.pad(x.flatten(0, -2), (0, -x.shape[-1] % group))
        operands = Product(
            round_to_bits(given["activations"], rows), weight.groups().numpy(), rows.shape[1]
        )
        (found,), run = self.run([operands], stamps=True, progress=progress)
        self.clocks += int(run.stamps["o"][-1] - run.stamps["cmd"][0])
        return from_bits(given["results"], found).reshape(*x.shape[:-1], -1)


def golden_linear(x: Tensor, weight: PackedTensor) -> Tensor:
    """Return what ``GemmSimulation.linear`` must give: golden, in x's type."""
    from m2xfp.golden import get_format, matmul
    from m2xfp.golden.formats.numeric import round_once

    product = matmul(get_format("m2xfp-act").quantize(x), weight)
    return round_once(product.double(), x.dtype)  # one NaN, where torch's conversion gives several


def simulate_core(config: str, build_dir: Path) -> GemmSimulation:
    """Emit a configuration of the core and build its simulation, unless both are there."""
    emitted = emit(find_unit("gemm_core").instance(config), build_dir / "verilog")
    return GemmSimulation(BulkSimulator(emitted, build_dir=build_dir))


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
    from tqdm import tqdm

    from m2xfp.models.evaluate import window_nats
    from m2xfp.models.lm import load_model

    core, model = simulate_core(config, build_dir), load_model().to(torch.bfloat16)
    with linear_layers_by(model, golden_linear):
        golden = window_nats(model, windows, batch=1)
    total = len(windows) * len(list(model.layers)) * 7
    with tqdm(total=total, desc="linear layers in Verilog", unit="layer") as bar:

        def compute(x: Tensor, weight: PackedTensor) -> Tensor:
            y = core.linear(x, weight)
            bar.update()
            return y

        with linear_layers_by(model, compute):
            verilog = window_nats(model, windows, batch=1)
    return verilog, golden, core.clocks
