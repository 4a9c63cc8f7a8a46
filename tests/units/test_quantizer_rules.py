"""Every E8M0 format under every scale rule, in hardware: each bfloat16 as a group's largest value.

None of these need stand in the catalog: they are built with as few lanes as go.
`tests/golden/test_golden_scale_rules.py` holds the golden model against fractions in the same.
"""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from choices import usual_first
from numpy.typing import NDArray
from stream_checks import STALLS, check, value_vectors

from m2xfp.formats import block_format
from m2xfp.rtl.catalog import UNITS
from m2xfp.rtl.parts.scale_rules import SCALE_RULES
from m2xfp.rtl.verilog.emit import emit
from m2xfp.tb.bulk.simulator import BulkSimulator

UNIT = UNITS["activation_quantizer"]
GROUP = 8
FORMATS = (
    *("mxfp4:group=8", "mxfp6-e2m3:group=8", "mxfp6-e3m2:group=8", "mxfp8-e4m3:group=8"),
    *("mxfp8-e5m2:group=8", "mxint8:group=8", "int4:group=8", "smx4:group=8", "m2xfp-act:group=8"),
    "amxfp4:group=8,scale_mode=pot",
)
USUAL = [
    ("mxfp8-e5m2:group=8", "rtn1"),
    ("smx4:group=8", "even"),
    ("int4:group=8", "ceil"),
]


def largest_values(seed: int) -> NDArray[np.uint16]:
    """Return groups for all 65 536 patterns: it, in any place, and up to seven smaller magnitudes.

    Some are equal or next to it, some a few binades below, some anywhere; every eighth is alone.
    """
    rng = np.random.default_rng(seed)
    patterns = np.arange(1 << 16)
    largest = (patterns & 0x7FFF)[:, None]
    shape = (1 << 16, GROUP)
    reach = rng.choice([2, 0x100, 0x300, 0x8000], shape)
    others = (largest - rng.integers(0, reach)).clip(0)
    others = np.where(patterns[:, None] % 8 == 7, 0, others) | rng.integers(0, 2, shape) << 15
    others[patterns, rng.integers(0, GROUP, 1 << 16)] = patterns
    return others.astype(np.uint16)


@pytest.mark.parametrize("case", usual_first(product(FORMATS, SCALE_RULES), USUAL), ids=" ".join)
def test_each_largest_value(case: tuple[str, str], sim_dir: Path, tmp_path: Path) -> None:
    """Codes, scales and metadata of all of them; groups of zeros at 0 and MicroMix's in turn."""
    name, rule = case
    block = block_format(name)
    turn = FORMATS.index(name) + SCALE_RULES.index(rule)
    zero = 126 if turn % 2 and block.scaling != "split" else 0
    changes = {"block": block, "lanes": max(2, block.metadata.subgroup), "scale_rule": rule}
    instance = UNIT.instance("bf16x8", changes | {"zero_scale": zero}, name="ruled")
    simulator = BulkSimulator(emit(instance, tmp_path), build_dir=sim_dir)
    raw = largest_values(seed=zero)
    assert len(np.unique(raw)) == 1 << 16
    check(simulator, value_vectors(instance.facts, raw), STALLS[turn % len(STALLS)], seed=1)
