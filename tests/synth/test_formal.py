"""The proof jobs: each holds for its unit, and fails for one with a fault."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from click.testing import CliRunner

from m2xfp.cli import cli
from m2xfp.formats import M2XFP_WEIGHT, block_format
from m2xfp.rtl.catalog import UNITS, find_unit
from m2xfp.synth.formal import fetching, fp32, gemm, masters, rules, running, transforms
from m2xfp.synth.formal.design import Design
from m2xfp.synth.formal.engines import within
from m2xfp.synth.formal.jobs import JOBS, find_job, inject, jobs_of
from m2xfp.synth.formal.netlist import from_any_state, simple
from m2xfp.synth.formal.streams import harness

PERMUTER = {"lanes": 2, "max_k": 8}
MIXED = {"rows": 1, "columns": 1, "max_k": 128, "chains": 2, "tile": 32}
# An accelerator with two rows a block, queues of four bursts and two slots.
ACCELERATOR = {
    **{"rows": 2, "columns": 2, "max_k": 64, "chains": 1, "chunk": 2, "slots": 2},
    **{"outstanding": 4, "queue": 2, "bus": "256", "encoder": None},
}
# Small instances that have, together, most of the jobs that take seconds, and jobs that are not
# repeated for every unit.
CASES = [
    *(
        (("fp32_accumulator", "m2xfp-single", {}), job)
        for job in [*(each.name for each in rules.JOBS), "addend", "fp32-special", "softfloat"]
    ),
    *(
        (("activation_quantizer", "bf16x8", {}), job)
        for job in ("conserved", "apart", "taken-whole")
    ),
    (("weight_encoder", "bf16-fixed-4", {}), "queue-moves"),
    (("activation_decoder", "m2xfp", {}), "decoder"),
    (("activation_decoder", "m2xfp", {}), "mapped"),
    (("pe_tile", "nvfp4", {}), "lane-product"),
    (("exact_accumulator", "m2xfp", {}), "carries"),
    *((("hadamard", "32x8", {}), job.name) for job in transforms.JOBS),
    (("switching_dot_product", "micromix-8", {}), "wide-product"),
    *((("accelerator", "m2xfp-2x2", {}), job) for job in ("bursts", "taken", "descriptors")),
    *(
        (("accelerator", "m2xfp-2x2", ACCELERATOR), job.name)
        for job in (*masters.JOBS, *fetching.JOBS, *running.JOBS)
    ),
    (("gemm_core", "m2xfp-2x2", {"rows": 1, "columns": 1, "max_k": 64}), "buffers"),
    (("gemm_core", "m2xfp-2x2", {"rows": 1, "columns": 1, "max_k": 64}), "apart"),
    *((("channel_permuter", "bf16x8", PERMUTER), job) for job in ("willing", "looked-at", "apart")),
    (("mixed_gemm", "micromix-2x2", MIXED), "buffers"),
    *(
        (("gemm_core", "m2xfp-2x2", {"rows": 1, "columns": 2, "max_k": 64, "chains": 1}), job.name)
        for job in gemm.JOBS
    ),
]
SLOW = [
    (("channel_permuter", "bf16x8", PERMUTER), "rows-kept"),
    *((("mixed_gemm", "micromix-2x2", MIXED), job.name) for job in gemm.JOBS),
    (("accelerator", "m2xfp-2x2", {}), "asked"),
    (("accelerator", "m2xfp-2x2", {}), "counted"),
    (("accelerator", "m2xfp-2x2", {}), "register-answers"),
    (("accelerator", "m2xfp-2x2", {}), "buffers"),
    (("minifloat_quantizer", "amxfp4-e4m3-bf16x32", {}), "minifloat-scale"),
    (("minifloat_quantizer", "amxfp4-e4m3-bf16x32", {}), "ratio-codes"),
    (("weight_encoder", "bf16-fixed-4", {}), "lane-gains"),
    (("fp32_accumulator", "m2xfp-single", {}), "mapped"),
    (("pe_tile", "m2xfp", {}), "part-sum"),
    (("group_dot", "m2xfp", {}), "scaled-product"),
    (("exact_accumulator", "m2xfp", {}), "integer-sum"),
    (("activation_quantizer", "bf16x8", {"block": block_format("mxfp4:group=8")}), "quantized"),
]


def cases() -> Iterator[Any]:
    for instances, forced in ((CASES, False), (SLOW, True)):
        for (unit, config, changes), job in instances:
            marks = [pytest.mark.slow] if forced or JOBS[job].slow else []
            values = unit, config, tuple(changes.items()), job
            yield pytest.param(*values, id=f"{unit}-{config}-{job}", marks=marks)


@cache
def design(unit: str, config: str, changes: tuple[tuple[str, Any], ...]) -> Design:
    return Design.of(find_unit(unit).instance(config, dict(changes)))


@pytest.mark.parametrize(("unit", "config", "changes", "name"), list(cases()))
def test_a_job_holds_and_can_fail(
    unit: str, config: str, changes: tuple[tuple[str, Any], ...], name: str
) -> None:
    job, about = find_job(name), design(unit, config, changes)
    assert job.applies(about)
    assert job.prove(about).holds
    fault, outcome = inject(job, about)
    assert fault
    assert not outcome.holds


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
