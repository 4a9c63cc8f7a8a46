"""The boards that bitstreams are built for: pins and clock from amaranth-boards, the rest here."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Module
from amaranth.lib import io, wiring

from m2xfp.errors import MissingToolError, UnknownNameError
from m2xfp.rtl.verilog.component import Component

__all__ = ["BOARDS", "Board", "BoardTop", "find_board"]


@dataclass(frozen=True)
class Board:
    """One board.

    Members
    -------
    name
        What the command line calls it.
    title
        Maker's name and device.
    platform
        Dotted name of its class in amaranth-boards.
    family
        ``ice40``, ``ecp5`` or ``gowin``: which tools place it.
    device
        Options that tell nextpnr the device.
    clock_hz
        The crystal, which clocks the design as it is: a serial link feeds the units with less than
        a hundredth of what they take at this clock, so a PLL would buy nothing.
    baud
        Default rate of the link; a whole number of clocks a bit, and a rate that the USB chip on
        the board has.
    units
        What is built if nothing is asked for: all that fits together with margin.
    capacity
        Cells by nextpnr's type name: logic cells, block RAM, multipliers.
    loader
        Program that loads a bitstream, with its options.
    """

    name: str
    title: str
    platform: str
    family: str
    device: tuple[str, ...]
    clock_hz: float
    baud: int
    units: tuple[str, ...]
    capacity: Mapping[str, int]
    loader: str

    def load_platform(self) -> Any:
        """Return a new platform object.

        Raises
        ------
        MissingToolError
            amaranth-boards is not installed.
        """
        module, _, name = self.platform.rpartition(".")
        try:
            return getattr(importlib.import_module(module), name)()
        except ModuleNotFoundError as error:
            raise MissingToolError(
                f"the Python package amaranth-boards (for {self.name})", "pip install 'm2xfp[fpga]'"
            ) from error


_ECP5_25 = {"TRELLIS_COMB": 24288, "TRELLIS_FF": 24288, "DP16KD": 56, "MULT18X18D": 28}
_ECP5_85 = {"TRELLIS_COMB": 83640, "TRELLIS_FF": 83640, "DP16KD": 208, "MULT18X18D": 156}

BOARDS: dict[str, Board] = {
    board.name: board
    for board in (
        Board(
            name="icebreaker",
            title="1BitSquared iCEBreaker, iCE40UP5K",
            platform="amaranth_boards.icebreaker.ICEBreakerPlatform",
            family="ice40",
            device=("--up5k", "--package", "sg48"),
            clock_hz=12e6,
            baud=1_000_000,
            units=("quantizer",),
            capacity={"ICESTORM_LC": 5280, "ICESTORM_RAM": 30, "ICESTORM_DSP": 8},
            loader="iceprog",
        ),
        Board(
            name="ice40-hx8k",
            title="Lattice iCE40-HX8K breakout board",
            platform="amaranth_boards.ice40_hx8k_b_evn.ICE40HX8KBEVNPlatform",
            family="ice40",
            device=("--hx8k", "--package", "ct256"),
            clock_hz=12e6,
            baud=1_000_000,
            units=("quantizer",),
            capacity={"ICESTORM_LC": 7680, "ICESTORM_RAM": 32},
            loader="iceprog -S",
        ),
        Board(
            name="ulx3s-25f",
            title="Radiona ULX3S, ECP5 LFE5U-25F",
            platform="amaranth_boards.ulx3s.ULX3S_25F_Platform",
            family="ecp5",
            device=("--25k", "--package", "CABGA381", "--speed", "6"),
            clock_hz=25e6,
            baud=1_000_000,
            units=("quantizer", "dot"),
            capacity=_ECP5_25,
            loader="openFPGALoader --board ulx3s",
        ),
        Board(
            name="ulx3s-85f",
            title="Radiona ULX3S, ECP5 LFE5U-85F",
            platform="amaranth_boards.ulx3s.ULX3S_85F_Platform",
            family="ecp5",
            device=("--85k", "--package", "CABGA381", "--speed", "6"),
            clock_hz=25e6,
            baud=1_000_000,
            units=("quantizer", "dot"),
            capacity=_ECP5_85,
            loader="openFPGALoader --board ulx3s",
        ),
        Board(
            name="tang-nano-9k",
            title="Sipeed Tang Nano 9K, GW1NR-9C",
            platform="amaranth_boards.tang_nano_9k.TangNano9kPlatform",
            family="gowin",
            device=("--device", "GW1NR-LV9QN88PC6/I5"),
            clock_hz=27e6,
            baud=1_000_000,
            units=("quantizer",),
            capacity={"LUT4": 8640, "DFF": 6480, "BSRAM": 26, "MULT18X18": 20},
            loader="openFPGALoader --board tangnano9k",
        ),
    )
}


def find_board(name: str) -> Board:
    """Return the board called ``name``; UnknownNameError lists those that exist."""
    if name not in BOARDS:
        raise UnknownNameError("board", name, BOARDS)
    return BOARDS[name]


class BoardTop(wiring.Component):
    """A design on a board's pins: the USB chip's serial lines and the first LED.

    Parameters
    ----------
    design
        Component with the ports ``rx``, ``tx`` and ``busy``.
    """

    def __init__(self, design: Component) -> None:
        self._design = design
        super().__init__({})

    def elaborate(self, platform: Any) -> Module:
        """Connect the design to the pins of ``platform``."""
        m = Module()
        m.submodules.design = design = self._design
        uart = platform.request("uart", 0, dir="-")
        led = platform.request("led", 0, dir="-")
        m.submodules.rx = rx = io.Buffer("i", uart.rx)
        m.submodules.tx = tx = io.Buffer("o", uart.tx)
        m.submodules.led = led_buffer = io.Buffer("o", led)
        m.d.comb += [design.rx.eq(rx.i), tx.o.eq(design.tx), led_buffer.o.eq(design.busy)]
        return m
