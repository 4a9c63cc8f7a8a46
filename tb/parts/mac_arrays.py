"""The array side of the MAC units: pairs of packed groups in, accumulators out."""

import heapq
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.errors import InputError
from m2xfp.facts import Facts
from m2xfp.formats import BlockFormat, block_format
from m2xfp.tb.vectors import Beats

__all__ = [
    "beats_of_pairs",
    "chains",
    "decode_accumulators",
    "encode_pairs",
    "formats",
    "lanes",
    "load_pairs",
    "schedule",
    "zero_pair",
]

Arrays = dict[str, NDArray[Any]]


def formats(description: Facts) -> tuple[BlockFormat, BlockFormat]:
    """Return the formats of activations and weights that a MAC unit takes."""
    parameters = description.parameters
    return block_format(parameters["act"]), block_format(parameters["weight"])


def lanes(description: Facts) -> int:
    """Return the products that a MAC unit takes in a beat."""
    fields = {field.name: field for field in description.stream("i").fields}
    if "operands.act.codes" not in fields:  # an accumulator: products of whole groups come in
        return formats(description)[0].group
    return fields["operands.act.codes"].shape[0]


def chains(description: Facts) -> int:
    """Return the dot products that take turns in a MAC unit."""
    return (
        1 if description.parameters.get("window") else int(description.parameters.get("chains", 3))
    )


def _fields(description: Facts) -> dict[str, tuple[int, ...]]:
    """Return the shape after n of each field of the user's file."""
    shapes: dict[str, tuple[int, ...]] = {}
    for side, block in zip("aw", formats(description), strict=True):
        shapes[f"{side}_codes"] = (block.group * block.element.bits // 8,)
        shapes[f"{side}_scales"] = ()
        if block.subgroups:
            shapes[f"{side}_meta"] = ()
    return shapes


def load_pairs(path: Path, description: Facts) -> Arrays:
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
        take, or a field has another type or shape.
    """
    shapes = _fields(description)
    names = [*shapes, "first"]
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError) as error:
        raise InputError(f"input {path}: not a readable .npz file ({error})") from error
    if missing := [name for name in names if name not in arrays]:
        raise InputError(f"input {path}: field {missing[0]!r} is missing; needed: {names}")
    if unknown := [name for name in arrays if name not in names]:
        raise InputError(
            f"input {path}: {description.config} takes no field {unknown[0]!r}; it takes: {names}"
        )
    count = arrays["first"].shape[0] if arrays["first"].ndim == 1 else 0
    for name in names:
        array = arrays[name]
        dtype = np.dtype(bool if name == "first" else np.uint8)
        shape = (count, *shapes.get(name, ()))
        if array.dtype != dtype or array.shape != shape or not count:
            raise InputError(
                f"input {path}: {name} is {array.dtype} {list(array.shape)}; must be {dtype} "
                f"[{', '.join(['n', *map(str, shapes.get(name, ()))])}], one n of at least 1 for "
                "all fields"
            )
    return arrays


def schedule(first: NDArray[np.bool_], chains: int) -> NDArray[np.int64]:
    """Return the order in which rows go into a unit with ``chains`` interleaved accumulators.

    Parameters
    ----------
    first
        bool [n]: a dot product begins here (row 0 begins one in any case).
    chains
        Accumulators, which take turns.

    Returns
    -------
    int64 [slots]: the row in each slot, -1 where a chain has nothing left. Each dot product stays
    in one chain, the next one goes to the chain that is free first, and the last slot is a row.
    """
    starts = np.flatnonzero(first)
    starts = starts if len(starts) and starts[0] == 0 else np.insert(starts, 0, 0)
    ends = np.append(starts[1:], len(first))
    free = [(0, chain) for chain in range(chains)]
    rows: list[list[NDArray[np.int64]]] = [[] for _ in range(chains)]
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        used, chain = heapq.heappop(free)
        rows[chain].append(np.arange(start, end))
        heapq.heappush(free, (used + end - start, chain))
    length = max(used for used, _ in free)
    slots = np.full((length, chains), -1, np.int64)
    for chain, parts in enumerate(rows):
        if parts:
            column = np.concatenate(parts)
            slots[: len(column), chain] = column
    order = slots.reshape(-1)
    return order[: np.flatnonzero(order >= 0)[-1] + 1]


def zero_pair(arrays: Arrays) -> Arrays:
    """Return one row of ``arrays``' fields that changes no accumulator: all bits zero."""
    return {name: np.zeros((1, *array.shape[1:]), array.dtype) for name, array in arrays.items()}


def _pieces(block: BlockFormat, arrays: Arrays, side: str, width: int) -> NDArray[np.uint8]:
    """Cut the groups of one side into pieces of ``width`` values: their bits [n, pieces, bits]."""
    count = block.group // width
    codes = np.unpackbits(arrays[f"{side}_codes"], axis=1, bitorder="little")
    scales = np.unpackbits(arrays[f"{side}_scales"][:, None], axis=1, bitorder="little")
    rows = len(codes)
    parts = [codes.reshape(rows, count, -1), np.repeat(scales[:, None], count, axis=1)]
    if block.subgroups:
        meta = np.unpackbits(arrays[f"{side}_meta"][:, None], axis=1, bitorder="little")
        used = meta[:, : block.subgroups * block.metadata.bits]
        parts.append(used.reshape(rows, count, -1))
    return np.concatenate(parts, axis=2)


def beats_of_pairs(arrays: Arrays, description: Facts) -> NDArray[np.uint8]:
    """Return the beats of pairs of groups, in the order of the rows: uint8 [n, beats, bytes]."""
    width = lanes(description)
    sides = [
        _pieces(block, arrays, side, width)
        for side, block in zip("aw", formats(description), strict=True)
    ]
    first = np.zeros((*sides[0].shape[:2], 1), np.uint8)
    first[:, 0, 0] = arrays["first"]
    bits = np.concatenate([*sides, first], axis=2)
    padding = np.zeros((*bits.shape[:2], -bits.shape[2] % 8), np.uint8)
    return np.packbits(np.concatenate([bits, padding], axis=2), axis=2, bitorder="little")


def _slots(arrays: Arrays, description: Facts) -> NDArray[np.int64]:
    """Return for each beat on the stream its index among the rows' beats, -1 for a filler."""
    beats = formats(description)[0].group // lanes(description)
    first = np.zeros(len(arrays["first"]) * beats, bool)
    first[::beats] = arrays["first"]
    return schedule(first, chains(description))


def encode_pairs(arrays: Arrays, description: Facts) -> dict[str, Beats]:
    """Turn pairs into one stream, dot products interleaved over the unit's accumulators."""
    table = beats_of_pairs(arrays, description).reshape(-1, description.inputs[0].bytes)
    filler = beats_of_pairs(zero_pair(arrays), description)[0, :1]
    slots = _slots(arrays, description)
    data = np.concatenate([table, filler])[slots]  # -1 is the filler
    last = np.zeros(len(data), bool)
    last[-1] = True
    return {description.inputs[0].name: Beats(data, last)}


def decode_accumulators(beats: Mapping[str, Beats], arrays: Arrays, description: Facts) -> Arrays:
    """Return ``acc``, uint32 [n]: the accumulator's FP32 pattern after each pair of groups.

    From an exact accumulation ``inexact``, bool [n], as well.
    """
    out = beats[description.outputs[0].name].data
    count = len(arrays["first"])
    parts = formats(description)[0].group // lanes(description)
    slots = _slots(arrays, description)
    found = np.zeros((count * parts, out.shape[1]), np.uint8)
    found[slots[slots >= 0]] = out[slots >= 0]
    final = np.ascontiguousarray(found.reshape(count, parts, -1)[:, -1])
    result: Arrays = {"acc": np.ascontiguousarray(final[:, :4]).view("<u4")[:, 0].copy()}
    if description.parameters.get("window"):
        result["inexact"] = final[:, 4].astype(bool)
    return result
