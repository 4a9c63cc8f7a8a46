"""How well formats represent known distributions: SQNR on reproducible samples."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from m2xfp.formats import BLOCK_FORMATS
from m2xfp.golden.formats.format import Format, get_format
from m2xfp.models.activations import READERS
from m2xfp.results import read_figures
from m2xfp.tables import aligned_table

__all__ = ["DISTRIBUTIONS", "input_sqnr", "measure_sqnr", "sample", "sqnr", "sqnr_table", "tables"]

Draw = Callable[[np.random.Generator, tuple[int, int]], npt.NDArray[np.float64]]


def _lognormal(rng: np.random.Generator, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Sigma 3, random sign, clipped at 6e4."""
    return np.minimum(rng.lognormal(0.0, 3.0, shape), 6e4) * rng.choice([-1.0, 1.0], shape)


DISTRIBUTIONS: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "laplace": lambda rng, shape: rng.laplace(size=shape),
    "t3": lambda rng, shape: rng.standard_t(3, shape),
    "lognormal": _lognormal,
}


def sample(name: str, groups: int = 4000, seed: int = 0) -> Tensor:
    """Return bfloat16 [groups, 32] of a named distribution; the same on every machine."""
    values = DISTRIBUTIONS[name](np.random.default_rng(seed), (groups, 32))
    return torch.from_numpy(values).float().bfloat16()


def sqnr(fmt: Format, x: Tensor) -> float:
    """Return 10 log10(sum x^2 / sum (x - q)^2) in dB, q the float32 values that ``fmt`` stores."""
    exact = x.double()
    noise = (exact - fmt.quantize(x).dequantize().double()).square().sum()
    return float(10 * torch.log10(exact.square().sum() / noise))


def input_sqnr(inputs: Mapping[str, Tensor], formats: Sequence[Format]) -> dict[str, list[float]]:
    """Return the SQNR in dB of each format by kind of layer input, and of all inputs together.

    Parameters
    ----------
    inputs
        What layers read, by their name, see ``layer_inputs``.
    formats
        What to quantize them to.
    """
    from m2xfp.progress import track

    powers = {kind: [0.0] * (1 + len(formats)) for kind in (*READERS.values(), "all")}
    for name, x in track(inputs.items(), desc="SQNR", unit="tensor"):
        signal = x.double()
        errors = [signal] + [fmt.quantize(x).dequantize().double() - signal for fmt in formats]
        for kind in (READERS[name.rpartition(".")[2]], "all"):
            for index, error in enumerate(errors):
                powers[kind][index] += error.square().sum().item()
    return {
        kind: [10 * math.log10(signal / noise) for noise in noises]
        for kind, (signal, *noises) in powers.items()
    }


def measure_sqnr(groups: int, seed: int) -> dict[str, Any]:
    """Measure every format, with two levels of scales where it can have them, on every sample."""
    from m2xfp.progress import track

    samples = {name: sample(name, groups, seed) for name in DISTRIBUTIONS}
    rows = []
    for name, block in track(BLOCK_FORMATS.items(), desc="SQNR", unit="format"):
        options = {"tensor_scale": "auto"} if block.scale.name == "e4m3" else {}
        fmt = get_format(name, **options)
        rows.append(
            {
                "format": name + "".join(f", {key}={value}" for key, value in options.items()),
                "bits_per_value": float(fmt.block.bits_per_value),
                **{label: round(sqnr(fmt, x), 1) for label, x in samples.items()},
            }
        )
    return {"groups": groups, "seed": seed, "rows": rows}


def sqnr_table(figures: Mapping[str, Any]) -> str:
    """Return figures of ``measure_sqnr`` as markdown."""
    rows = [("format", "bits/value", *DISTRIBUTIONS)]
    rows += [
        (
            row["format"],
            f"{row['bits_per_value']:g}",
            *(f"{row[name]:.1f}" for name in DISTRIBUTIONS),
        )
        for row in figures["rows"]
    ]
    how = f"{figures['groups']} groups of 32, seed {figures['seed']}"
    return f"SQNR in dB, bfloat16, {how}.\n\n{aligned_table(rows)}"


def tables(results: Path) -> dict[str, str]:
    """Return the accepted table, ``sqnr``."""
    path = results / "sqnr.json"
    return {"sqnr": sqnr_table(read_figures(path))} if path.exists() else {}
