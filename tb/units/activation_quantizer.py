"""Testbench of the activation quantizer: jobs from the golden model, a cocotb test of values."""

from typing import Any

import cocotb
import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Facts
from m2xfp.tb.adapters import value_beats
from m2xfp.tb.protocol.stream_tests import Bench
from m2xfp.tb.vectors import Beats, Job

__all__ = ["make_job"]


def make_job(description: Facts, raw: NDArray[Any], seed: int = 0) -> Job:
    """Return the beats for groups of raw patterns and the packed groups that must come out.

    TLAST is random in every beat: that of a group's last beat must come out with the group, the
    others must have no effect.

    Parameters
    ----------
    description
        The configuration.
    raw
        uint16, uint32 for fp32 [n, group].
    seed
        Seed of TLAST.
    """
    from m2xfp.golden.bits import quantize_bits

    planes = quantize_bits(
        description.parameters["block"], description.parameters["input_type"], raw
    )
    last = np.random.default_rng(seed).random(len(raw) * description.beats_per_group) < 0.5
    return Job(
        {"i": value_beats(raw, description, last)},
        {
            "o": Beats(
                np.hstack(planes),
                last[description.beats_per_group - 1 :: description.beats_per_group],
            )
        },
        len(raw),
    )


@cocotb.test()
async def values(dut: Any) -> None:
    """All groups of the job, with occasional pauses: every bit equals the golden model's."""
    bench = Bench(dut)
    await bench.start()
    await bench.play(bench.job, {"i": 0.1, "o": 0.1})
