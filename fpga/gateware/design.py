"""The design on a board: units behind one framed serial link."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from amaranth.hdl import ClockDomain, ClockSignal, DomainRenamer, Module, ResetSignal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from m2xfp import __version__
from m2xfp.errors import InputError, UnknownNameError
from m2xfp.fpga.gateware.gateway import ByteRom, Gateway, sinks, sources
from m2xfp.fpga.gateware.link import Link
from m2xfp.fpga.gateware.uart import clocks_per_bit
from m2xfp.fpga.protocol import Command, Identity
from m2xfp.rtl.catalog import find_unit
from m2xfp.rtl.verilog.component import Component

__all__ = ["UNITS", "BoardUnit", "Design", "design_identity", "find_board_unit"]


@dataclass(frozen=True)
class BoardUnit:
    """A unit of the catalog as it goes on a board.

    A serial line brings about a beat in a hundred clocks, so units are as narrow as they come, and
    accumulators need not overlap.

    Members
    -------
    unit, config
        Its name and configuration in the catalog.
    changes
        Keyword arguments that differ from the configuration's.
    buffer
        Bytes of payload that a request and an answer should have: with 2048, four block RAMs each
        on an iCE40, a frame spends 1 % on header, CRC and flags.
    """

    unit: str
    config: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    buffer: int = 2048

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the component."""
        return {**find_unit(self.unit).configs[self.config], **self.changes}

    def build(self) -> Component:
        """Return a new component."""
        return find_unit(self.unit).component(**self.options)

    @property
    def summary(self) -> str:
        """Unit, options and widths of the streams, on one line: what a build's hash covers."""
        unit = self.build()
        # Formats stand by their name.
        values = ",".join(f"{name}={getattr(v, 'name', v)}" for name, v in self.options.items())
        ports = ",".join(f"{p.name}:{p.data_width}" for p in (*sinks(unit), *sources(unit)))
        return f"{self.unit}({values}) {ports}"


UNITS: Mapping[str, BoardUnit] = {
    "quantizer": BoardUnit("activation_quantizer", "bf16x8"),
    "dot": BoardUnit("dot_product", "m2xfp-fp32-single"),
    "gemm": BoardUnit(
        "gemm_core",
        "m2xfp-2x2",
        {"max_k": 4096, "chains": 1},
        buffer=16384,  # four rows of activations and two of weights of the largest k
    ),
    "encoder": BoardUnit("weight_encoder", "bf16-adaptive-12"),
}


def find_board_unit(name: str) -> BoardUnit:
    """Return the unit called ``name``; UnknownNameError lists those that exist."""
    if name not in UNITS:
        raise UnknownNameError("unit of a board", name, UNITS)
    return UNITS[name]


def design_identity(clock_hz: float, baud: int, units: Sequence[str], buffer: int) -> Identity:
    """Return what a design with these parameters says of itself; see ``Design``."""
    configurations = tuple((name, find_board_unit(name).summary) for name in units)
    return Identity(__version__, round(clock_hz), baud, buffer, configurations).sealed()


class Design(Component):
    """Units behind one serial link.

    Parameters
    ----------
    clock_hz
        Clock of the domain ``sync``.
    baud
        Bits a second on the line: 8 data bits, no parity, one stop bit.
    units
        Names from ``UNITS``, at least one, each once.
    buffer
        Bytes of payload that a request and an answer can have, a power of two; by default the
        largest that one of the units should have.

    Members
    -------
    rx, tx
        The serial line, high when idle.
    busy : Out(1)
        A request is being carried out or answered.
    divisor
        Clocks a bit.
    identity
        What the design answers to ``Command.IDENTIFY``.

    Raises
    ------
    InputError
        No unit, a unit twice, a rate that the clock cannot make, or a buffer that is no power of
        two or does not hold the identification.
    UnknownNameError
        A unit that does not exist.
    """

    def __init__(
        self, clock_hz: float, baud: int, units: Sequence[str], *, buffer: int | None = None
    ) -> None:
        rows = [find_board_unit(name) for name in units]
        if not rows or len(set(units)) != len(rows):
            raise InputError(f"units={list(units)}: name at least one, and each once")
        self.divisor = clocks_per_bit(clock_hz, baud)
        self.units = tuple(units)
        buffer = max(row.buffer for row in rows) if buffer is None else buffer
        self.identity = design_identity(clock_hz, baud, units, buffer)
        least = max(256, 1 << (len(self.identity.payload()) - 1).bit_length())
        if buffer & (buffer - 1) or not least <= buffer < 1 << 16:
            raise InputError(f"buffer={buffer}: must be a power of two from {least} to {1 << 15}")
        self._buffer = buffer
        self._units = [row.build() for row in rows]
        super().__init__({"rx": In(1), "tx": Out(1, init=1), "busy": Out(1)})

    def build(self) -> Module:
        """Build link, identification and units."""
        m = Module()
        m.submodules.link = link = Link(self.divisor, self._buffer)
        m.d.comb += [link.rx.eq(self.rx), self.tx.eq(link.tx), self.busy.eq(link.busy)]

        # Same clock; what is in it begins each request from reset.
        m.domains.request = ClockDomain("request", local=True)
        m.d.comb += [
            ClockSignal("request").eq(ClockSignal()),
            ResetSignal("request").eq(~link.active),
        ]
        in_request = DomainRenamer("request")

        identification = ByteRom(self.identity.payload())
        m.submodules.identification = in_request(identification)
        gateways = [Gateway(unit) for unit in self._units]
        for name, gateway in zip(self.units, gateways, strict=True):
            m.submodules[name] = in_request(gateway)
            m.d.comb += gateway.i.payload.eq(link.request.payload)
        with m.Switch(link.command):
            with m.Case(Command.IDENTIFY):
                wiring.connect(m, identification.o, link.result)
                m.d.comb += [link.known.eq(1), link.idle.eq(1), link.request.ready.eq(1)]
            with m.Case(Command.ECHO):
                wiring.connect(m, link.request, link.result)
                m.d.comb += [link.known.eq(1), link.idle.eq(1)]
            for n, gateway in enumerate(gateways):
                with m.Case(Command.UNIT + n):
                    wiring.connect(m, gateway.o, link.result)
                    m.d.comb += [
                        link.known.eq(1),
                        link.idle.eq(gateway.idle),
                        gateway.i.valid.eq(link.request.valid),
                        link.request.ready.eq(gateway.i.ready),
                    ]
        return m
