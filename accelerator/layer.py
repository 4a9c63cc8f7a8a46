"""A linear layer on an accelerator, held against the golden model bit for bit."""

from dataclasses import dataclass

import torch
from torch import Tensor

from m2xfp.accelerator.device import Device
from m2xfp.golden.formats.products import matmul

__all__ = ["LayerRun", "run_layer"]


@dataclass(frozen=True)
class LayerRun:
    """A linear layer, quantized activations included, on an accelerator.

    Members
    -------
    m, n, k
        Tokens, outputs and inputs that were computed.
    outputs
        Outputs that the layer has.
    cycles
        Clocks in which descriptors ran.
    planes, results
        Bytes of packed activations, and results, that differ from golden's.
    """

    m: int
    n: int
    k: int
    outputs: int
    cycles: int
    planes: int
    results: int

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not (self.planes or self.results)

    def __str__(self) -> str:
        """Return the result in words."""
        return (
            f"{self.n} of {self.outputs} outputs for {self.m} tokens, k = {self.k}, "
            f"in {self.cycles} clocks: {self.planes} bytes of packed activations and "
            f"{self.results} results differ from the golden model's"
        )


def run_layer(device: Device, x: Tensor, weight: Tensor, outputs: int | None = None) -> LayerRun:
    """Quantize x [m, k] and multiply it by the first ``outputs`` rows of weight [n, k].

    Weights are packed by the golden model, activations by the accelerator. Results are FP32.
    """
    rows = weight[:outputs]
    packed = device.weights.quantize(rows)
    expected = device.acts.quantize(x)
    with device.borrow() as keep:
        values, right = keep(device.store(x)), keep(device.upload(packed))
        acts = keep(device.empty(*x.shape))
        out = keep(device.empty_values(len(x), len(rows), torch.float32))
        before = device.counts["cycles"]
        device.wait([device.submit_quantize(values, acts), device.submit_matmul(acts, right, out)])
        planes = device.download(acts).planes()
        found = device.load(out)
    golden = matmul(expected, packed, "fp32", torch.float32)
    return LayerRun(
        *(len(x), len(rows), x.shape[1], len(weight)),
        device.counts["cycles"] - before,
        sum(int((planes[name] != plane).sum()) for name, plane in expected.planes().items()),
        int((found.view(torch.int32) != golden.view(torch.int32)).sum()),
    )
