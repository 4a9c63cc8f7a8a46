"""The proof without a board: a built chip, simulated on its pins, against the golden model.

The host library talks to the netlist that was read back (`m2xfp.fpga.check.read_back`) as it does
to a board. Whether such traffic proves anything shows when faults are put into the netlist: each
bit of a LUT that is wrong should change some byte on the line.
"""

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from m2xfp.errors import InputError, M2xfpError
from m2xfp.files import write_atomic
from m2xfp.fpga.check.netlist import Fault, Netlist
from m2xfp.fpga.check.pins import Pins, compile_netlist, quiet_clocks
from m2xfp.fpga.check.read_back import SOURCES, cell_names, read_back
from m2xfp.fpga.flow.bitstream import BuildReport, build
from m2xfp.fpga.flow.boards import find_board
from m2xfp.fpga.gateware.design import find_board_unit
from m2xfp.fpga.protocol import Command, Decoder, Frame, Status, encode

if TYPE_CHECKING:
    from torch import Tensor

    from m2xfp.fpga.host.device import Device

__all__ = ["LANES", "FaultReport", "Proof", "ProofError", "Survivor", "simulate"]

LANES = 64
"""Machines in one run with faults: the width of a machine word."""


class ProofError(M2xfpError, RuntimeError):
    """The chip does not compute what the golden model does."""


@dataclass(frozen=True)
class Exchange:
    """What went over the line in one request, both ways."""

    sent: bytes
    received: bytes


@dataclass(frozen=True)
class Survivor:
    """A fault that changed no byte.

    Members
    -------
    fault
        LUT and, if it is one bit, for which inputs.
    cell
        What the LUT is called in the design.
    reason
        ``not selected``: the LUT was never wrong, since its inputs never selected that bit.
        ``no effect``: it was wrong at some clock edge, and the answers are right all the same.
    """

    fault: str
    cell: str
    reason: str


@dataclass(frozen=True)
class FaultReport:
    """How many faults were noticed.

    Members
    -------
    kind
        ``bit`` or ``lut``: what was inverted.
    seed
        Of the choice.
    possible
        How many different faults there are. Bits of a LUT that no state of the chip's registers can
        select are among them, and are never chosen.
    faults, detected
        How many were tried, and how many changed an answer.
    survivors
        The others.
    """

    kind: str
    seed: int
    possible: int
    faults: int
    detected: int
    survivors: tuple[Survivor, ...]

    def summary(self) -> str:
        """Return the figures in one sentence."""
        what = "LUTs inverted" if self.kind == "lut" else "LUT bits inverted"
        reasons = Counter(survivor.reason for survivor in self.survivors)
        rest = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        return (
            f"{self.detected} of {self.faults} {what} were detected "
            f"({self.detected / self.faults:.1%}){'; the others: ' + rest if rest else ''}"
        )


@dataclass(frozen=True)
class Proof:
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

    def to_json(self) -> str:
        """Return the proof as JSON text."""
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
        return "\n".join([*lines, *([self.faults.summary()] if self.faults else [])])


class _Tap:
    """A line to the chip that remembers what went over it."""

    def __init__(self, pins: Pins) -> None:
        self._pins = pins
        self.exchanges: list[Exchange] = []

    def exchange(self, sent: bytes) -> bytes:
        received = self._pins.exchange(sent)
        self.exchanges.append(Exchange(sent, received))
        return received


def _bfloat16(patterns: NDArray[np.uint16]) -> "Tensor":
    import torch

    return torch.from_numpy(patterns.view(np.int16)).view(torch.bfloat16)


def values(rng: np.random.Generator, groups: int) -> "Tensor":
    """Return groups of 32 bfloat16 values that make a quantizer work, [groups, 32].

    Of ten groups, six have exponents close together, three of them with values on and beside the
    ties between codes; the others: any exponents, subnormals, the largest exponents with one NaN or
    infinity, zeros of both signs. Uniform bit patterns would mostly give zero codes beside one
    large value.
    """
    shape = (groups, 32)
    kind = rng.integers(0, 10, (groups, 1))
    sign = rng.integers(0, 2, shape)
    fraction = rng.integers(0, 128, shape)
    ties = rng.choice([0, 31, 32, 33, 63, 64, 65, 95, 96, 97, 112, 127], shape)
    exponent = rng.integers(1, 250, (groups, 1)) + rng.integers(-6, 1, shape)
    spread = rng.integers(0, 255, shape)
    tiny = rng.integers(0, 4, shape)
    huge = np.where(np.arange(32) == rng.integers(0, 32, (groups, 1)), 255, 250 + tiny)
    exponent = np.select(
        [kind < 6, kind == 6, kind == 7, kind == 8], [exponent, spread, tiny, huge]
    )
    fraction = np.select(
        [kind < 3, kind < 6, kind == 8, kind == 9],
        [fraction, ties, fraction * rng.integers(0, 2, shape), 0],
        fraction,
    )
    patterns = sign << 15 | np.clip(exponent, 0, 255) << 7 | fraction
    return _bfloat16(patterns.astype(np.uint16))


def _check(unit: str, found: "Tensor", expected: "Tensor") -> None:
    """Raise ProofError unless two tensors have the same bits."""
    import torch

    kind = torch.int32 if found.dtype == torch.float32 else torch.uint8
    if not torch.equal(found.contiguous().view(kind), expected.contiguous().view(kind)):
        raise ProofError(f"{unit} differs from the golden model")


def _traffic(device: "Device", tap: _Tap, groups: int, seed: int) -> dict[str, int]:
    """Use every unit and every kind of answer; return groups computed by unit.

    The requests grow, since a fault that shows early ends its run early.
    """
    from tqdm import tqdm

    from m2xfp.golden import dot, get_format, matmul

    rng = np.random.default_rng(seed)
    computed: Counter[str] = Counter()
    act, weight = get_format("m2xfp-act"), get_format("m2xfp-weight")
    sizes = [1] * (groups // 4) + [3] * (groups // 12) + [20] * (groups // 40)
    for unit in device.identity.names:
        for size in tqdm(sizes, desc=f"{unit}, groups", leave=False):
            if unit in ("quantizer", "encoder"):
                x = values(rng, size)
                kind = act if unit == "quantizer" else weight
                run = device.quantize if unit == "quantizer" else device.quantize_weights
                _check(unit, run(x).groups(), kind.quantize(x).groups())
                computed[unit] += size
                continue
            # Rows of one, two or more groups; scales close enough to meet in the accumulator.
            depth = 1 + size % 4
            rows = -(-size // depth)
            qa, qw = (
                kind.quantize(values(rng, rows * depth).reshape(rows, depth * 32))
                for kind in (act, weight)
            )
            if unit == "dot":
                _check(unit, device.dot(qa, qw), dot(qa, qw))
                computed[unit] += rows * depth
            else:
                _check(unit, device.matmul(qa, qw), matmul(qa, qw))
                computed[unit] += rows * rows * depth
    _refusals(tap)
    return dict(computed)


def _refusals(tap: _Tap) -> None:
    """Send what must be refused, with the right one of the refusals."""
    frame = encode(Frame(Command.ECHO, 0xA55A, bytes(range(0x70, 0x90))))
    for sent, status in (
        *((frame[:n] + bytes([frame[n] ^ 1 << n % 8]) + frame[n + 1 :], 1) for n in range(1, 9)),
        (frame[:-3] + frame[-1:], Status.BAD_FRAME),
        (encode(Frame(0x0F, 0x1234)), Status.UNKNOWN_COMMAND),
        (encode(Frame(Command.UNIT, 0x4321, b"\x00\x01")), Status.STALLED),
    ):
        answers = [frame.status for frame in Decoder().feed(tap.exchange(sent)) if frame]
        if answers != [status]:
            raise ProofError(f"the request {sent.hex()} is answered with {answers}, not {status}")


def _detections(
    library: Path,
    divisor: int,
    quiet: int,
    faults: Sequence[Fault],
    exchanges: Sequence[Exchange],
) -> Iterator[tuple[Fault, bool, bool]]:
    """Yield (fault, whether an answer was wrong, whether it was ever selected)."""
    from tqdm import tqdm

    for batch, first in enumerate(range(0, len(faults), LANES - 1)):
        present = faults[first : first + LANES - 1]
        silent = set(range(1, len(present) + 1))
        with Pins(library, divisor, quiet, LANES, batch) as pins:
            progress = tqdm(
                exchanges, desc=f"faults {first + 1}-{first + len(present)}", leave=False
            )
            for exchange in progress:
                if pins.exchange(exchange.sent) != exchange.received or pins.broken(0):
                    raise ProofError("the chip without a fault does not answer as it did before")
                silent = {
                    lane
                    for lane in silent
                    if pins.answer(lane) == exchange.received and not pins.broken(lane)
                }
                progress.set_postfix_str(f"{len(silent)} left", refresh=False)
                if not silent:
                    break
            hits = pins.hits
        for lane, fault in enumerate(present, 1):
            yield fault, lane not in silent, bool(hits >> lane & 1)


def _campaign(
    netlist: Netlist,
    names: dict[str, str],
    divisor: int,
    quiet: int,
    exchanges: Sequence[Exchange],
    folder: Path,
    count: int,
    seed: int,
    whole: bool,
) -> FaultReport:
    possible = netlist.possible_faults(whole=whole)
    shuffled = random.Random(seed).sample(possible, len(possible))
    faults = list(islice(filter(netlist.is_possible, shuffled), count))
    verilog = write_atomic(folder / "faulty.v", netlist.verilog(LANES, faults))
    survivors = []
    for fault, detected, selected in _detections(
        compile_netlist(verilog), divisor, quiet, faults, exchanges
    ):
        if not detected:
            reason = "no effect" if selected else "not selected"
            name = names.get(fault.lut.place, "")
            survivors.append(Survivor(str(fault), name, reason))
    return FaultReport(
        kind="lut" if whole else "bit",
        seed=seed,
        possible=len(possible),
        faults=len(faults),
        detected=len(faults) - len(survivors),
        survivors=tuple(survivors),
    )


def simulate(
    board_name: str,
    units: Sequence[str] | None = None,
    *,
    baud: int | None = None,
    folder: Path | None = None,
    groups: int = 240,
    faults: int = 0,
    seed: int = 0,
    whole: bool = True,
) -> Proof:
    """Build, read the chip back, and hold it against the golden model over its serial line.

    Parameters
    ----------
    board_name, units, baud, folder
        As for `m2xfp.fpga.flow.bitstream.build`.
    groups
        About how many groups each unit gets, at least 12.
    faults
        How many wrong LUTs to try; 0 for none.
    seed
        Of the values and of the choice of faults.
    whole
        Invert whole LUTs instead of one bit each.

    Raises
    ------
    ProofError
        An answer differs from the golden model's.
    InputError
        Too few groups, a negative number of faults, or a board whose chip cannot be read back.
    M2xfpError
        As `m2xfp.fpga.flow.bitstream.build` and `m2xfp.fpga.host.device.Device` do.
    """
    from m2xfp.fpga.check.line import SimulatedPort
    from m2xfp.fpga.gateware.uart import clocks_per_bit
    from m2xfp.fpga.host.device import Device

    if groups < 12:
        raise InputError(f"groups={groups}: must be at least 12")
    if faults < 0:
        raise InputError(f"faults={faults}: must not be negative")
    board = find_board(board_name)
    if board.family not in SOURCES:
        raise InputError(
            f"board {board.name}: a {board.family} chip cannot be read back; "
            f"m2xfp fpga simulate takes those of {', '.join(SOURCES)}"
        )
    report, folder = build(board_name, units, baud=baud, folder=folder)
    divisor = clocks_per_bit(report.clock_hz, report.baud)
    netlist = read_back(board, folder)
    library = compile_netlist(write_atomic(folder / "chip.v", netlist.verilog()))
    quiet = quiet_clocks(max(find_board_unit(name).buffer for name in report.units))
    with Pins(library, divisor, quiet) as pins:
        tap = _Tap(pins)
        with Device(SimulatedPort(tap), baud=report.baud, retries=0) as device:
            computed = _traffic(device, tap, groups, seed)
            replayed = tuple(tap.exchanges)  # without the self-test: long, and uniform patterns
            for unit, count in device.self_test(groups // 10, seed=seed).groups.items():
                computed[unit] += count
        clocks = pins.clocks
    found = None
    if faults:
        found = _campaign(
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
    proof = Proof(
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
    )
    write_atomic(folder / "proof.json", proof.to_json())
    return proof
