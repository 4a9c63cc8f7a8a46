"""The traffic of the accelerator on its buses, worked out from its descriptors alone.

Every bus has one ID and moves in the order that docs/accelerator.md gives, so what must come on
each channel follows from descriptors and memory, whenever it comes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Facts, Field, Stream
from m2xfp.formats import block_format
from m2xfp.rtl.parts.accelerator_map import OFFSETS
from m2xfp.rtl.parts.descriptor_checker import ENCODE, GEMM
from m2xfp.rtl.parts.gemm_cycles import SIZE_BITS
from m2xfp.tb.fields import Bytes, pack, read, read_plane
from m2xfp.tb.parts.accelerator_memory import PAGE, Descriptor, Memory
from m2xfp.tb.vectors import Beats, TestVectors

__all__ = ["PAGE", "Descriptor", "Memory", "Traffic"]

IDENTIFICATION = 0x4D325846
ALL = slice(None)


@dataclass
class Channels:
    """The beats of every stream so far: fields by name, and ``last``."""

    beats: dict[str, list[dict[str, int | bytes]]] = field(default_factory=dict)

    def add(self, name: str, *, last: bool, **fields: int | bytes) -> None:
        """Append a beat."""
        self.beats.setdefault(name, []).append({**fields, "last": last})

    @contextmanager
    def repeated(self, times: int) -> Iterator[None]:
        """Append what is appended within so many times, one after the other."""
        before = {name: len(beats) for name, beats in self.beats.items()}
        yield
        for name, beats in self.beats.items():
            beats += beats[before.get(name, 0) :] * (times - 1)


class Traffic:
    """What moves on the channels of an accelerator while it runs descriptors.

    Parameters
    ----------
    facts
        The accelerator.
    memory
        What its buses lead to; results are written into it.
    """

    def __init__(self, facts: Facts, memory: Memory) -> None:
        self.facts, self.memory, self.channels = facts, memory, Channels()
        given = facts.parameters
        self.bus = int(given["bus"]) // 8
        self.columns, self.chunk = given["columns"], given["chunk"]
        self._formats = {"a": block_format(given["act"]), "w": block_format(given["weight"])}
        self._slots = given["slots"]
        # Rows side by side, and rows of a block. As many weight rows come together as a word has
        # groups.
        weights = gcd(self.columns, max(1, self.bus // self._formats["a"].group_bytes[0]))
        self._widths = {"a": given["rows"], "w": weights}
        self._heights = {"a": given["rows"] * given["chains"], "w": weights}
        # Beats of values that are read together, and groups that are written together.
        self._unit = min(self.bus, 2 * self._formats["a"].group)
        self._units = min(16, self.chunk * given["slots"])
        self.gather = 4 if self.bus < 64 else 8
        self._outstanding = given["outstanding"]
        self._packs = any(given[engine] is not None for engine in ("quantizer", "encoder"))
        self._masks: list[int] = []  # bits of each answered register that are compared

    def bursts(self, address: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield address and beats of the bursts that some bytes take."""
        at, end = address // self.bus * self.bus, address + length
        while at < end:
            stop = min(-(-end // self.bus) * self.bus, (at // PAGE + 1) * PAGE)
            yield at, (stop - at) // self.bus
            at = stop

    def burst_lengths(self) -> dict[str, set[int]]:
        """Return how many beats bursts have, by the channel of their addresses."""
        code_bytes, bus = self._formats["a"].group_bytes[0], self.bus

        def words(length: int, step: int) -> range:
            """Return how many words bytes lie in that begin at multiples of a step."""
            return range(1, -(-(length + bus - min(step, bus)) // bus) + 1)

        reads = set(words(self.chunk * code_bytes, code_bytes))
        values, packed = set[int](), set[int]()
        if self._packs:
            step = min(max(1, 2 * self._formats["a"].group // bus), self._units)
            values = set(range(step, self._units + 1, step))
            packed = set(words(self.gather * code_bytes, code_bytes))
        return {
            "acts_ar": reads | values,
            "weights_ar": reads,
            "results_aw": packed | set(words(self.columns * 4, 2)),
        }

    @property
    def value_chunk(self) -> int:
        """Bytes of values that are read together at most."""
        return self._units * self._unit

    def value_offset(self) -> int:
        """Return where the last chunk of the longest row of values begins, in beats of values."""
        beats = max(0, ((1 << SIZE_BITS) - 1) * 2 // self._unit)
        return (-(-beats // self._units) - 1) * self._units

    def planes(self, side: str) -> dict[str, int]:
        """Return the planes of an operand, with the bytes that a group has in each."""
        block = self._formats[side]
        names = ("codes", "scales", "meta")
        return {name: n for name, n in zip(names, block.group_bytes, strict=False) if n}

    def chunks(self, groups: int) -> list[tuple[int, int]]:
        """Return the first group and the number of groups of the chunks of a row."""
        step = self.chunk // self.bus * self.bus if self.chunk > self.bus else self.chunk
        firsts = range(0, max(1, groups - self.chunk + step), step)
        ends = [*firsts[1:], groups]
        return [(first, end - first) for first, end in zip(firsts, ends, strict=True)]

    def chunk_requests(self, side: str, descriptor: Descriptor) -> Iterator[list[tuple[int, int]]]:
        """Yield address and length of what is read of an operand, chunk by chunk, in order."""
        rows = descriptor["m" if side == "a" else "n"]
        height = self._heights[side]
        chunks = self.chunks(descriptor["k"] // self._formats[side].group)
        passes = -(-descriptor["n"] // self.columns) if side == "a" else 1
        if rows <= height and len(chunks) <= self._slots:
            passes = 1  # it stays in the slots
        for _ in range(passes):
            for top in range(0, rows, height):
                for first, count in chunks:
                    block = range(top, min(top + height, rows))
                    yield list(self._chunk(side, descriptor, block, first, count))

    def requests(self, side: str, descriptor: Descriptor) -> Iterator[tuple[int, int]]:
        """Yield address and length of what is read of an operand, in order."""
        for chunk in self.chunk_requests(side, descriptor):
            yield from chunk

    def first_bursts(self, descriptor: Descriptor) -> dict[str, list[tuple[int, int]]]:
        """Return address and beats of the bursts that are asked for while no answer comes.

        By operand: those of the chunks that there are slots for, as many as may be under way.
        """
        if descriptor["operation"] == GEMM:
            asked = {
                operand: self.chunk_requests(side, descriptor)
                for side, operand in (("a", "acts"), ("w", "weights"))
            }
        else:
            asked = {"acts": ([request] for request in self.value_requests(descriptor))}
        return {
            operand: [
                burst
                for chunk in islice(chunks, self._slots)
                for request in chunk
                for burst in self.bursts(*request)
            ][: self._outstanding]
            for operand, chunks in asked.items()
        }

    def _chunk(
        self, side: str, descriptor: Descriptor, rows: range, first: int, count: int
    ) -> Iterator[tuple[int, int]]:
        """Yield what is read of some groups of a block: no word of rows side by side twice."""
        sizes = self.planes(side)
        order = [*(name for name in sizes if name != "codes"), "codes"]
        words: dict[str, int] = {}  # the last one of each plane
        for number, row in enumerate(rows):
            if number % self._widths[side] == 0:
                words.clear()
            for plane in order:
                pitch = descriptor[f"{side}_{'codes' if plane == 'codes' else 'scales'}_pitch"]
                start = descriptor[f"{side}_{plane}"] + row * pitch + first * sizes[plane]
                end = start + count * sizes[plane]
                known, words[plane] = words.get(plane), (end - 1) // self.bus
                if known == start // self.bus:
                    if known != words[plane]:
                        start = (known + 1) * self.bus
                    elif plane != "codes" or row != rows[-1]:
                        continue
                yield start, end - start

    def pieces(self, descriptor: Descriptor) -> Iterator[tuple[int, slice, int]]:
        """Yield row, columns and address of what is written, in order."""
        m, n, size = descriptor["m"], descriptor["n"], descriptor.value_bytes
        for first in range(0, n, self.columns):
            columns = slice(first, min(first + self.columns, n))
            for row in range(m):
                address = descriptor["out"] + row * descriptor["out_pitch"] + first * size
                yield row, columns, address

    def configure(self, descriptor: Descriptor) -> None:
        """Add the writes that push a descriptor, and a read of the identification."""
        for address, word in descriptor.writes():
            self.tell(address, word)
        self.read_register("id", IDENTIFICATION)

    def tell(
        self,
        address: int,
        word: int,
        response: int = 0,
        strobes: int = 15,
        *,
        answered: bool = True,
    ) -> None:
        """Add a write of a register."""
        self.channels.add("control_aw", last=True, addr=address)
        self.channels.add("control_w", last=True, data=word, strb=strobes)
        if answered:
            self.grant(response)

    def grant(self, response: int = 0) -> None:
        """Add the answer to a write."""
        self.channels.add("control_b", last=True, resp=response)

    def ask(self, address: int, word: int = 0, response: int = 0, mask: int = 0xFFFFFFFF) -> None:
        """Add a read of a register, of which the bits of a mask are compared."""
        self.channels.add("control_ar", last=True, addr=address)
        self.channels.add("control_r", last=True, data=word, resp=response)
        self._masks.append(mask)

    def read_register(self, name: str, word: int = 0) -> None:
        """Add a read of a register by its name."""
        self.ask(OFFSETS[name], word)

    def issue(self, operand: str, address: int, beats: int) -> None:
        """Add a burst that is asked for."""
        size = (self.bus - 1).bit_length()
        self.channels.add(
            f"{operand}_ar", last=True, addr=address, len=beats - 1, size=size, burst=1
        )

    def bring(self, operand: str, address: int, beats: int, *responses: int) -> None:
        """Add what memory answers to a burst; responses of its first beats, 0 of the others."""
        content = self.memory.read(address, beats * self.bus)
        found = (*responses, *[0] * beats)
        for n, word in enumerate(content.reshape(beats, self.bus)):
            self.channels.add(
                f"{operand}_r", last=n == beats - 1, data=word.tobytes(), resp=found[n]
            )

    def answer(self, operand: str, address: int, length: int) -> None:
        """Add the bursts of a request, and what memory answers."""
        for burst in self.bursts(address, length):
            self.issue(operand, *burst)
            self.bring(operand, *burst)

    def respond(self, response: int = 0) -> None:
        """Add the response to a burst that writes."""
        self.channels.add("results_b", last=True, resp=response)

    def run(self, descriptor: Descriptor, out: NDArray[np.generic]) -> None:
        """Add the traffic of a descriptor whose results are these, and store them.

        Results are patterns [m, n], or packed groups [m, groups, bytes].
        """
        self.fetch(descriptor)
        for _ in range(self.write(descriptor, out)):
            self.respond()

    def fetch(self, descriptor: Descriptor, *operands: str) -> None:
        """Add all that a descriptor reads, or of some operands alone."""
        if descriptor["operation"] == GEMM:
            for side, operand in (("a", "acts"), ("w", "weights")):
                if operand in (operands or (operand,)):
                    for address, length in self.requests(side, descriptor):
                        self.answer(operand, address, length)
            return
        for address, length in self.value_requests(descriptor):
            self.answer("acts", address, length)

    def write(
        self, descriptor: Descriptor, out: NDArray[np.generic], pieces_of: slice = ALL
    ) -> int:
        """Store results, or some pieces, and add the bursts that write them; return how many."""
        if descriptor.packed:
            pieces = self.plane_pieces(descriptor, out)
        else:
            pieces = (
                (start, np.ascontiguousarray(out[row, columns]).view(np.uint8))
                for row, columns, start in self.pieces(descriptor)
            )
        some = list(pieces)[pieces_of]
        return sum(self.store_piece(start, content) for start, content in some)

    def value_requests(self, descriptor: Descriptor) -> Iterator[tuple[int, int]]:
        """Yield address and length of what is read of values, in order."""
        count = descriptor["k"] * descriptor.value_bytes // self._unit
        for row in range(descriptor["m"]):
            start = descriptor["a_codes"] + row * descriptor["a_codes_pitch"]
            for first in range(0, count, self._units):
                length = min(self._units, count - first) * self._unit
                yield start + first * self._unit, length

    def plane_pieces(
        self, descriptor: Descriptor, groups: NDArray[Any]
    ) -> Iterator[tuple[int, Bytes]]:
        """Yield address and bytes of what is written of packed groups, in order."""
        rows, count, _ = groups.shape
        gemm = descriptor["operation"] == GEMM
        sizes = self.planes("w" if descriptor["operation"] == ENCODE else "a")
        sets = (
            [(row, group, 1) for group in range(count) for row in range(rows)]
            if gemm
            else [
                (row, first, min(self.gather, count - first))
                for row in range(rows)
                for first in range(0, count, self.gather)
            ]
        )
        for row, first, number in sets:
            at = 0
            for plane, size in sizes.items():
                base, pitch = (
                    ("out", "out_pitch")
                    if plane == "codes"
                    else (f"out_{plane}", "out_scales_pitch")
                )
                content = groups[row, first : first + number, at : at + size].reshape(-1)
                start = descriptor[base] + row * descriptor[pitch] + first * size
                yield start, content.astype(np.uint8)
                at += size

    def store_piece(self, start: int, values: NDArray[np.uint8], strobed: int | None = None) -> int:
        """Store bytes, and add the bursts that write them; return how many.

        Of their beats the first ``strobed`` have strobes, or all.
        """
        size = (self.bus - 1).bit_length()
        lies = slice(None if strobed is None else strobed * self.bus - start % self.bus)
        self.memory.write(start, values[lies])
        bursts = list(self.bursts(start, len(values)))
        for address, beats in bursts:
            self.channels.add(
                "results_aw", last=True, addr=address, len=beats - 1, size=size, burst=1
            )
            words, strobes = np.zeros((2, beats * self.bus), np.uint8)
            first, end = max(start - address, 0), min(start + len(values) - address, len(words))
            words[first:end] = values[address + first - start :][: end - first]
            strobes[first:end][lies] = 1
            kept = np.packbits(strobes.reshape(beats, self.bus), axis=1, bitorder="little")
            for beat, word in enumerate(words.reshape(beats, self.bus)):
                self.channels.add(
                    "results_w",
                    last=beat == beats - 1,
                    data=word.tobytes(),
                    strb=kept[beat].tobytes(),
                )
        return len(bursts)

    def store(self, addresses: Beats, words: Beats) -> None:
        """Write what the accelerator has written into the memory."""
        aw, w = (self.facts.stream(name) for name in ("results_aw", "results_w"))
        starts, lengths = (read(aw.field(name), addresses.data) for name in ("addr", "len"))
        content = read_plane(w.field("data"), words.data)
        strobes = np.unpackbits(read_plane(w.field("strb"), words.data), axis=1, bitorder="little")
        at = 0
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            for beat in range(length + 1):
                for lane in np.flatnonzero(strobes[at][: self.bus]).tolist():
                    place = start + beat * self.bus + lane
                    self.memory.write(place, content[at, lane : lane + 1])
                at += 1

    def vectors(self) -> TestVectors:
        """Return what goes in, and what must come out."""
        given, wanted = self.streams(self.facts.inputs), self.streams(self.facts.outputs)
        stream = self.facts.stream("control_r")
        words = {
            stream.field("data"): np.array(self._masks, np.uint64),
            stream.field("resp"): np.full(len(self._masks), 3, np.uint64),
        }
        compared = {"control_r": pack(stream, words)} if self._masks else {}
        return TestVectors(given, wanted, 1, compared)

    def streams(self, which: Sequence[Stream]) -> dict[str, Beats]:
        """Return the beats of streams."""
        return {stream.name: self._beats(stream) for stream in which}

    def _beats(self, stream: Stream) -> Beats:
        beats = self.channels.beats.get(stream.name, [])
        if not beats:
            return Beats(np.zeros((0, stream.bytes), np.uint8), np.zeros(0, bool))
        planes: dict[Field, Bytes] = {}
        values: dict[Field, NDArray[np.generic]] = {}
        for part in stream.fields:
            found = [beat[part.name] for beat in beats]
            if isinstance(found[0], bytes):
                rows = [np.frombuffer(each, np.uint8) for each in found if isinstance(each, bytes)]
                planes[part] = np.stack(rows)
            else:
                values[part] = np.array(found, np.uint64)
        data: Bytes = pack(stream, values, planes)
        return Beats(data, np.array([beat["last"] for beat in beats], bool))
