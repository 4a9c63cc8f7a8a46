"""Other libraries' quantizers, to time beside ours where they are installed.

None is needed, and none decides a bit of ours: docs/formats-conformance.md has where they differ.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

__all__ = ["PEERS", "Peer", "peers_of"]

FakeQuantize = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Peer:
    """A library.

    Members
    -------
    package, module
        Its name for pip, and what is imported.
    make
        Returns its fake-quantizer of a format by our name, or None; imports the library.
    compiles
        Whether it is meant to be used under ``torch.compile``: timed so too.
    """

    package: str
    module: str
    make: Callable[[str, torch.device], FakeQuantize | None]
    compiles: bool = False

    @property
    def name(self) -> str:
        """Name and version."""
        try:
            return f"{self.package} {version(self.package)}"
        except PackageNotFoundError:
            return self.package


def _torchao(name: str, device: torch.device) -> FakeQuantize | None:
    if name == "nvfp4":
        from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor

        return lambda x: NVFP4Tensor.to_nvfp4(x).dequantize(x.dtype)
    elements: dict[str, Any] = {
        "mxfp4": torch.float4_e2m1fn_x2,
        "mxfp6-e2m3": "fp6_e2m3",
        "mxfp6-e3m2": "fp6_e3m2",
        "mxfp8-e4m3": torch.float8_e4m3fn,
        "mxfp8-e5m2": torch.float8_e5m2,
    }
    if name not in elements:
        return None
    from torchao.prototype.mx_formats.mx_tensor import MXTensor

    element = elements[name]
    return lambda x: MXTensor.to_mx(x, element, 32).dequantize(x.dtype)


def _modelopt(name: str, device: torch.device) -> FakeQuantize | None:
    """NVIDIA's Triton kernel: two levels, the tensor's largest magnitude given."""
    if name != "nvfp4" or device.type != "cuda":
        return None
    if torch.cuda.get_device_capability(device) >= (8, 9):
        from modelopt.torch.kernels.quantization.gemm.fp4_kernel_hopper import fp4_fake_quant_block
    else:
        return None

    def run(x: Tensor) -> Tensor:
        found: Tensor = fp4_fake_quant_block(x, torch.full((), 6.0 * 448, device=x.device))
        return found

    return run


def _microxcaling(name: str, device: torch.device) -> FakeQuantize | None:
    elements = {
        "mxfp4": "fp4_e2m1",
        "mxfp6-e2m3": "fp6_e2m3",
        "mxfp6-e3m2": "fp6_e3m2",
        "mxfp8-e4m3": "fp8_e4m3",
        "mxfp8-e5m2": "fp8_e5m2",
        "mxint8": "int8",
    }
    if name not in elements:
        return None
    from mx.mx_ops import _quantize_mx

    def run(x: Tensor) -> Tensor:
        found: Tensor = _quantize_mx(
            x, 8, elements[name], axes=[-1], block_size=32, round="even", custom_cuda=False
        )
        return found

    return run


PEERS = (
    Peer("torchao", "torchao", _torchao, compiles=True),
    Peer("nvidia-modelopt", "modelopt", _modelopt),
    Peer("microxcaling", "mx", _microxcaling),
)


def peers_of(
    name: str, x: Tensor, report: Callable[[str], object] = lambda text: None
) -> Iterator[tuple[str, FakeQuantize]]:
    """Give the installed peers' fake-quantizers of a format, by name, tried on a little of ``x``.

    Parameters
    ----------
    name
        One of our formats, without options.
    x
        [rows, K] of the type and device to quantize on.
    report
        Told in words which one is installed and does not run, and why.
    """
    for peer in PEERS:
        if find_spec(peer.module) is None:
            continue
        ways: list[tuple[str, FakeQuantize]] = []
        try:
            made = peer.make(name, x.device)
            if made is None:
                continue
            ways.append((peer.name, made))
            if peer.compiles:
                ways.append((f"{peer.name}, torch.compile", torch.compile(made)))
        except Exception as error:  # a peer may fail in any way: it is left out, with its reason
            report(_reason(peer.name, name, error))
        for label, way in ways:
            try:
                if way(x[:64]).shape != x[:64].shape:
                    raise ValueError("the result has another shape")
            except Exception as error:
                report(_reason(label, name, error))
                continue
            yield label, way


def _reason(label: str, name: str, error: Exception) -> str:
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{label} does not quantize {name} here: {said}"
