"""The testbench of units that turn groups of floating-point values into packed groups."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.errors import InputError
from m2xfp.facts import Facts
from m2xfp.formats import BF16, BlockFormat, InputType, block_format, input_type
from m2xfp.tb.bench import Arrays, Operands, golden_of
from m2xfp.tb.fields import Bytes, number, pack
from m2xfp.tb.parts.files import as_patterns, load_array, type_name
from m2xfp.tb.parts.groups import group_beats, planes_of_beats, user_planes
from m2xfp.tb.parts.search_stimulus import large_gains, near_choices
from m2xfp.tb.parts.value_stimulus import (
    DISTRIBUTIONS,
    all_patterns,
    groups,
    lone_values,
    special_lanes,
)
from m2xfp.tb.regression import Case, steady_cases
from m2xfp.tb.vectors import Beats, TestVectors

__all__ = [
    "decode",
    "encode",
    "expected",
    "load",
    "patterns_of",
    "regression",
    "sample_of",
    "stimulus",
    "vectors",
]


def _block(facts: Facts) -> BlockFormat:
    return block_format(facts.parameters["block"])


def load(path: Path, facts: Facts) -> Arrays:
    """Read one array of groups of floating-point values.

    Returns
    -------
    dict
        ``x``: raw patterns, uint16 or uint32 [n, group].

    Raises
    ------
    InputError
        If the file is no .npy file, the shape is not [n, group] with n at least 1, the type is
        not one that the unit's input type takes, or a float32 value is no bfloat16.
    """
    return {"x": patterns_of(load_array(path), facts, path)}


def patterns_of(x: NDArray[Any], facts: Facts, path: Path) -> NDArray[Any]:
    """Return the raw patterns of groups, one a row; InputError as ``load``."""
    kind, group = input_type(facts.parameters["input_type"]), _block(facts).group
    if x.ndim != 2 or x.shape[1] != group or not len(x):
        raise InputError(
            f"input {path}: shape {list(x.shape)}; must be [n, {group}] with n at least 1, "
            "one group a row"
        )
    return _patterns(x, kind, path)


def _patterns(x: NDArray[Any], kind: InputType, path: Path) -> NDArray[Any]:
    """Return the raw patterns of ``x``, which is contiguous and in native byte order."""
    raw, x = np.dtype(f"uint{kind.width}"), as_patterns(x, kind)
    values = {"bf16": np.float32, "fp16": np.float16, "fp32": np.float32}[kind.name]
    if x.dtype == raw:
        return x
    if x.dtype != values:
        raise InputError(
            f"input {path}: type {type_name(x)}; must be {raw} (raw {kind.name} patterns) or "
            f"{np.dtype(values)}{' or bfloat16' * (kind is BF16)}"
        )
    bits: NDArray[Any] = x.view(np.uint32 if kind is BF16 else raw)
    if kind is not BF16:
        return bits
    if np.any(lost := bits & 0xFFFF != 0):
        row, column = (int(index) for index in np.argwhere(lost)[0])
        raise InputError(
            f"input {path}: x[{row}, {column}] = {x[row, column]} is no bfloat16; round the "
            "values to bfloat16 first, or use an fp32 configuration"
        )
    return (bits >> 16).astype(raw)


def _beats(arrays: Arrays, facts: Facts) -> Bytes:
    """Cut groups into beats: lane 0 lowest, first beat the group's first values."""
    stream = facts.stream("i")
    patterns = number(stream)
    return pack(stream, {patterns: arrays["x"].reshape(-1, *patterns.shape)})


def encode(arrays: Arrays, facts: Facts) -> dict[str, Beats]:
    """Turn ``x`` into one stream with TLAST on its very last beat."""
    data = _beats(arrays, facts)
    return {"i": Beats(data, np.arange(len(data)) == len(data) - 1)}


def decode(beats: Mapping[str, Beats], arrays: Arrays, facts: Facts) -> Arrays:
    """Return the planes of the packed groups: ``codes``, ``scales`` and, if any, ``meta``."""
    return planes_of_beats(facts.stream("o"), beats["o"].data, _block(facts))


def expected(arrays: Arrays, facts: Facts) -> Arrays:
    """Return the golden model's planes."""
    return user_planes(golden_of(facts)(arrays["x"]), _block(facts))


def vectors(arrays: Arrays, facts: Facts, seed: int = 0) -> TestVectors:
    """Return beats and packed groups, a piece a group.

    TLAST is random in every beat: that of a group's last beat must come out with the group, the
    others must have no effect.
    """
    data = _beats(arrays, facts)
    last = np.random.default_rng(seed).random(len(data)) < 0.5
    groups = group_beats(facts.stream("o"), expected(arrays, facts), _block(facts))
    beats = facts.beats_per_group
    return TestVectors(
        {"i": Beats(data, last)}, {"o": Beats(groups, last[beats - 1 :: beats])}, len(groups)
    )


def sample_of(values: str, operands: Operands, facts: Facts) -> Arrays:
    """Return the operands called ``values``, rounded to the input type."""
    from m2xfp.golden.bits import round_to_bits

    raw = round_to_bits(facts.parameters["input_type"], getattr(operands, values))
    return {"x": raw.reshape(-1, _block(facts).group)}


def regression(facts: Facts, seed: int = 0) -> Iterator[Case]:
    """Yield groups of all distributions, and of a 16-bit type each pattern beside some largest."""
    return steady_cases(stimulus(facts, seed), vectors, facts, seed)


def stimulus(facts: Facts, seed: int) -> Iterator[tuple[str, Arrays]]:
    """Yield the arrays of ``regression``."""
    name, group = facts.parameters["input_type"], _block(facts).group
    for distribution in DISTRIBUTIONS:
        yield distribution, {"x": groups(distribution, name, 1500, seed, group)}
    yield "special values in each lane", {"x": special_lanes(name, seed, group)}
    if _block(facts).metadata.name == "sg-em":
        yield "near choices", {"x": near_choices(name, _block(facts), seed)}
        yield "large gains", {"x": large_gains(name, _block(facts), seed)}
    smallest = 2.0 ** (1 - input_type(name).bias)  # normal; what is beside it is subnormal
    low = (smallest * x * 2.0**n for n in range(6) for x in (1.0, 1.25, 1.5, 1.75))
    for largest in (1.0, 1.25, 1.75, 6.0, *low):
        yield f"each value beside {largest}", {"x": lone_values(name, largest, group)}
    if input_type(name).width == 16:
        for largest in (1.9375, 6.0):
            yield f"all patterns beside {largest}", {"x": all_patterns(name, largest, group)}
