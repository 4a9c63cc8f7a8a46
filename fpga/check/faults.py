"""Faults in a netlist, one a machine: whether the traffic of a check notices them."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from m2xfp.files import write_atomic
from m2xfp.fpga.check.netlist import Fault, Netlist
from m2xfp.fpga.check.pins import Pins, compile_netlist
from m2xfp.fpga.check.traffic import CheckError, Exchange

__all__ = ["LANES", "FaultReport", "Survivor", "campaign"]

LANES = 64
"""Machines in one run with faults: the width of a machine word."""


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


def _detections(
    library: Path,
    divisor: int,
    quiet: int,
    faults: Sequence[Fault],
    exchanges: Sequence[Exchange],
) -> Iterator[tuple[Fault, bool, bool]]:
    """Yield (fault, whether an answer was wrong, whether it was ever selected)."""
    from m2xfp.progress import track

    for batch, first in enumerate(range(0, len(faults), LANES - 1)):
        present = faults[first : first + LANES - 1]
        silent = set(range(1, len(present) + 1))
        with Pins(library, divisor, quiet, LANES, batch) as pins:
            progress = track(
                exchanges, desc=f"faults {first + 1}-{first + len(present)}", leave=False
            )
            for exchange in progress:
                if pins.exchange(exchange.sent) != exchange.received or pins.broken(0):
                    raise CheckError("the chip without a fault does not answer as it did before")
                silent = {
                    lane
                    for lane in silent
                    if pins.answer(lane) == exchange.received and not pins.broken(lane)
                }
                progress.note(f"{len(silent)} left")
                if not silent:
                    break
            hits = pins.hits
        for lane, fault in enumerate(present, 1):
            yield fault, lane not in silent, bool(hits >> lane & 1)


def campaign(
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
    """Try wrong LUTs on what went over the line, and return how many of them it notices.

    Parameters
    ----------
    netlist
        The chip.
    names
        What its cells are called in the design, by place.
    divisor, quiet
        As for `Pins`.
    exchanges
        What was sent, and what the chip without a fault answers.
    folder
        For the Verilog.
    count, seed, whole
        How many faults, their choice, and whether whole LUTs are inverted instead of one bit each.
    """
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
