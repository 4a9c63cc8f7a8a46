"""The design on a board: units behind one framed serial link."""

from collections.abc import Sequence

from amaranth.hdl import ClockDomain, ClockSignal, DomainRenamer, Module, ResetSignal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from m2xfp import __version__
from m2xfp.errors import InputError
from m2xfp.fpga.gateware.gateway import ByteRom, Gateway
from m2xfp.fpga.gateware.link import Link
from m2xfp.fpga.gateware.memory_gateway import MemoryGateway
from m2xfp.fpga.gateware.uart import clocks_per_bit
from m2xfp.fpga.gateware.units import board_row, instance_text
from m2xfp.fpga.protocol import Command, Identity
from m2xfp.rtl.catalog import Instance
from m2xfp.rtl.verilog.axi_ports import has_axi_ports
from m2xfp.rtl.verilog.component import Component

__all__ = ["Design", "design_identity"]


def design_identity(
    clock_hz: float, baud: int, instances: Sequence[Instance], buffer: int
) -> Identity:
    """Return what a design with these parameters says of itself; see ``Design``."""
    units = tuple((board_row(unit).name, instance_text(unit)) for unit in instances)
    return Identity(__version__, round(clock_hz), baud, buffer, units).sealed()


class Design(Component):
    """Units behind one serial link.

    Parameters
    ----------
    clock_hz
        Clock of the domain ``sync``.
    baud
        Bits a second on the line: 8 data bits, no parity, one stop bit.
    instances
        Units with a board row, at least one, each once, with any parameters.
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
    units
        What boards call them.
    identity
        What the design answers to ``Command.IDENTIFY``.

    Raises
    ------
    InputError
        No unit, a unit twice, a rate that the clock cannot make, or a buffer that is no power of
        two or does not hold the identification.
    """

    def __init__(
        self,
        clock_hz: float,
        baud: int,
        instances: Sequence[Instance],
        *,
        buffer: int | None = None,
    ) -> None:
        rows = [board_row(instance) for instance in instances]
        self.units = tuple(row.name for row in rows)
        if not rows or len(set(self.units)) != len(rows):
            raise InputError(f"units={list(self.units)}: name at least one, and each once")
        self.divisor = clocks_per_bit(clock_hz, baud)
        buffer = max(row.buffer for row in rows) if buffer is None else buffer
        self.identity = design_identity(clock_hz, baud, instances, buffer)
        least = max(256, 1 << (len(self.identity.payload()) - 1).bit_length())
        if buffer & (buffer - 1) or not least <= buffer < 1 << 16:
            raise InputError(f"buffer={buffer}: must be a power of two from {least} to {1 << 15}")
        self._buffer = buffer
        self._units = [
            (one.unit.component(**one.parameters), row.memory)
            for one, row in zip(instances, rows, strict=True)
        ]
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
        gateways: list[Gateway | MemoryGateway] = []
        for number, (name, (unit, memory)) in enumerate(zip(self.units, self._units, strict=True)):
            if has_axi_ports(unit):
                gateway: Gateway | MemoryGateway = MemoryGateway(unit, memory)
                m.submodules[name] = gateway
                m.d.comb += [
                    gateway.active.eq(link.active & (link.command == Command.UNIT + number)),
                    gateway.number.eq(link.number),
                ]
            else:
                gateway = Gateway(unit)
                m.submodules[name] = in_request(gateway)
            m.d.comb += gateway.i.payload.eq(link.request.payload)
            gateways.append(gateway)
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
