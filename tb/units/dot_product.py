"""Testbench of the MAC units: jobs from the golden model, a cocotb test of values."""

from typing import Any

import cocotb
import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Facts
from m2xfp.formats import window
from m2xfp.tb.parts.mac_arrays import beats_of_pairs, chains, formats, lanes
from m2xfp.tb.protocol.stream_tests import Bench
from m2xfp.tb.vectors import Beats, Job

__all__ = ["Bools", "Bytes", "expected", "make_job", "pairs"]

Arrays = dict[str, NDArray[Any]]
Bytes = NDArray[np.uint8]
Bools = NDArray[np.bool_]


def pairs(act: Bytes, weight: Bytes, description: Facts) -> Arrays:
    """Split packed groups [n, bytes] of both sides into the fields of a user's file."""
    arrays: Arrays = {}
    for side, block, groups in zip("aw", formats(description), (act, weight), strict=True):
        codes = block.group_bytes[0]
        arrays[f"{side}_codes"] = groups[:, :codes]
        arrays[f"{side}_scales"] = groups[:, codes]
        if block.subgroups:
            arrays[f"{side}_meta"] = groups[:, codes + 1]
    return arrays


def expected(
    act: Bytes,
    weight: Bytes,
    first: Bools,
    description: Facts,
) -> NDArray[np.unsignedinteger]:
    """Return the accumulators that the golden model has after each beat.

    Parameters
    ----------
    act, weight
        uint8 [T, n, bytes a group]: T groups one after the other in n dot products.
    first
        bool [T, n]: the accumulator is cleared before that group.
    description
        The configuration.

    Returns
    -------
    uint32 [T, beats a group, n], with ``inexact`` in bit 32, as uint64, of an exact accumulation.
    """
    from m2xfp.golden.bits import dot_bits, running_exact_bits

    act_block, weight_block = formats(description)
    if description.parameters.get("window"):
        acc, inexact = running_exact_bits(
            act_block.name,
            weight_block.name,
            act.swapaxes(0, 1),
            weight.swapaxes(0, 1),
            first.T,
            window(description.parameters["window"]),
        )
        return (acc.T | inexact.T.astype(np.uint64) << np.uint64(32))[:, None]
    group, width = act_block.group, lanes(description)
    acc = np.zeros(act.shape[1], np.uint32)
    found = np.zeros((len(act), group // width, act.shape[1]), np.uint32)
    for t in range(len(act)):
        acc = np.where(first[t], np.uint32(0), acc)
        for part in range(group // width):
            # The lanes of one beat: all other codes are zero, and zero products add nothing.
            mask = np.zeros(act.shape[2], np.uint8)
            mask[part * width // 2 : (part + 1) * width // 2] = 0xFF
            mask[group // 2 :] = 0xFF
            one, other = (act[t] & mask)[:, None], (weight[t] & mask)[:, None]
            acc = dot_bits(act_block.name, weight_block.name, one, other, "fp32", acc)
            found[t, part] = acc
    return found


def make_job(
    description: Facts,
    act: Bytes,
    weight: Bytes,
    first: Bools,
    seed: int = 0,
) -> Job:
    """Return the beats for dot products that take turns, and the accumulators that must come out.

    ``act``, ``weight``, ``first`` as for ``expected``; n is a multiple of the unit's chains. Dot
    product i is in chain i mod chains; as many of them as there are chains run at a time. A piece
    of the job is one such set, so its first groups must have ``first``. TLAST is random in every
    beat and must come out with it.
    """
    turns = chains(description)
    steps, count = first.shape
    beats = formats(description)[0].group // lanes(description)
    arrays = pairs(
        act.reshape(steps * count, -1), weight.reshape(steps * count, -1), description
    ) | {"first": first.reshape(-1)}
    table = beats_of_pairs(arrays, description)
    acc = expected(act, weight, first, description)

    def interleaved(rows: NDArray[Any]) -> NDArray[Any]:
        """[T, beats, n, bytes] to rows in the order of the stream."""
        sets = rows.reshape(steps, beats, count // turns, turns, -1)
        return np.ascontiguousarray(
            sets.transpose(2, 0, 1, 3, 4).reshape(steps * beats * count, -1)
        )

    rows = interleaved(table.reshape(steps, count, beats, -1).transpose(0, 2, 1, 3))
    size = description.outputs[0].bytes
    patterns = acc.astype("<u8")[..., None].view(np.uint8)[..., :size]
    out = interleaved(patterns)
    last = np.random.default_rng(seed).random(len(rows)) < 0.5
    return Job({"i": Beats(rows, last)}, {"o": Beats(out, last)}, count // turns)


@cocotb.test()
async def values(dut: Any) -> None:
    """All beats of the job, with occasional pauses: every accumulator equals the golden model's."""
    bench = Bench(dut)
    await bench.start()
    await bench.play(bench.job, {"i": 0.1, "o": 0.1})
