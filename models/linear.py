"""The quantized linear layer: its weight stays packed, its input is quantized as it comes."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name PyTorch's documentation uses

from m2xfp.errors import InputError
from m2xfp.formats import E2M1, E8M0
from m2xfp.golden.formats.format import Format
from m2xfp.golden.formats.packed import PLANES, PackedTensor
from m2xfp.golden.formats.products import packed_linear
from m2xfp.golden.kernels.products_fused import MOST_ROWS
from m2xfp.models.arithmetic import FLOAT, Arithmetic
from m2xfp.models.inputs import InputQuantizer

__all__ = ["QuantLinear", "quant_layers"]

# Inputs of so many rows and fewer are packed, and kept for the layers that share them.
_MANY = 64
# Decoded weights are held so many values at a time.
_DECODED = 1 << 26


class QuantLinear(nn.Module):
    """A linear layer, y = x' W'^T + b, whose weight and input can both be quantized.

    A quantized weight stays packed, as parameters ``codes``, ``scales``, ``meta`` and
    ``tensor_scale`` on the layer's device, and is decoded when it is used. It takes no gradient;
    with ``float`` arithmetic its input does, straight through the quantizer, as
    ``Format.fake_quantize`` has it.

    Parameters
    ----------
    weight
        [out, in], in the type to compute in. With ``packed`` only its shape and type count.
    bias
        [out] or None; never quantized.
    packed
        The quantized weight, or None for one that is not quantized.
    inputs
        Quantizer of the input, or None.
    arithmetic
        How to multiply: an ``Arithmetic``, or ``float`` or ``hardware``. The latter takes packed
        weights and quantized inputs.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        packed: PackedTensor | None = None,
        inputs: InputQuantizer | None = None,
        arithmetic: Arithmetic | str = FLOAT,
    ) -> None:
        super().__init__()
        self.shape = weight.shape
        self.register_parameter("bias", None if bias is None else _frozen(bias))
        self.format = None if packed is None else packed.format
        if packed is None:
            self.weight = _frozen(weight)
        else:
            if packed.shape != weight.shape:
                raise InputError(
                    f"packed has shape {tuple(packed.shape)}, weight {tuple(weight.shape)}; they "
                    "must be equal"
                )
            for name, plane in packed.planes().items():
                # As integers, which a change of the model's type leaves alone.
                whole = plane.view(torch.int32) if name == "tensor_scale" else plane
                self.register_parameter(name, _frozen(whole))
        held = weight.device if packed is None else packed.device
        # Follows the type of the model, which a decoded weight takes.
        self.register_buffer(
            "_like", torch.empty(0, dtype=weight.dtype, device=held), persistent=False
        )
        self.inputs = inputs
        self.arithmetic = FLOAT
        self.compute_by(arithmetic)

    @classmethod
    def from_linear(
        cls,
        layer: nn.Linear,
        weights: Format | None,
        inputs: InputQuantizer | None = None,
        arithmetic: Arithmetic | str = FLOAT,
    ) -> "QuantLinear":
        """Quantize a layer: groups run along its inputs, the dimension that is summed over."""
        weight = layer.weight.detach()
        packed = None if weights is None else weights.quantize(weight)
        return cls(weight, layer.bias, packed, inputs, arithmetic)

    def compute_by(self, arithmetic: Arithmetic | str) -> None:
        """Multiply by this arithmetic from now on; InputError if the formats do not allow it."""
        if isinstance(arithmetic, str):
            arithmetic = Arithmetic(arithmetic)
        arithmetic.check(self.inputs.format if self.inputs else None, self.format)
        self.arithmetic = arithmetic

    @property
    def packed(self) -> PackedTensor | None:
        """The quantized weight, where the layer is; None if it is not quantized."""
        if self.format is None:
            return None
        own = self._parameters.items()
        planes = {n: p.detach() for n, p in own if n in PLANES and p is not None}
        if "tensor_scale" in planes:
            planes["tensor_scale"] = planes["tensor_scale"].view(torch.float32)
        return _joined(self.format, planes, self.shape)

    def __getattr__(self, name: str) -> Any:
        """Decode the weight of a packed layer, which has no parameter of that name."""
        if name == "weight" and self.__dict__.get("format") is not None:
            return self._rows(slice(None))
        return super().__getattr__(name)

    def _rows(self, rows: slice) -> Tensor:
        """Decode some rows of the packed weight, in the type of the model."""
        packed = self.packed
        assert packed is not None
        planes = {n: p[rows] if p.ndim else p for n, p in packed.planes().items()}
        shape = (len(planes["codes"]), self.in_features)
        part = _joined(packed.format, planes, torch.Size(shape))
        return part.dequantize(self._like.dtype)

    @property
    def in_features(self) -> int:
        """Inputs."""
        return self.shape[1]

    @property
    def out_features(self) -> int:
        """Outputs."""
        return self.shape[0]

    def _reads_packed(self, x: Tensor) -> bool:
        """Whether to multiply from the packed weight: a few rows, where reading it is all."""
        if x.device.type != "cuda" or x.dtype != torch.bfloat16:
            return False
        tracked = x.requires_grad and torch.is_grad_enabled()
        return not tracked and x.numel() <= MOST_ROWS * x.shape[-1]

    def _quantizes_at_once(self, x: Tensor) -> bool:
        """Whether inputs are quantized as they are multiplied: many, of a type served so."""
        if x.device.type != "cuda" or x.dtype != torch.bfloat16 or self.inputs is None:
            return False
        block = self.inputs.format.block
        return block.element is E2M1 and block.scale is E8M0 and x.numel() > _MANY * x.shape[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        packed = self.packed
        if self.arithmetic.hardware:
            assert self.inputs is not None
            assert packed is not None
            if self._quantizes_at_once(x):
                y = self.arithmetic.linear_of(x, self.inputs.format, packed, x.dtype)
            else:
                y = self.arithmetic.linear(self.inputs.pack(x), packed, x.dtype)
            return y if self.bias is None else y + self.bias
        x = x if self.inputs is None else self.inputs(x)
        if packed is None:
            return F.linear(x, self.weight, self.bias)
        if self._reads_packed(x):
            y = packed_linear(x, packed)
            return y if self.bias is None else y + self.bias
        step = max(1, _DECODED // max(1, self.in_features))
        if step >= self.out_features:
            return F.linear(x, self._rows(slice(None)), self.bias)
        parts = [
            F.linear(x, self._rows(slice(start, start + step)))
            for start in range(0, self.out_features, step)
        ]
        y = torch.cat(parts, -1)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """Show sizes and formats."""
        weights = self.format.name if self.format else None
        inputs = self.inputs.format.name if self.inputs else None
        text = f"{self.in_features}, {self.out_features}, weights={weights}, activations={inputs}"
        if self.arithmetic.hardware:
            text += f", arithmetic=hardware, accumulator={self.arithmetic.accumulator}"
        return text


def _joined(fmt: Format, planes: Mapping[str, Tensor], shape: torch.Size) -> PackedTensor:
    """Return planes as a packed tensor, without a look at values that a GPU would be waited for."""
    codes, scales = planes["codes"], planes["scales"]
    return PackedTensor(fmt, codes, scales, planes.get("meta"), shape, planes.get("tensor_scale"))


def _frozen(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach(), requires_grad=False)


def quant_layers(model: nn.Module) -> Iterator[tuple[str, QuantLinear]]:
    """Yield the quantized linear layers of a model by name."""
    return ((name, m) for name, m in model.named_modules() if isinstance(m, QuantLinear))
