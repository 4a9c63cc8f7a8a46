"""Units that accumulate groups to dot products of any length.

A request holds some fifty pairs of groups and carries no state to the next one. Where it ends
within a dot product, the next one begins with groups that make the running sum (`running_sums`); a
unit of which none are known takes dot products that fit a request.
"""

import numpy as np
from numpy.typing import NDArray

from m2xfp.errors import InputError
from m2xfp.facts import Facts
from m2xfp.formats import M2XFP_ACT, M2XFP_WEIGHT
from m2xfp.fpga.host.patterns import operands, with_any_codes
from m2xfp.fpga.host.remote_unit import RemoteUnit, record_bytes
from m2xfp.fpga.host.running_sums import PAIR_BYTES, seed_pairs
from m2xfp.tb.bench import Arrays, bench_of
from m2xfp.tb.parts.accumulation import chains
from m2xfp.tb.parts.pairs import formats, pairs

__all__ = ["count", "run", "sample"]


def run(unit: RemoteUnit, arrays: Arrays, progress: bool = False) -> Arrays:
    """Return what the unit makes of pairs of groups, as its testbench decodes it."""
    from m2xfp.progress import track

    facts, total = unit.facts, count(arrays, unit.facts)
    if not total:
        raise InputError(f"unit {unit.name}: the arrays hold no pair of groups")
    (stream,) = facts.inputs
    # Chains take turns: a single dot product leaves the places of the others empty.
    most = unit.buffer // (chains(facts) * _beats_of_a_pair(arrays, facts) * record_bytes(stream))
    first = arrays["first"].astype(bool).copy()
    first[0] = True
    found: list[Arrays] = []
    at = 0
    with track(total=total, desc=unit.name, unit="group", quiet=not progress) as bar:
        while at < total:
            seeds = [] if first[at] else seed_pairs(int(found[-1]["acc"][-1]))
            stop = min(total, at + most - len(seeds))
            if not _can_go_on(arrays, facts):
                stop = _whole(first, at, stop, unit)
            piece = {name: array[at:stop] for name, array in arrays.items()}
            piece["first"] = first[at:stop]
            if seeds:
                piece = _behind(seeds, piece, facts)
            beats = unit.bench.encode(piece, facts)
            answer = unit.play(beats)
            unit.check_number(answer["o"], len(beats[stream.name]))
            results = unit.bench.decode(answer, piece, facts)
            found.append({name: array[len(seeds) :] for name, array in results.items()})
            bar.update(stop - at)
            at = stop
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def sample(rng: np.random.Generator, size: int, facts: Facts) -> Arrays:
    """Return ``size`` pairs in dot products of random lengths.

    Half of the pairs are quantized values, the others have any codes and metadata.
    """
    arrays = bench_of(facts).sample(operands(rng, size), facts)
    arrays = {name: array[:size] for name, array in arrays.items()}
    for side, block in zip(("a_", "w_"), formats(facts), strict=True):
        arrays = with_any_codes(rng, arrays, side, block)
    return arrays | {"first": rng.random(size) < 0.3}


def count(arrays: Arrays, facts: Facts) -> int:
    """Return the pairs of groups."""
    return len(arrays["first"])


def _beats_of_a_pair(arrays: Arrays, facts: Facts) -> int:
    """Return the beats that a pair comes in; those of a chain are as many apart as there are."""
    one = {name: array[:1] for name, array in arrays.items()}
    return 1 + (len(bench_of(facts).encode(one, facts)["i"]) - 1) // chains(facts)


def _can_go_on(arrays: Arrays, facts: Facts) -> bool:
    """Whether groups are known that make any running sum of this unit."""
    return (
        formats(facts) == (M2XFP_ACT, M2XFP_WEIGHT)
        and facts.parameters.get("window") is None
        and _beats_of_a_pair(arrays, facts) == 1
    )


def _whole(first: NDArray[np.bool_], at: int, stop: int, unit: RemoteUnit) -> int:
    """Return the last end of a dot product up to ``stop``; InputError if there is none."""
    ends = [end for end in (*np.flatnonzero(first), len(first)) if at < end <= stop]
    if not ends:
        raise InputError(
            f"unit {unit.name}: a dot product of more than {stop - at} pairs of groups does not "
            f"fit a request, and with {unit.facts.config} its sum cannot go on in the next one; "
            "cut it (`first`), or build the unit with its board's parameters"
        )
    return int(ends[-1])


def _behind(seeds: list[bytes], piece: Arrays, facts: Facts) -> Arrays:
    """Return the pairs of ``piece`` behind those that make the running sum."""
    groups = np.frombuffer(b"".join(seeds), np.uint8).reshape(-1, 2, PAIR_BYTES // 2)
    made = pairs(groups[:, 0], groups[:, 1], facts)
    made["first"] = np.arange(len(seeds)) == 0
    return {name: np.concatenate([made[name], array]) for name, array in piece.items()}
