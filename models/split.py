"""A model whose quantized layers are split over the processes of a ``torch.distributed`` group.

Each process keeps some outputs of every quantized layer and computes those; between layers all
have all of them. With the hardware's arithmetic the results are those of one process, bit for bit.
"""

import torch
from torch import Tensor, distributed, nn

from m2xfp.golden.formats.parallel import Share, gather_columns
from m2xfp.models.arithmetic import Arithmetic
from m2xfp.models.linear import QuantLinear
from m2xfp.models.quantized import replace_module

__all__ = ["SplitLinear", "is_split", "split_model"]


class SplitLinear(nn.Module):
    """A quantized layer of which this process keeps some outputs; no gradient passes.

    Parameters
    ----------
    layer
        The whole layer; it is left as it is.
    group
        The processes that share it; None for all of the program.
    """

    def __init__(self, layer: QuantLinear, group: distributed.ProcessGroup | None = None) -> None:
        super().__init__()
        self.share = Share.of(layer.out_features, group)
        rows, packed = self.share.rows, layer.packed
        bias = None if layer.bias is None else layer.bias.detach()[rows].clone()
        if packed is None:
            weight, part = layer.weight.detach()[rows].clone(), None
        else:
            part = self.share.take(packed)
            weight = torch.empty(part.shape, dtype=layer._like.dtype, device="meta")
        self.part = QuantLinear(weight, bias, part, layer.inputs, layer.arithmetic)

    @property
    def arithmetic(self) -> Arithmetic:
        """How the layer multiplies."""
        return self.part.arithmetic

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        return gather_columns(self.part(x), self.share)

    def extra_repr(self) -> str:
        """Show whose share it is."""
        return f"{self.share.total} outputs, process {self.share.rank} of {self.share.size}"


def split_model(model: nn.Module, group: distributed.ProcessGroup | None = None) -> nn.Module:
    """Replace every quantized layer by this process's share of it; return the model.

    Call it in every process of the group, with the same model; what is not quantized stays whole.
    A model that is a quantized layer itself is not changed, the new one is returned.
    """
    for layer in [m for m in model.modules() if isinstance(m, QuantLinear)]:
        model = replace_module(model, layer, SplitLinear(layer, group))
    return model


def is_split(model: nn.Module) -> bool:
    """Whether processes compute the model together."""
    return any(isinstance(m, SplitLinear) and m.share.size > 1 for m in model.modules())
