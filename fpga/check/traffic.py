"""What a chip is asked, and what it must answer: every unit with groups that make it work.

The requests grow, since a fault that shows early ends its run early.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from m2xfp.errors import M2xfpError
from m2xfp.fpga.check.line import Exchanger
from m2xfp.fpga.host.device import Device
from m2xfp.fpga.host.remote_unit import difference
from m2xfp.fpga.protocol import Command, Decoder, Frame, Status, encode

__all__ = ["CheckError", "Exchange", "Tap", "refusals", "traffic"]


class CheckError(M2xfpError, RuntimeError):
    """The chip does not compute what the golden model does."""


@dataclass(frozen=True)
class Exchange:
    """What went over the line in one request, both ways."""

    sent: bytes
    received: bytes


class Tap:
    """A line to the chip that remembers what went over it."""

    def __init__(self, line: Exchanger) -> None:
        self._line = line
        self.exchanges: list[Exchange] = []

    def exchange(self, sent: bytes) -> bytes:
        """Send bytes and return what comes back."""
        received = self._line.exchange(sent)
        self.exchanges.append(Exchange(sent, received))
        return received


def traffic(device: Device, tap: Tap, groups: int, seed: int) -> dict[str, int]:
    """Use every unit and every kind of answer; return groups computed by unit."""
    from m2xfp.progress import track

    rng = np.random.default_rng(seed)
    computed: Counter[str] = Counter()
    sizes = [1] * (groups // 4) + [3] * (groups // 12) + [20] * (groups // 40)
    for name, unit in device.units.items():
        for size in track(sizes, desc=f"{name}, groups", leave=False):
            arrays = unit.sample(rng, size)
            if told := difference(unit.run(arrays), unit.expected(arrays)):
                raise CheckError(f"{name} differs from the golden model: {told}")
            computed[name] += unit.count(arrays)
    refusals(tap)
    return dict(computed)


def refusals(tap: Tap) -> None:
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
            raise CheckError(f"the request {sent.hex()} is answered with {answers}, not {status}")
