"""The golden model: what every unit computes, exactly, in PyTorch.

>>> import torch
>>> from m2xfp.golden import get_format
>>> packed = get_format("m2xfp-act").quantize(torch.randn(4, 64))
>>> packed.codes.shape, packed.scales.shape, packed.meta.shape
(torch.Size([4, 32]), torch.Size([4, 2]), torch.Size([4, 2]))
>>> packed.dequantize().dtype
torch.float32
"""

from m2xfp.golden.formats.format import Format, get_format
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.formats.products import dot, matmul
from m2xfp.golden.kernels.fused import computing

__all__ = ["Format", "PackedTensor", "computing", "dot", "get_format", "matmul"]
