"""The channel permuter: every order, refused tables and rows, and faults that must be noticed."""

from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from mutation import Mutation, emit_mutant

from m2xfp.errors import InputError
from m2xfp.facts import EmittedFiles
from m2xfp.rtl.catalog import find_unit
from m2xfp.rtl.units.channel_permuter import ChannelPermuter
from m2xfp.rtl.verilog.emit import emit
from m2xfp.tb.bench import Arrays, find_bench
from m2xfp.tb.bulk.simulator import BulkSimulator, SimulationError
from m2xfp.tb.parts.channel_tables import check_order, order_of, table_of
from m2xfp.tb.regression import check_case

UNIT = find_unit("channel_permuter")
BENCH = find_bench(UNIT)
CHECK, TOP = "m2xfp.rtl.parts.permutation_check", "m2xfp.rtl.units.channel_permuter"
Emit = Callable[[str, str], EmittedFiles]


def test_tables() -> None:
    """Any order, any lanes: no memory twice in a beat, each address once, and the order again."""
    rng = np.random.default_rng(0)
    for lanes in (2, 4, 8, 16, 32):
        for beats in (1, 2, 3, 7, 16):
            for order in (rng.permutation(lanes * beats), np.arange(lanes * beats)[::-1]):
                table = table_of(order, lanes)
                for name in ("to", "source"):
                    assert np.array_equal(
                        np.sort(table[name], axis=1), np.tile(np.arange(lanes), (beats, 1))
                    )
                addresses = np.sort(table["address"], axis=0)
                assert np.array_equal(addresses, np.tile(np.arange(beats)[:, None], (1, lanes)))
                assert np.array_equal(order_of(table), order)


def played(simulator: BulkSimulator, arrays: Arrays) -> np.ndarray:
    out = simulator.run(BENCH.encode(arrays, simulator.facts)).outputs
    assert not out["status"].data.any()
    return BENCH.decode(out, arrays, simulator.facts)["y"]


def test_every_order(sim_dir: Path) -> None:
    """All 720 orders of six channels in two lanes, and what comes out is x[order]."""
    small = UNIT.instance("bf16x8", {"lanes": 2, "max_k": 6})
    simulator = BulkSimulator(emit(small, sim_dir / "verilog"), build_dir=sim_dir)
    order = np.array(list(permutations(range(6))))
    x = np.random.default_rng(1).integers(0, 1 << 16, (len(order), 2, 6)).astype(np.uint16)
    found = played(simulator, {"x": x, "order": order})
    for rows, one, wanted in zip(found, order, x, strict=True):
        assert np.array_equal(rows, wanted[:, one])


@pytest.mark.slow
def test_a_million_values(emitted: Emit, sim_dir: Path) -> None:
    simulator = BulkSimulator(emitted(UNIT.name, "bf16x16"), build_dir=sim_dir)
    rng = np.random.default_rng(2)
    count = 0
    while count < 32_000_000:  # a million groups
        k = 16 * int(rng.integers(1, 257))
        x = rng.integers(0, 1 << 16, (4, 400, k)).astype(np.uint16)
        order = np.stack([rng.permutation(k) for _ in range(4)])
        found = played(simulator, {"x": x, "order": order})
        assert np.array_equal(found, np.take_along_axis(x, order[:, None], 2))
        count += x.size
    print(f"{simulator.facts.config}: {count} values, {count // 32} groups")


@pytest.mark.parametrize(
    ("order", "told"),
    [
        (np.arange(12), "multiple of the 8 lanes, at most 64"),
        (np.arange(72), "multiple of the 8 lanes, at most 64"),
        (np.array([0, 1, 2, 3, 4, 5, 6, 8]), "channel 8 is not one of 0 to 7"),
        (np.array([0, 1, 2, 3, 4, 5, 6, -1]), "channel -1 is not one of 0 to 7"),
        (np.array([0, 1, 2, 3, 4, 5, 6, 6]), "channel 6 comes 2 times; each comes once"),
    ],
)
def test_the_driver_refuses(order: np.ndarray, told: str) -> None:
    with pytest.raises(InputError, match=told):
        check_order(order, 8, 64)


def test_parameters_are_refused() -> None:
    with pytest.raises(InputError, match="max_k=20: must be a multiple of the 8 lanes"):
        ChannelPermuter(lanes=8, max_k=20)
    with pytest.raises(InputError, match="max_k=8: must be a multiple of the 8 lanes, two"):
        ChannelPermuter(lanes=8, max_k=8)


MUTANTS = [
    Mutation("memories twice", CHECK, 'named(m, f"no_{field}_{n}", ~hit)', "~hit & 0"),
    Mutation("addresses twice", CHECK, "wrong.append(seen.read_data)", "pass"),
    Mutation("addresses beyond", CHECK, "broken | (so_far > at)", "broken"),
    Mutation("the last word alone", CHECK, "spoilt | Cat(wrong).any()", "Cat(wrong).any()"),
    Mutation(
        "nothing is forgotten", CHECK, "seen.write_data.eq(~clearing)", "seen.write_data.eq(1)"
    ),
    Mutation(
        "rows without a table",
        TOP,
        "spoilt | ~known | (here ^ row.last)",
        "spoilt | (here ^ row.last)",
    ),
    Mutation(
        "long rows pass", TOP, "spoilt | ~known | (here ^ row.last)", "~known | (here ^ row.last)"
    ),
    Mutation("tables overtake", TOP, "asks & ~full.any() & ~reported", "asks & ~reported"),
    Mutation("one half", TOP, "half.eq(~half)", "half.eq(half)"),
]


@pytest.mark.parametrize("mutation", MUTANTS, ids=lambda m: m.name)
@pytest.mark.slow
def test_faults_are_noticed(mutation: Mutation, tmp_path: Path) -> None:
    """The regression notices each."""
    files = emit_mutant(mutation, UNIT.name, "bf16x8", tmp_path)
    simulator = BulkSimulator(files, build_dir=tmp_path)
    with pytest.raises((AssertionError, SimulationError)):
        regress(simulator)


def regress(simulator: BulkSimulator) -> None:
    for case in BENCH.regression(simulator.facts):
        check_case(simulator, case)
