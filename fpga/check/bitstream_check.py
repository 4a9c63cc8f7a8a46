"""The check without a board: a built chip, simulated on its pins, against the golden model.

The host library talks to the netlist that was read back (`m2xfp.fpga.check.read_back`) as it does
to a board. What such traffic is worth shows when faults are put into the netlist: each bit of a LUT
that is wrong should change some byte on the line.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from m2xfp.errors import InputError
from m2xfp.files import write_atomic
from m2xfp.fpga.check.faults import FaultReport, campaign
from m2xfp.fpga.check.line import SimulatedPort
from m2xfp.fpga.check.pins import Pins, compile_netlist, quiet_clocks
from m2xfp.fpga.check.read_back import SOURCES, cell_names, read_back
from m2xfp.fpga.check.traffic import Tap, traffic
from m2xfp.fpga.flow.bitstream import BuildReport, build
from m2xfp.fpga.flow.boards import find_board
from m2xfp.fpga.gateware.uart import clocks_per_bit
from m2xfp.fpga.host.device import Device
from m2xfp.rtl.catalog import Instance

__all__ = ["BitstreamCheck", "check_bitstream"]


@dataclass(frozen=True)
class BitstreamCheck:
    """What a simulation has shown; had anything differed, it would have been an error.

    Members
    -------
    build
        The build that was simulated.
    source
        ``bitstream`` or ``routed netlist``.
    luts, flip_flops, memories
        What was read back.
    requests, bytes_sent, bytes_received, clocks
        Traffic.
    groups
        Groups that each unit computed as the golden model does.
    faults
        Of the fault campaign, if there was one.
    beside
        What else was done, in words.
    """

    build: BuildReport
    source: str
    luts: int
    flip_flops: int
    memories: int
    requests: int
    bytes_sent: int
    bytes_received: int
    clocks: int
    groups: dict[str, int]
    faults: FaultReport | None = None
    beside: str = ""

    def to_json(self) -> str:
        """Return the result as JSON text."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def summary(self) -> str:
        """Return what was shown, in a few lines."""
        lines = [
            f"{self.build.board}: {self.source} read back: {self.luts} LUTs, {self.flip_flops} "
            f"flip-flops, {self.memories} memories",
            f"{self.requests} requests, {self.bytes_sent} bytes sent, {self.bytes_received} "
            f"received, {self.clocks} clocks: all as the golden model has it ("
            + ", ".join(f"{unit}: {count} groups" for unit, count in self.groups.items())
            + ")",
        ]
        lines += [self.beside] if self.beside else []
        return "\n".join([*lines, *([self.faults.summary()] if self.faults else [])])


def check_bitstream(
    board_name: str,
    instances: Sequence[Instance] | None = None,
    *,
    baud: int | None = None,
    folder: Path | None = None,
    groups: int = 240,
    faults: int = 0,
    seed: int = 0,
    whole: bool = True,
    beside: Callable[[Device], str] | None = None,
) -> BitstreamCheck:
    """Build, read the chip back, and hold it against the golden model over its serial line.

    Parameters
    ----------
    board_name, instances, baud, folder
        As for `m2xfp.fpga.flow.bitstream.build`.
    groups
        About how many groups each unit gets, at least 12.
    faults
        How many wrong LUTs to try; 0 for none.
    seed
        Of the values and of the choice of faults.
    whole
        Invert whole LUTs instead of one bit each.
    beside
        What else the chip is to do, with an error if it does it wrong; returns that in words.

    Raises
    ------
    CheckError
        An answer differs from the golden model's.
    InputError
        Too few groups, a negative number of faults, or a board whose chip cannot be read back.
    M2xfpError
        As `m2xfp.fpga.flow.bitstream.build` and `m2xfp.fpga.host.device.Device` do.
    """
    if groups < 12:
        raise InputError(f"groups={groups}: must be at least 12")
    if faults < 0:
        raise InputError(f"faults={faults}: must not be negative")
    board = find_board(board_name)
    if board.family not in SOURCES:
        raise InputError(
            f"board {board.name}: a {board.family} chip cannot be read back; "
            f"m2xfp fpga check takes those of {', '.join(SOURCES)}"
        )
    report, folder = build(board_name, instances, baud=baud, folder=folder)
    divisor = clocks_per_bit(report.clock_hz, report.baud)
    netlist = read_back(board, folder)
    library = compile_netlist(write_atomic(folder / "chip.v", netlist.verilog()))
    quiet = quiet_clocks(report.buffer)
    with Pins(library, divisor, quiet) as pins:
        tap = Tap(pins)
        with Device(SimulatedPort(tap), baud=report.baud, retries=0) as device:
            computed = traffic(device, tap, groups, seed)
            replayed = tuple(tap.exchanges)  # without the self-test: long, and uniform patterns
            for unit, count in device.self_test(groups // 10, seed=seed).groups.items():
                computed[unit] += count
            told = beside(device) if beside else ""
        clocks = pins.clocks
    found = None
    if faults:
        found = campaign(
            netlist,
            cell_names(folder),
            divisor,
            quiet,
            replayed,
            folder,
            faults,
            seed,
            whole,
        )
    check = BitstreamCheck(
        build=report,
        source=SOURCES[board.family],
        luts=sum(bool(lut.place) for lut in netlist.luts),
        flip_flops=len(netlist.flip_flops),
        memories=len(netlist.memories),
        requests=len(tap.exchanges),
        bytes_sent=sum(len(exchange.sent) for exchange in tap.exchanges),
        bytes_received=sum(len(exchange.received) for exchange in tap.exchanges),
        clocks=clocks,
        groups=computed,
        faults=found,
        beside=told,
    )
    write_atomic(folder / "check.json", check.to_json())
    return check
