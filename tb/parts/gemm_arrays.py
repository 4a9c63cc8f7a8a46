"""The array side of the GEMM core: operands to beats, beats to results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.errors import InputError
from m2xfp.facts import Facts
from m2xfp.rtl.parts.gemm_cycles import SIZE_BITS, GemmTiming
from m2xfp.tb.vectors import Beats

if TYPE_CHECKING:
    from m2xfp.rtl.units.gemm_core import GemmCore

__all__ = [
    "Bytes",
    "GemmStreams",
    "Product",
    "command_row",
    "decode_matrix",
    "encode_matrices",
    "load_matrices",
    "status_names",
]

Bytes = NDArray[np.uint8]


def command_row(m: int, n: int, k: int) -> Bytes:
    """Return the beat of a command."""
    word = m | n << SIZE_BITS | k << 2 * SIZE_BITS
    return np.frombuffer(word.to_bytes(-(-3 * SIZE_BITS // 8), "little"), np.uint8)


def status_names(status: int) -> list[str]:
    """Return the names of the bits that are set in a status; none is success."""
    from m2xfp.rtl.parts.gemm_layouts import status_layout

    return [name for n, (name, _) in enumerate(iter(status_layout)) if status >> n & 1]


def end_mark(count: int) -> NDArray[np.bool_]:
    """Return TLAST of one command's beats."""
    return np.arange(count) == count - 1


@dataclass(frozen=True)
class Product:
    """One matrix product.

    Members
    -------
    acts
        uint8 [m, groups, bytes]: rows of packed groups, or of a group's values.
    weights
        uint8 [n, groups, bytes]: rows of packed groups.
    k
        Values a row.
    """

    acts: Bytes
    weights: Bytes
    k: int

    @property
    def sizes(self) -> tuple[int, int, int]:
        """m, n and k."""
        return len(self.acts), len(self.weights), self.k


class GemmStreams:
    """The order in which a GEMM core takes operands and gives results.

    Parameters
    ----------
    core
        The component, for its parameters.
    """

    def __init__(self, core: GemmCore) -> None:
        self.core = core

    def act_beats(self, acts: Bytes, n: int) -> Bytes:
        """Return the activation beats of a product with n weight rows."""
        core = self.core
        m, groups, width = acts.shape
        block = core.rows * core.chains
        padded = np.zeros((-(-m // block) * block, groups, width), np.uint8)
        padded[:m] = acts
        # [blocks, chains, rows, groups, bytes] to one beat a (block, group, chain)
        order = padded.reshape(-1, core.chains, core.rows, groups, width).transpose(0, 3, 1, 2, 4)
        # The rows of a beat lie bit by bit beside each other, also where a group is no whole bytes.
        size = 8 * width if core.activations else core.pair.act.group_bits
        bits = np.unpackbits(order.reshape(-1, core.rows, width), axis=2, bitorder="little")
        beats = np.packbits(bits[..., :size].reshape(len(bits), -1), axis=1, bitorder="little")
        first_row = np.arange(0, len(padded), core.rows).reshape(-1, 1, core.chains)
        wanted = np.broadcast_to(first_row < m, order.shape[:3]).reshape(-1)
        panels = -(-n // core.columns)
        return np.tile(beats[wanted], (panels, 1))

    def inputs(self, products: list[Product]) -> dict[str, Beats]:
        """Return the beats of all input streams."""
        acts = [self.act_beats(p.acts, len(p.weights)) for p in products]
        weights = [p.weights.reshape(-1, p.weights.shape[-1]) for p in products]
        streams = {"acts": acts, "weights": weights}
        beats = {
            name: Beats(np.concatenate(parts), np.concatenate([end_mark(len(x)) for x in parts]))
            for name, parts in streams.items()
        }
        return beats | {"cmd": Beats(np.stack([command_row(*p.sizes) for p in products]))}

    def outputs(self, results: list[Bytes]) -> dict[str, Beats]:
        """Return the beats of all output streams that have these results, all commands done."""
        core, parts = self.core, []
        for rows in results:
            if core.results != "packed":  # columns beyond n are 0
                m, n, size = rows.shape
                wide = np.zeros((m, -(-n // core.columns) * core.columns, size), np.uint8)
                wide[:, :n] = rows
                rows = wide.reshape(m, -1, core.columns * size)
            parts.append(rows.transpose(1, 0, 2).reshape(-1, rows.shape[-1]))
        statuses = np.zeros((len(results), 1), np.uint8)
        return {
            "o": Beats(np.concatenate(parts), np.concatenate([end_mark(len(x)) for x in parts])),
            "status": Beats(statuses, np.ones(len(results), bool)),
        }

    def results(self, out: Beats, products: list[Product]) -> Iterator[Bytes]:
        """Cut the output beats into results, uint8 [m, n, bytes a value] or [m, groups, bytes].

        AssertionError if their number or TLAST is wrong, or a column beyond n is not 0.
        """
        core, start = self.core, 0
        assert out.last is not None
        for product in products:
            m, n, _ = product.sizes
            panels = -(-n // core.columns)
            stop = start + panels * m
            assert len(out) >= stop, f"{len(out)} result beats, {stop} expected"
            assert np.array_equal(out.last[start:stop], end_mark(stop - start))
            rows = out.data[start:stop].reshape(panels, m, -1).transpose(1, 0, 2)
            if core.results == "packed":
                yield rows
            else:
                values = rows.reshape(m, panels * core.columns, -1)
                assert not values[:, n:].any(), "a column beyond n is not 0"
                yield values[:, :n]
            start = stop
        assert start == len(out), f"{len(out)} result beats, {start} expected"


def _core(description: Facts) -> GemmCore:
    from m2xfp.rtl.catalog import Instance
    from m2xfp.rtl.units.gemm_core import GemmCore

    core = Instance.of(description).component
    assert isinstance(core, GemmCore)
    return core


def _planes(core: GemmCore) -> dict[str, int]:
    """Return the bytes a group of each field of the user's file."""
    packed = (
        {"w": core.pair.weight} if core.activations else {"a": core.pair.act, "w": core.pair.weight}
    )
    sizes = {}
    for side, block in packed.items():
        for name, size in zip(("codes", "scales", "meta"), block.group_bytes, strict=True):
            if size:
                sizes[f"{side}_{name}"] = size
    return sizes


def load_matrices(path: Path, description: Facts) -> dict[str, NDArray[Any]]:
    """Read the two operands of a matrix product.

    Returns
    -------
    dict
        ``w_codes`` uint8 [n, k/2], ``w_scales`` and, if the format has metadata, ``w_meta`` uint8
        [n, groups]; ``a_codes``, ``a_scales``, ``a_meta`` likewise for m rows, or ``x`` uint16
        (uint32 for fp32) [m, k], raw patterns, if the configuration quantizes activations.

    Raises
    ------
    InputError
        If the file is no .npz file, lacks a field or has one that the configuration does not
        take, a field has another type or shape, or the core does not support the sizes.
    """
    core = _core(description)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError) as error:
        raise InputError(f"input {path}: not a readable .npz file ({error})") from error
    planes = _planes(core)
    names = [*planes, *(["x"] if core.activations else [])]
    if missing := [name for name in names if name not in arrays]:
        raise InputError(f"input {path}: field {missing[0]!r} is missing; needed: {names}")
    if unknown := [name for name in arrays if name not in names]:
        raise InputError(
            f"input {path}: {description.config} takes no field {unknown[0]!r}; it takes: {names}"
        )
    group = core.pair.group
    rows = {"x": arrays["x"]} if core.activations else {"a": arrays["a_scales"]}
    rows["w"] = arrays["w_scales"]
    if any(array.ndim != 2 for array in rows.values()):
        raise InputError(f"input {path}: scales and values must have two dimensions")
    m, n = map(len, rows.values())
    groups = arrays["w_scales"].shape[1]
    GemmTiming.of(core).check(m, n, groups * group)
    for name in names:
        if core.activations and name == "x":
            dtype, width = np.dtype(f"uint{core.activations.width}"), group
        else:
            dtype, width = np.dtype(np.uint8), planes[name]
        shape = (len(rows[name[0]]), groups * width)
        if arrays[name].dtype != dtype or arrays[name].shape != shape:
            raise InputError(
                f"input {path}: {name} is {arrays[name].dtype} {list(arrays[name].shape)}; must be "
                f"{dtype} {list(shape)} beside w_scales of {[n, groups]}"
            )
    return arrays


def _product(arrays: Mapping[str, NDArray[Any]], core: GemmCore) -> Product:
    """Join the planes to rows of groups."""
    group = core.pair.group
    groups = arrays["w_scales"].shape[1]

    def rows(side: str) -> Bytes:
        planes = [arrays[name] for name in _planes(core) if name[0] == side]
        return np.concatenate([x.reshape(len(x), groups, -1) for x in planes], axis=2)

    if core.activations is None:
        acts = rows("a")
    else:
        little = arrays["x"].astype(arrays["x"].dtype.newbyteorder("<"))
        acts = np.ascontiguousarray(little).view(np.uint8).reshape(len(little), groups, -1)
    return Product(acts, rows("w"), groups * group)


def encode_matrices(arrays: Mapping[str, NDArray[Any]], description: Facts) -> dict[str, Beats]:
    """Turn the operands into one command with its streams."""
    core = _core(description)
    return GemmStreams(core).inputs([_product(arrays, core)])


def decode_matrix(
    beats: Mapping[str, Beats], arrays: Mapping[str, NDArray[Any]], description: Facts
) -> dict[str, NDArray[Any]]:
    """Return ``out``: uint32 [m, n] patterns of fp32, uint16 of bf16, or uint8 groups."""
    core = _core(description)
    (rows,) = GemmStreams(core).results(beats["o"], [_product(arrays, core)])
    if core.results == "packed":
        return {"out": rows}
    return {
        "out": np.ascontiguousarray(rows).view("<u4" if core.results == "fp32" else "<u2")[..., 0]
    }
