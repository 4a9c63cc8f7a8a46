"""The GEMM core's commands, any 64 bits: computed right, or refused with what is wrong with them.

A command is the one descriptor that hardware reads from memory of a host, who may write anything
there. docs/gemm.md says which are supported; that is told here once more, of the bits alone.
"""

import random
from pathlib import Path

import numpy as np
import pytest

from m2xfp.rtl.catalog import find_unit
from m2xfp.rtl.verilog.emit import emit
from m2xfp.tb.bulk.simulator import BulkSimulator, SimulationError
from m2xfp.tb.linear import GemmSimulation
from m2xfp.tb.parts.gemm_arrays import Product
from m2xfp.tb.units.gemm_core import golden_product
from m2xfp.tb.vectors import Beats

SIZES = (0, 1, 2, 3, 31, 32, 33, 64, 512, 513, 544, 1 << 19, (1 << 20) - 1)
SMALL = 6  # rows and columns of a product that is computed
FIELDS = {"m": (0, 20), "n": (20, 20), "k": (40, 20), "tag": (60, 3), "resync": (63, 1)}


@pytest.fixture(scope="module")
def core(sim_dir: Path) -> GemmSimulation:
    instance = find_unit("gemm_core").instance("m2xfp-2x2")
    return GemmSimulation(BulkSimulator(emit(instance, sim_dir / "verilog"), build_dir=sim_dir))


def field(word: int, name: str) -> int:
    at, width = FIELDS[name]
    return word >> at & (1 << width) - 1


def faults(word: int) -> list[str]:
    """Return what is wrong with a command for groups of 32 and buffers for k = 512."""
    m, n, k = (field(word, name) for name in "mnk")
    wrong = {"bad_m": m == 0, "bad_n": n == 0, "bad_k": not 1 <= k <= 512 or k % 32 != 0}
    return [name for name, is_wrong in wrong.items() if is_wrong and not field(word, "resync")]


def any_word(rng: random.Random) -> int:
    """Return 64 bits: sizes at every edge, a few bits of a right command changed, or noise."""
    kind = rng.randrange(4)
    if kind == 0:
        return rng.getrandbits(64)
    sizes = rng.choices(SIZES, k=3) if kind == 1 else [rng.randint(1, SMALL) for _ in range(3)]
    if kind != 1:
        sizes[2] *= 32
    word = sizes[0] | sizes[1] << 20 | sizes[2] << 40 | rng.randrange(8) << 60
    for _ in range(rng.choice((1, 1, 2, 5)) if kind == 2 else 0):
        word ^= 1 << rng.randrange(64)
    return word


def run(core: GemmSimulation, count: int, seed: int) -> int:
    """Play commands; return how many of them were computed."""
    rng = random.Random(seed)
    words, products = [], []
    for _ in range(count):
        word = any_word(rng)
        if not field(word, "resync") and not faults(word):
            if max(field(word, "m"), field(word, "n")) > SMALL:
                word |= 1 << 40  # supported, and too long to simulate
            else:  # operands carry the number of their product
                word = word & ~(7 << 60) | len(products) % 8 << 60
                m, n, groups = field(word, "m"), field(word, "n"), field(word, "k") // 32
                data = np.random.default_rng(rng.randrange(1 << 30))
                acts, weights = (
                    data.integers(0, 256, (rows, groups, sum(block.group_bytes)), np.uint8)
                    for rows, block in ((m, core.streams.act), (n, core.streams.weight))
                )
                products.append(Product(acts, weights, 32 * groups))
        words.append(word)
    commands = np.array(words, "<u8").view(np.uint8).reshape(-1, 8)
    played = core.simulator.run(
        core.streams.inputs(products) | {"cmd": Beats(commands)},
        stall=rng.choice((0.0, 0.0, 0.4)),
        seed=seed,
    )
    due = [(field(word, "tag"), faults(word)) for word in words]
    assert core.statuses(played) == due, seed
    results = core.streams.results(played.outputs["o"], products)
    for index, (one, found) in enumerate(zip(products, results, strict=True)):
        assert np.array_equal(found, golden_product(one, core.facts)), (seed, index)
    return len(products)


def test_commands(core: GemmSimulation) -> None:
    computed = sum(run(core, 40, seed) for seed in range(5))
    assert 20 < computed < 150


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_commands(core: GemmSimulation) -> None:
    computed = sum(run(core, 40, 1000 + seed) for seed in range(250))
    print(f"{computed} of 10000 commands computed, the others refused or resynchronising")


def test_a_command_that_is_taken_for_another_is_noticed(
    core: GemmSimulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FIELDS, "m", (1, 19))
    with pytest.raises((AssertionError, SimulationError)):
        run(core, 40, 0)
