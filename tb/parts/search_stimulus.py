"""Groups for which a search has two choices that are nearly as good: what decides is a last place.

numpy only, as `m2xfp.tb.parts.value_stimulus`.
"""

import numpy as np
from numpy.typing import NDArray

from m2xfp.formats import BlockFormat, input_type
from m2xfp.tb.parts.value_stimulus import from_float64

__all__ = ["large_gains", "near_choices"]

DRAWN = 40_000
KEPT = 300


def near_choices(kind: str, block: BlockFormat, seed: int) -> NDArray[np.unsignedinteger]:
    """Return groups of subgroups whose two best multipliers have nearly the same squared error.

    Of many subgroups the nearest are kept, and each comes with its values in every order of
    rotation. The others of a group are drawn from the same; one at least has a value in the
    element's top binade, so that all are in units of the group's scale.

    Parameters
    ----------
    kind
        Name of the input type.
    block
        A format whose metadata is a multiplier of each subgroup.
    seed
        Of everything.
    """
    rng, facts = np.random.default_rng(seed), input_type(kind)
    size, top = block.metadata.subgroup, 2.0**block.element.emax
    significands = 1 + rng.integers(0, 1 << facts.mantissa_bits, (DRAWN, size)) / (
        1 << facts.mantissa_bits
    )
    x = significands * np.ldexp(
        top, -rng.integers(0, rng.integers(1, 8, (DRAWN, 1)), (DRAWN, size))
    )
    x[DRAWN // 2 :] /= 2.0 ** rng.integers(1, 5, (DRAWN - DRAWN // 2, 1))
    x[rng.random(x.shape) < 0.1] = 0
    grid = np.array([float(block.element.magnitude(n)) for n in range(block.element.max_code + 1)])
    middles = (grid[1:] + grid[:-1]) / 2
    errors = []
    for k in range(1 << block.metadata.bits):
        scaled = x / (1 + k / 4)
        errors.append(
            (((scaled - grid[np.searchsorted(middles, scaled)]) * (1 + k / 4)) ** 2).sum(1)
        )
    best, second = np.sort(errors, axis=0)[:2]
    apart = second - best
    # Those that are equal are most often trivial, of few values.
    apart[(apart == 0) & (rng.random(DRAWN) < 0.9)] = np.inf
    large, small = np.arange(DRAWN // 2), np.arange(DRAWN // 2, DRAWN)
    kept = [part[np.argsort(apart[part], kind="stable")[:KEPT]] for part in (large, small)]
    # Each in each rotation, at places that differ.
    chosen = np.tile(np.concatenate(kept), size)
    turns = np.repeat(np.arange(size), 2 * KEPT)
    lanes = (np.arange(size) + turns[:, None]) % size
    subgroups = np.take_along_axis(x[chosen], lanes, axis=1)[rng.permutation(len(chosen))]
    subgroups = subgroups[: len(subgroups) // block.subgroups * block.subgroups]
    groups = subgroups.reshape(-1, block.subgroups, size)
    lowly = np.flatnonzero(groups.max((1, 2)) < top)
    full = kept[0][x[kept[0]].max(1) >= top]
    groups[lowly, rng.integers(0, block.subgroups, len(lowly))] = x[rng.choice(full, len(lowly))]
    scale = np.ldexp(1.0, rng.integers(-9, 9, (len(groups), 1)))
    signs = rng.choice([-1.0, 1.0], (len(groups), block.group))
    return from_float64(groups.reshape(len(groups), -1) * scale * signs, facts)


def large_gains(kind: str, block: BlockFormat, seed: int) -> NDArray[np.unsignedinteger]:
    """Return groups with a subgroup whose values are all alike, or nearly, at each significand.

    At the largest that the group's scale allows all multipliers gain most. The others of a group
    are alike too, or small.

    Parameters
    ----------
    kind, block, seed
        As of ``near_choices``.
    """
    rng, facts = np.random.default_rng(seed), input_type(kind)
    size, top = block.metadata.subgroup, 2.0**block.element.emax
    places = np.tile(np.arange(block.subgroups), 128)
    below = rng.integers(0, 4, (len(places), block.subgroups, size))
    below[rng.random(len(places)) < 0.5] = 0
    steps = np.linspace(1, 2, 128, endpoint=False)[np.arange(len(places)) // block.subgroups]
    x = top * np.maximum(steps[:, None, None] - below / (1 << facts.mantissa_bits), 1)
    others = np.arange(block.subgroups) != places[:, None]
    x[others & (rng.random(others.shape) < 0.5)] /= 64
    scale = np.ldexp(1.0, rng.integers(-9, 9, (len(places), 1)))
    signs = rng.choice([-1.0, 1.0], (len(places), block.group))
    return from_float64(x.reshape(len(places), -1) * scale * signs, facts)
