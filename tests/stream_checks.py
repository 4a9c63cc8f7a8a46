"""Playing test vectors through an emitted unit and comparing every output beat."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from m2xfp.facts import Facts
from m2xfp.formats import block_format
from m2xfp.tb.bench import bench_of
from m2xfp.tb.bulk.simulator import BulkSimulator
from m2xfp.tb.parts import value_stimulus
from m2xfp.tb.vectors import TestVectors

__all__ = ["STALLS", "check", "regress", "value_vectors"]

# None, both sides now and then, and a reader so slow that everything fills up behind it.
STALLS: list[dict[str, float]] = [{}, {"i": 0.25, "o": 0.25}, {"o": 0.9}]


def check(
    simulator: BulkSimulator,
    vectors: TestVectors,
    stall: float | Mapping[str, float] = 0.0,
    seed: int = 0,
) -> None:
    """Play vectors; AssertionError with the first beat of an output that differs."""
    outputs = simulator.run(vectors.inputs, stall=stall, seed=seed).outputs
    for name, wanted in vectors.outputs.items():
        found = outputs[name]
        assert len(found) == len(wanted), f"{name}: {len(found)} beats came out of {len(wanted)}"
        wrong = vectors.differing(name, found)
        if not len(wrong):
            continue
        beat = int(wrong[0])
        piece = beat * vectors.groups // len(wanted)
        fed = {
            source: beats.data.tobytes().hex()
            for source, beats in vectors.part(piece, piece + 1).inputs.items()
        }
        last = "" if found.last is None or wanted.last is None else f", last {found.last[beat]}"
        raise AssertionError(
            f"{name}: {len(wrong)} of {len(found)} beats differ, first {beat}, of {fed}\n"
            f"RTL    {found.data[beat].tobytes().hex()}{last}\n"
            f"golden {wanted.data[beat].tobytes().hex()}{last and f', last {wanted.last[beat]}'}"
        )


def value_vectors(facts: Facts, raw: np.ndarray, seed: int = 0) -> TestVectors:
    """Return the vectors of a unit that reads groups of floating-point values."""
    arrays: dict[str, Any] = {"x": raw}
    return bench_of(facts).vectors(arrays, facts, seed)


def regress(simulator: BulkSimulator, count: int, seed: int) -> int:
    """Play ``count`` groups of every distribution, in turn with the STALLS; return how many."""
    kind = simulator.facts.parameters["input_type"]
    group = block_format(simulator.facts.parameters["block"]).group
    for index, name in enumerate(value_stimulus.DISTRIBUTIONS):
        raw = value_stimulus.groups(name, kind, count, seed, group)
        stall = STALLS[index % len(STALLS)]
        check(simulator, value_vectors(simulator.facts, raw, seed), stall, seed)
    return count * len(value_stimulus.DISTRIBUTIONS)
