"""What units are fed in a gate-level run: tensors of the bundled model, and random ones.

The unit's testbench makes vectors of them, which hold the golden model's results beside the inputs,
so a run for power is a regression of the mapped netlist as well.
"""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from m2xfp.errors import UnknownNameError
from m2xfp.facts import Facts
from m2xfp.tb.bench import Operands, bench_of
from m2xfp.tb.vectors import TestVectors

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SOURCES", "operands", "vectors_for"]

_WINDOWS = 8  # windows that the bundled model reads, evenly spread over the held-out text


def _random(groups: int) -> tuple["Tensor", "Tensor"]:
    """Return standard normal values."""
    import torch

    generator = torch.Generator().manual_seed(0)
    activations, weights = torch.randn(2, groups, 32, generator=generator)
    return activations, weights


@cache
def _model_rows() -> tuple["Tensor", "Tensor"]:
    """Return all groups of the layers' inputs on held-out text, and of the layers' weights."""
    import torch

    from m2xfp.models.activations import READERS, layer_inputs
    from m2xfp.models.lm import HELD_OUT, as_tokens, load_model
    from m2xfp.models.windows import cut_windows, spread

    model = load_model()
    windows = cut_windows(as_tokens(HELD_OUT.read_bytes()), model.config.context)
    inputs = layer_inputs(model, spread(windows, _WINDOWS))
    weights = [
        layer.weight.detach()
        for name, layer in model.named_modules()
        if name.rpartition(".")[2] in READERS
    ]
    return (
        torch.cat([x.float().reshape(-1, 32) for x in inputs.values()]),
        torch.cat([w.float().reshape(-1, 32) for w in weights]),
    )


def _model(groups: int) -> tuple["Tensor", "Tensor"]:
    """Return groups of the bundled model, neighbours kept together, spread over all its layers."""
    import torch

    def spread(rows: "Tensor") -> "Tensor":
        run = 32  # neighbouring groups that stay together: activity depends on them
        runs = -(-groups // run)
        starts = torch.arange(runs) * (len(rows) - run) // max(runs - 1, 1)
        return rows[(starts[:, None] + torch.arange(run)).flatten()[:groups]]

    activations, weights = _model_rows()
    return spread(activations), spread(weights)


SOURCES: dict[str, Callable[[int], tuple["Tensor", "Tensor"]]] = {
    "model": _model,
    "random": _random,
}


def operands(source: str, lanes: int, depth: int) -> Operands:
    """Return groups of one source; UnknownNameError lists the sources."""
    if source not in SOURCES:
        raise UnknownNameError("stimulus", source, SOURCES)
    return Operands(lanes, depth, *SOURCES[source](lanes * depth))


def vectors_for(facts: Facts, source: str, lanes: int, depth: int) -> TestVectors:
    """Return vectors that give each lane ``depth`` groups at least; UnknownNameError as above."""
    bench = bench_of(facts)
    return bench.vectors(bench.sample(operands(source, lanes, depth), facts), facts)
