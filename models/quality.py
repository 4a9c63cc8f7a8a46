"""How well formats represent known distributions: SQNR on reproducible samples."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from m2xfp.golden.formats.format import Format

__all__ = ["DISTRIBUTIONS", "sample", "sqnr"]

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
