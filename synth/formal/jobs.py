"""The proof jobs: properties, each with its engine and with faults that must make it fail.

A job says itself which units it is about, from their facts and modules, so that any unit with any
parameters has its jobs. Nothing here lists units.
"""

from itertools import chain, islice

from m2xfp.errors import UnknownNameError
from m2xfp.rtl.catalog import Instance
from m2xfp.synth.formal import (
    axi,
    control,
    fetching,
    gemm,
    mapped,
    masters,
    parts,
    permuting,
    ratios,
    rules,
    running,
    search,
    softfloat,
    switching,
    transforms,
    written,
)
from m2xfp.synth.formal.design import Design
from m2xfp.synth.formal.engines import Outcome
from m2xfp.synth.formal.job import TRIES, Job
from m2xfp.synth.formal.netlist import ProofError

__all__ = ["JOBS", "find_job", "inject", "jobs_of"]

JOBS: dict[str, Job] = {
    job.name: job
    for job in chain(
        rules.JOBS,
        control.JOBS,
        gemm.JOBS,
        axi.JOBS,
        masters.JOBS,
        fetching.JOBS,
        running.JOBS,
        permuting.JOBS,
        parts.JOBS,
        ratios.JOBS,
        switching.JOBS,
        transforms.JOBS,
        search.JOBS,
        softfloat.JOBS,
        written.JOBS,
        mapped.JOBS,
    )
}


def find_job(name: str) -> Job:
    """Return the job called ``name``; UnknownNameError lists those that exist."""
    if name not in JOBS:
        raise UnknownNameError("proof job", name, JOBS)
    return JOBS[name]


def jobs_of(instance: Instance, *, slow: bool = True) -> tuple[Design, list[Job]]:
    """Return an instance as a design, and the jobs that are about it."""
    design = Design.of(instance)
    having = [job for job in JOBS.values() if job.applies(design)]
    return design, [job for job in having if slow or not job.is_slow(design)]


def inject(job: Job, design: Design) -> tuple[str, Outcome]:
    """Return the first fault for which a job fails, and the outcome.

    Raises
    ------
    ProofError
        None of the first ``TRIES`` faults makes it fail: the job shows nothing.
    """
    for broken in islice(job.faults(design), TRIES):
        outcome = job.prove(broken)
        if not outcome.holds:
            return broken.fault, outcome
    raise ProofError(f"{design.facts.top}, {job.name}: holds with any of the faults injected")
