"""Units whose rows do not depend on one another: as many rows a request as its buffers hold."""

import numpy as np

from m2xfp.errors import InputError
from m2xfp.facts import Facts
from m2xfp.fpga.host.patterns import operands, with_any_nan
from m2xfp.fpga.host.remote_unit import RemoteUnit, beats_bytes, slices
from m2xfp.tb.bench import Arrays, bench_of

__all__ = ["count", "run", "sample"]


def run(unit: RemoteUnit, arrays: Arrays, progress: bool = False) -> Arrays:
    """Return what the unit makes of every row of the arrays."""
    from m2xfp.progress import track

    rows = count(arrays, unit.facts)
    if not rows:
        raise InputError(f"unit {unit.name}: the arrays hold no group")
    # What one row takes, in beats a stream; the golden model knows how many come out.
    first = unit.bench.vectors(_part(arrays, slice(0, 1)), unit.facts)
    size = max(
        beats_bytes(first.inputs, unit.facts.inputs), beats_bytes(first.outputs, unit.facts.outputs)
    )
    most = unit.buffer // size
    if not most:
        raise InputError(
            f"unit {unit.name}: a group takes {size} bytes, and a request holds {unit.buffer}; "
            "build the unit with wider streams, or its board row with a larger buffer"
        )
    found = []
    for part in track(slices(rows, most), desc=unit.name, unit="request", quiet=not progress):
        piece, held = _part(arrays, part), part.stop - part.start
        beats = unit.play(unit.bench.encode(piece, unit.facts), pieces=held)
        for name, expected in first.outputs.items():
            unit.check_number(beats[name], held * len(expected))
        found.append(unit.bench.decode(beats, piece, unit.facts))
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def sample(rng: np.random.Generator, size: int, facts: Facts) -> Arrays:
    """Return ``size`` random rows."""
    arrays = _part(bench_of(facts).sample(operands(rng, size), facts), slice(0, size))
    return with_any_nan(rng, arrays, facts)


def count(arrays: Arrays, facts: Facts) -> int:
    """Return the rows."""
    return min(len(array) for array in arrays.values())


def _part(arrays: Arrays, rows: slice) -> Arrays:
    return {name: array[rows] for name, array in arrays.items()}
