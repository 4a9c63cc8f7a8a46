"""The proof jobs: each holds for its unit, and fails for one with a fault."""

from functools import cache

import pytest
from click.testing import CliRunner

from m2xfp.cli import cli
from m2xfp.rtl.catalog import UNITS, find_unit
from m2xfp.synth.formal.design import Design
from m2xfp.synth.formal.jobs import JOBS, find_job, inject, jobs_of

# Small instances of units that have, together, every job that takes seconds.
SMALL = [
    ("fp32_accumulator", "m2xfp-single"),
    ("activation_quantizer", "bf16x8"),
]
CASES = [
    pytest.param(unit, config, job, id=f"{unit}-{config}-{job}")
    for unit, config in SMALL
    for job in JOBS
    if not JOBS[job].slow
]


@cache
def design(unit: str, config: str) -> Design:
    return Design.of(find_unit(unit).instance(config))


@pytest.mark.parametrize(("unit", "config", "name"), CASES)
def test_a_job_holds_and_can_fail(unit: str, config: str, name: str) -> None:
    job = find_job(name)
    if not job.applies(design(unit, config)):
        pytest.skip("not about this unit")
    assert job.prove(design(unit, config)).holds
    fault, outcome = inject(job, design(unit, config))
    assert fault
    assert not outcome.holds


@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS)
def test_every_unit_has_jobs_that_hold_and_can_fail(unit: str) -> None:
    about, jobs = jobs_of(find_unit(unit).instance(), slow=False)
    assert jobs
    for job in jobs:
        assert job.prove(about).holds, job.name
        assert inject(job, about)[0]


def test_the_command_says_what_fails_with_a_fault() -> None:
    given = ["prove", "fp32_accumulator", "--set", "chains=2", "--job", "silent"]
    done = CliRunner().invoke(cli, given, catch_exceptions=False)
    assert done.exit_code == 0
    assert "chains=2 silent: holds (BMC, any state, 2 clocks" in done.output
    done = CliRunner().invoke(cli, [*given, "--inject"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "silent: noticed" in done.output
    assert "never reset" in done.output
