"""The proof jobs: each holds for its unit, and fails for one with a fault."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from m2xfp.cli import cli
from m2xfp.formats import M2XFP_WEIGHT
from m2xfp.results import read_figures
from m2xfp.rtl.catalog import UNITS, find_unit
from m2xfp.synth.formal import fetching, fp32, gemm, masters, running, transforms
from m2xfp.synth.formal.design import Design
from m2xfp.synth.formal.engines import BITWUZLA, asking, within
from m2xfp.synth.formal.job import Job
from m2xfp.synth.formal.jobs import find_job, inject, jobs_of
from m2xfp.synth.formal.netlist import ProofError, from_any_state, simple
from m2xfp.synth.formal.streams import harness

ROWS = read_figures(Path(__file__).parents[2] / "docs" / "results" / "proofs.json")["proofs"]
# Recorded jobs up to this many seconds run in CI, all others in the slow set (docs/proofs.md).
QUICK = 5.0
# An accelerator with two rows a block, queues of four bursts and two slots.
ACCELERATOR = {
    **{"rows": 2, "columns": 2, "max_k": 64, "chains": 1, "chunk": 2, "slots": 2},
    **{"outstanding": 4, "queue": 2, "bus": "256", "encoder": None},
}
# Jobs whose recorded rows take longer: of smaller instances, or of the quickest row.
CASES = [
    *((("hadamard", "32x8", {}), job.name) for job in transforms.JOBS),
    (("activation_decoder", "m2xfp", {}), "mapped"),
    (("switching_dot_product", "micromix-8", {}), "wide-product"),
    *(
        (("accelerator", "m2xfp-2x2", ACCELERATOR), job.name)
        for job in (*masters.JOBS, *fetching.JOBS, *running.JOBS)
    ),
    *(
        (("gemm_core", "m2xfp-2x2", {"rows": 1, "columns": 2, "max_k": 64, "chains": 1}), job.name)
        for job in gemm.JOBS
    ),
]


def recorded() -> Iterator[Any]:
    """Yield instances with the recorded jobs that are quick, and one by one those that are not."""
    quick: dict[tuple[str, str], list[str]] = {}
    for row in ROWS:
        quick.setdefault((row["unit"], row["config"]), [])
        if row["seconds"] <= QUICK:
            quick[row["unit"], row["config"]].append(row["job"])
    for (unit, config), jobs in quick.items():
        marks = [pytest.mark.timeout(1800)]
        yield pytest.param(unit, config, jobs, id=f"{unit}-{config}", marks=marks)
    for row in ROWS:
        if row["seconds"] > QUICK:
            values = row["unit"], row["config"], [row["job"]]
            marks = [pytest.mark.slow, pytest.mark.timeout(7200)]
            yield pytest.param(*values, id="-".join((*values[:2], row["job"])), marks=marks)


def trouble(job: Job, about: Design) -> str:
    """Return what is wrong with a job that must hold, and fail with a fault."""
    if not job.applies(about):
        return f"{job.name} does not apply"
    if not job.prove(about).holds:
        return f"{job.name} does not hold"
    fault, outcome = inject(job, about)
    return f"{job.name} holds with {fault}" if outcome.holds or not fault else ""


@pytest.mark.parametrize(("unit", "config", "jobs"), list(recorded()))
def test_recorded_jobs_hold_and_can_fail(unit: str, config: str, jobs: list[str]) -> None:
    """All quick ones of an instance in one test: its netlists are made once."""
    about = Design.of(find_unit(unit).labelled(config))
    assert not [told for name in jobs if (told := trouble(find_job(name), about))]
    # Marked by what they take: half a minute is the limit, and other things ran beside.
    for row in ROWS:
        if (row["unit"], row["config"]) == (unit, config):
            slow = find_job(row["job"]).is_slow(about)
            assert row["seconds"] > 3 if slow else row["seconds"] < 90, row


@cache
def design(unit: str, config: str, changes: tuple[tuple[str, Any], ...]) -> Design:
    return Design.of(find_unit(unit).instance(config, dict(changes)))


@pytest.mark.parametrize(
    ("unit", "config", "changes", "name"),
    [
        pytest.param(unit, config, tuple(changes.items()), job, id=f"{unit}-{config}-{job}")
        for (unit, config, changes), job in CASES
    ],
)
def test_a_job_holds_and_can_fail(
    unit: str, config: str, changes: tuple[tuple[str, Any], ...], name: str
) -> None:
    assert not trouble(find_job(name), design(unit, config, changes))


@pytest.mark.parametrize("name", ["fp32-add", "softfloat-long"])
def test_the_longest_jobs_can_fail(name: str) -> None:
    """They run in the slow set; that their fault is noticed is seen at once."""
    fault, outcome = inject(find_job(name), design("fp32_accumulator", "m2xfp-single", ()))
    assert fault
    assert not outcome.holds


# Of each engine's kind of question one or two, and what they are about.
SECOND = [
    ("activation_decoder", "m2xfp", "decoder"),
    ("group_dot", "m2xfp", "lane-product"),
    ("fp32_accumulator", "m2xfp-single", "held"),
    ("fp32_accumulator", "m2xfp-single", "silent"),
    ("fp32_accumulator", "m2xfp-single", "addend"),
]


@pytest.mark.parametrize(("unit", "config", "name"), SECOND)
def test_a_second_engine_says_the_same(unit: str, config: str, name: str) -> None:
    pytest.importorskip("bitwuzla", reason="no second engine: pip install 'm2xfp[formal]'")
    with asking(BITWUZLA):
        assert find_job(name).is_bounded
        assert not trouble(find_job(name), design(unit, config, ()))


def test_the_second_engine_takes_no_question_without_bound() -> None:
    live = find_job("live")
    assert not live.is_bounded
    with asking(BITWUZLA), pytest.raises(ProofError, match="IC3"):
        live.prove(design("fp32_accumulator", "m2xfp-single", ()))
    given = ["prove", "fp32_accumulator", "--engine", "bitwuzla", "--accept"]
    assert "--accept" in CliRunner().invoke(cli, given).output


def test_the_encoders_gains_leave_upper_bits_out() -> None:
    """Eight lanes of the most that the job lane-gains allows: so wide its sums need not be."""
    u = (1 << 13) - 1
    steps = [int(2 * M2XFP_WEIGHT.element.magnitude(n)) for n in range(8)]
    most = {m: 8 * max(c * u - 64 * m * c * c for c in steps) for m in range(4, 8)}
    assert max(most[4], most[5], most[6]) < 1 << 19
    assert 7 * most[7] < 1 << 21 > 5 * most[5]
    assert 3 * most[6] < 1 << 20


@pytest.mark.parametrize("case", ["special", "nothing", "above", "below", "-32", "-1", "0", "32"])
def test_no_case_of_the_addition_is_empty(case: str) -> None:
    """Its condition is met after all: the proof of the case is about something."""
    module = design("fp32_accumulator", "m2xfp-single", ()).module("accumulator")
    netlist = from_any_state(simple(module))
    *body, compared = fp32.accumulates(netlist, case, 1)
    assert "acc != due_0" in compared
    assert not within(
        netlist.text, harness(netlist, [*body, "  assign bad = due_0[32];"]), 2, 60
    ).holds


@pytest.mark.slow
@pytest.mark.timeout(3600)
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
