"""Playing jobs through an emitted unit and comparing every output beat, for the units' tests."""

from collections.abc import Callable

import numpy as np
import stimulus

from m2xfp.facts import Facts
from m2xfp.tb.bulk.simulator import Player
from m2xfp.tb.vectors import Job

__all__ = ["STALLS", "MakeJob", "check", "regress"]

# None, both sides now and then, and a reader so slow that everything fills up behind it.
STALLS: list[dict[str, float]] = [{}, {"i": 0.25, "o": 0.25}, {"o": 0.9}]

MakeJob = Callable[[Facts, np.ndarray, int], Job]


def check(player: Player, job: Job, stall: dict[str, float], seed: int) -> None:
    """Play a job of groups; AssertionError with the first one whose bits differ."""
    out, expected = player.run(job.inputs, stall=stall, seed=seed).outputs["o"], job.outputs["o"]
    assert len(out) == len(expected), f"{len(out)} groups came out of {len(expected)}"
    wrong = np.flatnonzero(np.any(out.data != expected.data, axis=1) | (out.last != expected.last))
    if len(wrong):
        group = wrong[0]
        beats = player.description.beats_per_group
        fed = job.inputs["i"].data[group * beats : (group + 1) * beats]
        raise AssertionError(
            f"{len(wrong)} of {len(out)} groups differ, first {group}: {fed.tobytes().hex()}\n"
            f"RTL    {out.data[group].tobytes().hex()} last={out.last[group]}\n"
            f"golden {expected.data[group].tobytes().hex()} last={expected.last[group]}"
        )


def regress(player: Player, make_job: MakeJob, count: int, seed: int) -> int:
    """Play ``count`` groups of every distribution, in turn with the STALLS; return how many."""
    kind = player.description.parameters["input_type"]
    for index, name in enumerate(stimulus.DISTRIBUTIONS):
        raw = stimulus.groups(name, kind, count, seed)
        stall = STALLS[index % len(STALLS)]
        check(player, make_job(player.description, raw, seed), stall, seed)
    return count * len(stimulus.DISTRIBUTIONS)
