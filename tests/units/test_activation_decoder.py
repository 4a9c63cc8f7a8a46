"""The top-1 decoder against the definition, every element code and metadata in every place."""

from fractions import Fraction

import numpy as np
import pytest
from amaranth.sim import Simulator

from m2xfp.errors import InputError
from m2xfp.formats import E2M1, E2M3, MXFP4
from m2xfp.rtl.units.activation_decoder import ActivationDecoder


def decode(rows: list[tuple[list[int], int]]) -> list[tuple[int, Fraction]]:
    """Return the one-hot top and the refinement, without the element's sign, of each subgroup."""
    unit = ActivationDecoder()
    found = []

    async def bench(ctx) -> None:
        for codes, meta in rows:
            for lane, code in enumerate(codes):
                ctx.set(unit.codes[lane], code)
            ctx.set(unit.meta, meta)
            refinement = unit.refinement
            size = Fraction(ctx.get(refinement.nonzero) << ctx.get(refinement.shift), 8)
            found.append((ctx.get(unit.top), -size if ctx.get(refinement.negative) else size))

    simulator = Simulator(unit)
    simulator.add_testbench(bench)
    simulator.run()
    return found


def definition(codes: list[int], meta: int) -> tuple[int, Fraction]:
    magnitudes = [code & 7 for code in codes]
    top = magnitudes.index(max(magnitudes))
    c4 = magnitudes[top]
    refined = E2M3.magnitude(max(4 * c4 + meta - 1, 0))
    return 1 << top, refined - E2M1.magnitude(c4)


def test_every_code_and_metadata() -> None:
    rng = np.random.default_rng(0)
    rows = [
        (codes.tolist(), int(meta))
        for codes, meta in zip(
            rng.integers(0, 16, (3000, 8)), rng.integers(0, 4, 3000), strict=True
        )
    ]
    # Each largest code in each place, ties behind it, each metadata.
    rows += [
        (
            [int(rng.integers(0, max(c, 1))) for _ in range(lane)]
            + [c | 8 * (lane & 1)] * (8 - lane),
            meta,
        )
        for c in range(8)
        for lane in range(8)
        for meta in range(4)
    ]
    for row, found in zip(rows, decode(rows), strict=True):
        assert found == definition(*row), row


def test_another_format_is_refused() -> None:
    with pytest.raises(InputError, match="Elem-EM"):
        ActivationDecoder(block=MXFP4)
