"""Operators of PyTorch's dispatcher: what compilers, exporters and function transforms see of us.

``define`` registers one: a computation on real tensors, the shape of its result for FakeTensors and
the meta device, a rule for ``vmap``, and, where it has one, a derivative. Computations run shielded
from what a user has switched on around them and has no say in the bits.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._C import (
    DispatchKey,
    _after_autograd_keyset,
    _AutoDispatchBelowAutograd,
    _functorch,
)
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd.forward_ad import _set_fwd_grad_enabled
from torch.autograd.function import _SingleLevelFunction

from m2xfp.golden.kernels.threads import alone, is_forked

__all__ = ["Dims", "define", "each", "in_front", "shielded"]

_LIBRARY = torch.library.Library("m2xfp", "DEF")
_DIRECT = (DispatchKey.CPU, DispatchKey.CUDA)
Dims = tuple[int | None, ...]
_Given = ParamSpec("_Given")
_Found = TypeVar("_Found")


def define(
    schema: str,
    compute: Callable[..., Any],
    fake: Callable[..., Any],
    batch: Callable[..., Any],
    blocked: Callable[..., Tensor] | None = None,
) -> Callable[..., Any]:
    """Register an operator and return it.

    Parameters
    ----------
    schema
        Name, arguments and results as PyTorch writes them; no argument is changed.
    compute
        What it computes, on real tensors.
    fake
        Empty tensors of its results' shapes and types.
    batch
        The rule of ``vmap``: takes the size of the new dimension, where it is in each argument, and
        the arguments; gives the results, and where it is in them.
    blocked
        For an operator of one float tensor: where (bool) its derivative is 0; it is 1 elsewhere.
        None for an operator without derivative.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
    call = getattr(torch.ops.m2xfp, name).default
    _LIBRARY.impl(name, compute, "CompositeExplicitAutograd")
    torch.library.register_fake(f"m2xfp::{name}", fake, lib=_LIBRARY)

    def batched(info: Any, dims: Dims, *arguments: Any) -> tuple[Any, Any]:
        return batch(info.batch_size, dims, *arguments)

    torch.library.register_vmap(f"m2xfp::{name}", batched, lib=_LIBRARY)
    straight = None if blocked is None else _straight_through(call, blocked)

    def below(keys: Any, *arguments: Any) -> Any:
        if straight is not None and _is_tracked(arguments[0]):
            with enable_single_level_autograd_function():
                return straight.apply(*arguments, keys)
        rest = keys & _after_autograd_keyset
        with _AutoDispatchBelowAutograd():
            if rest.highestPriorityTypeId() in _DIRECT:
                return compute(*arguments)
            return call.redispatch(rest, *arguments)

    _LIBRARY.impl(name, below, "Autograd", with_keyset=True)
    return call


def _is_tracked(x: Tensor) -> bool:
    """Whether a derivative by x may be asked for, in whatever way."""
    if x.requires_grad:
        return torch.is_grad_enabled()
    return torch.autograd.forward_ad._current_level >= 0 or (
        _functorch.peek_interpreter_stack() is not None
    )


def _straight_through(call: Any, blocked: Callable[..., Tensor]) -> Any:
    """Return the autograd function of an operator whose derivative is 1, and 0 where blocked."""

    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *given, keys = arguments
        ctx.rest = given[1:]
        ctx.save_for_backward(given[0])
        ctx.save_for_forward(given[0])
        # Transforms around this one take their own derivatives.
        with torch.enable_grad(), _set_fwd_grad_enabled(True), _AutoDispatchBelowAutograd():
            found: Tensor = call.redispatch(keys & _after_autograd_keyset, *given)
        return found

    @shielded
    def passed(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent.masked_fill(blocked(*ctx.saved_tensors, *ctx.rest), 0.0)

    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return (passed(ctx, gradient), *(None for _ in ctx.rest), None)

    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return passed(ctx, tangent)

    body: dict[str, Any] = {"forward": forward, "backward": backward, "jvp": jvp}
    members = {name: staticmethod(function) for name, function in body.items()}
    return type("StraightThrough", (_SingleLevelFunction,), members)


def in_front(size: int, dims: Dims, *tensors: Tensor | None) -> list[Tensor | None]:
    """Return tensors with the dimension of ``vmap`` in front, those without it repeated."""
    return [
        None
        if x is None
        else x.unsqueeze(0).expand(size, *x.shape)
        if dim is None
        else x.movedim(dim, 0)
        for x, dim in zip(tensors, dims, strict=False)
    ]


def each(call: Callable[..., Any], size: int, dims: Dims, *arguments: Any) -> tuple[Any, Any]:
    """Call once for every index of the dimension of ``vmap``; return stacked results, and where."""
    found = [
        call(
            *(
                value if dim is None else value.select(dim, i)
                for value, dim in zip(arguments, dims, strict=True)
            )
        )
        for i in range(size)
    ]
    if isinstance(found[0], tuple):
        return tuple(torch.stack(parts) for parts in zip(*found, strict=True)), (0,) * len(found[0])
    return torch.stack(found), 0


def shielded(function: Callable[_Given, _Found]) -> Callable[_Given, _Found]:
    """Compute without autocast, and in a forked process without PyTorch's threads.

    What is no operator and calls PyTorch on tensors of any size needs it too.
    """

    @wraps(function)
    def inside(*arguments: _Given.args, **named: _Given.kwargs) -> _Found:
        if torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return inside(*arguments, **named)
        if torch.is_autocast_enabled("cuda"):
            with torch.autocast("cuda", enabled=False):
                return inside(*arguments, **named)
        if is_forked() and torch.get_num_threads() > 1:
            with alone():
                return function(*arguments, **named)
        return function(*arguments, **named)

    return inside
