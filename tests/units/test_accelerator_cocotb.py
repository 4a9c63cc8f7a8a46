"""The accelerator before bus models that are not ours: cocotbext-axi."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mutation import Mutation, emit_mutant
from numpy.typing import NDArray

from m2xfp.facts import EmittedFiles, Facts
from m2xfp.tb.axi.cocotb_run import run_axi_testbench
from m2xfp.tb.parts.accelerator_traffic import PAGE, Memory, Traffic
from m2xfp.tb.parts.gemm_arrays import GemmStreams
from m2xfp.tb.parts.gemm_regression import random_products
from m2xfp.tb.protocol.harness import TestbenchError
from m2xfp.tb.units.accelerator import core_of, golden_product, place

UNIT, CONFIG = "accelerator", "m2xfp-2x2"
TESTS = 5
PRODUCTS, SLOT = 3, 1 << 16
Emit = Callable[[str, str], EmittedFiles]


def played(facts: Facts) -> dict[str, NDArray[np.generic]]:
    """Return the memory before and after some products, and the writes that start them."""
    memory = Memory(1)
    traffic = Traffic(facts, memory)
    rng = np.random.default_rng(21)
    placed = [
        (product, place(product, facts, memory, index * SLOT, index))
        for index, product in enumerate(
            random_products(rng, GemmStreams(core_of(facts)), PRODUCTS, 3)
        )
    ]
    writes = [write for _, descriptor in placed for write in descriptor.writes()]
    before = memory.read(0, PRODUCTS * SLOT).copy()
    for product, descriptor in placed:
        traffic.run(descriptor, golden_product(product, facts))
    after = memory.read(0, PRODUCTS * SLOT)
    assert PAGE < SLOT
    assert not np.array_equal(before, after)
    return {"before": before, "after": after, "writes": np.array(writes, np.int64)}


@pytest.mark.slow
def test_with_cocotbext_axi(emitted: Emit, sim_dir: Path) -> None:
    files = emitted(UNIT, CONFIG)
    assert run_axi_testbench(files, played(Facts.load(files.json)), build_dir=sim_dir) == TESTS


@pytest.mark.slow
def test_a_wrong_lane_is_noticed(tmp_path: Path, sim_dir: Path) -> None:
    mutation = Mutation(
        "strobes of the whole word",
        "m2xfp.rtl.parts.axi_writer",
        "strobes[:bus] & (~stopped).replicate(bus)",
        "(~stopped).replicate(bus)",
    )
    files = emit_mutant(mutation, UNIT, CONFIG, tmp_path)
    with pytest.raises(TestbenchError):
        run_axi_testbench(files, played(Facts.load(files.json)), build_dir=sim_dir)
