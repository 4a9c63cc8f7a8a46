"""A unit on a device: beats in and out, a request at a time, and arrays by way of its host module.

What a request carries is decided by a module of this folder, named by the unit's board row
(``Board.host``) and called through `HostModule`; nothing here or in `device` knows a unit by name.
Arrays, beats and expected values are those of the unit's testbench (`m2xfp.tb.bench`).
"""

from collections.abc import Mapping
from functools import cached_property
from importlib import import_module
from types import MappingProxyType
from typing import Protocol, cast

import numpy as np

from m2xfp.facts import Facts, Stream
from m2xfp.fpga.gateware.units import board_row
from m2xfp.fpga.host.link import FaultError, HostLink
from m2xfp.fpga.protocol import Command, Record, pack_records, unpack_records
from m2xfp.rtl.catalog import Instance
from m2xfp.tb.bench import Arrays, Bench, find_bench
from m2xfp.tb.vectors import Beats

__all__ = ["HostModule", "RemoteUnit", "beats_bytes", "difference", "record_bytes", "slices"]

NONE: Mapping[str, int] = MappingProxyType({})


class HostModule(Protocol):
    """How arrays become requests, and which arrays try a unit."""

    def run(self, unit: "RemoteUnit", arrays: Arrays, /, progress: bool = False) -> Arrays:
        """Return what the unit makes of arrays as its testbench loads them."""

    def sample(self, rng: np.random.Generator, size: int, facts: Facts, /) -> Arrays:
        """Return random arrays of ``size`` groups, or of about so many a row of a product."""

    def count(self, arrays: Arrays, facts: Facts, /) -> int:
        """Return the groups that arrays hold; of units that multiply, the pairs of groups."""


class RemoteUnit:
    """A unit of a device.

    Parameters
    ----------
    link
        The line to the device.
    number
        Place of the unit in the design.
    instance
        The unit with its parameters.
    buffer
        Bytes of payload that a request and an answer can have.

    Members
    -------
    name
        What boards call it.
    facts
        Of the instance.
    bench
        Its testbench.
    memory
        Bytes of memory behind its buses; 0 if it has streams alone.
    """

    def __init__(self, link: HostLink, number: int, instance: Instance, buffer: int) -> None:
        row = board_row(instance)
        self._link, self._command = link, Command.UNIT + number
        self._module = f"m2xfp.fpga.host.{row.host}"
        self.name, self.instance, self.buffer = row.name, instance, buffer
        self.memory = row.memory
        self.facts = instance.facts
        self.bench: Bench = find_bench(instance.unit)

    @cached_property
    def host(self) -> HostModule:
        """The module that its board row names."""
        return cast(HostModule, import_module(self._module))

    def run(self, arrays: Arrays, *, progress: bool = False) -> Arrays:
        """Return what the unit makes of arrays as its testbench loads them; a bar if wanted."""
        return self.host.run(self, arrays, progress)

    def sample(self, rng: np.random.Generator, size: int) -> Arrays:
        """Return random arrays of about ``size`` groups."""
        return self.host.sample(rng, size, self.facts)

    def expected(self, arrays: Arrays) -> Arrays:
        """Return what ``run`` must give, by the golden model."""
        return self.bench.expected(arrays, self.facts)

    def count(self, arrays: Arrays) -> int:
        """Return the groups, or pairs of groups, that arrays hold."""
        return self.host.count(arrays, self.facts)

    def play(
        self, inputs: Mapping[str, Beats], pieces: int = 1, ahead: Mapping[str, int] = NONE
    ) -> dict[str, Beats]:
        """Play beats through the unit, from reset, in one request; return what came out.

        Parameters
        ----------
        inputs
            Beats by input stream.
        pieces
            Equal parts that the streams are cut into: the beats of all streams of a part go in
            before those of the next one, streams in the order of the ports.
        ahead
            Beats of some streams that go in before all others of a part.

        Raises
        ------
        FaultError
            The answer makes no sense, or the request was refused.
        """
        records: list[Record] = []
        for piece in range(pieces):
            numbers = range(len(self.facts.inputs))
            parts = [self._part(inputs, number, piece, pieces) for number in numbers]
            first = [ahead.get(stream.name, 0) for stream in self.facts.inputs]
            for part, beats in zip(parts, first, strict=True):
                records += part[:beats]
            for part, beats in zip(parts, first, strict=True):
                records += part[beats:]
        answer = self.exchange(pack_records(records))
        outputs = self.facts.outputs
        try:
            found = unpack_records(answer, [stream.bytes for stream in outputs])
        except ValueError as error:
            raise self.fault(f"the answer makes no sense: {error}") from error
        return {
            stream.name: _joined([record for record in found if record.stream == number], stream)
            for number, stream in enumerate(outputs)
        }

    def _part(
        self, inputs: Mapping[str, Beats], number: int, piece: int, pieces: int
    ) -> list[Record]:
        """Return the beats of one stream in one part."""
        beats = inputs[self.facts.inputs[number].name]
        part = slice(*(at * len(beats) // pieces for at in (piece, piece + 1)))
        last = np.zeros(len(beats), bool) if beats.last is None else beats.last
        return [
            Record(number, beat.tobytes(), bool(end))
            for beat, end in zip(beats.data[part], last[part], strict=True)
        ]

    def exchange(self, payload: bytes) -> bytes:
        """Return the payload that answers another one, whatever they mean to the unit."""
        return self._link.request(self._command, payload)

    def fault(self, what: str) -> FaultError:
        """Return the error of an answer that cannot be."""
        return FaultError(f"unit {self.name}: {what}")

    def check_number(self, found: Beats, due: int) -> None:
        """Raise FaultError unless so many beats came out."""
        if len(found) != due:
            raise self.fault(f"{len(found)} results came back, {due} were due")


def _joined(records: list[Record], stream: Stream) -> Beats:
    """Return the records of one stream as beats."""
    data = np.frombuffer(b"".join(record.beat for record in records), np.uint8)
    return Beats(
        data.reshape(-1, stream.bytes).copy(), np.array([record.last for record in records], bool)
    )


def record_bytes(stream: Stream) -> int:
    """Return the bytes that a beat takes in a request or an answer, tag included."""
    return 1 + stream.bytes


def beats_bytes(beats: Mapping[str, Beats], streams: tuple[Stream, ...]) -> int:
    """Return the bytes that beats of some streams take in a request or an answer."""
    return sum(len(beats[stream.name]) * record_bytes(stream) for stream in streams)


def slices(total: int, size: int) -> list[slice]:
    """Return consecutive slices of at most ``size`` that cover ``range(total)``."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def difference(found: Arrays, expected: Arrays) -> str:
    """Return where arrays differ in type, shape or a byte, in words; nothing if they are alike."""
    for name, right in expected.items():
        kind = (right.dtype, right.shape)
        if name not in found or (found[name].dtype, found[name].shape) != kind:
            return f"no {name} of the type {right.dtype} and the shape {list(right.shape)}"
        one, other = (
            np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (found[name], right)
        )
        wrong = np.flatnonzero(one != other)
        if len(wrong):
            at = int(wrong[0])
            return (
                f"{one[at]} in byte {at} of {name}, the golden model {other[at]}; "
                f"{len(wrong)} of {one.size} bytes differ"
            )
    return ""
