"""How quantized layers multiply: in floating point on decoded values, or as the hardware does.

``float``: the type of the model on quantized values, at the speed of the machine's own products.
``hardware``: every product is ``m2xfp.golden.matmul`` of packed operands, its float32 result
rounded once to the type of the model, so the model gives what it gives on the chip, bit for bit.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from m2xfp.errors import InputError
from m2xfp.golden.formats.format import Format
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.formats.products import (
    ACCUMULATORS,
    batched_matmul,
    matmul,
    quantized_matmul,
)

__all__ = ["FLOAT", "MODES", "Arithmetic"]

MODES = ("float", "hardware")


@dataclass(frozen=True)
class Arithmetic:
    """The arithmetic of products.

    Members
    -------
    mode
        ``float`` or ``hardware``.
    accumulator
        Of ``hardware``: ``fp32``, ``fp32_subgroup`` or ``exact``, see ``m2xfp.golden.matmul``.
    """

    mode: str = "float"
    accumulator: str = "fp32"

    def __post_init__(self) -> None:
        """Refuse names that are none."""
        if self.mode not in MODES:
            raise InputError(f"arithmetic={self.mode!r}; choose one of: {', '.join(MODES)}")
        if self.accumulator not in ACCUMULATORS:
            raise InputError(
                f"accumulator={self.accumulator!r}; choose one of: {', '.join(ACCUMULATORS)}"
            )
        if not self.hardware and self.accumulator != "fp32":
            raise InputError("an accumulator is one of arithmetic='hardware'; choose both")

    @property
    def hardware(self) -> bool:
        """Whether products are those of the hardware."""
        return self.mode == "hardware"

    def check(self, left: Format | None, right: Format | None) -> None:
        """Raise InputError unless both formats are there and multiply; ``float`` takes any."""
        if not self.hardware:
            return
        if left is None or right is None:
            raise InputError(
                "arithmetic='hardware' multiplies packed operands; give a format for the weights "
                "and one for the activations"
            )
        _try(left, right, self.accumulator)

    def linear(self, x: PackedTensor, weight: PackedTensor, dtype: torch.dtype) -> Tensor:
        """Return x [..., K] times the rows of weight [N, K], in ``dtype``."""
        return matmul(x, weight, self.accumulator, dtype)

    def linear_of(self, x: Tensor, fmt: Format, weight: PackedTensor, dtype: torch.dtype) -> Tensor:
        """Return what ``linear`` does for x [..., K] quantized to a format."""
        return quantized_matmul(x, fmt, weight, self.accumulator, dtype)

    def batched(self, a: PackedTensor, b: PackedTensor, dtype: torch.dtype) -> Tensor:
        """Return a [..., M, K] times the rows of b [..., N, K], in ``dtype``."""
        return batched_matmul(a, b, self.accumulator, dtype)


FLOAT = Arithmetic()


@cache
def _try(left: Format, right: Format, accumulator: str) -> None:
    """Multiply nothing; InputError says why formats or accumulator do not go together."""
    none = torch.zeros(1, 1, dtype=torch.float32, device="cpu")
    matmul(left.quantize(none), right.quantize(none), accumulator)
