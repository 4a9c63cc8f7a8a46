"""Testbench of the weight encoder: jobs from the golden model, a cocotb test of values."""

from typing import Any

import cocotb
import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Facts
from m2xfp.tb.adapters import value_beats
from m2xfp.tb.protocol.stream_tests import Bench
from m2xfp.tb.vectors import Beats, Job

__all__ = ["make_job", "search_options"]


def search_options(description: Facts) -> dict[str, Any]:
    """Return the options of ``get_format("m2xfp-weight")`` that a configuration computes."""
    given = description.parameters
    options = {"adaptive": given["adaptive"], "search": "fixed"}
    if given["fraction_bits"] is not None:
        options["fraction_bits"] = given["fraction_bits"]
    return options


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
    from m2xfp.golden import get_format
    from m2xfp.golden.bits import quantize_bits

    fmt = get_format(description.parameters["block"], **search_options(description))
    planes = quantize_bits(fmt, description.parameters["input_type"], raw)
    beats = description.beats_per_group
    last = np.random.default_rng(seed).random(len(raw) * beats) < 0.5
    return Job(
        {"i": value_beats(raw, description, last)},
        {"o": Beats(np.hstack(planes), last[beats - 1 :: beats])},
        len(raw),
    )


@cocotb.test()
async def values(dut: Any) -> None:
    """All groups of the job, with occasional pauses: every bit equals the golden model's."""
    bench = Bench(dut)
    await bench.start()
    await bench.play(bench.job, {"i": 0.1, "o": 0.1})
