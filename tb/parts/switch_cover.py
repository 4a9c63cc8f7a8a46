"""What the groups of a unit that switches between formats have gone through."""

from collections.abc import Iterator

import numpy as np

from m2xfp.facts import Facts
from m2xfp.formats import BlockFormat
from m2xfp.pairs import FORMAT_NUMBERS
from m2xfp.tb.cross import Cross, cross
from m2xfp.tb.fields import number, read
from m2xfp.tb.parts.accumulation import chains
from m2xfp.tb.parts.groups import elements
from m2xfp.tb.parts.sum_cover import RESULTS, SIGNS, kind_of
from m2xfp.tb.parts.switch_groups import GROUP, pairs_of
from m2xfp.tb.vectors import TestVectors

__all__ = ["cover", "unreached"]

REFUSED = "none"


def cover(vectors: TestVectors, facts: Facts) -> Iterator[Cross]:
    """Yield which pairs came after which, and what their operands and sums were."""
    stream, data = facts.stream("i"), vectors.inputs["i"].data
    pairs, lanes = pairs_of(facts).pairs, facts.parameters["fp8_lanes"]
    modes = {side: read(stream.field(f"operands.mode.{side}"), data) for side in ("act", "weight")}
    pair = np.full(len(data), len(pairs))
    wide = np.zeros(len(data), bool)
    for index, both in enumerate(pairs):
        here = np.ones(len(data), bool)
        for side, block in zip(modes, both, strict=True):
            here &= modes[side] == FORMAT_NUMBERS[block.name]
        pair[here] = index
        wide |= here & (both in pairs_of(facts).wide)
    beat = _beats(pair, wide, GROUP // lanes)
    opens = beat == 0
    names = [*(f"{act.name}:{weight.name}" for act, weight in pairs), REFUSED]
    kinds = pair[opens]
    yield cross("pair after pair", {"pair": names, "after": names}, kinds[1:], kinds[:-1])
    first = np.asarray(read(stream.field("first"), data), bool)[opens]
    yield cross("begin of a sum", {"pair": names, "first": ("no", "yes")}, kinds, first)
    for at, (side, mode) in enumerate(modes.items()):
        scale = np.asarray(read(stream.field(f"operands.{side}.scale"), data))[opens]
        yield cross(f"{side} scale", {"byte": range(256)}, scale.astype(np.int64))
        plane = read(stream.field(f"operands.{side}.codes"), data)
        for block in dict.fromkeys(both[at] for both in pairs):
            yield _codes(side, block, plane, mode, np.where(wide, lanes, GROUP), pair < len(pairs))
    result = facts.stream("o")
    raw = np.asarray(read(number(result, "acc."), vectors.outputs["o"].data), np.uint32)
    yield cross(
        "result",
        {"kind": RESULTS, "sign": SIGNS},
        kind_of(raw),
        (raw >> 31).astype(np.int64),
        possible=np.array([[1, 1]] * 4 + [[1, 0]], bool),
    )
    chain = np.arange(len(kinds)) % chains(facts)
    yield cross("pair in each chain", {"pair": names, "chain": range(chains(facts))}, kinds, chain)


def _beats(pair: np.ndarray, wide: np.ndarray, most: int) -> np.ndarray:
    """Return the number of each beat in its group: those of wide pairs have several."""
    found = np.zeros(len(pair), np.int64)
    left = 0
    for at, several in enumerate(wide.tolist()):
        if left:
            found[at], left = most - left, left - 1
        elif several:
            left = most - 1
    return found


def _codes(
    side: str,
    block: BlockFormat,
    plane: np.ndarray,
    mode: np.ndarray,
    count: np.ndarray,
    known: np.ndarray,
) -> Cross:
    """Return which codes of a format each lane of a rate had."""
    bits = block.element.bits
    here = known & (mode == FORMAT_NUMBERS[block.name])
    # Of E2M1 at the rate of wide pairs the upper lanes are not there.
    room = min(GROUP, 8 * plane.shape[1] // bits)
    codes = np.zeros((0, room), np.int64)
    if here.any():
        codes = elements(np.ascontiguousarray(plane[here]), bits, room).astype(np.int64)
    return cross(
        f"{side} code of {block.name}",
        {"code": range(1 << bits)},
        codes,
        where=np.arange(room) < count[here][:, None],
    )


def unreached(facts: Facts) -> dict[str, str]:
    """Return what follows from how far a product and a sum can be apart."""
    if facts.parameters.get("window"):
        return {}
    return {
        r"unit[.]accumulator[.]accumulator[.]align[.]t1\[9\]:.*": "a product that is not zero is "
        "from 2^-286 to 2^292, a sum below 2^128: their exponents are less than 512 apart"
    }
