"""The facts about an emitted unit: parameters, ports, streams with their fields, latency and rates.

One object, made once from the component (`m2xfp.rtl.catalog.Instance.facts`) and serialised once,
as the JSON file beside the Verilog. Header, testbenches, simulation, synthesis, FPGA builds and
pages read it; nobody looks at a component's parameters again. Plain data: needs neither torch nor
Amaranth.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from m2xfp.errors import InputError
from m2xfp.plain import check_module_name, parse_json, typed

__all__ = ["EmittedFiles", "Facts", "Field", "LongGroups", "Port", "Stream"]


@dataclass(frozen=True)
class Field:
    """Equal values at regular places in a word: a field of a TDATA, or of a port.

    Members
    -------
    name
        Path in the payload, dots between levels: ``operands.act.codes``; empty for a payload that
        is one value.
    offset
        Bit where the first value begins.
    width
        Bits of one value.
    signed
        Whether a value is in two's complement; otherwise it is unsigned, or a pattern.
    shape
        Values along each array dimension, outermost first; empty for a single value.
    strides
        Bits from one value to the next along each dimension.
    """

    name: str
    offset: int
    width: int
    signed: bool = False
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()

    def at(self, *index: int) -> int:
        """Return the lowest bit of the value ``[index]``; IndexError if there is none."""
        if len(index) != len(self.shape) or any(
            not 0 <= i < size for i, size in zip(index, self.shape, strict=True)
        ):
            raise IndexError(f"field {self.name!r} has no value {list(index)}; shape {self.shape}")
        return self.offset + sum(i * step for i, step in zip(index, self.strides, strict=True))

    @property
    def last_bit(self) -> int:
        """The highest bit of the last value."""
        return self.at(*(size - 1 for size in self.shape)) + self.width - 1

    @property
    def formula(self) -> str:
        """Where the values are, in Verilog's notation: ``[4*i +: 4]``."""
        terms = [f"{step}*{letter}" for step, letter in zip(self.strides, "ijklmn", strict=False)]
        if self.offset or not terms:
            terms.insert(0, str(self.offset))
        if not self.shape and self.width == 1:
            return f"[{self.offset}]"
        if not self.shape:
            return f"[{self.offset + self.width - 1}:{self.offset}]"
        return f"[{' + '.join(terms)} +: {self.width}]"

    @property
    def title(self) -> str:
        """Name with index letters: ``operands.act.codes[i]``."""
        letters = "".join(f"[{letter}]" for _, letter in zip(self.shape, "ijklmn", strict=False))
        return (self.name or "value") + letters


@dataclass(frozen=True)
class Stream:
    """An AXI4-Stream of a unit, with TLAST.

    Members
    -------
    name
        Name of the component's port, ``i`` for ``s_axis_tdata`` and the like.
    prefix
        What the Verilog ports begin with: ``s_axis``, ``m_axis_result``.
    role
        ``sink`` if the unit receives, ``source`` if it sends.
    data_width
        Bits of payload.
    fields
        What the payload is made of, lowest bits first.
    """

    name: str
    prefix: str
    role: str
    data_width: int
    fields: tuple[Field, ...] = ()

    @property
    def is_input(self) -> bool:
        """Whether the unit receives it."""
        return self.role == "sink"

    @property
    def bytes(self) -> int:
        """Bytes of TDATA: the payload in the low bits, then zeros."""
        return (self.data_width + 7) // 8

    @property
    def tdata_width(self) -> int:
        """Bits of TDATA."""
        return 8 * self.bytes

    @property
    def ports(self) -> tuple[str, ...]:
        """Names of the Verilog ports."""
        return tuple(f"{self.prefix}_{field}" for field in ("tdata", "tvalid", "tready", "tlast"))

    def field(self, name: str) -> Field:
        """Return the field called ``name``; KeyError if there is none."""
        return _named(self.fields, name)


@dataclass(frozen=True)
class Port:
    """A port that belongs to no stream and is neither clock nor reset.

    Members
    -------
    name, direction, width
        ``direction`` is ``input`` or ``output``.
    fields
        What it is made of, lowest bits first.
    """

    name: str
    direction: str
    width: int
    fields: tuple[Field, ...] = ()

    @property
    def is_input(self) -> bool:
        """Whether the unit reads it."""
        return self.direction == "input"

    @property
    def bytes(self) -> int:
        """Bytes that hold one value."""
        return (self.width + 7) // 8


def _named(fields: tuple[Field, ...], name: str) -> Field:
    for field in fields:
        if field.name == name:
            return field
    raise KeyError(f"no field {name!r}; there are: {', '.join(f.name for f in fields)}")


@dataclass(frozen=True)
class LongGroups:
    """Groups that take more beats than the others, told by fields of their beats.

    Members
    -------
    stream
        The input.
    fields
        Names of fields of its beats.
    values
        For which values of these the group is a long one.
    beats
        How many beats it has.
    """

    stream: str
    fields: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]
    beats: int


@dataclass(frozen=True)
class Facts:
    """A component with all its parameters bound.

    Members
    -------
    unit, config
        Name of the unit in the catalog, and of the parameter set.
    top
        Name of the Verilog module.
    purpose
        What the unit does, in one line.
    version
        Of m2xfp.

    Parameters
    ----------
        Every parameter of the component by its own name, defaults too, as JSON has it: numbers,
        truth values, None and texts. Formats, types and windows stand by a text that
        ``m2xfp.formats`` reads back.
    streams
        AXI4-Streams, in the order of the signature.
    signals
        Other ports.
    latency
        Clocks from the acceptance of a group's last beat to the group's valid at the output.
    beats_per_group
        Input beats that make a group.
    long_groups
        Groups that take more beats, of a unit that has such; None for any other.
    clocks_per_group
        Clocks that a group takes when nothing pauses; more than its beats if the unit is slower
        than its stream.
    clocks_per_block
        Clocks after which a unit that is kept busy has done everything it does, results included.
    results_per_group
        Output beats of a group, where a group goes in at one stream and out at another.
    groups_per_clock
        Groups a clock at full rate; of units that multiply, pairs of groups.
    macs_per_clock
        Multiplications a clock; None of units that do not multiply.
    clock, reset
        Names of the ports, empty for a unit that is combinational; reset is synchronous and active
        high.
    """

    unit: str
    config: str
    top: str
    purpose: str
    version: str
    parameters: dict[str, Any]
    streams: tuple[Stream, ...]
    signals: tuple[Port, ...]
    latency: int
    beats_per_group: int
    clocks_per_group: int
    clocks_per_block: int
    groups_per_clock: float
    macs_per_clock: int | None = None
    results_per_group: int = 1
    long_groups: LongGroups | None = None
    clock: str = "clk"
    reset: str = "rst"

    @property
    def inputs(self) -> tuple[Stream, ...]:
        """Streams that the unit receives."""
        return tuple(stream for stream in self.streams if stream.is_input)

    @property
    def outputs(self) -> tuple[Stream, ...]:
        """Streams that the unit sends."""
        return tuple(stream for stream in self.streams if not stream.is_input)

    def stream(self, name: str) -> Stream:
        """Return the stream called ``name``; KeyError if there is none."""
        for stream in self.streams:
            if stream.name == name:
                return stream
        raise KeyError(f"{self.unit} has no stream {name!r}")

    def ports(self) -> Iterator[tuple[str, str, int]]:
        """Yield (name, direction, width) of every Verilog port, in the order of the module."""
        for name in (self.clock, self.reset):
            if name:
                yield name, "input", 1
        for stream in self.streams:
            forward, backward = ("input", "output") if stream.is_input else ("output", "input")
            tdata, tvalid, tready, tlast = stream.ports
            yield tdata, forward, stream.tdata_width
            yield tvalid, forward, 1
            yield tready, backward, 1
            yield tlast, forward, 1
        for port in self.signals:
            yield port.name, port.direction, port.width

    def to_json(self) -> str:
        """Return the text of the JSON file: all members, and what follows from them for readers."""
        facts = asdict(self)
        for stream, found in zip(self.streams, facts["streams"], strict=True):
            found["tdata_width"] = stream.tdata_width
        facts["ports"] = [
            {"name": name, "direction": direction, "width": width}
            for name, direction, width in self.ports()
        ]
        return json.dumps(facts, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Facts":
        """Read what ``to_json`` has written; InputError for any other text."""
        try:
            given = parse_json(text, "the text")
            facts = typed(cls, _own_members(given), "facts")
            _check(facts)
            if parse_json(facts.to_json(), "facts") != given:
                raise InputError("ports, or widths of TDATA, are not those of its streams")
        except InputError as error:
            raise InputError(
                f"not the description of an emitted unit ({error}); emit it again: m2xfp verilog"
            ) from error
        return facts

    @classmethod
    def load(cls, path: Path) -> "Facts":
        """Read the JSON file of an emitted unit; InputError if it is none."""
        try:
            text = path.read_text()
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path} cannot be read ({error}); emit it again: m2xfp verilog"
            ) from error
        return cls.from_json(text)


_MOST_BITS = 1 << 20  # of a word; far beyond any unit, and small enough for any reader


def _own_members(given: Any) -> Any:
    """Return a description without what ``to_json`` adds for readers."""
    if not isinstance(given, dict) or not isinstance(given.get("streams"), list):
        return given
    streams = [
        _without(stream, "tdata_width") if isinstance(stream, dict) else stream
        for stream in given["streams"]
    ]
    return _without(given, "ports") | {"streams": streams}


def _without(facts: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if key != name}


def _check(facts: Facts) -> None:
    """Raise InputError for names that are no identifiers, and for numbers that cannot be.

    Names become Verilog, C++ and names of files; none may be more than a name there.
    """
    combinational = not facts.streams
    names = [
        facts.top,
        *(port for stream in facts.streams for port in stream.ports),
        *(port.name for port in facts.signals),
        *(name for name in (facts.clock, facts.reset) if name or not combinational),
    ]
    for name in names:
        check_module_name(name)
    if len(set(names)) < len(names):
        raise InputError("two ports, or the module and a port, have one name")
    for text in (facts.unit, facts.config, facts.purpose, facts.version):
        if not text.isprintable():
            raise InputError(f"{text!r} has characters that cannot be printed")
    for stream in facts.streams:
        _choice(stream.role, ("sink", "source"))
        _check_word(stream.fields, stream.data_width)
    for port in facts.signals:
        _choice(port.direction, ("input", "output"))
        _check_word(port.fields, port.width)
    for number in (
        facts.beats_per_group,
        facts.results_per_group,
        facts.clocks_per_group,
        facts.clocks_per_block,
    ):
        _check_range("beats and clocks", number, 1, 1 << 40)
    if (long := facts.long_groups) is not None:
        _check_range("beats of long groups", long.beats, 2, 1 << 40)
        known = {s.name: {field.name for field in s.fields} for s in facts.inputs}
        if not set(long.fields) <= known.get(long.stream, set()):
            raise InputError(f"long groups are told by fields that {long.stream!r} does not have")
        if any(len(values) != len(long.fields) for values in long.values):
            raise InputError("long groups are told by as many values as fields")
    _check_range("latency", facts.latency, 0, 1 << 40)
    _check_range("groups_per_clock", facts.groups_per_clock, 0, 1 << 20)
    _check_range("macs_per_clock", facts.macs_per_clock or 0, 0, 1 << 40)


def _check_word(fields: tuple[Field, ...], width: int) -> None:
    """Raise InputError unless the fields lie in a word of so many bits."""
    _check_range("width", width, 1, _MOST_BITS)
    for field in fields:
        _check_range("width of a field", field.width, 1, width)
        _check_range("offset of a field", field.offset, 0, width)
        if len(field.shape) != len(field.strides):
            raise InputError(f"field {field.name!r} has {len(field.strides)} strides")
        for size, stride in zip(field.shape, field.strides, strict=True):
            _check_range("size of a field", size, 1, width)
            _check_range("stride of a field", stride, 0, width)
        if field.last_bit >= width:
            raise InputError(f"field {field.name!r} ends beyond the {width} bits of its word")


def _choice(value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{value!r} is neither {' nor '.join(known)}")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InputError(f"{name} is {value}; it must be {low} to {high}")


@dataclass(frozen=True)
class EmittedFiles:
    """The files of one emitted parameter set.

    Members
    -------
    top
        Name of the top module.
    verilog, json, core
        The Verilog, the facts and the FuseSoC description.
    """

    top: str
    verilog: Path
    json: Path
    core: Path
