"""Testbench of the quantizer for minifloat scales: groups in, packed groups out."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m2xfp.errors import InputError
from m2xfp.facts import Facts
from m2xfp.formats import block_format, input_type
from m2xfp.tb.bench import Arrays, Operands, golden_of
from m2xfp.tb.cross import Cross
from m2xfp.tb.fields import number, pack, read
from m2xfp.tb.parts import values
from m2xfp.tb.parts.files import check_names, load_arrays, type_name
from m2xfp.tb.parts.groups import group_beats, planes_of_beats, user_planes
from m2xfp.tb.parts.minifloat_cover import cover_minifloat_groups
from m2xfp.tb.parts.value_cover import cover_specials, half_rate
from m2xfp.tb.parts.value_stimulus import from_float64, near_boundaries
from m2xfp.tb.parts.values import decode
from m2xfp.tb.regression import Case, steady_cases
from m2xfp.tb.vectors import Beats, TestVectors

__all__ = [
    "beside_least",
    "boundaries",
    "cover",
    "decode",
    "encode",
    "expected",
    "load",
    "regression",
    "sample",
    "unreached",
    "vectors",
    "with_scales",
]

# Patterns of tensor scales: numbers of all significands, the least, largest and 1, and none.
_SCALES = (0x3F800000, 0x3F800001, 0x3FFFFFFF, 0x07000000, 0x7F7FFFFF)
_NO_SCALES = (0, 0x80000000, 0x00000001, 0x06FFFFFF, 0x7F800000, 0x7FC00000, 0xBF800000)


def load(path: Path, facts: Facts) -> Arrays:
    """Read groups of values; with two levels ``x`` and ``tensor_scales`` of an .npz file.

    Raises InputError for anything else.
    """
    if not facts.parameters["tensor_scale"]:
        return values.load(path, facts)
    arrays = load_arrays(path)
    check_names(path, facts, arrays, ["x", "tensor_scales"])
    x = values.patterns_of(arrays["x"], facts, path)
    scales = arrays["tensor_scales"]
    if scales.shape != x.shape[:1] or scales.dtype not in (np.dtype("f4"), np.dtype("u4")):
        raise InputError(
            f"input {path}: tensor_scales is {type_name(scales)} {list(scales.shape)}; must be "
            f"float32, or their patterns in uint32, [{len(x)}], one a group"
        )
    return {"x": x, "tensor_scales": np.ascontiguousarray(scales).view(np.uint32)}


def _beats(arrays: Arrays, facts: Facts) -> NDArray[np.uint8]:
    """Cut groups into beats, each with the tensor scale of its group."""
    stream, beats = facts.stream("i"), facts.beats_per_group
    patterns = number(stream, "values.")
    return pack(
        stream,
        {
            patterns: arrays["x"].reshape(-1, *patterns.shape),
            number(stream, "tensor_scale."): np.repeat(arrays["tensor_scales"], beats),
        },
    )


def encode(arrays: Arrays, facts: Facts) -> dict[str, Beats]:
    """Turn groups into one stream with TLAST on its very last beat."""
    if "tensor_scales" not in arrays:
        return values.encode(arrays, facts)
    data = _beats(arrays, facts)
    return {"i": Beats(data, np.arange(len(data)) == len(data) - 1)}


def expected(arrays: Arrays, facts: Facts) -> Arrays:
    """Return the golden model's planes."""
    planes = golden_of(facts)(arrays["x"], arrays.get("tensor_scales"))
    return user_planes(planes, block_format(facts.parameters["block"]))


def vectors(arrays: Arrays, facts: Facts, seed: int = 0) -> TestVectors:
    """Return beats and packed groups, a piece a group; TLAST is random in every beat."""
    if "tensor_scales" not in arrays:
        return values.vectors(arrays, facts, seed)
    data, beats = _beats(arrays, facts), facts.beats_per_group
    last = np.random.default_rng(seed).random(len(data)) < 0.5
    block = block_format(facts.parameters["block"])
    groups = group_beats(facts.stream("o"), expected(arrays, facts), block)
    out = Beats(groups, last[beats - 1 :: beats])
    return TestVectors({"i": Beats(data, last)}, {"o": out}, len(groups))


def with_scales(arrays: Arrays, facts: Facts, seed: int) -> Arrays:
    """Return groups with tensor scales, if the unit takes them: some of each kind."""
    if not facts.parameters["tensor_scale"]:
        return arrays
    rng, count = np.random.default_rng([seed, 7]), len(arrays["x"])
    usual = rng.integers(0x3A000000, 0x41000000, count)
    any_number = rng.integers(0x07000000, 0x7F800000, count)
    kind = rng.random(count)
    scales = np.where(kind < 0.7, usual, any_number)
    scales = np.where(kind > 0.95, rng.choice(_SCALES, count), scales)
    scales = np.where(kind > 0.99, rng.choice(_NO_SCALES, count), scales)
    return arrays | {"tensor_scales": scales.astype(np.uint32)}


def sample(operands: Operands, facts: Facts) -> Arrays:
    """Return the activations, with tensor scales near 1."""
    arrays = values.sample_of("activations", operands, facts)
    if facts.parameters["tensor_scale"]:
        rng = np.random.default_rng(len(arrays["x"]))
        drawn = rng.integers(0x3A000000, 0x40000000, len(arrays["x"]))
        arrays["tensor_scales"] = drawn.astype(np.uint32)
    return arrays


def boundaries(facts: Facts, count: int, seed: int) -> Arrays:
    """Return groups whose values lie on the boundaries of codes and scales, and beside them."""
    kind, block = facts.parameters["input_type"], block_format(facts.parameters["block"])
    if not facts.parameters["tensor_scale"]:
        return {"x": near_boundaries(kind, count, seed, block)}
    rng = np.random.default_rng([seed, 8])
    # Few bits, so that boundaries can be met, or any; from 2^-100 to 2^100.
    bits = rng.choice([0, 1, 2, 4, 23], count)
    mantissa = rng.integers(0, 1 << 23, count) >> 23 - bits << 23 - bits
    scales = (rng.integers(27, 228, count) << 23 | mantissa).astype(np.uint32)
    x = near_boundaries(kind, count, seed, block, scales.view(np.float32).astype(float))
    return {"x": x, "tensor_scales": scales}


def beside_least(facts: Facts, count: int, seed: int) -> Arrays:
    """Return groups whose scale is one of the lowest, with values of any smaller binade.

    Values beyond what any scale gives a code are held as one number each; only beside the least
    scale does a wrong one of these have a code.
    """
    rng = np.random.default_rng([seed, 9])
    kind, block = (
        input_type(facts.parameters["input_type"]),
        block_format(facts.parameters["block"]),
    )
    grid = block.scale.grid
    assert grid is not None
    lowest = np.array([float(grid.magnitude(n)) for n in range(1, 5)])
    largest = 6 * rng.choice(lowest, (count, 2))
    lanes = rng.permuted(np.tile(np.arange(block.group), (count, 1)), axis=1)[:, :2]
    below = from_float64(largest.min(axis=1, keepdims=True), kind).astype(np.int64)
    x = rng.integers(0, np.broadcast_to(below, (count, block.group)), endpoint=True)
    x |= rng.integers(0, 2, x.shape) << kind.width - 1
    for side, sign in enumerate((1, -1)):
        x[np.arange(count), lanes[:, side]] = from_float64(sign * largest[:, side], kind)
    arrays: Arrays = {"x": x.astype(f"uint{kind.width}")}
    if facts.parameters["tensor_scale"]:
        arrays["tensor_scales"] = rng.integers(0x3F800000, 0x3FC00000, count).astype(np.uint32)
    return arrays


def regression(facts: Facts, seed: int = 0) -> Iterator[Case]:
    """Yield groups of all distributions, boundaries of codes, and all patterns of 16 bits."""

    def stimulus() -> Iterator[tuple[str, Arrays]]:
        for n in range(4):
            yield f"boundaries {n}", boundaries(facts, 4000, seed + n)
        yield "beside the least scale", beside_least(facts, 2000, seed)
        for name, arrays in values.stimulus(facts, seed):
            yield name, with_scales(arrays, facts, seed)

    return steady_cases(stimulus(), vectors, facts, seed)


def cover(vectors: TestVectors, facts: Facts) -> Iterator[Cross]:
    """Yield what some groups and their results were."""
    block = block_format(facts.parameters["block"])
    kind = input_type(facts.parameters["input_type"])
    stream, data = facts.stream("i"), vectors.inputs["i"].data
    tensor = facts.parameters["tensor_scale"]
    field = number(stream, "values.") if tensor else number(stream)
    patterns = read(field, data).reshape(-1, block.group).astype(np.int64)
    units = np.full(len(patterns), 0x3F800000, np.uint32)
    if tensor:
        each = read(number(stream, "tensor_scale."), data)
        units = each[:: facts.beats_per_group].astype(np.uint32)
    planes = planes_of_beats(facts.stream("o"), vectors.outputs["o"].data, block)
    yield from cover_specials(patterns, kind)
    yield from cover_minifloat_groups(patterns, units.view(np.float32), planes, block, kind)


def unreached(facts: Facts) -> dict[str, str]:
    """Return what follows from how groups go through the unit."""
    beats = facts.beats_per_group
    if beats == 1:
        return {}
    return half_rate(facts) | {
        f"beats of i: [1-{beats - 1}], (no ready|both)": "the unit waits before a group, for the "
        "group before it, and not within one (job taken-whole)"
    }
