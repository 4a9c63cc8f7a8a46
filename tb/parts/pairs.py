"""The testbench of units that multiply packed groups and accumulate: pairs in, accumulators out."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from m2xfp.facts import Facts
from m2xfp.formats import BlockFormat, block_format
from m2xfp.tb.bench import Arrays, Operands, golden_of
from m2xfp.tb.fields import Bytes, pack
from m2xfp.tb.parts.accumulation import (
    chains,
    read_results,
    result_beats,
    run_length,
    scheduled,
    vectors_of_rows,
)
from m2xfp.tb.parts.files import load_rows
from m2xfp.tb.parts.groups import (
    check_planes,
    elements,
    group_arrays,
    join_planes,
    packed_groups,
    plane_shapes,
)
from m2xfp.tb.vectors import Beats, TestVectors

__all__ = [
    "decode",
    "encode",
    "expected",
    "formats",
    "load",
    "load_pairs",
    "pairs",
    "running",
    "sample",
    "sample_pairs",
    "side_values",
    "sides",
    "vectors",
]

SIDES = {"act": "a_", "weight": "w_"}  # parameter, payload and golden argument; a user's fields


def formats(facts: Facts) -> tuple[BlockFormat, BlockFormat]:
    """Return the formats of activations and weights that a unit takes."""
    return block_format(facts.parameters["act"]), block_format(facts.parameters["weight"])


def _fields(facts: Facts) -> dict[str, tuple[type, tuple[int, ...]]]:
    """Return type and shape after n of the planes of both sides in a user's file."""
    return {
        f"{side}{name}": (np.uint8, shape)
        for side, block in zip(SIDES.values(), formats(facts), strict=True)
        for name, shape in plane_shapes(block).items()
    }


def load(path: Path, facts: Facts) -> Arrays:
    """Read pairs of packed groups.

    Returns
    -------
    dict
        ``a_codes``, ``w_codes`` uint8 [n, bytes of codes]; ``a_scales``, ``w_scales`` and, if the
        format has metadata, ``a_meta``, ``w_meta`` uint8 [n]; ``first`` bool [n].

    Raises
    ------
    InputError
        If the file is no .npz file, lacks a field or has one that the configuration does not
        take, a field has another type or shape, or metadata have more bits than there are.
    """
    return load_pairs(path, facts, {"first": (bool, ())})


def load_pairs(
    path: Path, facts: Facts, others: dict[str, tuple[type, tuple[int, ...]]] | None = None
) -> Arrays:
    """Read the planes of both sides, and other fields beside them; InputError as ``load``."""
    arrays = load_rows(path, facts, _fields(facts) | (others or {}))
    for side, block in zip(SIDES.values(), formats(facts), strict=True):
        own = {name: array for name, array in arrays.items() if name.startswith(side)}
        check_planes(path, own, block)
    return arrays


def pairs(act_groups: Bytes, weight_groups: Bytes, facts: Facts) -> Arrays:
    """Split packed groups [n, bytes] of both sides into the planes of a user's file."""
    found: Arrays = {}
    for side, block, groups in zip(
        SIDES.values(), formats(facts), (act_groups, weight_groups), strict=True
    ):
        found |= group_arrays(groups, block, side)
    return found


def sides(arrays: Arrays, facts: Facts) -> list[Bytes]:
    """Return the packed groups of both sides, uint8 [n, bytes] each."""
    return [
        join_planes(arrays, block, side)
        for side, block in zip(SIDES.values(), formats(facts), strict=True)
    ]


def side_values(arrays: Arrays, facts: Facts, prefix: str = "") -> dict[str, Bytes]:
    """Return the payload's fields of both sides by name, cut into a beat's lanes.

    ``prefix`` is where the operands are in the payload. [n, beats, *shape] each: every beat has its
    part of the codes and of the metadata, and the scale.
    """
    stream, found = facts.stream("i"), {}
    for (name, side), block in zip(SIDES.items(), formats(facts), strict=True):
        width = block.element.bits
        lanes = stream.field(f"{prefix}{name}.codes").shape[0]
        beats = block.group // lanes
        codes = elements(arrays[f"{side}codes"], width, block.group)
        found[f"{prefix}{name}.codes"] = codes.reshape(-1, beats, lanes)
        scales = arrays[f"{side}scales"]
        found[f"{prefix}{name}.scale"] = np.broadcast_to(scales[:, None], (len(scales), beats))
        if block.subgroups:
            meta = elements(arrays[f"{side}meta"], block.metadata.bits, block.subgroups)
            found[f"{prefix}{name}.meta"] = meta.reshape(len(scales), beats, -1)
    return found


def _beats(arrays: Arrays, facts: Facts) -> Bytes:
    """Return the beats of pairs of groups in the order of the rows: uint8 [n, beats, bytes]."""
    stream = facts.stream("i")
    values = side_values(arrays, facts, "operands.")
    rows, beats = values["operands.act.scale"].shape
    values["first"] = np.zeros((rows, beats), bool)
    values["first"][:, 0] = arrays["first"]
    data = pack(
        stream,
        {
            stream.field(name): array.reshape(rows * beats, *array.shape[2:])
            for name, array in values.items()
        },
    )
    return data.reshape(rows, beats, -1)


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
    out = beats["o"].data
    parts = formats(facts)[0].group // facts.stream("i").field("operands.act.codes").shape[0]
    slots = scheduled(arrays["first"], parts, facts)
    found = np.zeros((len(arrays["first"]) * parts, out.shape[1]), np.uint8)
    found[slots[slots >= 0]] = out[slots >= 0]
    return read_results(found[parts - 1 :: parts], facts)


def running(arrays: Arrays, facts: Facts) -> Arrays:
    """Return the golden model's results after each beat, each [n, beats]."""
    first = arrays["first"]
    length = run_length(first)  # as many runs at once as can be
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


def sample_pairs(operands: Operands, facts: Facts, count: int) -> Arrays:
    """Return ``count`` pairs of activations and weights, packed."""
    act, weight = formats(facts)
    return pairs(
        packed_groups(act, operands.activations, count),
        packed_groups(weight, operands.weights, count),
        facts,
    )


def sample(operands: Operands, facts: Facts) -> Arrays:
    """Return dot products, as many a lane as there are chains, of all groups of the lane."""
    turns = chains(facts)
    steps, count = -(-operands.depth // turns), operands.lanes * turns
    arrays = sample_pairs(operands, facts, steps * count)
    return arrays | {"first": np.arange(steps * count) % steps == 0}
