"""Groups of several pairs of formats as a user's arrays, and as beats of a switching unit."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m2xfp.errors import InputError
from m2xfp.facts import Facts
from m2xfp.formats import BLOCK_FORMATS, M2XFP_WEIGHT, BlockFormat
from m2xfp.pairs import FORMAT_NUMBERS, PairSet, pair_set
from m2xfp.tb.bench import Arrays, Operands, golden_of
from m2xfp.tb.fields import Bytes, number, pack, read
from m2xfp.tb.parts.accumulation import chains, interleaved, run_length, schedule
from m2xfp.tb.parts.files import load_rows
from m2xfp.tb.parts.groups import packed_groups
from m2xfp.tb.vectors import Beats, TestVectors

__all__ = [
    "GROUP",
    "Placed",
    "check",
    "decode",
    "encode",
    "expected",
    "group_counts",
    "load",
    "pair_numbers",
    "pairs_of",
    "placed_runs",
    "running",
    "sample",
    "side_arrays",
    "vectors",
    "vectors_of",
]

SIDES = {"act": "a_", "weight": "w_"}
GROUP, BYTES = 32, 32  # values of a group, and bytes of its codes in the longest format
_FP4_BYTES = 16
_SUBGROUP = 8
_M2XFP = FORMAT_NUMBERS[M2XFP_WEIGHT.name]
_ELEMENT_BITS = {FORMAT_NUMBERS[name]: BLOCK_FORMATS[name].element.bits for name in FORMAT_NUMBERS}


def pairs_of(facts: Facts) -> PairSet:
    """Return the pairs that a unit is built for."""
    return pair_set(facts.parameters["pairs"])


def load(path: Path, facts: Facts) -> Arrays:
    """Read groups, an .npz file.

    Returns
    -------
    dict
        ``a_codes``, ``w_codes`` uint8 [n, 32]: packed codes, of shorter formats as many bytes as
        they have; ``a_scales``, ``w_scales``, ``a_formats``, ``w_formats`` uint8 [n], the numbers
        of ``m2xfp.pairs``; with M2XFP among the pairs ``a_meta``, ``w_meta`` uint8 [n]; ``first``
        bool [n].

    Raises
    ------
    InputError
        If the file is no .npz file, a field is missing, too many, or of another type or shape, or
        a group has formats that are no pair of the unit.
    """
    fields: dict[str, tuple[type, tuple[int, ...]]] = {}
    for side in SIDES.values():
        fields[f"{side}codes"] = (np.uint8, (BYTES,))
        names = ["scales", "formats", *["meta"] * pairs_of(facts).metadata]
        fields |= {f"{side}{name}": (np.uint8, ()) for name in names}
    arrays = load_rows(path, facts, fields | {"first": (bool, ())})
    check(arrays, facts, f"input {path}: ")
    return arrays


def check(arrays: Arrays, facts: Facts, where: str = "") -> None:
    """Raise InputError, with the pairs of the unit, for a group whose formats are none of them.

    In hardware such a group is NaN, with a status; a number of more bits than ``mode`` would be
    taken for another one. ``where`` is what the message begins with.
    """
    known = pair_numbers(pairs_of(facts))
    given = [arrays[f"{side}formats"].astype(np.int64) for side in SIDES.values()]
    built = np.zeros(len(arrays["first"]), bool)
    for act, weight in known:
        built |= (given[0] == act) & (given[1] == weight)
    if not built.all():
        row = int(built.argmin())
        raise InputError(
            f"{where}a_formats[{row}] = {given[0][row]} and w_formats[{row}] = {given[1][row]} are "
            f"no pair of {facts.config}; it multiplies {', '.join(known.values())}; quantize the "
            "group to one of these, or take a unit with the pair (--set pairs=...)"
        )


def pair_numbers(pairs: PairSet) -> dict[tuple[int, int], str]:
    """Return the pairs of a unit by their numbers, with what a message calls them."""
    found = {}
    for act, weight in pairs.pairs:
        numbers = FORMAT_NUMBERS[act.name], FORMAT_NUMBERS[weight.name]
        found[numbers] = f"{numbers[0]} and {numbers[1]} ({act.name}:{weight.name})"
    return found


def side_arrays(groups: Bytes, block: BlockFormat, side: str) -> Arrays:
    """Return packed groups [n, bytes] of one format as a user's arrays of a side."""
    size = block.group_bytes[0]
    codes = np.zeros((len(groups), BYTES), np.uint8)
    codes[:, :size] = groups[:, :size]
    meta = groups[:, -1] if block.metadata.bits else np.zeros(len(groups), np.uint8)
    return {
        f"{side}codes": codes,
        f"{side}scales": groups[:, size].copy(),
        f"{side}meta": meta.copy(),
        f"{side}formats": np.full(len(groups), FORMAT_NUMBERS[block.name], np.uint8),
    }


def group_counts(arrays: Arrays, facts: Facts) -> NDArray[np.int64]:
    """Return the beats of each group: those of wide pairs have several."""
    counts = np.ones(len(arrays["first"]), np.int64)
    for act, weight in pairs_of(facts).wide:
        there = arrays["a_formats"] == FORMAT_NUMBERS[act.name]
        there &= arrays["w_formats"] == FORMAT_NUMBERS[weight.name]
        counts[there] = GROUP // facts.parameters["fp8_lanes"]
    return counts


@dataclass(frozen=True)
class Placed:
    """Beats of groups one after the other.

    Members
    -------
    data
        uint8 [beats, bytes].
    rows, beat
        The group of each, and which beat of it this is.
    final
        Whether it is the last one.
    """

    data: Bytes
    rows: NDArray[np.int64]
    beat: NDArray[np.int64]
    final: NDArray[np.bool_]


def _placed(arrays: Arrays, order: NDArray[np.int64], facts: Facts, noise: int | None) -> Placed:
    """Return the beats of groups in an order; bits that mean nothing are 0, or noise of a seed."""
    stream, lanes = facts.stream("i"), facts.parameters["fp8_lanes"]
    counts = group_counts(arrays, facts)[order]
    rows = np.repeat(order, counts)
    beat = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    several = np.repeat(counts > 1, counts)
    values, planes = {}, {}
    for name, side in SIDES.items():
        field = stream.field(f"operands.{name}.codes")
        bits = np.array([_ELEMENT_BITS.get(n, 4) for n in range(8)])
        width = bits[arrays[f"{side}formats"][rows] & 7] * lanes // 8
        width = np.where(several, width, _FP4_BYTES)
        place = np.arange(field.shape[0])
        index = np.minimum(beat[:, None] * width[:, None] + place, BYTES - 1)
        codes = arrays[f"{side}codes"][rows[:, None], index]
        rest = np.zeros(codes.shape, np.uint8)
        if noise is not None:
            rest = np.random.default_rng(noise).integers(0, 256, codes.shape, np.uint8)
        values[field] = np.where(place < width[:, None], codes, rest)
        if pairs_of(facts).metadata:
            # A beat has its own part, from the first subgroup on.
            meta = arrays[f"{side}meta"][rows] >> beat * (lanes // _SUBGROUP * 2)
            there = np.where(several, (1 << lanes // _SUBGROUP * 2) - 1, 0xFF)
            there = np.where(arrays[f"{side}formats"][rows] == _M2XFP, there, 0)
            meta = meta & there | rest[:, -1] & ~there
            planes[stream.field(f"operands.{name}.meta")] = meta.astype(np.uint8)[:, None]
        values[stream.field(f"operands.{name}.scale")] = arrays[f"{side}scales"][rows]
        values[stream.field(f"operands.mode.{name}")] = arrays[f"{side}formats"][rows]
    values[stream.field("first")] = arrays["first"][rows]
    last = beat == np.repeat(counts, counts) - 1
    return Placed(pack(stream, values, planes), rows, beat, last)


def _filled(arrays: Arrays, facts: Facts) -> Arrays:
    """Return the groups with one more that changes no accumulator, for chains without a group."""
    act, weight = pairs_of(facts).narrow[0]
    found = {}
    for name, array in arrays.items():
        end = np.zeros_like(array[:1])
        if name.endswith("formats"):
            end[:] = FORMAT_NUMBERS[(act if name.startswith("a_") else weight).name]
        found[name] = np.concatenate([array, end])
    return found


def encode(arrays: Arrays, facts: Facts) -> dict[str, Beats]:
    """Turn groups into one stream, dot products interleaved over the unit's accumulators."""
    order = schedule(arrays["first"], chains(facts))
    order = np.where(order < 0, len(arrays["first"]), order)
    data = _placed(_filled(arrays, facts), order, facts, None).data
    return {"i": Beats(data, np.arange(len(data)) == len(data) - 1)}


def decode(beats: Mapping[str, Beats], arrays: Arrays, facts: Facts) -> Arrays:
    """Return ``acc`` uint32 [n], the pattern after each group, and ``refused`` bool [n].

    From an exact accumulation ``inexact``, bool [n], as well.
    """
    stream = facts.stream("o")
    slots = schedule(arrays["first"], chains(facts))
    found = np.zeros((len(arrays["first"]), stream.bytes), np.uint8)
    found[slots[slots >= 0]] = beats["o"].data[slots >= 0]
    flags = [field.name for field in stream.fields if "." not in field.name]
    return {"acc": read(number(stream, "acc."), found)} | {
        name: read(stream.field(name), found) for name in flags
    }


def running(arrays: Arrays, facts: Facts) -> Arrays:
    """Return the golden model's results after each group, [n] each."""
    first = arrays["first"]
    length = run_length(first)

    def runs(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return array.reshape(-1, length, *array.shape[1:])

    none = np.zeros(len(first), np.uint8)
    sides = [
        {
            name: runs(arrays.get(f"{side}{name}", none))
            for name in ("codes", "scales", "meta", "formats")
        }
        for side in SIDES.values()
    ]
    results = golden_of(facts)(*sides, first.reshape(-1, length))
    return {name: array.reshape(-1) for name, array in results.items()}


def expected(arrays: Arrays, facts: Facts) -> Arrays:
    """Return the golden model's accumulators after each group."""
    return running(arrays, facts)


def vectors(arrays: Arrays, facts: Facts, seed: int = 0) -> TestVectors:
    """Return beats and accumulators; as many dot products as there are chains are a piece.

    They must be of one length, and a multiple of the chains. Where the pieces have unlike numbers
    of beats, all are one.
    """
    return vectors_of(arrays, running(arrays, facts), facts, seed)


def placed_runs(arrays: Arrays, facts: Facts, seed: int) -> tuple[Placed, NDArray[np.int64], int]:
    """Return the beats of dot products that take turns, the order of groups, and the pieces."""
    first, turns = arrays["first"], chains(facts)
    length = run_length(first, turns)
    if len(first) % (length * turns):
        raise ValueError(f"{len(first)} groups are no equal runs that {turns} chains can take")
    order = interleaved(np.arange(len(first))[:, None], length, turns)
    pieces = len(first) // (length * turns)
    sizes = group_counts(arrays, facts)[order].reshape(pieces, -1).sum(1)
    return _placed(arrays, order, facts, seed), order, pieces if (sizes == sizes[0]).all() else 1


def vectors_of(arrays: Arrays, results: Arrays, facts: Facts, seed: int = 0) -> TestVectors:
    """Return the beats of groups with results, as ``vectors`` does."""
    placed, order, pieces = placed_runs(arrays, facts, seed)
    last = np.random.default_rng(seed).random(len(placed.data)) < 0.5
    stream = facts.stream("o")
    values = {number(stream, "acc."): results["acc"][order]} | {
        stream.field(name): flags[order] for name, flags in results.items() if name != "acc"
    }
    return TestVectors(
        {"i": Beats(placed.data, last)},
        {"o": Beats(pack(stream, values), last[placed.final])},
        pieces,
    )


def sample(operands: Operands, facts: Facts) -> Arrays:
    """Return dot products, as many a lane as there are chains, whose groups go through all pairs.

    All dot products change at the same places.
    """
    turns, pairs = chains(facts), pairs_of(facts)
    steps, count = -(-operands.depth // turns), operands.lanes * turns
    found: list[Arrays] = []
    ordered = [*pairs.narrow, *pairs.wide]
    for act, weight in ordered:
        found.append(
            side_arrays(packed_groups(act, operands.activations, steps * count), act, "a_")
            | side_arrays(packed_groups(weight, operands.weights, steps * count), weight, "w_")
        )
    step = np.arange(steps * count) % steps
    chosen = step % len(ordered)
    arrays = {
        name: np.stack([each[name] for each in found])[chosen, np.arange(steps * count)]
        for name in found[0]
        if pairs.metadata or not name.endswith("meta")
    }
    return arrays | {"first": step == 0}
