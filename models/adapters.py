"""Adapters of PEFT on packed models: the packed weights stay, and what is trained comes on top."""

import warnings
from typing import Any

from m2xfp.errors import InputError
from m2xfp.extras import require
from m2xfp.models.linear import QuantLinear

__all__ = ["for_packed_layers"]


def for_packed_layers(config: Any) -> Any:
    """Let a ``peft.LoraConfig`` find packed layers, and return it.

    Name the layers in ``target_modules`` as ``["q_proj", "v_proj"]``; ``all-linear`` means only
    layers that are not packed. A configuration that was read from a file needs this call again, and
    is passed on as ``PeftModel.from_pretrained(model, folder, config=for_packed_layers(config))``.

    Parameters
    ----------
    config
        The ``LoraConfig``; changed in place.

    Raises
    ------
    InputError
        Another kind of adapter.
    MissingToolError
        PEFT is not installed.
    """
    require("peft")
    import peft
    from peft.tuners import lora

    if not isinstance(config, peft.LoraConfig):
        raise InputError(f"config is {type(config).__name__}; pass a peft.LoraConfig")

    class PackedLora(lora.Linear):
        """Low-rank factors on a packed layer; they cannot be merged into it."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            with warnings.catch_warnings():  # that this kind of layer is none that PEFT knows
                warnings.filterwarnings("ignore", "Unsupported layer type", UserWarning)
                super().__init__(*arguments, **options)

        def merge(self, *_: Any, **__: Any) -> None:
            raise InputError(
                "adapters cannot be merged into packed weights; merge them into the model that was "
                "quantized, and quantize the result"
            )

    config._register_custom_module({QuantLinear: PackedLora})
    return config
