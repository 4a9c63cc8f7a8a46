"""What is wrong with a descriptor before anything is read or written."""

from collections.abc import Mapping
from dataclasses import dataclass

from amaranth.hdl import Cat, Const, Module, Mux, Value, ValueLike
from amaranth.lib.wiring import In, Out

from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parts.accelerator_registers import descriptor_layout
from m2xfp.rtl.parts.gemm_cycles import SIZE_BITS
from m2xfp.rtl.verilog.component import Component

__all__ = [
    "BF16_VALUES",
    "CAUSES",
    "ENCODE",
    "FP32_VALUES",
    "GEMM",
    "PACKED",
    "QUANTIZE",
    "Abilities",
    "DescriptorChecker",
    "first_cause",
]

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


@dataclass(frozen=True)
class Abilities:
    """What a build of the accelerator can do.

    Members
    -------
    max_k, group
        Largest k of a product, and what k is a multiple of.
    code_bytes
        Bytes of a group's codes.
    quantize, encode
        Whether QUANTIZE, and ENCODE, take FP32 values, and whether they take bf16 ones.
    packed_results
        Results can be packed.
    metadata
        Operands have a plane of metadata.
    """

    max_k: int
    group: int
    code_bytes: int
    quantize: tuple[bool, bool]
    encode: tuple[bool, bool]
    packed_results: bool
    metadata: bool

    def features(self) -> dict[str, int]:
        """Return the fields of the register that tells them."""
        return {
            "quantize_fp32": int(self.quantize[0]),
            "quantize_bf16": int(self.quantize[1]),
            "encode_fp32": int(self.encode[0]),
            "encode_bf16": int(self.encode[1]),
            "packed_results": int(self.packed_results),
        }


class DescriptorChecker(Component):
    """Find the first fault of a descriptor that its words alone show.

    Parameters
    ----------
    address_bits
        Of the bus: higher bits of addresses must be 0.
    can
        What there is to do it.

    Members
    -------
    descriptor : In(descriptor_layout)
        The words.
    cause : Out(8)
        One of ``CAUSES``; 0 if all is well.
    """

    def __init__(self, address_bits: int, can: Abilities) -> None:
        self._address_bits, self._can = address_bits, can
        super().__init__({"descriptor": In(descriptor_layout), "cause": Out(8)})

    def build(self) -> Module:
        """Build the comparisons; the first that holds decides."""
        m = Module()
        words, can = self.descriptor, self._can
        gemm = named(m, "gemm", words.operation == GEMM)
        packed = named(m, "packed", gemm & (words.kind == PACKED))
        planar = named(m, "planar", ~gemm | packed)  # results are planes
        wide = named(m, "wide", words.kind == FP32_VALUES)

        def unaligned(size: int, *names: str) -> Value:
            return Cat(words[name][: size.bit_length() - 1] for name in names).any()

        def beyond(*names: str) -> Value:
            return Cat(
                Cat(words[name], words[f"{name}_high"])[self._address_bits :] for name in names
            ).any()

        kinds = {
            GEMM: (True, True, can.packed_results),
            QUANTIZE: can.quantize,
            ENCODE: can.encode,
        }
        known = Cat(
            (words.operation == operation) & (words.kind == kind)
            for operation, able in kinds.items()
            for kind, there in enumerate(able)
            if there
        ).any()
        sizes: dict[str, ValueLike] = {"m": 1, "k": 1, "n": gemm}
        planes = ["codes", "scales", *(["meta"] if can.metadata else [])]
        operands = [f"{side}_{plane}" for side in "aw" for plane in planes]
        value_bytes = 2 * can.group
        group_bits = can.group.bit_length() - 1
        found = {
            "operation": ~known,
            "zero": Cat((words[name] == 0) & counts for name, counts in sizes.items()).any(),
            "large": Cat(words[name][SIZE_BITS:].any() & on for name, on in sizes.items()).any()
            | (gemm & (words.k > can.max_k)),
            "multiple": words.k[:group_bits].any() | (packed & words.n[:group_bits].any()),
            "misaligned": unaligned(can.code_bytes, "a_codes", "a_codes_pitch")
            | (gemm & unaligned(can.code_bytes, "w_codes", "w_codes_pitch"))
            | (~gemm & unaligned(value_bytes, "a_codes", "a_codes_pitch"))
            | (~gemm & wide & unaligned(2 * value_bytes, "a_codes", "a_codes_pitch"))
            | unaligned(2, "out", "out_pitch")
            | (wide & unaligned(4, "out", "out_pitch"))
            | (planar & unaligned(can.code_bytes, "out", "out_pitch")),
            "address": beyond("a_codes", "out")
            | (gemm & beyond(*operands))
            | (planar & beyond("out_scales", *(["out_meta"] if can.metadata else []))),
        }
        m.d.comb += self.cause.eq(first_cause(m, found))
        return m
