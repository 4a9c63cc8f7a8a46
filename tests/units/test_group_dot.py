"""The exact products of groups: golden and Verilog against integers from the definition."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exact_products import products

from m2xfp.errors import InputError
from m2xfp.facts import EmittedFiles
from m2xfp.rtl.catalog import UNITS
from m2xfp.rtl.units.group_dot import GroupDot
from m2xfp.tb.bulk.simulator import BulkSimulator
from m2xfp.tb.parts import pair_stimulus
from m2xfp.tb.parts.pairs import pairs
from m2xfp.tb.units.group_dot import decode, encode, expected

UNIT = "group_dot"
Emit = Callable[[str, str], EmittedFiles]


@pytest.mark.parametrize("config", list(UNITS[UNIT].configs))
def test_products(emitted: Emit, sim_dir: Path, config: str) -> None:
    """D, exponent and NaN against integers, and the bounds that the widths rest on."""
    component: Any = UNITS[UNIT].instance(config).component
    pair = component.pair
    simulator = BulkSimulator(emitted(UNIT, config), build_dir=sim_dir)
    facts, reached = simulator.facts, 0
    for name in ("random_bytes", "extremes", "near"):
        act, weight, _ = pair_stimulus.groups(name, (pair.act, pair.weight), 10, 2000, seed=1)
        act, weight = act.reshape(20000, -1), weight.reshape(20000, -1)
        arrays = pairs(act, weight, facts)
        run = simulator.run(encode(arrays, facts), stall=0.1)
        total, exponent, nan = products(pair, act, weight)
        for found in (decode(run.outputs, arrays, facts), expected(arrays, facts)):
            assert np.array_equal(found["nan"], nan)
            assert np.array_equal(found["product"], total)
            assert np.array_equal(found["exponent"], exponent)
        reached = max(reached, np.abs(total[~nan]).max())
    assert pair.product_bound // 4 < reached <= pair.product_bound


def test_depth_is_refused() -> None:
    with pytest.raises(InputError, match="depth=3"):
        GroupDot(depth=3)
