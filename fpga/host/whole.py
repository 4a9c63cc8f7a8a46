"""Units whose arrays are one piece of work: a request holds all of it.

Products with their segments, dot products whose groups change format, rows with their table: what
comes first decides what the rest means, so nothing is cut here.
"""

import numpy as np

from m2xfp.errors import InputError
from m2xfp.facts import Facts
from m2xfp.fpga.gateware.units import board_row
from m2xfp.fpga.host.patterns import operands
from m2xfp.fpga.host.remote_unit import RemoteUnit, beats_bytes
from m2xfp.rtl.catalog import Board, find_unit
from m2xfp.tb.bench import Arrays, bench_of

__all__ = ["count", "run", "sample"]


def run(unit: RemoteUnit, arrays: Arrays, progress: bool = False) -> Arrays:
    """Return what the unit makes of arrays, which one request must hold.

    Raises
    ------
    InputError
        They do not fit a request, or the unit does not take them.
    FaultError
        The answer makes no sense, or the request was refused.
    """
    # What a file is asked when it is loaded, a program's arrays are asked here.
    getattr(unit.bench, "check", lambda *_: None)(arrays, unit.facts)
    beats = unit.bench.encode(arrays, unit.facts)
    if (size := beats_bytes(beats, unit.facts.inputs)) > unit.buffer:
        raise InputError(
            f"unit {unit.name}: the arrays take {size} bytes, and a request holds {unit.buffer}; "
            "give less at a time, or build the unit with a board row of a larger buffer"
        )
    # A command goes in with its operands, before those of the next one; where a stream is taken
    # once another asks for it, the beat that asks goes in before.
    pieces = min(len(array) for array in arrays.values()) if len(beats) > 1 else 1
    asks = board_row(unit.instance).asks
    found = unit.play(beats, pieces, dict.fromkeys(asks, 1))
    return unit.bench.decode(found, arrays, unit.facts)


def sample(rng: np.random.Generator, size: int, facts: Facts) -> Arrays:
    """Return random arrays of about ``size`` groups, or of as many as a request holds."""
    row = find_unit(facts.unit).board
    assert isinstance(row, Board)
    while True:
        arrays = bench_of(facts).sample(operands(rng, size), facts)
        if (
            beats_bytes(bench_of(facts).encode(arrays, facts), facts.inputs) <= row.buffer
            or size == 1
        ):
            return arrays
        size //= 2


def count(arrays: Arrays, facts: Facts) -> int:
    """Return the rows of the array that has most: groups, or rows of values with their tables."""
    del facts
    return max(int(np.prod(array.shape[:-1])) for array in arrays.values())
