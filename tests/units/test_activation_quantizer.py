"""The activation quantizer's Verilog against the golden model, and its behaviour on its streams."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import stimulus
from choices import usual_first
from mutation import Mutation, emit_mutant
from stream_checks import check, regress

from m2xfp.facts import EmittedFiles, Facts
from m2xfp.rtl.catalog import UNITS
from m2xfp.tb.bulk.simulator import Player, SimulationError
from m2xfp.tb.protocol.harness import TestbenchError, build_testbench, run_testbench
from m2xfp.tb.units.activation_quantizer import make_job
from m2xfp.tb.vectors import Job

UNIT = "activation_quantizer"
CONFIGS = list(UNITS[UNIT].configs)
# What the normal run plays: every input type, whole and part groups, no metadata.
USUAL = ["bf16x32", "bf16x32-fast", "bf16x8", "fp16x32", "fp32x32", "mxfp4-bf16x32"]
MODULES = ("m2xfp.tb.protocol.stream_tests", "m2xfp.tb.units.activation_quantizer")

# Six usual configurations, fifteen distributions: over a million groups in the normal run.
GROUPS = 12_000
SLOW_GROUPS = 400_000

# Largest magnitudes around which all patterns of a 16-bit type are played: powers of two, values
# just below and above them, the ends of the range, subnormals.
AMAX = {
    "bf16": [
        1.0,
        1.5,
        1.9921875,
        6.0,
        2.0**-126,
        2.0**-124,
        2.0**-120,
        2.0**-133,
        2.0**127,
        3.38e38,
    ],
    "fp16": [1.0, 1.5, 1.9990234375, 6.0, 2.0**-14, 2.0**-24, 3 * 2.0**-24, 1e-5, 2.0**15, 65504.0],
}

Emit = Callable[[str, str], EmittedFiles]


all_patterns = cache(stimulus.all_patterns)  # of each type for all its configurations


@pytest.fixture
def player(emitted: Emit, sim_dir: Path, config: str) -> Player:
    return Player(emitted(UNIT, config), build_dir=sim_dir)


@pytest.mark.parametrize("config", usual_first(CONFIGS, USUAL))
def test_values(player: Player) -> None:
    assert regress(player, make_job, GROUPS, seed=1) * len(USUAL) >= 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_values_at_length(player: Player) -> None:
    for seed in range(10, 10 + SLOW_GROUPS // GROUPS):
        regress(player, make_job, GROUPS, seed)


@pytest.mark.parametrize(
    "config", usual_first([name for name in CONFIGS if "fp32" not in name], USUAL)
)
def test_all_patterns(player: Player) -> None:
    """All 65 536 patterns, each beside a fixed largest magnitude."""
    kind = player.description.parameters["input_type"]
    for amax in AMAX[kind]:
        raw = all_patterns(kind, amax)
        assert len(np.unique(raw)) == 65536
        check(player, make_job(player.description, raw), stall={}, seed=0)


@pytest.mark.parametrize("config", usual_first(CONFIGS, USUAL))
def test_rate_and_latency(player: Player) -> None:
    """One beat a clock without bubbles, each group after the stated number of clocks."""
    description = player.description
    kind, beats = description.parameters["input_type"], description.beats_per_group
    job = make_job(description, stimulus.groups("normal", kind, 1000, seed=2))
    stamps = player.run(job.inputs, stamps=True).stamps
    assert np.array_equal(stamps["i"], np.arange(1000 * beats))
    assert np.array_equal(stamps["o"], stamps["i"][beats - 1 :: beats] + description.latency)


@pytest.mark.parametrize("config", ["bf16x32", "bf16x8"])
def test_stalls_change_nothing(player: Player) -> None:
    kind = player.description.parameters["input_type"]
    job = make_job(player.description, stimulus.groups("wide", kind, 3000, seed=3))
    for seed, stall in enumerate(
        [{"i": 0.9}, {"o": 0.9}, {"i": 0.1, "o": 0.9}, {"i": 0.9, "o": 0.1}, {"i": 0.5, "o": 0.5}]
    ):
        out = player.run(job.inputs, stall=stall, seed=seed).outputs["o"]
        assert np.array_equal(out.data, job.outputs["o"].data)
        assert np.array_equal(out.last, job.outputs["o"].last)


def protocol_job(emitted: EmittedFiles) -> Job:
    """Return 90 groups of all distributions, mixed."""
    description = Facts.load(emitted.json)
    kind = description.parameters["input_type"]
    raw = np.vstack([stimulus.groups(name, kind, 6, seed=4) for name in stimulus.DISTRIBUTIONS])
    return make_job(description, np.random.default_rng(4).permutation(raw))


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(
            config,
            marks=[] if config in ("bf16x32", "fp16x8", "fp32x8-fast") else [pytest.mark.slow],
        )
        for config in CONFIGS
    ],
)
def test_protocol(emitted: Emit, sim_dir: Path, config: str) -> None:
    """The cocotb tests: stalls, resets, full rate, latency, independent handshakes, values."""
    files = emitted(UNIT, config)
    ran = run_testbench(files, protocol_job(files), MODULES, build_dir=sim_dir)
    assert ran == 11


@pytest.mark.parametrize("config", ["bf16x32"])
def test_one_file_for_both_simulations(
    emitted: Emit, sim_dir: Path, player: Player, config: str
) -> None:
    """Player and cocotb are built from the bytes that were emitted."""
    files = emitted(UNIT, config)
    sums = {
        hashlib.sha256((folder / files.verilog.name).read_bytes()).hexdigest()
        for folder in (
            files.verilog.parent,
            player.build,
            build_testbench(files, build_dir=sim_dir),
        )
    }
    assert len(sums) == 1


ARITH, STREAMS = "m2xfp.rtl.arith.datapath", "m2xfp.rtl.parts.streams"
QUANTIZER, SCALE, STORE = (
    f"m2xfp.rtl.{name}"
    for name in ("units.activation_quantizer", "parts.group_scale", "parts.beat_store")
)

ROUNDING = "guard & (rest | code[0])"

# The subgroup's top element, with the keys turned round: the highest index of equals wins.
HIGHEST_INDEX = """
_lowest_index = first_maximum

def first_maximum(m, values, *name):
    largest, first = _lowest_index(m, values[::-1], *name)
    return largest, first[::-1]
"""

FAULTS = [
    Mutation("no rounding", ARITH, ROUNDING, "guard & Const(0, 1)"),
    Mutation("ties away", ARITH, ROUNDING, "guard"),
    Mutation("ties to zero", ARITH, ROUNDING, "guard & rest"),
    Mutation("no sticky", ARITH, ROUNDING, "guard & code[0]"),
    Mutation("highest index of equals", ARITH, "", HIGHEST_INDEX),
    Mutation("lower bit of those without the upper one", ARITH, "Mux(found, both, alone)", "alone"),
    Mutation("NaN ignored", SCALE, "self.poisoned.eq(exponent.all())", "self.poisoned.eq(0)"),
    Mutation(
        "result lost on a stall",
        STREAMS,
        "full.eq(~self.o.ready)",
        "full.eq(0)",
        "HalfRateRegister",
    ),
    Mutation(
        "result changes on a stall",
        STREAMS,
        "m.Elif(self.i.valid)",
        "m.If(self.i.valid)",
        "HalfRateRegister",
    ),
    Mutation(
        "pipeline runs through a stall", QUANTIZER, "~output.i.valid | output.i.ready", "Const(1)"
    ),
    Mutation(
        "TLAST inverted",
        STORE,
        "group_last.eq(i.payload.last)",
        "group_last.eq(~i.payload.last)",
    ),
]

PROTOCOL_FAULTS = [
    Mutation(
        "reset forgets the beat counter",
        STORE,
        "fill = Signal(range(beats))",
        "fill = Signal(range(beats), reset_less=True)",
    ),
    Mutation(
        "ready follows ready",
        STREAMS,
        "self.i.ready.eq(~full)",
        "self.i.ready.eq(~full | self.o.ready)",
        scope="HalfRateRegister",
    ),
]


@pytest.mark.parametrize(
    "fault",
    usual_first(
        FAULTS, ["ties away", "no sticky", "highest index of equals", "result lost on a stall"]
    ),
    ids=lambda fault: fault.name,
)
def test_regression_notices(fault: Mutation, sim_dir: Path, tmp_path: Path) -> None:
    mutant = emit_mutant(fault, UNIT, "bf16x8", tmp_path)
    player = Player(mutant, build_dir=sim_dir)
    with pytest.raises((AssertionError, SimulationError)):
        regress(player, make_job, 500, seed=5)


# In what only some configurations have: the spill register, and the fourth stage.
OTHER_FAULTS = {
    "bf16x32": [
        Mutation(
            "beat lost on a stall",
            STREAMS,
            "spare_valid.eq(self.i.valid)",
            "spare_valid.eq(0)",
            scope="SpillRegister",
        ),
        Mutation(
            "payload changes on a stall",
            STREAMS,
            "m.If(self.o.ready | ~front_valid)",
            "m.If(self.o.ready | ~front_valid | self.i.valid)",
            scope="SpillRegister",
        ),
    ],
    "fp32x8-fast": [
        Mutation(
            "choice runs through a stall",
            QUANTIZER,
            "choose.eq(rounded.valid & advance)",
            "choose.eq(rounded.valid)",
        ),
        Mutation(
            "metadata of the next group",
            QUANTIZER,
            """held("poisoned", beat.poisoned)""",
            "beat.poisoned",
        ),
        Mutation("last of the next group", QUANTIZER, """held("last", beat.last)""", "beat.last"),
    ],
}


@pytest.mark.parametrize(
    "fault",
    usual_first(
        [fault for faults in OTHER_FAULTS.values() for fault in faults],
        ["beat lost on a stall", "choice runs through a stall"],
    ),
    ids=lambda fault: fault.name,
)
def test_regression_notices_elsewhere(fault: Mutation, sim_dir: Path, tmp_path: Path) -> None:
    config = next(name for name, faults in OTHER_FAULTS.items() if fault in faults)
    mutant = emit_mutant(fault, UNIT, config, tmp_path)
    player = Player(mutant, build_dir=sim_dir)
    with pytest.raises((AssertionError, SimulationError)):
        regress(player, make_job, 500, seed=6)


@pytest.mark.parametrize(
    "fault",
    usual_first(PROTOCOL_FAULTS, ["reset forgets the beat counter"]),
    ids=lambda fault: fault.name,
)
def test_protocol_notices(fault: Mutation, sim_dir: Path, tmp_path: Path) -> None:
    mutant = emit_mutant(fault, UNIT, "bf16x8", tmp_path)
    with pytest.raises(TestbenchError):
        run_testbench(mutant, protocol_job(mutant), MODULES, build_dir=sim_dir)


@pytest.mark.parametrize("config", ["fp16x8"])
@pytest.mark.parametrize("error", [-1, 1])
def test_misstated_latency_is_noticed(
    emitted: Emit, sim_dir: Path, tmp_path: Path, config: str, error: int
) -> None:
    files = emitted(UNIT, config)
    facts = json.loads(files.json.read_text())
    facts["latency"] += error
    wrong = replace(files, json=tmp_path / "wrong.json")
    wrong.json.write_text(json.dumps(facts))
    with pytest.raises(TestbenchError, match="clocks after its last beat, stated"):
        run_testbench(wrong, protocol_job(wrong), MODULES, build_dir=sim_dir)
