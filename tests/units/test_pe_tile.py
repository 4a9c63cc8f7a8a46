"""The PE tile against the golden model, subgroup by subgroup."""

from collections.abc import Callable
from pathlib import Path

import mac_stimulus
import numpy as np
import pytest
from choices import usual_first

from m2xfp.facts import EmittedFiles
from m2xfp.rtl.catalog import UNITS
from m2xfp.tb.bulk.simulator import Player
from m2xfp.tb.parts.mac_arrays import decode_accumulators, encode_pairs, formats
from m2xfp.tb.units.dot_product import expected, make_job, pairs

UNIT = "pe_tile"


@pytest.mark.parametrize("config", usual_first(UNITS[UNIT].configs, ["m2xfp"]))
def test_values(emitted: Callable[[str, str], EmittedFiles], sim_dir: Path, config: str) -> None:
    """Every beat of every distribution, then the arrays of `m2xfp simulate`."""
    player = Player(emitted(UNIT, config), build_dir=sim_dir)
    blocks = formats(player.description)
    for index, name in enumerate(mac_stimulus.DISTRIBUTIONS):
        act, weight, first = mac_stimulus.groups(name, blocks, 8, 600, seed=index)
        job = make_job(player.description, act, weight, first, seed=index)
        out = player.run(job.inputs, stall=0.2 * (index % 2), seed=index).outputs["o"]
        assert np.array_equal(out.data, job.outputs["o"].data), name
        assert np.array_equal(out.last, job.outputs["o"].last), name
    act, weight, _ = mac_stimulus.groups("near", blocks, 100, 1, seed=9)
    first = np.random.default_rng(9).random((100, 1)) < 0.2
    arrays = pairs(act[:, 0], weight[:, 0], player.description) | {"first": first[:, 0]}
    run = player.run(encode_pairs(arrays, player.description))
    acc = decode_accumulators(run.outputs, arrays, player.description)["acc"]
    assert np.array_equal(acc, expected(act, weight, first, player.description)[:, -1, 0])
