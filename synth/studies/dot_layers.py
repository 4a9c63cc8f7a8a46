"""Linear layers of the bundled model through the emitted dot products, and in the golden model.

Each result is a dot product of packed groups, or one for each segment of mixed formats, whose parts
are rounded to bfloat16 as MicroMix' kernels do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from m2xfp.errors import InputError, UnknownNameError
from m2xfp.formats import block_format
from m2xfp.rtl.catalog import Instance, find_unit
from m2xfp.rtl.verilog.emit import emit
from m2xfp.tb.bench import Arrays, find_bench
from m2xfp.tb.bulk.simulator import BulkSimulator

if TYPE_CHECKING:
    from torch import Tensor

    from m2xfp.golden.formats.packed import PackedTensor

__all__ = ["LAYERS", "DotLayerRun", "run_dot_layer"]


@dataclass(frozen=True)
class DotLayerRun:
    """A linear layer through the Verilog of a dot product, compared with the golden model.

    Members
    -------
    unit, config
        Whose Verilog.
    layer, what
        Name in the model, and its formats.
    m, n, k
        Tokens, outputs and inputs.
    groups, clocks
        Pairs of groups, and clocks that the Verilog took for them.
    mismatches
        Results of which a bit differs.
    """

    unit: str
    config: str
    layer: str
    what: str
    m: int
    n: int
    k: int
    groups: int
    clocks: int
    mismatches: int

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not self.mismatches

    def __str__(self) -> str:
        """Return the result in words."""
        return (
            f"{self.unit} {self.config}: {self.layer}, [{self.m}, {self.k}] x [{self.n}, {self.k}] "
            f"in {self.what}: {self.m * self.n} results from {self.groups} pairs of groups "
            f"compared bit for bit in {self.clocks} clocks: {self.mismatches} mismatches"
        )


def _reads(layer: str, tokens: int) -> tuple[Tensor, Tensor]:
    """Return what a layer reads of a window of text, bfloat16 [tokens, K], and its weight."""
    import torch

    from m2xfp.models.activations import layer_inputs
    from m2xfp.models.lm import HELD_OUT, as_tokens, load_model
    from m2xfp.models.quantized import linear_layers
    from m2xfp.models.windows import cut_windows, spread

    model = load_model().to(torch.bfloat16)
    layers = linear_layers(model)
    windows = spread(cut_windows(as_tokens(HELD_OUT.read_bytes()), model.config.context), 1)
    with torch.no_grad():
        read = layer_inputs(model, windows)
    if layer not in read:
        raise UnknownNameError("linear layer with inputs of its own", layer, read)
    if tokens > windows.numel():
        raise InputError(f"tokens={tokens}: a window has {windows.numel()}; give at most these")
    return read[layer][:tokens], layers[layer].weight.detach()


def _all_pairs(a: PackedTensor, w: PackedTensor) -> list[np.ndarray]:
    """Return the packed groups of every row of a with every row of w: [m * n * groups, bytes]."""
    rows, columns = a.groups().numpy(), w.groups().numpy()
    m, n = len(rows), len(columns)
    left = np.repeat(rows, n, axis=0)
    right = np.tile(columns, (m, 1, 1))
    return [side.reshape(-1, side.shape[-1]) for side in (left, right)]


def _play(made: Instance, build_dir: Path, arrays: Arrays) -> tuple[np.ndarray, int]:
    """Return the accumulators after each group, float32, and the clocks."""
    simulator = BulkSimulator(emit(made, build_dir / "verilog"), build_dir=build_dir)
    bench = find_bench(made.unit)
    run = simulator.run(bench.encode(arrays, simulator.facts), progress=True)
    acc = bench.decode(run.outputs, arrays, simulator.facts)["acc"]
    return np.asarray(acc, np.uint32).view(np.float32), run.cycles


def _asymmetric(
    made: Instance, layer: str, x: Tensor, weight: Tensor, build_dir: Path
) -> DotLayerRun:
    """Run a layer whose activations have a scale for each sign."""
    from m2xfp.golden import get_format, matmul
    from m2xfp.tb.parts.pairs import pairs

    names = [made.facts.parameters[side] for side in ("act", "weight")]
    qa, qw = (get_format(n).quantize(v) for n, v in zip(names, (x, weight), strict=True))
    left, right = _all_pairs(qa, qw)
    length = len(left) // (len(x) * len(weight))
    first = np.arange(len(left)) % length == 0
    acc, clocks = _play(made, build_dir, pairs(left, right, made.facts) | {"first": first})
    wanted = matmul(qa, qw).numpy().reshape(-1)
    return DotLayerRun(
        made.unit.name,
        made.config,
        layer,
        " x ".join(names),
        len(x),
        weight.shape[0],
        weight.shape[1],
        len(first),
        clocks,
        _differing(acc[length - 1 :: length], wanted),
    )


def _mixed(made: Instance, layer: str, x: Tensor, weight: Tensor, build_dir: Path) -> DotLayerRun:
    """Run a layer of which channels are split into segments of MXFP4, MXFP6 and MXFP8."""
    import torch

    from m2xfp.golden.formats.mixed import SEGMENTS, micromix_split, mixed_matmul
    from m2xfp.golden.formats.numeric import add_to_odd, round_once
    from m2xfp.tb.parts.switch_groups import side_arrays

    split = micromix_split(x, strength=4.0)
    a, w = split.quantize(x), split.quantize(weight)
    parts: list[Arrays] = []
    for qa, qw in zip(a.segments, w.segments, strict=True):
        left, right = _all_pairs(qa, qw)
        length = qa.shape[-1] // qa.format.block.group
        arrays = side_arrays(left, block_format(qa.format.name), "a_")
        arrays |= side_arrays(right, block_format(qw.format.name), "w_")
        arrays["first"] = np.arange(len(left)) % length == 0
        # By results, so that the segments of one come after each other.
        parts.append({n: v.reshape(len(x) * len(weight), length, -1) for n, v in arrays.items()})
    whole: Arrays = {}
    for name in parts[0]:
        if name.endswith("meta"):
            continue
        joined = np.concatenate([part[name] for part in parts], axis=1)
        whole[name] = joined.reshape(-1, joined.shape[-1]).squeeze(
            -1 if joined.shape[-1] == 1 else ()
        )
    acc, clocks = _play(made, build_dir, whole)
    ends = np.cumsum([part["first"].shape[1] for part in parts])
    sums = acc.reshape(len(x), len(weight), -1)[..., ends - 1]
    result = torch.zeros(sums.shape[:2], dtype=torch.float64)
    for number in range(len(parts)):
        total = add_to_odd(result, torch.from_numpy(sums[..., number].astype(np.float64)))
        result = round_once(total, torch.bfloat16).double()
    wanted = mixed_matmul(a, w).double()
    sizes = zip(split.sizes, SEGMENTS, strict=True)
    return DotLayerRun(
        made.unit.name,
        made.config,
        layer,
        " + ".join(f"{size} {name}" for size, name in sizes if size),
        len(x),
        weight.shape[0],
        weight.shape[1],
        len(whole["first"]),
        clocks,
        _differing(result.numpy().reshape(-1), wanted.numpy().reshape(-1)),
    )


def _differing(found: np.ndarray, wanted: np.ndarray) -> int:
    """Return how many numbers of one type differ in a bit."""
    assert found.dtype == wanted.dtype
    word = f"u{found.dtype.itemsize}"
    return int((np.ascontiguousarray(found).view(word) != wanted.view(word)).sum())


LAYERS: dict[str, tuple[str, str, Callable[..., DotLayerRun]]] = {
    "asymmetric": ("asymmetric_dot_product", "layers.0.mlp.gate_proj", _asymmetric),
    "mixed": ("switching_dot_product", "layers.0.mlp.down_proj", _mixed),
}
"""Kinds of layers: the unit that computes one, a layer of the model, and what runs it."""


def run_dot_layer(
    kind: str,
    build_dir: Path,
    *,
    layer: str | None = None,
    tokens: int = 8,
    config: str | None = None,
) -> DotLayerRun:
    """Run a layer of the bundled model on held-out text through a dot product's Verilog.

    Parameters
    ----------
    kind
        ``asymmetric``: AMXFP4 activations. ``mixed``: MicroMix's split of the channels into MXFP4,
        MXFP6 and MXFP8, calibrated on the same text.
    build_dir
        Folder of emitted files and simulation models.
    layer
        Name of a linear layer that has inputs of its own; of ``mixed`` with a multiple of 128.
    tokens
        Bytes of text, of one window.
    config
        Configuration of the unit, accumulating in FP32.

    Raises
    ------
    UnknownNameError
        No such kind, layer or configuration.
    InputError
        More bytes than a window has, channels that are no multiple of 128, or a unit that does not
        accumulate in FP32.
    """
    if kind not in LAYERS:
        raise UnknownNameError("kind of layer", kind, LAYERS)
    unit, usual, run = LAYERS[kind]
    made = find_unit(unit).instance(config)
    if made.facts.parameters["window"] is not None:
        raise InputError(f"config={config}: has an exact accumulation; take one in FP32")
    x, weight = _reads(layer or usual, tokens)
    return run(made, layer or usual, x, weight, build_dir)
