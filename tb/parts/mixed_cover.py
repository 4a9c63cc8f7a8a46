"""What the commands of the mixed GEMM have gone through."""

from collections.abc import Iterator

import numpy as np

from m2xfp.facts import Facts
from m2xfp.pairs import FORMAT_NUMBERS
from m2xfp.rtl.parts.mixed_layouts import SEGMENTS
from m2xfp.tb.cross import Cross, cross
from m2xfp.tb.fields import read
from m2xfp.tb.parts.mixed_arrays import GROUP, MixedStreams
from m2xfp.tb.parts.mixed_numbers import cover_numbers
from m2xfp.tb.parts.mixed_operands import given_products
from m2xfp.tb.vectors import TestVectors

__all__ = ["cover", "unreached"]


def cover(vectors: TestVectors, facts: Facts) -> Iterator[Cross]:
    """Yield what some commands, their segments and their reports were."""
    streams, command, status = MixedStreams(facts), facts.stream("cmd"), facts.stream("status")
    given, told = vectors.inputs["cmd"].data, vectors.outputs["status"].data
    names = [field.name for field in status.fields if field.name != "tag"]
    faults = np.array([np.asarray(read(status.field(name), told), bool) for name in names])
    for name, seen in zip(names, faults, strict=True):
        yield cross(f"report of {name}", {"reported": ("no", "yes")}, seen)
    if not len(given):
        return
    m, n, k, tag, resync = (
        np.asarray(read(command.field(name), given), np.int64)
        for name in ("m", "n", "k", "tag", "resync")
    )
    ends, acts, weights = (
        np.asarray(read(command.field(f"segments.{name}"), given), np.int64)
        for name in ("end", "act", "weight")
    )
    # What a command without fault asked for; a broken packet is no fault of the command. One of
    # which the operands come later is reported then.
    bad = np.array([name.startswith("bad_") for name in names])
    reported = np.zeros((bad.sum(), len(m)), bool)
    reported[:, : faults.shape[1]] = faults[bad][:, : len(m)]
    answered = np.arange(len(m)) < faults.shape[1]
    good = answered & ~reported.any(axis=0) & (resync == 0)
    block, most = streams.rows * streams.chains, int(facts.parameters["max_k"]) // streams.tile
    tiles = k // streams.tile - 1
    yield cross("tiles of k", {"tiles": range(1, most + 1)}, tiles, where=good)
    yield cross("rows beyond whole blocks", {"rows": range(block)}, m % block, where=good)
    columns = streams.columns
    yield cross("columns beyond whole panels", {"columns": range(columns)}, n % columns, where=good)
    yield cross("tag of a command", {"tag": range(streams.tags)}, tag)
    pairs = streams.pairs.pairs
    pair = np.full(ends.shape, -1)
    for index, (act, weight) in enumerate(pairs):
        pair[(acts == FORMAT_NUMBERS[act.name]) & (weights == FORMAT_NUMBERS[weight.name])] = index
    filled = np.diff(ends, axis=1, prepend=0) > 0
    labels = [f"{act.name}:{weight.name}" for act, weight in pairs]
    here = good[:, None] & filled
    places = np.arange(SEGMENTS)
    yield cross(
        "pair of a segment", {"pair": labels, "segment": range(SEGMENTS)}, pair, places, where=here
    )
    yield cross(
        "pair after pair",
        {"pair": labels, "after": labels},
        pair[:, 1:],
        pair[:, :-1],
        where=here[:, 1:] & here[:, :-1],
    )
    count = filled.sum(axis=1) - 1
    tile = streams.tile // GROUP
    yield cross(
        "end of a segment",
        {"tile": range(1, most + 1), "segment": range(SEGMENTS)},
        ends // tile - 1,
        places,
        where=here,
        possible=np.arange(most)[:, None] >= places,
    )
    yield from cover_numbers(list(given_products(vectors, facts)), facts)
    yield cross("segments", {"filled": range(1, SEGMENTS + 1)}, count, where=good)


def unreached(facts: Facts) -> dict[str, str]:
    """Return what follows from how reports leave, and from how far product and sum can be apart."""
    found = {
        "beats of status: 0, (none|no ready)": "no report is there in the clock after one was "
        "taken (job apart)",
        r"unit[.].*[.]accumulator[.]align[.]t27\[9\]:.*": "a product that is not zero is from "
        "2^-286 to 2^292, a sum below 2^128: their exponents are less than 512 apart",
    }
    if GROUP // facts.parameters["fp8_lanes"] == 2:
        found[r"unit[.].*[.]u_total[.]t5\[16\]:.*"] = (
            "the first of two beats has four rows in its lowest digit, two of whole ones and two "
            "of three quarters, which are below 2^16; of more beats the next has its carry too"
        )
    return found
