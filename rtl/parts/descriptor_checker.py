"""What is wrong with a descriptor before anything is read or written."""

from collections.abc import Mapping

from amaranth.hdl import Cat, Const, Module, Mux, Value
from amaranth.lib.wiring import In, Out

from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parts.accelerator_registers import descriptor_layout
from m2xfp.rtl.parts.gemm_cycles import SIZE_BITS
from m2xfp.rtl.verilog.component import Component

__all__ = ["CAUSES", "DescriptorChecker", "first_cause"]

CAUSES = {
    "operation": 1,
    "zero": 2,
    "large": 3,
    "multiple": 4,
    "misaligned": 5,
    "address": 6,
    "read_slverr": 7,
    "read_decerr": 8,
    "write_slverr": 9,
    "write_decerr": 10,
    "timeout": 11,
    "internal": 12,
}
"""Causes of errors, as the register ``error`` gives them."""

GEMM, QUANTIZE, ENCODE = 1, 2, 3
FP32_VALUES, BF16_VALUES, PACKED = 0, 1, 2


def first_cause(m: Module, faults: Mapping[str, Value]) -> Value:
    """Return the cause of the first fault that holds, of ``CAUSES`` by name; 0 if none does."""
    cause: Value = Const(0, 8)
    for name, holds in reversed(list(faults.items())):
        cause = Mux(named(m, f"fault_{name}", holds), CAUSES[name], cause)
    return cause


class DescriptorChecker(Component):
    """Find the first fault of a descriptor that its words alone show.

    Parameters
    ----------
    address_bits
        Of the bus: higher bits of addresses must be 0.
    max_k, group
        Largest k, and what it is a multiple of.
    code_bytes
        What codes are multiples of in memory.
    metadata
        Whether operands have a plane of metadata.

    Members
    -------
    descriptor : In(descriptor_layout)
        The words.
    cause : Out(8)
        One of ``CAUSES``; 0 if all is well.
    """

    def __init__(
        self,
        address_bits: int,
        max_k: int,
        group: int,
        code_bytes: int,
        *,
        metadata: bool,
    ) -> None:
        self._address_bits, self._max_k, self._group = address_bits, max_k, group
        self._code_bytes = code_bytes
        self._metadata = metadata
        super().__init__({"descriptor": In(descriptor_layout), "cause": Out(8)})

    def build(self) -> Module:
        """Build the comparisons; the first that holds decides."""
        m = Module()
        words = self.descriptor
        sizes = (words.m, words.n, words.k)
        planes = ["codes", "scales", *(["meta"] if self._metadata else [])]
        addresses = [f"{side}_{plane}" for side in "aw" for plane in planes] + ["out"]
        high = [Cat(words[name], words[f"{name}_high"])[self._address_bits :] for name in addresses]

        def unaligned(size: int, *names: str) -> Value:
            return Cat(words[name][: size.bit_length() - 1] for name in names).any()

        codes = ("a_codes", "w_codes", "a_codes_pitch", "w_codes_pitch")
        found = {
            "operation": (words.operation != GEMM) | (words.kind > BF16_VALUES),
            "zero": Cat(size == 0 for size in sizes).any(),
            "large": Cat(size[SIZE_BITS:].any() for size in sizes).any() | (words.k > self._max_k),
            "multiple": words.k[: self._group.bit_length() - 1].any(),
            "misaligned": unaligned(self._code_bytes, *codes)
            | unaligned(2, "out", "out_pitch")
            | ((words.kind == FP32_VALUES) & unaligned(4, "out", "out_pitch")),
            "address": Cat(high).any(),
        }
        m.d.comb += self.cause.eq(first_cause(m, found))
        return m
