"""What the JSON beside an emitted Verilog file says: ports, streams and timing."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Description", "EmittedFiles", "PortDescription", "StreamDescription"]


class EmittedFiles(Protocol):
    """The files that were emitted for a configuration (`m2xfp.rtl.emit.Emitted`)."""

    @property
    def verilog(self) -> Path:
        """The Verilog."""

    @property
    def json(self) -> Path:
        """The description."""


@dataclass(frozen=True)
class StreamDescription:
    """An AXI4-Stream of a unit, with TLAST.

    Members
    -------
    name
        Name of the component's port, ``i`` for ``s_axis_tdata`` and the like.
    prefix
        What the Verilog ports begin with: ``s_axis``, ``m_axis_result``.
    is_input
        Whether the unit receives it.
    data_width
        Bits of payload.
    bytes
        Bytes of TDATA: the payload in the low bits, then zeros.
    """

    name: str
    prefix: str
    is_input: bool
    data_width: int
    bytes: int

    @property
    def ports(self) -> tuple[str, ...]:
        """Names of the Verilog ports."""
        return tuple(f"{self.prefix}_{field}" for field in ("tdata", "tvalid", "tready", "tlast"))


@dataclass(frozen=True)
class PortDescription:
    """A port that belongs to no stream and is neither clock nor reset."""

    name: str
    is_input: bool
    width: int

    @property
    def bytes(self) -> int:
        """Bytes that hold one value."""
        return (self.width + 7) // 8


@dataclass(frozen=True)
class Description:
    """An emitted unit.

    Members
    -------
    unit, config
        Names in the catalog.
    top
        Name of the Verilog module.
    keywords
        Keyword arguments of the component, by name, as far as the configuration gives them.
    streams
        Streams, in the order of the JSON.
    signals
        Other ports.
    latency
        Clocks from the acceptance of a group's last beat to the group's valid at the output.
    beats_per_group
        Input beats that make a group.
    clocks_per_group
        Clocks that a group takes when nothing pauses; more than its beats if the unit is slower
        than its stream.
    clocks_per_block
        Clocks after which a unit that is kept busy has done everything it does, results included.
    """

    unit: str
    config: str
    top: str
    keywords: dict[str, Any]
    streams: tuple[StreamDescription, ...]
    signals: tuple[PortDescription, ...]
    latency: int
    beats_per_group: int
    clocks_per_group: int
    clocks_per_block: int

    @classmethod
    def load(cls, path: Path) -> "Description":
        """Read the JSON of an emitted unit."""
        return cls.from_facts(json.loads(path.read_text()))

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> "Description":
        """Take the facts that are, or are to be, in the JSON (`m2xfp.rtl.emit.describe`)."""
        streams = tuple(
            StreamDescription(
                name=stream["member"],
                prefix=stream["prefix"],
                is_input=stream["role"] == "sink",
                data_width=stream["data_width"],
                bytes=stream["tdata_width"] // 8,
            )
            for stream in facts["streams"]
        )
        clocks_per_group = facts.get("clocks_per_group", facts["beats_per_group"])
        taken = {facts["clock"], facts["reset"]}.union(*(stream.ports for stream in streams))
        signals = tuple(
            PortDescription(port["name"], port["direction"] == "input", port["width"])
            for port in facts["ports"]
            if port["name"] not in taken
        )
        return cls(
            unit=facts["unit"],
            config=facts["config"],
            top=facts["top"],
            keywords=facts["parameters"],
            streams=streams,
            signals=signals,
            latency=facts["latency"],
            beats_per_group=facts["beats_per_group"],
            clocks_per_group=clocks_per_group,
            clocks_per_block=facts.get("clocks_per_block", clocks_per_group),
        )

    @property
    def inputs(self) -> tuple[StreamDescription, ...]:
        """Streams that the unit receives."""
        return tuple(stream for stream in self.streams if stream.is_input)

    @property
    def outputs(self) -> tuple[StreamDescription, ...]:
        """Streams that the unit sends."""
        return tuple(stream for stream in self.streams if not stream.is_input)
