"""What a unit's regression covers: lines, branches, bits, numbers, and what streams get into."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from m2xfp.facts import EmittedFiles
from m2xfp.rtl.catalog import Instance
from m2xfp.rtl.verilog.emit import emit
from m2xfp.synth.coverage.claims import Reader
from m2xfp.synth.coverage.unreachable import Netlist, proved
from m2xfp.tb.bench import Cover, find_bench
from m2xfp.tb.bulk.simulator import BulkSimulator, Run
from m2xfp.tb.cross import Cross, cross, merged
from m2xfp.tb.points import Point
from m2xfp.tb.regression import Case, check_case

__all__ = ["Measured", "measure"]

DEPTH = 3  # clocks that proofs look back


@dataclass(frozen=True)
class Measured:
    """What a regression has covered, and what is known of the rest.

    Members
    -------
    instance
        The unit.
    cases
        Number of cases of its regression.
    counts
        How often each point was covered.
    proved
        Points that no input covers, by induction.
    reasons
        Why nothing legal covers what matches a pattern, from the unit's testbench.
    crosses
        Combinations of cases.
    """

    instance: Instance
    cases: int
    counts: Counter[Point]
    proved: frozenset[Point]
    reasons: dict[str, str]
    crosses: tuple[Cross, ...]

    def reason(self, what: str) -> str | None:
        """Return why a point, or a combination of cases, is out of reach; None if it is not."""
        return _reason(self.reasons, what)

    @cached_property
    def argued(self) -> dict[Point, str]:
        """Points that were not covered and are argued, not proved, to be out of reach."""
        found = {point: self.reason(str(point)) for point in self._missed}
        return {point: why for point, why in found.items() if why is not None}

    @cached_property
    def _missed(self) -> list[Point]:
        return sorted(p for p, count in self.counts.items() if not count and p not in self.proved)

    @cached_property
    def argued_cases(self) -> dict[str, str]:
        """The same of combinations of cases."""
        found = {hole: self.reason(hole) for each in self.crosses for hole in each.holes}
        return {hole: why for hole, why in found.items() if why is not None}

    @cached_property
    def holes(self) -> list[str]:
        """What was not covered and is neither proved nor argued to be out of reach."""
        missed = [str(point) for point in self._missed if point not in self.argued]
        cases = [hole for each in self.crosses for hole in each.holes]
        return [*missed, *(hole for hole in cases if hole not in self.argued_cases)]

    @cached_property
    def surprises(self) -> list[str]:
        """What was covered though it is listed as out of reach: an error in that list."""
        covered = [str(point) for point, count in self.counts.items() if count]
        covered += [name for each in self.crosses for name in each.names(each.counts > 0)]
        listed = [what for what in covered if self.reason(what) is not None]
        return [*listed, *(what for each in self.crosses for what in each.surprises)]

    def of(self, kind: str) -> tuple[int, int, int, int]:
        """Return points of a kind: how many, and covered, proved and argued of them."""
        points = {point for point in self.counts if point.kind == kind}
        covered = {point for point in points if self.counts[point]}
        rest = points - covered
        return len(points), len(covered), len(rest & self.proved), len(rest & self.argued.keys())


def measure(
    instance: Instance,
    folder: Path,
    *,
    cases: list[Case] | None = None,
    depth: int = DEPTH,
    seconds: float = 120,
    progress: bool = False,
) -> Measured:
    """Play a unit's regression with Verilator's coverage, and prove what it cannot reach.

    Parameters
    ----------
    instance
        The unit.
    folder
        For all files; the simulation is cached there too.
    cases
        The regression; None for the unit's own.
    depth
        Clocks that proofs look back.
    seconds
        Time that a step of them may take.
    progress
        Show a progress bar.

    Raises
    ------
    AssertionError
        The unit fails its regression.
    """
    from m2xfp.progress import track

    facts, said = instance.facts, Cover(instance.unit)
    files = emit(instance, folder)
    simulator = BulkSimulator(files, coverage=True, build_dir=folder / "sim")
    crosses: list[Cross] = []
    given = list(find_bench(instance.unit).regression(facts) if cases is None else cases)
    for case in track(given, desc=instance.top, unit="case", quiet=not progress):
        for vectors, run in zip(case.phases, check_case(simulator, case), strict=True):
            crosses += [*said.cover(vectors, facts), *_streams(instance, run)]
        crosses += said.cover_case(case.phases, facts)
    counts, reasons = simulator.counts, said.unreached(facts)
    return Measured(
        instance,
        len(given),
        counts,
        _proved(simulator, files, reasons, folder, depth=depth, seconds=seconds),
        reasons,
        tuple(merged(crosses).values()),
    )


def _reason(reasons: Mapping[str, str], what: str) -> str | None:
    return next((why for text, why in reasons.items() if re.fullmatch(text, what)), None)


def _proved(
    simulator: BulkSimulator,
    files: EmittedFiles,
    reasons: Mapping[str, str],
    folder: Path,
    *,
    depth: int,
    seconds: float,
) -> frozenset[Point]:
    """Return the points that cannot be covered if those cannot that ``reasons`` are given for."""
    missed = [point for point, count in simulator.counts.items() if not count]
    if not missed:
        return frozenset()
    verilog = files.verilog.read_text()
    netlist = Netlist.of(verilog, files.top, folder)
    reader = Reader(netlist, verilog)
    claims = {point: set(reader.claims(point, simulator.before)) for point in missed}
    argued = {point for point in missed if _reason(reasons, str(point)) is not None}
    given = set().union(*(claims[point] for point in argued))
    held = given | proved(
        netlist,
        set().union(*claims.values()),
        folder,
        given=given,
        depth=depth,
        seconds=seconds,
    )
    return frozenset(
        point for point, those in claims.items() if those and those <= held and point not in argued
    )


def _streams(instance: Instance, run: Run) -> Iterator[Cross]:
    """Yield how the beats of a run came, and where its streams were at the reset."""
    facts = instance.facts
    for stream in facts.streams:
        beats = facts.beats_per_group if stream.is_input and len(facts.inputs) == 1 else 1
        hows = run.hows[stream.name].astype(np.int64)
        yield cross(
            f"beats of {stream.name}",
            {"beat": range(beats), "after": ("none", "no valid", "no ready", "both")},
            np.arange(len(hows)) % beats,
            hows,
        )
        yield cross(
            f"{stream.name} in the clock of the reset",
            {"valid": ("no", "yes"), "ready": ("no", "yes")},
            run.at_reset[stream.name] & 1,
            run.at_reset[stream.name] >> 1,
        )
