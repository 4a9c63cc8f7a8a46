"""The GEMM core's Verilog against golden matrix products, and its clocks against the model."""

from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from itertools import product as product_of
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mutation import Mutation, emit_mutant

from m2xfp.cli import cli
from m2xfp.errors import InputError, UnknownNameError
from m2xfp.formats import BF16, MXFP4, BlockFormat, block_format, input_type
from m2xfp.golden import get_format
from m2xfp.models.evaluate import perplexity
from m2xfp.models.lm import HELD_OUT, as_tokens, load_model
from m2xfp.models.windows import cut_windows
from m2xfp.rtl.catalog import Instance, find_unit
from m2xfp.rtl.parameters import parameters_of
from m2xfp.rtl.parts.gemm_cycles import GemmTiming
from m2xfp.rtl.units.gemm_core import GemmCore
from m2xfp.rtl.verilog.emit import emit
from m2xfp.synth.gate_sim.stimulus import vectors_for
from m2xfp.synth.studies import gemm
from m2xfp.synth.studies.linear_layers import LinearRun, compare_losses, default_core, run_linear
from m2xfp.tb.bulk.simulator import BulkSimulator, SimulationError
from m2xfp.tb.linear import GemmSimulation, golden_linear, simulate_core
from m2xfp.tb.parts import value_stimulus
from m2xfp.tb.parts.gemm_arrays import Product
from m2xfp.tb.parts.groups import group_arrays
from m2xfp.tb.units.gemm_core import decode, encode, golden_product, load
from m2xfp.tb.vectors import Beats

UNIT = "gemm_core"

# M2XFP with groups of one subgroup: a small core that requantizes, which takes a group of columns.
SMALL_ACT = block_format("m2xfp-act:group=8")
SMALL_WEIGHT = block_format("m2xfp-weight:group=8")
SMALL = {"act": SMALL_ACT, "weight": SMALL_WEIGHT}

# By name: parameters, beside those of the catalog. What they leave out has the default.
BASE = {name: known.default for name, known in parameters_of(GemmCore).items()}
OTHERS: dict[str, dict[str, Any]] = {
    "small-packed": SMALL
    | {"rows": 1, "columns": 8, "max_k": 64, "depth": 1, "chains": 2}
    | {"activations": BF16, "results": "packed"},
    "small-4x3": SMALL | {"rows": 4, "columns": 3, "max_k": 72, "chains": 3, "results": "bf16"},
    "small-3x1": SMALL | {"rows": 3, "columns": 1, "max_k": 64, "chains": 1},
    "small-1x6": SMALL | {"rows": 1, "columns": 6, "max_k": 64, "weight_rows": 3},
    "mxfp4-1x2": {"act": MXFP4, "weight": MXFP4, "rows": 1, "columns": 2, "max_k": 128},
    "m2xfp-1x32": {"max_k": 384, "activations": BF16, "results": "packed"},
}
NORMAL = ["m2xfp-2x2", "small-packed"]
SLOW = ["small-4x3", "small-3x1", "small-1x6", "mxfp4-1x2", "m2xfp-1x32"]
CONFIGS = [*NORMAL, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]

Cores = Callable[[str], GemmSimulation]


@pytest.fixture(scope="module")
def cores(sim_dir: Path) -> Cores:
    """Return a function from a configuration to the emitted core in simulation."""

    @cache
    def core(config: str) -> GemmSimulation:
        unit = find_unit(UNIT)
        changes = OTHERS.get(config, {})
        if changes:
            name = f"{UNIT}_{config.replace('-', '_')}"
            instance = unit.instance(None, {**BASE, **changes}, name=name)
        else:
            instance = unit.instance(config)
        emitted = emit(instance, sim_dir / "verilog")
        return GemmSimulation(BulkSimulator(emitted, build_dir=sim_dir))

    return core


@pytest.fixture
def core(cores: Cores, config: str) -> GemmSimulation:
    return cores(config)


def packed_rows(block: BlockFormat, rows: int, groups: int, spread: int, seed: int) -> np.ndarray:
    """Return random packed groups; scales within ``spread`` of one another, or any if it is 0."""
    size = sum(block.group_bytes)
    data = value_stimulus.packed_groups(rows * groups, seed, size).reshape(rows, groups, size)
    if spread:
        rng = np.random.default_rng(seed)
        scales = 127 + rng.integers(-spread, spread + 1, (rows, groups))
        data[..., block.group_bytes[0]] = scales
    return data


def product(core: GemmSimulation, m: int, n: int, groups: int, seed: int) -> Product:
    """Return random operands of a size: any bytes, or scales near each other."""
    spread = (0, 3, 12, 40)[seed % 4]
    weights = packed_rows(core.streams.weight, n, groups, spread, seed)
    group, kind = core.streams.act.group, core.facts.parameters["activations"]
    if kind is None:
        acts = packed_rows(core.streams.act, m, groups, spread, seed + 1)
    else:
        names = list(value_stimulus.DISTRIBUTIONS)
        raw = value_stimulus.groups(names[seed % len(names)], kind, m * groups, seed)[:, :group]
        acts = raw.reshape(m, -1)
    return Product(acts, weights, groups * group)


def random_products(core: GemmSimulation, count: int, seed: int) -> list[Product]:
    """Return products of random sizes that exercise every edge of the tiles."""
    rng = np.random.default_rng(seed)
    block = core.streams.rows * core.streams.chains
    most = core.facts.parameters["max_k"] // core.streams.act.group
    found = []
    for n in range(count):
        rows = rng.integers(1, 3 * block + 1)
        columns = rng.integers(1, 3 * core.streams.columns + 1)
        groups = rng.integers(1, most + 1)
        found.append(product(core, int(rows), int(columns), int(groups), seed * 1000 + n))
    return found


def check(core: GemmSimulation, products: list[Product], stall: float, seed: int) -> None:
    """Run the products; AssertionError with the first result whose bits differ."""
    results, _ = core.run(products, stall=stall, seed=seed)
    for index, (operands, found) in enumerate(zip(products, results, strict=True)):
        expected = golden_product(operands, core.facts)
        wrong = np.argwhere(found != expected)
        assert not len(wrong), (
            f"product {index} {operands.sizes}: {len(wrong)} of {found.size} results "
            f"differ, first {wrong[0].tolist()}: {found[tuple(wrong[0])]} for "
            f"{expected[tuple(wrong[0])]}"
        )


def regress(core: GemmSimulation, rounds: int, seed: int) -> None:
    """Play several commands a round, without and with stalls."""
    for n in range(rounds):
        check(core, random_products(core, 5, seed + n), (0.0, 0.3, 0.7)[n % 3], n)


@pytest.mark.parametrize("config", CONFIGS)
def test_products(core: GemmSimulation) -> None:
    """Random sizes and operands, several commands one after the other, random stalls."""
    regress(core, 9, seed=1)


def check_clocks(core: GemmSimulation, timing: GemmTiming) -> None:
    """Play commands, alone and in a row; AssertionError if a count is not exact."""
    for n in range(25):
        products = random_products(core, 1 + n % 4, seed=100 + n)
        _, run = core.run(products, stamps=True)
        panels = [-(-len(p.weights) // core.streams.columns) for p in products]
        ends = np.cumsum([count * len(p.acts) for count, p in zip(panels, products, strict=True)])
        taken = run.stamps["o"][ends - 1] - run.stamps["cmd"][0]
        sizes = [p.sizes for p in products]
        assert taken.tolist() == timing.finish(sizes), sizes
        assert taken[0] == timing.clocks(*sizes[0])


@pytest.mark.parametrize("config", CONFIGS)
def test_clocks(core: GemmSimulation) -> None:
    """The cycle model's count, exactly, for one command and for commands in a row."""
    check_clocks(core, core.timing)


class OneSlot(GemmTiming):
    """A model of a core with less room for results."""

    result_slots = 1


@pytest.mark.parametrize("config", ["m2xfp-2x2"])
@pytest.mark.parametrize("kind", [GemmTiming, OneSlot])
def test_miscounted_clocks_are_noticed(core: GemmSimulation, kind: type[GemmTiming]) -> None:
    facts = asdict(core.timing)
    if kind is GemmTiming:
        facts["depth"] -= 1
    with pytest.raises(AssertionError):
        check_clocks(core, kind(**facts))


@pytest.mark.parametrize("config", ["m2xfp-2x2"])
def test_latency(core: GemmSimulation) -> None:
    """A result leaves the stated number of clocks after the last of its activations."""
    _, run = core.run([product(core, core.streams.rows, 1, 5, seed=7)], stamps=True)
    assert run.stamps["o"][0] - run.stamps["acts"][-1] == core.facts.latency
    component = Instance.of(core.facts).component
    assert isinstance(component, GemmCore)
    assert component.array_latency == core.timing.array_latency


BAD = [
    ((0, 3, 32), ["bad_m"]),
    ((3, 0, 32), ["bad_n"]),
    ((3, 3, 0), ["bad_k"]),
    ((3, 3, 31), ["bad_k"]),
    ((3, 3, 33), ["bad_k"]),
    ((3, 3, 512 + 32), ["bad_k"]),
    ((3, 3, (1 << 20) - 32), ["bad_k"]),
    ((0, 0, 0), ["bad_m", "bad_n", "bad_k"]),
]


@pytest.mark.parametrize(
    ("config", "source"),
    [
        ("m2xfp-2x2", "random"),
        pytest.param("m2xfp-bf16-2x2", "model", marks=pytest.mark.slow),
    ],
)
def test_gate_level_vectors(core: GemmSimulation, source: str) -> None:
    """What a gate-level run plays is what the Verilog gives, with a beat a clock in the middle."""
    lanes = 3
    vectors = vectors_for(core.facts, source, lanes, depth=20)
    assert vectors.groups == lanes
    run = core.simulator.run(vectors.inputs, stamps=True)
    for name in vectors.outputs:
        assert not len(vectors.differing(name, run.outputs[name]))
    clocks = core.facts.clocks_per_block
    steps = np.diff(run.stamps["acts"])
    assert (steps[1 : 1 + 3 * clocks] == 1).sum() >= 3 * clocks - 1


@pytest.mark.parametrize("config", ["m2xfp-2x2"])
@pytest.mark.parametrize("stall", [0.0, 0.5])
def test_bad_sizes(core: GemmSimulation, stall: float) -> None:
    """Each is refused with its status and nothing else; the commands around it are computed."""
    assert core.facts.parameters["max_k"] == 512
    good = [product(core, 3, 3, 2, seed=n) for n in range(len(BAD) + 1)]
    inputs = core.streams.inputs(good)
    commands = [good[0].sizes]
    for (sizes, _), operands in zip(BAD, good[1:], strict=True):
        commands += [sizes, operands.sizes]
    # Those that are computed keep their tags, and the others have any.
    tags = [n // 2 % 8 if n % 2 == 0 else 7 - n // 2 for n in range(len(commands))]
    beats = Beats(core.streams.command_beats(commands, tags))
    run = core.simulator.run(inputs | {"cmd": beats}, stall=stall)
    due = [[], *(row for _, status in BAD for row in (status, []))]
    assert core.statuses(run) == list(zip(tags, due, strict=True))
    for operands, found in zip(good, core.streams.results(run.outputs["o"], good), strict=True):
        assert np.array_equal(found, golden_product(operands, core.facts))


# What may happen to an operand stream between driver and core. Each gets the packets of the
# commands, as beats and TLAST, and the place of one packet that is not the last.
Packet = tuple[np.ndarray, np.ndarray]


def lose_beat(packets: list[Packet], at: int, rng: np.random.Generator) -> None:
    data, last = packets[at]
    beat = rng.integers(len(data))
    packets[at] = (np.delete(data, beat, 0), np.delete(last, beat))


def repeat_beat(packets: list[Packet], at: int, rng: np.random.Generator) -> None:
    data, last = packets[at]
    beat = rng.integers(len(data))
    packets[at] = (np.insert(data, beat, data[beat], 0), np.insert(last, beat, False))


def lose_packet(packets: list[Packet], at: int, _: np.random.Generator) -> None:
    del packets[at]


def repeat_packet(packets: list[Packet], at: int, _: np.random.Generator) -> None:
    packets.insert(at, packets[at])


def swap_packets(packets: list[Packet], at: int, _: np.random.Generator) -> None:
    packets[at], packets[at + 1] = packets[at + 1], packets[at]


def invert_last(packets: list[Packet], at: int, rng: np.random.Generator) -> None:
    data, last = packets[at]
    beat = rng.integers(len(last))
    packets[at] = (data, np.where(np.arange(len(last)) == beat, ~last, last))


def lose_last(packets: list[Packet], at: int, _: np.random.Generator) -> None:
    packets[at] = (packets[at][0], np.zeros_like(packets[at][1]))


ACCIDENTS = [
    lose_beat,
    repeat_beat,
    lose_packet,
    repeat_packet,
    swap_packets,
    invert_last,
    lose_last,
]


def broken_beats(beats: Beats, accident: Callable[..., None], at: int, seed: int) -> Beats:
    """Return a stream with an accident, and behind it a beat that no command can want."""
    assert beats.last is not None
    ends = np.flatnonzero(beats.last) + 1
    packets = list(
        zip(np.split(beats.data, ends[:-1]), np.split(beats.last, ends[:-1]), strict=True)
    )
    accident(packets, at, np.random.default_rng(seed))
    data, last = (np.concatenate(parts) for parts in zip(*packets, strict=True))
    return Beats(data, last)


def stray_beats(core: GemmSimulation, tag: int) -> dict[str, Beats]:
    """Return a beat with a tag for each operand stream."""
    one = product(core, 1, 1, 1, seed=0)
    last = np.ones(1, bool)
    return {
        "acts": Beats(core.streams.act_beats(one.acts, 1, tag), last),
        "weights": Beats(core.streams.weight_beats(one.weights, tag), last),
    }


def behind(first: Beats, second: Beats) -> Beats:
    assert first.last is not None
    assert second.last is not None
    return Beats(
        np.concatenate([first.data, second.data]), np.concatenate([first.last, second.last])
    )


def check_failure(
    core: GemmSimulation,
    products: list[Product],
    inputs: dict[str, Beats],
    failing: int | None,
    *,
    stall: float = 0.0,
    seed: int = 0,
) -> None:
    """Play commands of which one fails; AssertionError if a wrong number came with a clean status.

    All before it are right. It and those after it are misframed and give at most the beginning of
    one result, closed with a row of zeros. All that was sent is taken, so a driver can go on: after
    a command that resynchronises everything is right again. ``failing`` is which command it is, if
    that is known.

    Behind the operands stands a beat with a tag of no command, since the last packet may be lost.
    """
    streams, count = core.streams, len(inputs["cmd"])
    assert count < streams.tags
    for name, stray in stray_beats(core, streams.tags - 1).items():
        inputs |= {name: behind(inputs[name], stray)}
    # One beat is still in the engines when the command arrives that resynchronises.
    tidy = {"cmd": Beats(streams.resync_beat(5)), "acts": stray_beats(core, 3)["acts"]}
    again = [product(core, 3, 3, 2, seed=n) for n in range(3)]
    broken, resync, after = core.simulator.run_phases(
        [inputs, tidy, streams.inputs(again)], stalls=[stall, 0.0, stall], seed=seed
    )
    statuses = core.statuses(broken)
    assert len(statuses) == count
    clean = sum(not faults for _, faults in statuses)
    assert clean < count
    assert [faults for _, faults in statuses] == [[]] * clean + [["misframed"]] * (count - clean)
    assert failing is None or clean == failing
    out = broken.outputs["o"]
    assert out.last is not None
    ends = np.flatnonzero(out.last) + 1
    assert len(ends) in (clean, clean + 1)
    right = int(ends[clean - 1]) if clean else 0
    done = [products[tag] for tag, faults in statuses if not faults]
    found = list(streams.results(out.part(0, right), done))
    for operands, result in zip(done, found, strict=True):
        assert np.array_equal(result, golden_product(operands, core.facts))
    if len(ends) > clean:
        assert right + 1 < ends[-1] == len(out)
        one = product(core, 1, 1, 1, seed=0)
        zeros = golden_product(Product(one.acts * 0, one.weights * 0, one.k), core.facts)
        assert np.array_equal(out.data[-1:], streams.outputs([zeros])["o"].data)
    else:
        assert right == len(out)
    assert core.statuses(resync) == [(5, [])]
    assert not len(resync.outputs["o"])
    assert core.statuses(after) == [(n, []) for n in range(3)]
    for operands, result in zip(again, streams.results(after.outputs["o"], again), strict=True):
        assert np.array_equal(result, golden_product(operands, core.facts))


def equal_products(core: GemmSimulation, count: int, seed: int) -> list[Product]:
    """Return products of one size, so that nothing but a tag tells their packets apart."""
    rng = np.random.default_rng(seed)
    most = core.facts.parameters["max_k"] // core.streams.act.group
    block = core.streams.rows * core.streams.chains
    sizes = (
        int(rng.integers(1, 2 * block + 2)),
        int(rng.integers(1, 2 * core.streams.columns + 2)),
        int(rng.integers(1, min(most, 4) + 1)),
    )
    return [product(core, *sizes, seed=seed + n) for n in range(count)]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", ["acts", "weights"])
@pytest.mark.parametrize("accident", ACCIDENTS)
def test_broken_operands(core: GemmSimulation, name: str, accident: Callable[..., None]) -> None:
    """Whatever happens to a packet, its command says so and no result comes with a clean status."""
    regress_failures(core, name, accident)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", ["acts", "weights"])
def test_wrong_tags(core: GemmSimulation, name: str) -> None:
    """One beat with a bit of its tag inverted."""
    tag = core.facts.stream(name).field("tag")
    for seed in range(12):
        products = equal_products(core, 4, seed)
        inputs = core.streams.inputs(products)
        data = inputs[name].data.copy()
        beat = int(np.random.default_rng(seed).integers(len(data)))
        bit = tag.offset + seed % tag.width
        data[beat, bit // 8] ^= 1 << bit % 8
        broken = inputs | {name: Beats(data, inputs[name].last)}
        check_failure(core, products, broken, beat * 4 // len(data), stall=0.2, seed=seed)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("change", ["lost", "twice", "swapped", "m", "n", "k"])
def test_broken_commands(core: GemmSimulation, change: str) -> None:
    """A command is lost, repeated, out of order, or has another size than its operands."""
    group = core.streams.act.group
    for seed in range(8):
        products = equal_products(core, 5, seed)
        inputs, sizes, tags = (
            core.streams.inputs(products),
            [p.sizes for p in products],
            [*range(5)],
        )
        at = seed % 4
        if change == "lost":
            del sizes[at], tags[at]
        elif change == "twice":
            sizes.insert(at, sizes[at])
            tags.insert(at, at)
        elif change == "swapped":
            tags[at], tags[at + 1] = tags[at + 1], tags[at]
        else:
            # As many as change the number of beats: what rows of a beat count, n alone says.
            rows, columns = core.streams.rows, core.facts.parameters["weight_rows"]
            step = {"m": (rows, 0, 0), "n": (0, columns, 0), "k": (0, 0, group)}[change]
            m, n, k = (size + more for size, more in zip(sizes[at], step, strict=True))
            sizes[at] = (m, n, k)
        commands = Beats(core.streams.command_beats(sizes, tags))
        failing = at + (change == "twice")
        check_failure(core, products, inputs | {"cmd": commands}, failing, stall=0.2, seed=seed)


@pytest.mark.parametrize("config", ["m2xfp-2x2"])
def test_faults_after_a_failure(core: GemmSimulation) -> None:
    """Sizes that are not supported are reported beside it, and resynchronising ignores sizes."""
    inputs = core.streams.inputs([product(core, 2, 2, 1, seed=0)])
    sizes = [(2, 2, 32), *(bad for bad, _ in BAD)]
    commands = core.streams.command_beats(sizes)
    failed = inputs | stray_beats(core, 1) | {"cmd": Beats(commands)}
    resync = {"cmd": Beats(core.streams.resync_beat(7))}
    first, second, third = core.simulator.run_phases([failed, resync, inputs])
    due = [["misframed"], *([*faults, "misframed"] for _, faults in BAD)]
    assert core.statuses(first) == [(n % 8, faults) for n, faults in enumerate(due)]
    assert not len(first.outputs["o"])
    assert core.statuses(second) == [(7, [])]
    assert core.statuses(third) == [(0, [])]


@pytest.mark.parametrize("config", NORMAL)
def test_resynchronising_without_a_failure(core: GemmSimulation) -> None:
    """It is answered in order and changes nothing, whatever is under way before and behind it."""
    for seed in range(6):
        products = equal_products(core, 4, seed)
        inputs, streams = core.streams.inputs(products), core.streams
        commands = [*inputs["cmd"].data]
        for n in reversed(range(5)):
            commands.insert(n, streams.resync_beat(7)[0])
        beats = inputs | {"cmd": Beats(np.stack(commands))}
        run = core.simulator.run(beats, stall=(0.0, 0.4)[seed % 2], seed=seed)
        assert core.statuses(run) == [(n // 2 if n % 2 else 7, []) for n in range(9)]
        for one, found in zip(products, streams.results(run.outputs["o"], products), strict=True):
            assert np.array_equal(found, golden_product(one, core.facts))


@pytest.mark.parametrize(
    ("keywords", "word"),
    [
        ({"rows": 0}, "rows"),
        ({"columns": -1}, "columns"),
        ({"max_k": 100}, "max_k"),
        ({"max_k": 1 << 20}, "max_k"),
        ({"results": "fp8"}, "results"),
        ({"columns": 8, "results": "packed"}, "columns"),
        ({"chains": 4}, "chains"),
        ({"weight": MXFP4, "act": SMALL_ACT}, "group"),
    ],
)
def test_parameters_are_checked(keywords: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        GemmCore(**keywords)


@pytest.mark.parametrize("sizes", [(0, 1, 32), (1, 0, 32), (1, 1, 48), (1, 1, 4128), (1, 1, 0)])
def test_sizes_are_checked(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(InputError):
        GemmTiming.of(GemmCore(max_k=4096)).clocks(*sizes)


def test_models_reach_their_share() -> None:
    """Every linear layer of every model at 95 % of peak or more, on 1024 to 32768 MACs."""
    for rows, columns in ((1, 32), (4, 8), (32, 32)):
        timing = GemmTiming(rows, columns, max_k=28672)
        for layers in gemm.MODELS.values():
            for layer in layers:
                assert timing.utilisation(2048, layer.n, layer.k) >= 0.95, (rows, layer)


def test_the_command_counts_the_clocks_of_the_emitted_core(sim_dir: Path) -> None:
    """``m2xfp gemm`` with the parameters of an emitted core prints what its Verilog takes."""
    m, n, k = 7, 6, 64
    settings = {"rows": 2, "columns": 2, "max_k": 64, "chains": 2}
    options = [f"--set={name}={value}" for name, value in settings.items()]
    done = CliRunner().invoke(cli, ["gemm", *options, f"--tokens={m}", f"--layer={n}x{k}"])
    assert done.exit_code == 0, done.output
    cells = [cell.strip() for cell in done.stdout.splitlines()[-1].split("|")]

    instance = find_unit("gemm_core").instance(changes=settings)
    simulated = GemmSimulation(
        BulkSimulator(emit(instance, sim_dir / "verilog"), build_dir=sim_dir)
    )
    _, run = simulated.run([product(simulated, m, n, k // 32, seed=3)], stamps=True)
    assert cells[3:6] == [f"{n} x {k}", "1", str(run.stamps["o"][-1] - run.stamps["cmd"][0])]


def test_the_command_takes_the_parameters_of_the_unit() -> None:
    def table(*options: str) -> str:
        done = CliRunner().invoke(cli, ["gemm", *options])
        assert done.exit_code == 0, done.output
        return done.stdout

    assert table("--set", "rows=4", "--set", "columns=8", "--tokens", "512") == gemm.layer_table(
        GemmTiming(4, 8, max_k=gemm.LARGEST_K), 512
    )
    assert "k > 512" in table("--config", "m2xfp-2x2")  # no layer of these fits its buffers
    refused = CliRunner().invoke(cli, ["gemm", "--set", "chains=4"])
    assert isinstance(refused.exception, InputError)


def test_linear_layer(sim_dir: Path) -> None:
    """A layer of the bundled model: quantized, multiplied and quantized again in Verilog."""
    run = run_linear(sim_dir, layer="layers.1.self_attn.q_proj", tokens=96)
    width = load_model().config.width
    assert (run.m, run.n, run.k) == (96, width, width)
    assert run.mismatches == run.groups_mismatched == 0
    assert run.equal
    assert run.utilisation > 0.98


@pytest.mark.parametrize(
    "settings",
    [
        {"rows": 1, "columns": 2},
        {"results": "fp32"},
        {"activations": "fp16", "results": "fp32", "columns": 3},
        pytest.param({"columns": 32, "results": "packed"}, marks=pytest.mark.slow),
        pytest.param({"rows": 1, "columns": 32, "activations": None}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_linear_layer_by_any_core(settings: dict[str, Any], sim_dir: Path) -> None:
    """Whatever type goes in and comes out, and with as many cells as wanted."""
    changes = dict(settings)
    if kind := changes.get("activations"):
        changes["activations"] = input_type(kind)
    core = find_unit("gemm_core").instance("m2xfp-bf16-2x2", changes)
    run = run_linear(sim_dir, layer="layers.0.self_attn.q_proj", tokens=5, core=core)
    assert run.groups == 5 * run.n // 32
    assert run.equal


def test_layers_that_no_core_takes(sim_dir: Path) -> None:
    """Refused before anything is built."""
    core = find_unit("gemm_core").instance("m2xfp-bf16-2x2", {"max_k": 64})
    with pytest.raises(InputError, match="k=192"):
        run_linear(sim_dir, layer="layers.0.self_attn.q_proj", tokens=5, core=core)
    with pytest.raises(UnknownNameError, match="linear layer 'head'"):
        run_linear(sim_dir, layer="head")
    with pytest.raises(InputError, match="tokens=300000: the held-out text has 2"):
        run_linear(sim_dir, tokens=300_000)


def test_layer_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bit that differs decides the exit status, and the core is the one that was set."""

    def run(_: Path, *, layer: str, tokens: int, core: Instance) -> LinearRun:
        assert core.parameters["columns"] == 7
        return LinearRun(layer, core.config, tokens, 96, 64, 5000, 0.98, 0, 1536, 1)

    monkeypatch.setattr("m2xfp.synth.studies.linear_layers.run_linear", run)
    done = CliRunner().invoke(cli, ["study", "gemm-layer", "--set", "columns=7", "--tokens", "9"])
    assert done.exit_code == 1, done.output
    assert "1536 groups compared bit for bit in 5000 clocks" in done.stdout


def test_other_weights_are_noticed(sim_dir: Path) -> None:
    """The comparison sees one metadata bit of one weight group."""
    core = simulate_core(default_core(), sim_dir)
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(7, 64, generator=rng).to(torch.bfloat16)
    weight = get_format("m2xfp-weight").quantize(torch.randn(5, 64, generator=rng))
    expected = golden_linear(x, weight)
    assert torch.equal(core.linear(x, weight), expected)
    weight.meta[3, 1] ^= 1
    differs = core.linear(x, weight) != expected
    assert differs.any()
    assert not differs[:, [0, 1, 2, 4]].any()


@pytest.mark.slow
def test_perplexity(sim_dir: Path) -> None:
    """The bundled model with every linear layer in Verilog: the golden model's losses, exactly."""
    windows = cut_windows(as_tokens(HELD_OUT.read_bytes()), 128)[:2]
    verilog, golden_losses, clocks = compare_losses(sim_dir, windows)
    assert torch.equal(verilog, golden_losses)
    assert perplexity(verilog) == perplexity(golden_losses)
    assert 2 < perplexity(verilog) < 8
    assert clocks > 1_000_000


@pytest.mark.parametrize("last_bit", [0, 1])
def test_perplexity_command(monkeypatch: pytest.MonkeyPatch, last_bit: int) -> None:
    """Both perplexities are printed in full, and one bit of one window decides the exit status."""
    golden = torch.tensor([1.0, 1.25], dtype=torch.float64)
    verilog = golden + last_bit * torch.tensor([0.0, 2.0**-52], dtype=torch.float64)

    def losses(
        _: Path, windows: torch.Tensor, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        assert windows.shape == (2, 128)
        return verilog, golden, 77

    monkeypatch.setattr("m2xfp.synth.studies.linear_layers.compare_losses", losses)
    done = CliRunner().invoke(cli, ["study", "gemm-perplexity", "--windows", "2"])
    assert done.exit_code == last_bit
    assert f"golden   {perplexity(golden)!r}" in done.stdout
    assert ("NOT equal" in done.stdout) == bool(last_bit)


def fields(core: GemmSimulation, m: int, n: int, groups: int) -> dict[str, np.ndarray]:
    """Return what a user's file holds: the planes of both operands."""
    operands, streams = product(core, m, n, groups, seed=2), core.streams
    found = {}
    for side, rows, block in (
        ("a_", operands.acts, streams.act),
        ("w_", operands.weights, streams.weight),
    ):
        planes = group_arrays(rows.reshape(-1, rows.shape[2]), block, side)
        found |= {name: plane.reshape(len(rows), -1) for name, plane in planes.items()}
    return found


@pytest.mark.parametrize("config", ["m2xfp-2x2"])
def test_user_files(core: GemmSimulation, tmp_path: Path) -> None:
    """`m2xfp simulate` takes planes and gives the matrix."""
    np.savez(tmp_path / "in.npz", **fields(core, 5, 7, 3))
    arrays = load(tmp_path / "in.npz", core.facts)
    run = core.simulator.run(encode(arrays, core.facts), stall=0.2)
    out = decode(run.outputs, arrays, core.facts)["out"]
    assert out.shape == (5, 7)
    assert np.array_equal(out, golden_product(product(core, 5, 7, 3, seed=2), core.facts))


@pytest.mark.parametrize("config", ["m2xfp-2x2"])
@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("w_meta", None, "missing"),
        ("x", np.zeros((2, 96), np.uint16), "takes no field"),
        ("a_codes", np.zeros((5, 32), np.uint8), "must be uint8"),
        ("a_codes", np.zeros((5, 48), np.int32), "must be uint8"),
        ("w_scales", np.zeros(7, np.uint8), "two dimensions"),
    ],
)
def test_user_errors(
    core: GemmSimulation, tmp_path: Path, name: str, change: np.ndarray | None, word: str
) -> None:
    arrays = fields(core, 5, 7, 3)
    if change is None:
        del arrays[name]
    else:
        arrays[name] = change
    np.savez(tmp_path / "in.npz", **arrays)
    with pytest.raises(InputError, match=word):
        load(tmp_path / "in.npz", core.facts)


@pytest.mark.parametrize("config", ["m2xfp-2x2"])
def test_user_sizes(core: GemmSimulation, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", **fields(core, 1, 1, 17))
    with pytest.raises(InputError, match="k=544"):
        load(tmp_path / "in.npz", core.facts)


CORE, LOADER, SEQUENCER, BUFFERS, ARRAY = (
    f"m2xfp.rtl.{name}"
    for name in (
        "units.gemm_core",
        "parts.gemm_loader",
        "parts.gemm_sequencer",
        "parts.gemm_buffers",
        "parts.gemm_array",
    )
)
FAULTS = [
    Mutation("chain never cleared", SEQUENCER, "self.first.eq(sums.begins)", "self.first.eq(0)"),
    Mutation(
        "late step out of turn", SEQUENCER, "starts | (at.turn == at.chain)", "starts | ~starts"
    ),
    Mutation(
        "weights of the other panel",
        CORE,
        "2 * sequencer.address + sequencer.buffer",
        "2 * sequencer.address + ~sequencer.buffer",
    ),
    Mutation("buffer overwritten", LOADER, "loading & ~self.full.bit_select(buffer, 1)", "loading"),
    Mutation("full results overwritten", CORE, "step.eq(~ended | fifo.ready)", "step.eq(1)"),
    Mutation("columns not masked", BUFFERS, "lane & (tile.lanes > n).replicate(width)", "lane"),
    Mutation(
        "rows not masked", SEQUENCER, "Mux(ends.rows, at.rows_left, self._rows)", "self._rows"
    ),
    Mutation(
        "refinement lost",
        ARRAY,
        "total.refinement.eq(act.refinement[part])",
        "total.refinement.eq(0)",
    ),
    Mutation("failure forgotten", SEQUENCER, "at.failed.eq(1)", "at.failed.eq(0)"),
    Mutation("activations of any tag", SEQUENCER, "self.act_tag != job.tag", "0"),
    Mutation("weights of any tag", LOADER, "weight.data.tag != tag", "0"),
    Mutation("last of activations ignored", SEQUENCER, "self.act_last ^ final", "0"),
    Mutation("last of weights ignored", LOADER, "weight.last ^ all_ends", "0"),
    Mutation("misframed weights used", SEQUENCER, "full & self.suspect", "0 & self.suspect"),
    Mutation("results left open", SEQUENCER, "self.tile.rows.eq(at.open)", "self.tile.rows.eq(0)"),
    Mutation("loading goes on", LOADER, "m.If(wrong | self.stop)", "m.If(wrong)"),
    Mutation("weights wait in a failure", LOADER, "room | failed", "room"),
    Mutation("buffer stays filled", CORE, "m.d.sync += full.eq(0)", "pass"),
    Mutation("command behind another tag", BUFFERS, "Cat(tile.faults, tile.tag)", "tile.faults"),
]
# In a core with engines only.
ENGINE_FAULTS = [
    Mutation("tags ahead of their beats", CORE, "tags.o)", "acts.payload.data.tag)"),
    Mutation("old beats survive", SEQUENCER, "job.resync & ~self.quiet", "job.resync & 0"),
]


def regress_failures(core: GemmSimulation, name: str, accident: Callable[..., None]) -> None:
    """Break a packet of an operand stream, at every place and with several seeds."""
    for seed in range(12):
        products = equal_products(core, 5, seed)
        inputs = core.streams.inputs(products)
        at = seed % 4
        broken = inputs | {name: broken_beats(inputs[name], accident, at, seed)}
        failing = at + (accident is repeat_packet)
        check_failure(core, products, broken, failing, stall=(0.0, 0.3, 0.7)[seed % 3], seed=seed)


def regress_all(core: GemmSimulation) -> None:
    """Products, and what happens when operands do not come as they should."""
    regress(core, 9, seed=1)
    for name, accident in product_of(("acts", "weights"), ACCIDENTS):
        regress_failures(core, name, accident)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "config"),
    [(fault, "m2xfp-2x2") for fault in FAULTS]
    + [(fault, "m2xfp-bf16-2x2") for fault in ENGINE_FAULTS],
    ids=lambda value: getattr(value, "name", value),
)
def test_regression_notices(fault: Mutation, config: str, sim_dir: Path, tmp_path: Path) -> None:
    mutant = emit_mutant(fault, UNIT, config, tmp_path)
    with pytest.raises((AssertionError, SimulationError)):
        regress_all(GemmSimulation(BulkSimulator(mutant, build_dir=sim_dir)))
