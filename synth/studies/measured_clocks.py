"""Clocks and traffic of the measured comparison: accelerators of this generator, format by format.

Of M2XFP, MXFP4 and NVFP4 these are the whole accelerator's, by the cycle model that equals its
emitted Verilog clock for clock, before a memory of 128 bytes a clock and 100 clocks latency. Of
MXFP8, and of mixtures with it, there is no accelerator: the GEMM core's clocks or the memory's,
whichever are more, are a bound in their favour.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from m2xfp.formats import BlockFormat, block_format
from m2xfp.rtl.catalog import find_unit
from m2xfp.rtl.parts.descriptor_checker import BF16_VALUES, ENCODE, QUANTIZE
from m2xfp.rtl.parts.gemm_cycles import GemmTiming
from m2xfp.synth.studies.accelerator_throughput import LATENCY, LAYER_CHUNK, PAPER_CONFIG
from m2xfp.synth.studies.measured_units import CELLS
from m2xfp.synth.studies.paper_accelerator import facts
from m2xfp.tb.axi.cycles import VALUE_CHUNK, Clocks, product_clocks
from m2xfp.tb.axi.layers import dense_words, read_together
from m2xfp.tb.parts.accelerator_traffic import PAGE

__all__ = [
    "BUILT",
    "Work",
    "core_product",
    "count",
    "least_packing",
    "memory_bits",
    "packing",
    "parameters_of",
    "product",
]

BUILT = {
    "m2xfp": ("m2xfp-act", "m2xfp-weight", True),
    "mxfp4": ("mxfp4", "mxfp4", True),
    "nvfp4": ("nvfp4", "nvfp4", False),
}
"""Formats of activations and weights of the accelerators, and whether they have engines to pack."""

_FEW_ROWS = 16  # products of so many rows are counted as a whole
_VALUE_BYTES = 2  # bf16
_DESCRIPTOR_WORDS = 32  # of 32 bits, in the registers and in each place of the queue


@dataclass(frozen=True)
class Work:
    """What a descriptor takes.

    Members
    -------
    clocks
        From its beginning to its end.
    array
        Clocks in which the array is occupied, chains that idle for want of rows included.
    read, written
        Bytes between the accelerator and its memory.
    """

    clocks: float
    array: float
    read: float
    written: float

    @property
    def memory(self) -> float:
        """Clocks in which the memory moves these bytes."""
        return (self.read + self.written) * 8 / facts().dram_bits_per_clock

    def on_area(self, slower: float) -> float:
        """Return the clocks where the array takes ``slower`` times as long: on another area.

        An array and its memory work side by side, and the longer one decides. What the descriptor
        takes beyond that, it waits: for the latency, for requests of short rows, for its end. Then

            clocks = waits + max(slower x array, memory)

        with the waits and the memory's clocks as they are. So where the array decides, clocks
        follow the area of a MAC; where the memory decides, they do not, until the array does.
        """
        waits = max(0.0, self.clocks - max(self.array, self.memory))
        return waits + max(slower * self.array, self.memory)


@cache
def parameters_of(name: str) -> Mapping[str, Any]:
    """Return the parameters of a format's accelerator of the paper's size: 1024 MACs a clock.

    Of a format that has none, those that it would have beside the engines of M2XFP's. The largest k
    is the configuration's: clocks do not depend on it.
    """
    if name not in BUILT:
        act = CELLS[name][0]
        return {**parameters_of("m2xfp"), "act": act, "weight": act}
    act, weight, packs = BUILT[name]
    block = block_format(act)
    changes: dict[str, Any] = {
        "act": block,
        "weight": block_format(weight),
        "columns": facts().macs_per_clock // block.group,
        "chunk": LAYER_CHUNK,
    }
    if not packs:
        changes |= {"quantizer": None, "encoder": None}
    return find_unit("accelerator").instance(PAPER_CONFIG, changes).facts.parameters


def _plane_words(block: BlockFormat, chunk: int, bus: int) -> int:
    """Return the words of the bus that a row's part of a chunk lies in at most, all planes."""
    codes, scales, meta = block.group_bytes
    small = -(-(chunk + bus - 1) // bus)
    return -(-(chunk * codes + bus - codes) // bus) + small * (bool(scales) + bool(meta))


def memory_bits(given: Mapping[str, Any]) -> int:
    """Return the bits of all memories of an accelerator: weight buffers, slots, descriptors."""
    act, weight = block_format(given["act"]), block_format(given["weight"])
    bus, slots, chunk = int(given["bus"]) // 8, given["slots"], given["chunk"]
    buffers = 2 * given["columns"] * (given["max_k"] // act.group) * sum(weight.group_bytes) * 8
    words = given["rows"] * given["chains"] * _plane_words(act, chunk, bus)
    words += read_together(given, "w") * _plane_words(weight, chunk, bus)
    if {given["quantizer"], given["encoder"]} != {None}:
        unit = min(bus, 2 * act.group)
        words += -(-(min(VALUE_CHUNK, chunk * slots) * unit + bus - unit) // bus)
    return buffers + slots * words * 8 * bus + 32 * _DESCRIPTOR_WORDS * (1 + given["queue"])


def count(given: Mapping[str, Any], words: Mapping[str, int]) -> Clocks:
    """Return what a descriptor takes before the memory of the comparison."""
    return product_clocks(given, words, latency=LATENCY, rate=facts().dram_bits_per_clock / 8)


def _occupied(given: Mapping[str, Any], group: int, size: tuple[int, int, int]) -> int:
    """Return the clocks in which an array is occupied: blocks of rows, panels of columns."""
    m, n, k = size
    blocks, panels = -(-m // (given["rows"] * given["chains"])), -(-n // given["columns"])
    return blocks * given["chains"] * panels * (k // group)


@cache
def product(name: str, size: tuple[int, int, int]) -> Work:
    """Return what a product [m, n, k] of packed operands takes, with bf16 results.

    Of many rows the accelerator is counted for one and two panels of columns: all further ones take
    what the second one adds.
    """
    m, n, k = size
    given = parameters_of(name)
    occupied = _occupied(given, block_format(given["act"]).group, size)
    columns = given["columns"]
    if m <= _FEW_ROWS or n <= 2 * columns or n % columns:
        counted = count(given, dense_words(given, size))
        return Work(counted.clocks, occupied, counted.read, counted.written)
    one, two = (_panels(name, m, k, many) for many in (1, 2))
    further = n // columns - 1

    def whole(figure: str) -> int:
        first = int(getattr(one, figure))
        return first + further * (int(getattr(two, figure)) - first)

    return Work(whole("clocks"), occupied, whole("read"), whole("written"))


@cache
def _panels(name: str, m: int, k: int, panels: int) -> Clocks:
    """Return what a product of so many panels of columns takes."""
    given = parameters_of(name)
    return count(given, dense_words(given, (m, panels * given["columns"], k)))


@cache
def core_product(name: str, size: tuple[int, int, int]) -> Work:
    """Return a bound for a product [m, n, k] in a format that only the GEMM core has.

    It takes the core's clocks or the memory's, whichever are more. Weights come into the core as
    fast as the memory brings them. Activations of one block of rows are read once, others once for
    each panel of columns.
    """
    m, n, k = size
    block = block_format(CELLS[name][0])
    columns = facts().macs_per_clock // block.group
    timing = GemmTiming(1, columns, k, group=block.group, weight_rows=columns)
    passes = 1 if m <= timing.rows * timing.chains else -(-n // columns)
    read = (n + passes * m) * k * float(block.bits_per_value) / 8
    return _bound(timing.clocks(m, n, k), read, m * n * _VALUE_BYTES)


def _bound(array: float, read: float, written: float) -> Work:
    """Return work that takes as long as the array or the memory, whichever is longer."""
    work = Work(0, array, read, written)
    return replace(work, clocks=max(array, work.memory))


@cache
def packing(name: str, rows: int, k: int, *, encodes: bool = False) -> Work:
    """Return what packing values [rows, k] takes: bf16 in memory to a packed tensor.

    It is a QUANTIZE descriptor, or an ENCODE one where weights have a format of their own, as those
    of M2XFP, which are searched for.
    """
    given = parameters_of(name)
    block = block_format(given["act"])
    groups = -(-k // block.group)
    pitch = groups * block.group * _VALUE_BYTES
    searches = encodes and given["act"] != given["weight"]
    words = {
        "operation": ENCODE if searches else QUANTIZE,
        **{"m": rows, "k": groups * block.group, "kind": BF16_VALUES},
        **{"a_codes": 0, "a_codes_pitch": pitch},
    }
    at = rows * pitch
    for plane, size in zip(("out", "out_scales", "out_meta"), block.group_bytes, strict=True):
        at = -(-at // PAGE) * PAGE
        words[plane] = at
        at += rows * groups * size
    words |= {"out_pitch": groups * block.group_bytes[0], "out_scales_pitch": groups}
    counted = count(given, words)
    return Work(counted.clocks, 0, counted.read, counted.written)


def least_packing(name: str, rows: int, k: int) -> Work:
    """Return a bound for packing values [rows, k] where there is no engine: the memory's clocks."""
    bits = float(block_format(CELLS[name][0]).bits_per_value)
    return _bound(0, rows * k * _VALUE_BYTES, rows * k * bits / 8)
