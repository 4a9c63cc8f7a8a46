"""The fused CPU path: compiles ``native.cpp`` once a machine and calls it on tensors.

Needs a C++ compiler (``CXX``, else ``g++``); without one the plain path serves. One library serves
every format: what a format is comes at run time (``plan``). It is kept in the user's cache folder.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from m2xfp.golden.kernels.library import Library
from m2xfp.golden.kernels.plan import Plan
from m2xfp.golden.kernels.threads import share

__all__ = ["LIBRARY", "NativeKernels", "forget", "kernels_of"]

_TYPES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
_QUANTIZE, _FAKE, _DEQUANTIZE = range(3)
# Below this many values a thread a call in the caller's own thread is faster.
_VALUES_A_THREAD = 1 << 17
# One call takes no more, some hundred milliseconds: interrupts are noticed between calls.
_VALUES_A_CALL = 1 << 25


def _declare(library: ctypes.CDLL) -> None:
    """Give the functions their types."""
    pointer, whole = ctypes.c_void_p, ctypes.c_int
    library.m2xfp_run.argtypes = [pointer, whole, whole, ctypes.c_int64, *[pointer] * 6]
    library.m2xfp_run.restype = None
    library.m2xfp_largest.argtypes = [whole, ctypes.c_int64, pointer]
    library.m2xfp_largest.restype = ctypes.c_int32


LIBRARY = Library(Path(__file__).with_name("native.cpp"), ("-ffp-contract=off",), _declare)


def forget() -> None:
    """Look for compiler and library again at the next call."""
    LIBRARY.forget()
    kernels_of.cache_clear()


class NativeKernels:
    """The compiled functions of one plan; see ``Kernels``."""

    name = "native"

    def __init__(self, plan: Plan) -> None:
        self.library = LIBRARY.load()
        self.group = plan.group
        numbers = plan.numbers()
        self.plan = (ctypes.c_double * len(numbers))(*numbers)

    def largest(self, groups: Tensor) -> Tensor:
        """Return the largest finite magnitude, a float32 scalar."""
        kind = _TYPES[groups.dtype]

        # As bits: ctypes turns a float into Python's, and a flushing processor a subnormal into 0.
        def part(start: int, stop: int) -> object:
            return self.library.m2xfp_largest(
                kind, (stop - start) * self.group, groups[start:].data_ptr()
            )

        bits = torch.tensor(
            [0, *self._spread(len(groups), part)], dtype=torch.int32, device=groups.device
        )
        return bits.amax().view(torch.float32)

    def _spread(self, count: int, part: Callable[[int, int], object]) -> list[object]:
        """Call ``part(start, stop)`` on ranges of groups, split over threads."""
        group = self.group
        return share(count, part, -(-_VALUES_A_THREAD // group), _VALUES_A_CALL // group)

    def _run(
        self, what: int, dtype: torch.dtype, unit: Tensor | None, planes: list[Tensor | None]
    ) -> None:
        """Call the library on planes [n, bytes a group]."""
        count = next(len(plane) for plane in planes if plane is not None)
        kind = _TYPES[dtype]
        level = None if unit is None else unit.data_ptr()

        def part(start: int, stop: int) -> None:
            pointers = [None if plane is None else plane[start:].data_ptr() for plane in planes]
            self.library.m2xfp_run(self.plan, what, kind, stop - start, level, *pointers)

        self._spread(count, part)

    def quantize(
        self, groups: Tensor, codes: Tensor, scales: Tensor, meta: Tensor, unit: Tensor | None
    ) -> None:
        """Quantize contiguous groups [n, group] into contiguous planes [n, bytes]."""
        self._run(_QUANTIZE, groups.dtype, unit, [groups, codes, scales, meta, None])

    def fake_quantize(self, groups: Tensor, values: Tensor, unit: Tensor | None) -> None:
        """Quantize and dequantize contiguous groups [n, group] into ``values``."""
        self._run(_FAKE, groups.dtype, unit, [groups, None, None, None, values])

    def dequantize(
        self, codes: Tensor, scales: Tensor, meta: Tensor, values: Tensor, unit: Tensor | None
    ) -> None:
        """Dequantize contiguous planes into ``values`` [n, group]."""
        self._run(_DEQUANTIZE, values.dtype, unit, [None, codes, scales, meta, values])


@cache
def kernels_of(plan: Plan) -> NativeKernels:
    """Return the kernels of a plan; MissingToolError says what is missing."""
    return NativeKernels(plan)
