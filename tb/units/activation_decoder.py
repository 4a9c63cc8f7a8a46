"""Testbench of the activation decoder: subgroups in, the refined element out, a clock each.

The unit has no streams: beats are the words of its ports.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from m2xfp.facts import Facts, Port
from m2xfp.formats import block_format
from m2xfp.tb.bench import Arrays, Operands, golden_of
from m2xfp.tb.cross import Cross, cross
from m2xfp.tb.fields import pack, read, read_plane
from m2xfp.tb.parts.files import check_range, load_rows
from m2xfp.tb.parts.groups import elements, group_arrays, packed_groups
from m2xfp.tb.regression import Case, steady_cases
from m2xfp.tb.vectors import Beats, TestVectors

__all__ = [
    "cover",
    "decode",
    "encode",
    "expected",
    "load",
    "regression",
    "sample",
    "vectors",
]


def _port(facts: Facts, name: str) -> Port:
    return next(port for port in facts.signals if port.name == name)


def load(path: Path, facts: Facts) -> Arrays:
    """Read subgroups, an .npz file.

    Returns
    -------
    dict
        ``codes`` uint8 [n, subgroup], an element code each, and ``meta`` uint8 [n].

    Raises
    ------
    InputError
        If the file is no .npz file, a field is missing, too many, of another type or shape, or a
        number has more bits than a code or the metadata of a subgroup.
    """
    block = block_format(facts.parameters["block"])
    size = block.metadata.subgroup
    arrays = load_rows(path, facts, {"codes": (np.uint8, (size,)), "meta": (np.uint8, ())})
    for name, bits in (("codes", block.element.bits), ("meta", block.metadata.bits)):
        check_range(path, name, arrays[name], 0, (1 << bits) - 1)
    return arrays


def encode(arrays: Arrays, facts: Facts) -> dict[str, Beats]:
    """Return the words of the input ports, a subgroup a clock."""
    ports = {name: _port(facts, name) for name in ("codes", "meta")}
    return {name: Beats(pack(port, {port.fields[0]: arrays[name]})) for name, port in ports.items()}


def decode(beats: Mapping[str, Beats], arrays: Arrays, facts: Facts) -> Arrays:
    """Return ``top`` bool [n, subgroup], and ``nonzero``, ``negative``, ``shift`` [n].

    Sign and shift of no refinement mean nothing, and are 0 here.
    """
    (one_hot,) = _port(facts, "top").fields
    top = np.unpackbits(
        read_plane(one_hot, beats["top"].data), axis=1, count=one_hot.width, bitorder="little"
    )
    fields = _port(facts, "refinement").fields
    found = {field.name: read(field, beats["refinement"].data) for field in fields}
    return {
        "top": top.astype(bool),
        **{
            name: np.where(found["nonzero"], array, 0).astype(array.dtype)
            for name, array in found.items()
        },
    }


def expected(arrays: Arrays, facts: Facts) -> Arrays:
    """Return what the golden model finds in the subgroups."""
    return golden_of(facts)(arrays["codes"], arrays["meta"])


def vectors(arrays: Arrays, facts: Facts, seed: int = 0) -> TestVectors:
    """Return the words of all ports, a piece a subgroup; sign and shift where they mean something.

    There is no TLAST to be random.
    """
    results, inputs = expected(arrays, facts), encode(arrays, facts)
    top, refinement = _port(facts, "top"), _port(facts, "refinement")
    nonzero = results["nonzero"]
    fields = {field.name: field for field in refinement.fields}
    plane = np.packbits(results["top"], axis=1, bitorder="little")
    mask = {
        field: np.where(nonzero | (name == "nonzero"), (1 << field.width) - 1, 0)
        for name, field in fields.items()
    }
    return TestVectors(
        inputs,
        {
            "top": Beats(pack(top, planes={top.fields[0]: plane})),
            "refinement": Beats(
                pack(refinement, {field: results[name] for name, field in fields.items()})
            ),
        },
        len(nonzero),
        {"refinement": pack(refinement, mask)},
    )


def sample(operands: Operands, facts: Facts) -> Arrays:
    """Return the subgroups of activations, those of a group one after the other."""
    block = block_format(facts.parameters["block"])
    count = operands.activations.numel() // block.group
    planes = group_arrays(packed_groups(block, operands.activations, count), block)
    codes = elements(planes["codes"], block.element.bits, block.group)
    return {
        "codes": codes.reshape(-1, block.metadata.subgroup),
        "meta": elements(planes["meta"], block.metadata.bits, block.subgroups).reshape(-1),
    }


def regression(facts: Facts, seed: int = 0) -> Iterator[Case]:
    """Yield random subgroups, and each largest element in each place with smaller ones and ties."""
    block, rng = block_format(facts.parameters["block"]), np.random.default_rng(seed)
    size, bits = block.metadata.subgroup, block.element.bits
    sign, metas = 1 << bits - 1, 1 << block.metadata.bits
    random = rng.integers(0, 2 * sign, (4000, size), np.uint8)
    largest, place, meta, _ = (
        grid.reshape(-1) for grid in np.meshgrid(range(sign), range(size), range(metas), range(8))
    )
    below = rng.integers(0, 1 << 30, (len(largest), size)) % np.maximum(largest, 1)[:, None]
    equal = rng.integers(0, 2, below.shape) * (np.arange(size) > place[:, None])
    codes = np.where(equal | (np.arange(size) == place[:, None]), largest[:, None], below)
    codes = (codes | sign * rng.integers(0, 2, codes.shape)).astype(np.uint8)
    # Any number of the largest, among smaller ones.
    count = np.tile(np.arange(1, size + 1), 60 * sign)
    alike = np.arange(len(count)) % (60 * sign) // 60
    chosen = rng.random((len(count), size)).argsort(1) < count[:, None]
    smaller = rng.integers(0, 1 << 30, chosen.shape) % np.maximum(alike, 1)[:, None]
    equals = np.where(chosen, alike[:, None], smaller)
    equals = (equals | sign * rng.integers(0, 2, equals.shape)).astype(np.uint8)
    named = {
        "equals": {"codes": equals, "meta": rng.integers(0, metas, len(equals), np.uint8)},
        "random": {"codes": random, "meta": rng.integers(0, metas, len(random), np.uint8)},
        "each largest in each place": {"codes": codes, "meta": meta.astype(np.uint8)},
    }
    return steady_cases(named.items(), vectors, facts, seed)


def cover(vectors: TestVectors, facts: Facts) -> Iterator[Cross]:
    """Yield the largest element of each subgroup, where it is first, and its metadata."""
    block = block_format(facts.parameters["block"])
    size, half = block.metadata.subgroup, 1 << block.element.bits - 1
    codes, meta = (
        np.asarray(read(_port(facts, name).fields[0], vectors.inputs[name].data), np.int64)
        for name in ("codes", "meta")
    )
    magnitude = codes % half
    place = magnitude.argmax(1)
    largest = magnitude.max(1)
    metas = range(1 << block.metadata.bits)
    # Of zeros alone the first is the largest.
    possible = (np.arange(half) > 0)[:, None] | (np.arange(size) == 0)
    yield cross(
        "largest, its place and metadata",
        {"magnitude": range(half), "place": range(size), "metadata": metas},
        largest,
        place,
        meta,
        possible=possible[..., None],
    )
    sign = codes[np.arange(len(codes)), place] // half
    equals = (magnitude == largest[:, None]).sum(1) - 1
    yield cross(
        "sign of the largest, and its equals",
        {"magnitude": range(half), "sign": ("+", "-"), "equals": range(size)},
        largest,
        sign,
        equals,
        possible=((np.arange(half) > 0)[:, None] | (np.arange(size) == size - 1))[:, None],
    )
    lanes = range(size)
    yield cross(
        "code in each lane", {"code": range(2 * half), "lane": lanes}, codes, np.arange(size)
    )
