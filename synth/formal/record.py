"""Running jobs, and the record of what was proved."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from m2xfp.results import read_figures, write_figures
from m2xfp.rtl.catalog import Instance
from m2xfp.synth.formal.design import Design
from m2xfp.synth.formal.engines import ENGINES, asking
from m2xfp.synth.formal.job import Job
from m2xfp.synth.formal.jobs import JOBS, find_job, inject, jobs_of
from m2xfp.synth.formal.netlist import ProofError
from m2xfp.tables import aligned_table

__all__ = ["Record", "accept_records", "prove", "tables"]

FILE = "proofs.json"
# Seconds up to which rows are counted: what a run of some of them takes.
_LIMITS = (2, 5, 10, 20, 60)


@dataclass(frozen=True)
class Record:
    """What came of a job.

    Members
    -------
    unit, config, job, engine
        What was proved, and by what.
    depth, seconds
        How far the engine looked, and how long it took; of the proof, or of the fault where only
        that was wanted.
    holds
        Whether the property holds; None if it was not asked.
    fault
        The fault that makes it fail; empty if none was injected, or if none does.
    problem
        Why there is no result.
    """

    unit: str
    config: str
    job: str
    engine: str
    depth: str = ""
    seconds: float = 0.0
    holds: bool | None = None
    fault: str = ""
    problem: str = ""

    @property
    def good(self) -> bool:
        """Whether all that was asked came out as it should."""
        return self.holds is not False and not self.problem

    @property
    def line(self) -> str:
        """The record for a reader."""
        verdict = "no result" if self.problem else "FAILS" if self.holds is False else "holds"
        verdict = "noticed" if self.holds is None and not self.problem else verdict
        told = self.problem or (f"; fails with: {self.fault}" if self.fault else "")
        return (
            f"{self.unit} {self.config} {self.job}: {verdict} "
            f"({self.engine}, {self.depth}, {self.seconds:.1f} s){told}"
        )


def prove(
    instances: Iterable[Instance],
    names: Collection[str],
    *,
    slow: bool = False,
    faults: bool = False,
    only: bool = False,
    engine: str = ENGINES[0],
) -> Iterator[Record]:
    """Run the jobs of some instances.

    Parameters
    ----------
    instances, names
        Units, and the jobs that are wanted of those that they have.
    slow
        The long ones too.
    faults
        Inject faults too.
    only
        And prove nothing.
    engine
        One of ``ENGINES``; of all but the first, only jobs about a number of clocks.
    """
    for instance in instances:
        design, jobs = jobs_of(instance, slow=slow)
        for job in jobs:
            if job.name not in names or (engine != ENGINES[0] and not job.is_bounded):
                continue
            by = job.engine if engine == ENGINES[0] else engine
            first = Record(instance.unit.name, instance.config, job.name, by)
            facts = asdict(first)
            try:
                with asking(engine):
                    facts |= _asked(job, design, faults=faults, only=only)
            except ProofError as error:
                facts["problem"] = str(error)
            yield Record(**facts)


def _asked(job: Job, design: Design, *, faults: bool, only: bool) -> dict[str, Any]:
    """Return what came of a job, as members of a record."""
    facts: dict[str, Any] = {}
    if not only:
        outcome = job.prove(design)
        facts = {
            "holds": outcome.holds,
            "depth": outcome.depth,
            "seconds": round(outcome.seconds, 1),
        }
    if faults:
        facts["fault"], broken = inject(job, design)
        if only:
            facts |= {"depth": broken.depth, "seconds": round(broken.seconds, 1)}
    return facts


def accept_records(folder: Path, records: Iterable[Record]) -> Path:
    """Put records into the accepted figures, in the place of those of the same job and unit."""
    path = folder / FILE
    rows = read_figures(path)["proofs"] if path.exists() else []
    found = {(row["unit"], row["config"], row["job"]): row for row in rows}
    for record in records:
        row = asdict(record)
        del row["holds"], row["problem"]
        found[record.unit, record.config, record.job] = row
    order = {name: n for n, name in enumerate(JOBS)}
    return write_figures(
        path,
        {
            "proofs": sorted(
                found.values(), key=lambda row: (row["unit"], row["config"], order[row["job"]])
            )
        },
    )


def tables(results: Path) -> dict[str, str]:
    """Return the tables of proofs, of jobs, and of what rows take together."""
    path = results / FILE
    if not path.exists():
        return {}
    rows = read_figures(path)["proofs"]
    jobs = [
        [f"`{job.name}`", job.text, job.engine, str(sum(row["job"] == job.name for row in rows))]
        for job in JOBS.values()
    ]
    proofs = [
        [
            f"`{row['unit']}` {row['config']}",
            f"`{find_job(row['job']).name}`",
            row["depth"],
            f"{row['seconds']:.1f}",
            row["fault"],
        ]
        for row in rows
    ]
    times = []
    for most in (*_LIMITS, None):
        taken = [row["seconds"] for row in rows if most is None or row["seconds"] <= most]
        times.append([f"up to {most} s" if most else "any", str(len(taken)), f"{sum(taken):.0f}"])
    return {
        "proof-times": aligned_table([["a row takes", "rows", "s together"], *times]),
        "proof-jobs": aligned_table([["job", "says", "engine", "proofs"], *jobs]),
        "proofs": aligned_table([["unit", "job", "depth", "s", "fails with"], *proofs]),
    }
