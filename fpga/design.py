"""The design on a board: units behind one framed serial link."""

from collections.abc import Callable, Mapping, Sequence

from amaranth.hdl import Module
from amaranth.lib.wiring import In, Out

from m2xfp.errors import InputError, UnknownNameError
from m2xfp.formats import BF16
from m2xfp.fpga.uart import UartReceiver, UartTransmitter, clocks_per_bit
from m2xfp.rtl.activation_quantizer import ActivationQuantizer
from m2xfp.rtl.component import Component
from m2xfp.rtl.dot_product import DotProduct
from m2xfp.rtl.gemm_core import GemmCore
from m2xfp.rtl.weight_encoder import WeightEncoder

__all__ = ["UNITS", "Design"]

UNITS: Mapping[str, Callable[[], Component]] = {
    "quantizer": lambda: ActivationQuantizer(input_type=BF16, lanes=8),
    "dot": lambda: DotProduct(chains=1),
    "gemm": lambda: GemmCore(rows=2, columns=2, max_k=1024),
    "encoder": lambda: WeightEncoder(input_type=BF16, clocks_per_group=12),
}


class Design(Component):
    """Units behind one serial link.

    Parameters
    ----------
    clock_hz
        Clock of the domain ``sync``.
    baud
        Bits a second on the line.
    units
        Names from ``UNITS``, each once.

    Members
    -------
    rx, tx
        The serial line, high when idle.
    busy : Out(1)
        A request is being carried out or answered.
    """

    def __init__(self, clock_hz: float, baud: int, units: Sequence[str]) -> None:
        for name in units:
            if name not in UNITS:
                raise UnknownNameError("unit", name, UNITS)
        if len(set(units)) != len(units):
            raise InputError(f"units={list(units)}: name each once")
        self._divisor = clocks_per_bit(clock_hz, baud)
        self.units = tuple(units)
        super().__init__({"rx": In(1), "tx": Out(1, init=1), "busy": Out(1)})

    def build(self) -> Module:
        """Build the link."""
        m = Module()
        m.submodules.receiver = receiver = UartReceiver(self._divisor)
        m.submodules.transmitter = transmitter = UartTransmitter(self._divisor)
        m.d.comb += [
            receiver.rx.eq(self.rx),
            self.tx.eq(transmitter.tx),
            self.busy.eq(~transmitter.i.ready),
            transmitter.i.payload.eq(receiver.data),
            transmitter.i.valid.eq(receiver.valid),
        ]
        return m
