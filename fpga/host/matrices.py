"""Units that multiply matrices: a request is a panel of weights with some rows of activations."""

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.errors import InputError
from m2xfp.facts import Facts
from m2xfp.formats import BlockFormat
from m2xfp.fpga.host.patterns import operands, with_any_codes, with_any_nan
from m2xfp.fpga.host.remote_unit import RemoteUnit, record_bytes, slices
from m2xfp.tb.bench import Arrays
from m2xfp.tb.parts.gemm_arrays import GemmStreams
from m2xfp.tb.parts.groups import group_arrays, packed_groups

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["count", "most_k", "run", "sample"]


def most_k(unit: RemoteUnit) -> int:
    """Return the largest K of which a step of rows and a panel of weights fit a request."""
    streams = GemmStreams(unit.facts)
    group = streams.act.group
    fitting = _room(unit) // (_panel(unit) + record_bytes(unit.facts.stream("acts")))
    return min(fitting * group, int(unit.facts.parameters["max_k"]))


def run(unit: RemoteUnit, arrays: Arrays, progress: bool = False) -> Arrays:
    """Return ``out`` of one product, or of several, as the unit's testbench decodes it."""
    from m2xfp.progress import track

    if "sizes" in arrays:
        results = [run(unit, one, progress)["out"] for one in _products(arrays, unit.facts)]
        rest = results[0].shape[2:]
        return {"out": np.concatenate([result.reshape(-1, *rest) for result in results])}
    streams = GemmStreams(unit.facts)
    groups = arrays["w_scales"].shape[1]
    if groups * streams.act.group > most_k(unit):
        raise InputError(
            f"K = {groups * streams.act.group}: unit {unit.name} holds K = {most_k(unit)} at most"
        )
    m = next(len(array) for name, array in arrays.items() if name[0] != "w")
    panels = slices(len(arrays["w_scales"]), streams.columns)
    blocks = slices(m, _most_rows(unit, groups))
    parts = [(rows, columns) for columns in panels for rows in blocks]
    found = [
        _request(unit, arrays, rows, columns)
        for rows, columns in track(parts, desc=unit.name, unit="request", quiet=not progress)
    ]
    # Panels beside one another, rows below one another.
    height = len(blocks)
    sides = [np.concatenate(found[at : at + height]) for at in range(0, len(found), height)]
    return {"out": np.concatenate(sides, axis=1)}


def sample(rng: np.random.Generator, size: int, facts: Facts) -> Arrays:
    """Return one product of ``size`` groups of activations or some more, and up to 3 columns.

    Half of the packed groups are quantized values, the others have any codes and metadata.

    Results that leave as groups take whole groups of columns.
    """
    from m2xfp.golden.bits import round_to_bits

    streams, given = GemmStreams(facts), facts.parameters
    group = streams.act.group
    depth = int(rng.integers(1, 1 + min(4, given["max_k"] // group)))
    m = -(-size // depth)
    n = group if given["results"] == "packed" else int(rng.integers(1, 4))
    values = operands(rng, max(m, n) * depth)

    def packed(side: str, block: BlockFormat, rows: int, numbers: "Tensor") -> Arrays:
        groups = group_arrays(packed_groups(block, numbers, rows * depth), block, side)
        planes = with_any_codes(rng, groups, side, block)
        return {name: plane.reshape(rows, -1) for name, plane in planes.items()}

    arrays = packed("w_", streams.weight, n, values.weights)
    if given["activations"] is None:
        return arrays | packed("a_", streams.act, m, values.activations)
    raw = round_to_bits(given["activations"], values.activations).reshape(-1, group)
    return with_any_nan(rng, arrays | {"x": raw[: m * depth].reshape(m, -1)}, facts)


def count(arrays: Arrays, facts: Facts) -> int:
    """Return the pairs of groups."""
    if "sizes" in arrays:
        return sum(count(one, facts) for one in _products(arrays, facts))
    m = next(len(array) for name, array in arrays.items() if name[0] != "w")
    return m * arrays["w_scales"].size


def _products(arrays: Arrays, facts: Facts) -> list[Arrays]:
    """Return each of several products by itself; their groups are the rows of the arrays."""
    group, at, found = GemmStreams(facts).act.group, {"a": 0, "w": 0}, []
    for m, n, k in arrays["sizes"].tolist():
        one: Arrays = {}
        ends = {"a": at["a"] + m * (k // group), "w": at["w"] + n * (k // group)}
        for name, array in arrays.items():
            if name != "sizes":
                side, rows = ("w", n) if name[0] == "w" else ("a", m)
                cut = array[at[side] : ends[side]]
                one[name] = cut.reshape(rows, (k // group) * prod(array.shape[1:]))
        at = ends
        found.append(one)
    return found


def _request(unit: RemoteUnit, arrays: Arrays, rows: slice, columns: slice) -> NDArray[Any]:
    """Return the results of some rows and one panel of columns."""
    part = {name: array[columns if name[0] == "w" else rows] for name, array in arrays.items()}
    beats = unit.play(unit.bench.encode(part, unit.facts))
    statuses = beats["status"].data.tolist()
    due = rows.stop - rows.start
    if statuses != [[0]] or len(beats["o"]) != due:
        raise unit.fault(
            f"{len(beats['o'])} rows and the statuses {statuses}; expected {due} rows and one "
            "status of 0"
        )
    try:
        result: NDArray[Any] = unit.bench.decode(beats, part, unit.facts)["out"]
    except AssertionError as error:
        raise unit.fault(f"the answer cannot be: {error}") from error
    return result


def _room(unit: RemoteUnit) -> int:
    """Return the bytes of a request beside its command."""
    return unit.buffer - record_bytes(unit.facts.stream("cmd"))


def _panel(unit: RemoteUnit) -> int:
    """Return the bytes of a group of all columns."""
    return GemmStreams(unit.facts).columns * record_bytes(unit.facts.stream("weights"))


def _most_rows(unit: RemoteUnit, groups: int) -> int:
    """Return how many rows of so many groups fit beside a panel, and their results an answer."""
    facts = unit.facts
    step = groups * record_bytes(facts.stream("acts"))
    asked = (_room(unit) - groups * _panel(unit)) // step * GemmStreams(facts).rows
    answered = unit.buffer - record_bytes(facts.stream("status"))
    return min(asked, answered // record_bytes(facts.stream("o")))
