"""Playing a unit's regression through its mutants, and what becomes of each."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from m2xfp.rtl.catalog import Instance
from m2xfp.synth.mutants.equivalence import Prover
from m2xfp.synth.mutants.netlist import PORT, Mutant, MutatedUnit, mutate
from m2xfp.tb.bench import Cover, find_bench
from m2xfp.tb.bulk.simulator import BulkSimulator, SimulationError
from m2xfp.tb.regression import Case, check_case

__all__ = ["Outcome", "killer", "measure"]


# Verilator 5.048 computes some of these netlists wrongly when it rewrites the dataflow graph:
# number 0 then fails the regression, though yosys proves it equal to the unit.
# A fault may select two cases of what yosys writes as a parallel one, which is no end of all.
OPTIONS = ("-fno-dfg", "--no-assert")


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant.

    Members
    -------
    mutant
        The fault.
    fate
        ``killed``, ``equivalent``, ``argued``, or ``alive``.
    by
        The case that noticed it, or where it is equivalent, or by which argument, or what is known
        of it.
    """

    mutant: Mutant
    fate: str
    by: str


def killer(simulator: BulkSimulator, cases: Iterable[Case], number: int) -> str:
    """Return the name of the first case that a mutant fails; nothing if it passes all."""
    for case in cases:
        try:
            check_case(simulator, case, {PORT: number})
        except (AssertionError, SimulationError):
            return case.name
    return ""


def _explain(prover: Prover, number: int) -> tuple[str, str]:
    """Return fate and reason of a mutant that lives: a proof before an argument."""
    if (verdict := prover.glance(number)).same:
        return "equivalent", verdict.how
    if why := prover.argue(number):
        return "argued", why
    verdict = prover.prove(number)
    return "equivalent" if verdict.same else "alive", verdict.how


def measure(
    instance: Instance,
    count: int,
    seed: int,
    folder: Path,
    *,
    cases: Sequence[Case] | None = None,
    seconds: int = 20,
    only: Collection[int] = (),
    progress: bool = False,
) -> list[Outcome]:
    """Make mutants of a unit, play its regression through each, and look into those that live.

    Parameters
    ----------
    instance
        The unit.
    count, seed
        Number of mutants, and seed of their places.
    folder
        For all files; the simulation is cached there too.
    cases
        The regression; None for the unit's own.
    seconds
        Time that a proof may take.
    only
        Numbers of the mutants that are looked at; all if there are none.
    progress
        Show a progress bar.

    Raises
    ------
    AssertionError
        The unit itself fails its regression.
    """
    from m2xfp.progress import track

    mutated: MutatedUnit = mutate(instance, count, seed, folder)
    simulator = BulkSimulator(mutated.emitted, build_dir=folder / "sim", options=OPTIONS)
    if cases is None:
        cases = list(find_bench(instance.unit).regression(instance.facts))
    for case in cases:
        check_case(simulator, case, {PORT: 0})
    # What has found much is tried first.
    order = {case.name: 0 for case in cases}
    outcomes, living = [], []
    looked_at = [each for each in mutated.mutants if not only or each.number in only]
    for mutant in track(looked_at, desc=instance.top, unit="mutant", quiet=not progress):
        tried = sorted(cases, key=lambda case: -order[case.name])
        if by := killer(simulator, tried, mutant.number):
            order[by] += 1
            outcomes.append(Outcome(mutant, "killed", by))
        else:
            living.append(mutant)
    if living:
        prover = Prover(mutated, seconds, Cover(instance.unit).argued(instance.facts))
        for mutant in track(living, desc="proofs", unit="mutant", quiet=not progress):
            outcomes.append(Outcome(mutant, *_explain(prover, mutant.number)))
    return sorted(outcomes, key=lambda outcome: outcome.mutant.number)
