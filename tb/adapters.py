"""How a user's arrays become beats of a unit and beats become arrays again: one row a unit.

A new unit that `m2xfp simulate` is to run adds its three functions and its row in ADAPTERS.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from m2xfp.errors import InputError, UnknownNameError
from m2xfp.facts import Facts
from m2xfp.formats import BF16, BlockFormat, InputType, block_format, input_type
from m2xfp.tb.parts.gemm_arrays import decode_matrix, encode_matrices, load_matrices
from m2xfp.tb.parts.mac_arrays import decode_accumulators, encode_pairs, load_pairs
from m2xfp.tb.vectors import Beats

__all__ = ["ADAPTERS", "Adapter", "Arrays", "find_adapter", "group_arrays", "value_beats"]

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Adapter:
    """The array side of a unit.

    Members
    -------
    load
        Reads and checks a user's file: arrays by name, or InputError with the remedy.
    encode
        Arrays to beats of every input stream.
    decode
        Beats of every output stream to arrays, given the arrays that went in.
    """

    load: Callable[[Path, Facts], Arrays]
    encode: Callable[[Arrays, Facts], dict[str, Beats]]
    decode: Callable[[Mapping[str, Beats], Arrays, Facts], Arrays]


def _block(description: Facts) -> BlockFormat:
    return block_format(description.parameters["block"])


def load_values(path: Path, description: Facts) -> Arrays:
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
    kind, group = input_type(description.parameters["input_type"]), _block(description).group
    try:
        with path.open("rb") as file:  # numpy would leave the file of an archive open
            x = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise InputError(f"input {path}: not a readable .npy file ({error})") from error
    if not isinstance(x, np.ndarray):
        raise InputError(f"input {path}: holds several arrays; give one array as a .npy file")
    if x.ndim != 2 or x.shape[1] != group or not len(x):
        raise InputError(
            f"input {path}: shape {list(x.shape)}; must be [n, {group}] with n at least 1, "
            "one group a row"
        )
    return {"x": _patterns(np.ascontiguousarray(x, x.dtype.newbyteorder("=")), kind, path)}


def _patterns(x: NDArray[Any], kind: InputType, path: Path) -> NDArray[Any]:
    """Return the raw patterns of ``x``, contiguous and in native byte order."""
    raw = np.dtype(f"uint{kind.width}")
    values = {"bf16": np.float32, "fp16": np.float16, "fp32": np.float32}[kind.name]
    if x.dtype == raw:
        return x
    if x.dtype != values:
        raise InputError(
            f"input {path}: type {x.dtype}; must be {raw} (raw {kind.name} patterns) or "
            f"{np.dtype(values)}"
        )
    bits: NDArray[Any] = x.view(np.uint32 if kind is BF16 else raw)
    if kind is not BF16:
        return bits
    if np.any(lost := bits & 0xFFFF != 0):
        row, column = (int(index) for index in np.argwhere(lost)[0])
        raise InputError(
            f"input {path}: x[{row}, {column}] = {x[row, column]!r} is no bfloat16; round the "
            "values to bfloat16 first, or use an fp32 configuration"
        )
    return (bits >> 16).astype(raw)


def value_beats(raw: NDArray[Any], description: Facts, last: NDArray[Any]) -> Beats:
    """Cut groups of raw patterns into beats: lane 0 lowest, first beat the group's first values.

    Parameters
    ----------
    raw
        uint16 or uint32 [n, group].
    description
        The configuration.
    last
        bool [n * beats_per_group]: TLAST of each beat.
    """
    little = raw.astype(raw.dtype.newbyteorder("<"), copy=False)
    width = description.inputs[0].bytes
    return Beats(np.ascontiguousarray(little).view(np.uint8).reshape(-1, width), last)


def encode_values(arrays: Arrays, description: Facts) -> dict[str, Beats]:
    """Turn ``x`` into one stream with TLAST on its very last beat."""
    last = np.zeros(len(arrays["x"]) * description.beats_per_group, bool)
    last[-1] = True
    return {description.inputs[0].name: value_beats(arrays["x"], description, last)}


def group_arrays(data: NDArray[np.uint8], block: BlockFormat) -> Arrays:
    """Split packed groups (docs/format.md, packed group) into their planes.

    Parameters
    ----------
    data
        uint8 [n, bytes a group].
    block
        The format.

    Returns
    -------
    dict
        ``codes`` uint8 [n, bytes of codes], ``scales`` uint8 [n], and ``meta`` uint8 [n] if the
        format has metadata.
    """
    codes = block.group * block.element.bits // 8
    planes: Arrays = {"codes": data[:, :codes].copy(), "scales": data[:, codes].copy()}
    if block.subgroups:
        planes["meta"] = data[:, codes + 1].copy()
    return planes


def decode_groups(beats: Mapping[str, Beats], arrays: Arrays, description: Facts) -> Arrays:
    """Turn packed groups into planes."""
    return group_arrays(beats[description.outputs[0].name].data, _block(description))


ADAPTERS = {
    "activation_quantizer": Adapter(load_values, encode_values, decode_groups),
    "weight_encoder": Adapter(load_values, encode_values, decode_groups),
    "dot_product": Adapter(load_pairs, encode_pairs, decode_accumulators),
    "pe_tile": Adapter(load_pairs, encode_pairs, decode_accumulators),
    "gemm_core": Adapter(load_matrices, encode_matrices, decode_matrix),
}


def find_adapter(unit: str) -> Adapter:
    """Return the adapter of ``unit``; UnknownNameError lists the units that have one."""
    if unit not in ADAPTERS:
        raise UnknownNameError("unit to simulate", unit, ADAPTERS)
    return ADAPTERS[unit]
