"""The PE tile against the golden model, subgroup by subgroup."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from choices import usual_first
from stream_checks import check

from m2xfp.facts import EmittedFiles
from m2xfp.rtl.catalog import UNITS
from m2xfp.tb.bulk.simulator import BulkSimulator
from m2xfp.tb.parts import pair_stimulus
from m2xfp.tb.parts.pairs import decode, encode, expected, formats

UNIT = "pe_tile"


@pytest.mark.parametrize("config", usual_first(UNITS[UNIT].configs, ["m2xfp"]))
def test_values(emitted: Callable[[str, str], EmittedFiles], sim_dir: Path, config: str) -> None:
    """Every beat of every distribution, then dot products of random lengths."""
    simulator = BulkSimulator(emitted(UNIT, config), build_dir=sim_dir)
    facts = simulator.facts
    for index, name in enumerate(pair_stimulus.DISTRIBUTIONS):
        made = pair_stimulus.groups(name, formats(facts), 8, 600, seed=index)
        vectors = pair_stimulus.pair_vectors(facts, *made, seed=index)
        check(simulator, vectors, stall=0.2 * (index % 2), seed=index)
    act, weight, _ = pair_stimulus.groups("near", formats(facts), 100, 1, seed=9)
    first = np.random.default_rng(9).random((100, 1)) < 0.2
    arrays = pair_stimulus.pair_arrays(facts, act, weight, first)
    run = simulator.run(encode(arrays, facts))
    found = decode(run.outputs, arrays, facts)["acc"]
    assert np.array_equal(found, expected(arrays, facts)["acc"])
