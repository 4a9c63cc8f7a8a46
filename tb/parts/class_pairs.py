"""Pairs of packed groups with a scale for each sign, as beats of one or more classes of signs."""

from collections.abc import Mapping

import numpy as np

from m2xfp.facts import Facts
from m2xfp.tb.bench import Arrays, golden_of
from m2xfp.tb.fields import Bytes, pack
from m2xfp.tb.parts.accumulation import (
    read_results,
    result_beats,
    run_length,
    scheduled,
    vectors_of_rows,
)
from m2xfp.tb.parts.groups import plane_shapes
from m2xfp.tb.parts.pairs import SIDES, formats, sides
from m2xfp.tb.vectors import Beats, TestVectors

__all__ = ["beats_of_a_group", "decode", "encode", "expected", "running", "terms", "vectors"]

_FIELDS = {"codes": "codes", "scales": "scale"}


def terms(facts: Facts) -> int:
    """Return the classes of signs whose products have their scales in common."""
    return 1 << sum(block.scaling == "split" for block in formats(facts))


def beats_of_a_group(facts: Facts) -> int:
    """Return the beats in which a group comes in."""
    return terms(facts) // int(facts.parameters["sums"])


def _beats(arrays: Arrays, facts: Facts) -> Bytes:
    """Return the beats of pairs of groups in the order of the rows: uint8 [n, beats, bytes]."""
    stream, beats, rows = facts.stream("i"), beats_of_a_group(facts), len(arrays["first"])
    planes = {
        stream.field(f"operands.{name}.{_FIELDS[plane]}"): np.repeat(
            arrays[f"{side}{plane}"].reshape(rows, -1), beats, axis=0
        )
        for (name, side), block in zip(SIDES.items(), formats(facts), strict=True)
        for plane in plane_shapes(block)
    }
    beat = np.tile(np.arange(beats), rows)
    values = {stream.field("first"): np.repeat(arrays["first"], beats) & (beat == 0)}
    if beats > 1:
        values[stream.field("operands.signs")] = beat
    return pack(stream, values, planes).reshape(rows, beats, -1)


def encode(arrays: Arrays, facts: Facts) -> dict[str, Beats]:
    """Turn pairs into one stream, dot products interleaved over the unit's accumulators."""
    rows = _beats(arrays, facts)
    table = rows.reshape(-1, rows.shape[2])
    filler = np.zeros((1, rows.shape[2]), np.uint8)  # zero codes change no accumulator
    data = np.concatenate([table, filler])[scheduled(arrays["first"], rows.shape[1], facts)]
    return {"i": Beats(data, np.arange(len(data)) == len(data) - 1)}


def decode(beats: Mapping[str, Beats], arrays: Arrays, facts: Facts) -> Arrays:
    """Return ``acc``, uint32 [n]: the accumulator's FP32 pattern after each pair of groups.

    From an exact accumulation ``inexact``, bool [n], as well.
    """
    out, parts = beats["o"].data, beats_of_a_group(facts)
    slots = scheduled(arrays["first"], parts, facts)
    found = np.zeros((len(arrays["first"]) * parts, out.shape[1]), np.uint8)
    found[slots[slots >= 0]] = out[slots >= 0]
    return read_results(found[parts - 1 :: parts], facts)


def running(arrays: Arrays, facts: Facts) -> Arrays:
    """Return the golden model's results after each beat, each [n, beats]."""
    first = arrays["first"]
    length = run_length(first)
    groups = [side.reshape(-1, length, side.shape[1]) for side in sides(arrays, facts)]
    results = golden_of(facts)(*groups, first.reshape(-1, length))
    return {name: array.reshape(len(first), -1) for name, array in results.items()}


def expected(arrays: Arrays, facts: Facts) -> Arrays:
    """Return the golden model's accumulators after each pair."""
    return {name: array[:, -1] for name, array in running(arrays, facts).items()}


def vectors(arrays: Arrays, facts: Facts, seed: int = 0) -> TestVectors:
    """Return beats and accumulators; as many dot products as there are chains are a piece.

    They must be of one length, and a multiple of the chains.
    """
    inputs = _beats(arrays, facts)
    results = {name: array.reshape(-1) for name, array in running(arrays, facts).items()}
    outputs = result_beats(results, facts).reshape(*inputs.shape[:2], -1)
    return vectors_of_rows(inputs, outputs, arrays["first"], facts, seed)
