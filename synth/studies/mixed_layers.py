"""Linear layers of the bundled model in segments of MXFP4, MXFP6 and MXFP8, through the Verilog."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from m2xfp.errors import InputError, UnknownNameError
from m2xfp.formats import BF16, block_format
from m2xfp.rtl.catalog import Instance, find_unit
from m2xfp.rtl.verilog.emit import emit
from m2xfp.synth.studies.linear_layers import layer_reading
from m2xfp.tb.bench import find_bench
from m2xfp.tb.bulk.simulator import BulkSimulator
from m2xfp.tb.mixed_linear import product_of, simulate_mixed
from m2xfp.tb.parts.groups import join_planes

if TYPE_CHECKING:
    from torch import Tensor

    from m2xfp.golden.formats.mixed import Split
    from m2xfp.models.mixed import Plan
    from m2xfp.tb.parts.mixed_arrays import MixedProduct

__all__ = ["MixedRun", "core_of", "run_mixed"]

_CALIBRATION = 4  # windows of held-out text, the last ones, where no splits are given


def core_of() -> Instance:
    """Return the core that computes the bundled model: it takes segments of every rule."""
    return find_unit("mixed_gemm").instance("micromix-2x2", {"tile": 32})


@dataclass(frozen=True)
class MixedRun:
    """A linear layer in segments through the Verilog, compared with the golden model.

    Members
    -------
    rule, layer, config
        How channels were split, name in the model, and configuration of the core.
    m, n, k
        Tokens, outputs and inputs.
    segments
        Formats of activations and weights, and channels, of each segment.
    clocks
        Clocks that the core took.
    mismatches
        Results of which a bit differs.
    groups, groups_mismatched
        Groups of activations that the quantizers' Verilog gave, and how many of them differ.
    """

    rule: str
    layer: str
    config: str
    m: int
    n: int
    k: int
    segments: tuple[tuple[str, str, int], ...]
    clocks: int
    mismatches: int
    groups: int
    groups_mismatched: int

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not (self.mismatches or self.groups_mismatched)

    def __str__(self) -> str:
        """Return the result in words."""
        parts = ", ".join(f"{size} {act} x {weight}" for act, weight, size in self.segments)
        return (
            f"mixed_gemm {self.config}: {self.layer} by {self.rule} ({parts}), "
            f"[{self.m}, {self.k}] x [{self.n}, {self.k}]: {self.groups} quantized groups and "
            f"{self.m * self.n} results compared bit for bit in {self.clocks} clocks: "
            f"{self.groups_mismatched} and {self.mismatches} mismatches"
        )


def run_mixed(
    build_dir: Path,
    *,
    rule: str = "micromix:strength=2,tile=64",
    splits: Path | None = None,
    layer: str = "layers.0.mlp.gate_proj",
    tokens: int = 64,
    core: Instance | None = None,
) -> MixedRun:
    """Run a layer of the bundled model on held-out text through the emitted Verilog.

    What the layer reads, in bfloat16 and in the split's order, is quantized by the Verilog of the
    activation quantizer in each segment's format, and multiplied with the golden model's weights by
    that of the core.

    Parameters
    ----------
    build_dir
        Folder of emitted files and simulation models.
    rule
        As for ``m2xfp eval --mixed``; calibrated on the last windows of the held-out text.
    splits
        A file of ``m2xfp eval --save-splits``, in place of a rule.
    layer
        Name of a linear layer of the model.
    tokens
        Bytes of text, in windows that are evenly spread over it.
    core
        A mixed GEMM with any parameters; ``core_of()`` if left out.

    Raises
    ------
    UnknownNameError
        A layer that the model, or the file, does not have.
    InputError
        Segments that the core refuses, with the limits; more bytes than there are.
    """
    plan = _plan(rule, splits)
    core = core or core_of()
    if layer not in plan.splits:
        raise UnknownNameError("linear layer", layer, plan.splits)
    split = plan.splits[layer]

    def check(n: int, k: int) -> None:
        if split.order.numel() != k:
            raise InputError(f"splits: {layer} has {k} channels, the plan {split.order.numel()}")

    module, read = layer_reading(layer, tokens, check)
    acts = split.quantize(read, plan.rule.activations)
    weights = split.quantize(module.weight.detach(), plan.rule.weights)
    simulation = simulate_mixed(core, build_dir)
    wanted = product_of(acts, weights)
    simulation.streams.check(wanted)
    product, wrong = _quantized(wanted, read, split, build_dir)
    found = simulation.multiply(product, progress=True)
    expected = simulation.streams.golden(wanted)
    m, n, k = wanted.sizes
    return MixedRun(
        str(plan.rule),
        layer,
        core.config,
        m,
        n,
        k,
        tuple((part.act.name, part.weight.name, 32 * part.groups) for part in wanted.parts),
        simulation.clocks,
        int((found != expected).sum()),
        m * k // 32,
        wrong,
    )


def _plan(rule: str, splits: Path | None) -> Plan:
    """Return splits from a file, or by a rule from the bundled model on some of its text."""
    import torch

    from m2xfp.models.lm import HELD_OUT, as_tokens, load_model
    from m2xfp.models.mixed import Rule, calibrate, check_channels, load_plan
    from m2xfp.models.windows import cut_windows

    if splits is not None:
        return load_plan(splits)
    parsed = Rule.parse(rule)
    model = load_model().to(torch.bfloat16)
    layers = check_channels(model, (), parsed.tile)
    text = cut_windows(as_tokens(HELD_OUT.read_bytes()), model.config.context)
    return calibrate(model, layers, parsed, text[-_CALIBRATION:])


def _quantized(
    wanted: MixedProduct, read: Tensor, split: Split, build_dir: Path
) -> tuple[MixedProduct, int]:
    """Return a product with activations by the quantizer's Verilog, and how many groups differ."""
    from m2xfp.golden.bits import round_to_bits

    ordered = round_to_bits("bf16", read[:, split.order])
    parts, wrong, start = [], 0, 0
    for part in wanted.parts:
        stop = start + 32 * part.groups
        quantizer = find_unit("activation_quantizer").instance(
            None,
            {
                "input_type": BF16,
                "lanes": 32,
                "block": block_format(part.act.name),
                "scale_rule": "ceil",
                "zero_scale": 126,
            },
        )
        simulator = BulkSimulator(emit(quantizer, build_dir / "verilog"), build_dir=build_dir)
        bench, facts = find_bench(quantizer.unit), simulator.facts
        arrays: dict[str, Any] = {"x": ordered[:, start:stop].reshape(-1, 32)}
        planes = bench.decode(simulator.run(bench.encode(arrays, facts)).outputs, arrays, facts)
        groups = join_planes(planes, part.act).reshape(part.acts.shape)
        wrong += int(np.any(groups != part.acts, axis=-1).sum())
        parts.append(replace(part, acts=groups))
        start = stop
    return replace(wanted, parts=tuple(parts)), wrong
