"""Running out of memory, said with what was needed and what would help."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from m2xfp.errors import M2xfpError

__all__ = ["MemoryShortError", "explained"]

# What PyTorch's allocator of main memory says.
_CPU_SHORT = ("not enough memory", "can't allocate memory", "Cannot allocate memory")


class MemoryShortError(M2xfpError, torch.OutOfMemoryError):
    """No memory on the device for a result; the text names what was needed and what would help."""


def explained(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Say in a MemoryShortError what a function was about when memory runs out in it."""

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def inside(*arguments: Any, **named: Any) -> Any:
            try:
                return function(*arguments, **named)
            except RuntimeError as error:
                if isinstance(error, MemoryShortError) or not _is_short(error):
                    raise
                text = _explanation(what, arguments, str(error).splitlines()[0])
            # The failed call's frames, which hold its tensors, are gone by now.
            raise MemoryShortError(text)

        return inside

    return around


def _is_short(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in _CPU_SHORT
    )


def _explanation(what: str, arguments: tuple[Any, ...], said: str) -> str:
    tensors = [x for x in arguments if isinstance(x, Tensor)]
    device = tensors[0].device
    shown = ", ".join(
        f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}" for x in tensors if x.ndim
    )
    size = sum(x.numel() * x.element_size() for x in tensors)
    if device.type == "cuda":
        free, whole = torch.cuda.mem_get_info(device)
        room = f"; {_readable(free)} of {_readable(whole)} are free"
        remedy = "free tensors, or move some to another device"
    else:
        room, remedy = "", "free tensors"
    return (
        f"no memory on {device} for {what} of {shown} ({_readable(size)}): {said}{room}; work on a "
        f"part of the rows at a time, or in a type of 16 bits, or {remedy}"
    )


def _readable(count: int) -> str:
    """Return a number of bytes in the largest unit that leaves it above one."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.3g} {units[0]}"
