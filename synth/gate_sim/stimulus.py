"""What units are fed in a gate-level run: tensors of the bundled model, and random ones, as jobs.

A job, or the vectors of a unit without streams, holds the golden model's results beside the inputs,
so a run for power is a regression of the mapped netlist as well. A new unit that power is to be
reported for adds its row to JOBS.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from m2xfp.errors import UnknownNameError
from m2xfp.facts import Facts
from m2xfp.formats import BlockFormat
from m2xfp.tb.vectors import Job, Vectors

if TYPE_CHECKING:
    from torch import Tensor

    from m2xfp.tb.units.dot_product import Bytes

__all__ = ["JOBS", "SOURCES", "Tensors", "job_for", "tensors"]

_WINDOWS = 8  # windows of held-out text that the bundled model reads


@dataclass(frozen=True)
class Tensors:
    """Groups to feed a unit with.

    Members
    -------
    lanes, depth
        Independent runs, and groups that each gets.
    activations, weights
        float32 [lanes * depth, 32].
    """

    lanes: int
    depth: int
    activations: "Tensor"
    weights: "Tensor"


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
    from m2xfp.models.evaluate import cut_windows
    from m2xfp.models.lm import HELD_OUT, as_tokens, load_model

    model = load_model()
    windows = cut_windows(as_tokens(HELD_OUT.read_bytes()), model.config.context)
    inputs = layer_inputs(model, windows[:_WINDOWS])
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
        starts = torch.arange(-(-groups // run)) * (len(rows) - run) // max(groups // run - 1, 1)
        starts = starts.clamp(max=len(rows) - run)
        return rows[(starts[:, None] + torch.arange(run)).flatten()[:groups]]

    activations, weights = _model_rows()
    return spread(activations), spread(weights)


SOURCES: dict[str, Callable[[int], tuple["Tensor", "Tensor"]]] = {
    "model": _model,
    "random": _random,
}


def tensors(source: str, lanes: int, depth: int) -> Tensors:
    """Return groups of one source; UnknownNameError lists the sources."""
    if source not in SOURCES:
        raise UnknownNameError("stimulus", source, SOURCES)
    return Tensors(lanes, depth, *SOURCES[source](lanes * depth))


def _values(which: str) -> Callable[[Facts, Tensors], Job]:
    """Return the job of a unit that reads floating-point groups, from one of the tensors."""

    def job(description: Facts, given: Tensors) -> Job:
        import torch

        from m2xfp.golden.bits import to_bits

        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
        kind = kinds[description.parameters["input_type"]]
        bench = import_module(f"m2xfp.tb.{description.unit}")
        made: Job = bench.make_job(description, to_bits(getattr(given, which).to(kind)))
        return made

    return job


def _packed(description: Facts, given: Tensors, count: int) -> tuple["Bytes", "Bytes"]:
    """Return ``count`` packed groups of activations and of weights, uint8 [count, bytes] each.

    Over again from the start, where there are not so many.
    """
    import torch

    from m2xfp.golden import get_format
    from m2xfp.tb.parts.mac_arrays import formats

    def side(block: BlockFormat, values: "Tensor") -> "Bytes":
        packed = get_format(block.name).quantize(values).groups()
        rows = packed.reshape(-1, packed.shape[-1])
        return rows[torch.arange(count) % len(rows)].numpy()

    act, weight = formats(description)
    return side(act, given.activations), side(weight, given.weights)


def _group_dot(description: Facts, given: Tensors) -> Job:
    """Return the exact products of activations with weights."""
    from m2xfp.tb.units.group_dot import make_job

    act, weight = _packed(description, given, given.lanes * given.depth)
    return make_job(description, act, weight)


def _sums(bench: str) -> Callable[[Facts, Tensors], Job]:
    """Return the job of a unit that accumulates, of as many steps as a lane has groups."""

    def job(description: Facts, given: Tensors) -> Job:
        import numpy as np

        from m2xfp.tb.parts.mac_arrays import chains

        turns = chains(description)
        steps, count = -(-given.depth // turns), given.lanes * turns
        sides = [
            np.ascontiguousarray(rows.reshape(count, steps, -1).swapaxes(0, 1))
            for rows in _packed(description, given, steps * count)
        ]
        first = np.zeros((steps, count), bool)
        first[0] = True
        made: Job = import_module(bench).make_job(description, *sides, first)
        return made

    return job


def _gemm(description: Facts, given: Tensors) -> Job:
    """Return four products a lane: recorded is the second, in which every cell multiplies.

    The first lets every output deliver a beat. The last two keep all inputs waiting, with one group
    of weights to load: beside a product of many rows the weights rest.
    """
    import numpy as np
    import torch

    from m2xfp.golden import get_format
    from m2xfp.golden.bits import to_bits
    from m2xfp.rtl.catalog import Instance
    from m2xfp.rtl.units.gemm_core import GemmCore
    from m2xfp.tb.parts.gemm_arrays import Product
    from m2xfp.tb.units.gemm_core import make_job

    core = Instance.of(description).component
    assert isinstance(core, GemmCore)
    pair = core.pair
    blocks = 3  # one of them whole within the record, wherever that begins
    small = (1, 1, 1)
    large = (blocks * core.rows * core.chains, core.columns, core.max_k // pair.group)
    sizes = [small, large, small, small] * given.lanes

    def cut(groups: "Bytes", shapes: list[tuple[int, int]]) -> list["Bytes"]:
        """Return matrices of groups, over again from the start where there are not so many."""
        ends = np.cumsum([rows * length for rows, length in shapes])
        return [
            groups.take(range(end - rows * length, end), axis=0, mode="wrap").reshape(
                rows, length, groups.shape[-1]
            )
            for end, (rows, length) in zip(ends, shapes, strict=True)
        ]

    weights = get_format(pair.weight.name).quantize(given.weights).groups()
    if core.activations:
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
        raw = to_bits(given.activations.to(kind[core.activations.name]))
        acts = np.ascontiguousarray(raw).view(np.uint8)
    else:
        packed = get_format(pair.act.name).quantize(given.activations).groups()
        acts = packed.reshape(-1, packed.shape[-1]).numpy()
    pieces = zip(
        cut(acts, [(m, k) for m, _, k in sizes]),
        cut(weights.reshape(-1, weights.shape[-1]).numpy(), [(n, k) for _, n, k in sizes]),
        strict=True,
    )
    return make_job(core, [Product(a, w, a.shape[1] * pair.group) for a, w in pieces], given.lanes)


def _decoder(_: Facts, given: Tensors) -> Vectors:
    """Return the subgroups of activations."""
    from m2xfp.formats import M2XFP_ACT
    from m2xfp.golden import get_format
    from m2xfp.tb.units.activation_decoder import make_vectors

    packed = get_format(M2XFP_ACT.name).quantize(given.activations).groups()
    return make_vectors(packed.reshape(-1, packed.shape[-1]).numpy(), given.lanes)


JOBS: dict[str, Callable[[Facts, Tensors], Job | Vectors]] = {
    "activation_decoder": _decoder,
    "activation_quantizer": _values("activations"),
    "dot_product": _sums("m2xfp.tb.units.dot_product"),
    "exact_accumulator": _sums("m2xfp.tb.units.fp32_accumulator"),
    "fp32_accumulator": _sums("m2xfp.tb.units.fp32_accumulator"),
    "gemm_core": _gemm,
    "group_dot": _group_dot,
    "pe_tile": _sums("m2xfp.tb.units.dot_product"),
    "weight_encoder": _values("weights"),
}


def job_for(description: Facts, source: str, lanes: int, depth: int) -> Job | Vectors | None:
    """Return a job that gives each lane ``depth`` groups at least, None if the unit has no row."""
    make = JOBS.get(description.unit)
    return make(description, tensors(source, lanes, depth)) if make else None
