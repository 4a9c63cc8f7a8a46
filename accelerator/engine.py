"""The accelerator as the engine of a language model: weights and caches in its memory."""

from collections.abc import Mapping

from torch import Tensor

from m2xfp.accelerator.attention import AttentionCache
from m2xfp.accelerator.device import Device
from m2xfp.accelerator.memory import value_type
from m2xfp.golden.formats.packed import PackedTensor

__all__ = ["DeviceEngine"]


class DeviceEngine:
    """Linear layers and the products of attention on an accelerator (``models.generate.Engine``).

    Parameters
    ----------
    device
        The accelerator.
    weights
        Packed weights by name; they are uploaded once.
    layers, heads, width, context
        Blocks of the model, heads of each, values of a head, and most tokens.
    """

    def __init__(
        self,
        device: Device,
        weights: Mapping[str, PackedTensor],
        *,
        layers: int,
        heads: int,
        width: int,
        context: int,
    ) -> None:
        self.device = device
        self._weights = {name: device.upload(packed) for name, packed in weights.items()}
        self._caches = [AttentionCache(device, heads, width, context) for _ in range(layers)]

    def linear(self, x: Tensor, *names: str) -> list[Tensor]:
        """Return the outputs of layers that read one x [m, k]: it is quantized once."""
        device, kind = self.device, value_type(x.dtype, "x")
        with device.borrow() as keep:
            values = keep(device.store(x))
            packed = keep(device.empty(len(x), x.shape[-1]))
            jobs, outs = [device.submit_quantize(values, packed)], []
            for name in names:
                weights = self._weights[name]
                outs.append(keep(device.empty_values(len(x), weights.rows, kind)))
                jobs.append(device.submit_matmul(packed, weights, outs[-1]))
            device.wait(jobs)
            return [device.load(out).to(x.dtype) for out in outs]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Encode keys and values into the cache of a block."""
        self._caches[layer].append(keys, values)

    def scores(self, layer: int, queries: Tensor) -> Tensor:
        """Return queries times the keys of a block."""
        return self._caches[layer].scores(queries)

    def mix(self, layer: int, probabilities: Tensor) -> Tensor:
        """Return probabilities times the values of a block."""
        return self._caches[layer].mix(probabilities)

    def cache(self) -> list[tuple[PackedTensor, PackedTensor]]:
        """Return what the caches hold, byte by byte as it lies in the accelerator's memory."""
        return [cache.packed() for cache in self._caches]
