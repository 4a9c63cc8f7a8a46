"""The activation quantizer's Verilog against the golden model, and its behaviour on its streams."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from choices import usual_first
from mutation import Mutation, emit_mutant
from stream_checks import check, regress, value_vectors

from m2xfp.errors import InputError
from m2xfp.facts import EmittedFiles, Facts
from m2xfp.formats import BLOCK_FORMATS, E8M0, FP16, INPUT_TYPES, block_format
from m2xfp.golden.formats.scales import PowerOfTwoScale
from m2xfp.rtl.catalog import UNITS
from m2xfp.rtl.parts.elements import magnitude_element
from m2xfp.rtl.parts.scale_rules import SCALE_RULES, scale_rule
from m2xfp.rtl.units.activation_quantizer import ActivationQuantizer
from m2xfp.tb.bulk.simulator import BulkSimulator, SimulationError
from m2xfp.tb.parts import value_stimulus
from m2xfp.tb.protocol.harness import TestbenchError, build_testbench, run_testbench
from m2xfp.tb.vectors import TestVectors

UNIT = "activation_quantizer"
CONFIGS = list(UNITS[UNIT].configs)
# What the normal run plays: every input type, whole and part groups, no metadata.
USUAL = ["bf16x32", "bf16x32-fast", "bf16x8", "fp16x32", "fp32x32", "mxfp4-bf16x32"]

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


all_patterns = cache(value_stimulus.all_patterns)  # of each type for all its configurations


@pytest.fixture
def simulator(emitted: Emit, sim_dir: Path, config: str) -> BulkSimulator:
    return BulkSimulator(emitted(UNIT, config), build_dir=sim_dir)


@pytest.mark.parametrize("config", usual_first(CONFIGS, USUAL))
def test_values(simulator: BulkSimulator) -> None:
    assert regress(simulator, GROUPS, seed=1) * len(USUAL) >= 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_values_at_length(simulator: BulkSimulator) -> None:
    for seed in range(10, 10 + SLOW_GROUPS // GROUPS):
        regress(simulator, GROUPS, seed)


@pytest.mark.parametrize(
    "config", usual_first([name for name in CONFIGS if "fp32" not in name], USUAL)
)
def test_all_patterns(simulator: BulkSimulator) -> None:
    """All 65 536 patterns, each beside a fixed largest magnitude."""
    kind = simulator.facts.parameters["input_type"]
    group = block_format(simulator.facts.parameters["block"]).group
    for amax in AMAX[kind]:
        raw = all_patterns(kind, amax, group)
        assert len(np.unique(raw)) == 65536
        check(simulator, value_vectors(simulator.facts, raw), stall={}, seed=0)


@pytest.mark.parametrize("config", usual_first(CONFIGS, USUAL))
def test_rate_and_latency(simulator: BulkSimulator) -> None:
    """One beat a clock without bubbles, each group after the stated number of clocks."""
    facts = simulator.facts
    kind, beats = facts.parameters["input_type"], facts.beats_per_group
    vectors = value_vectors(facts, value_stimulus.groups("normal", kind, 1000, seed=2))
    stamps = simulator.run(vectors.inputs, stamps=True).stamps
    assert np.array_equal(stamps["i"], np.arange(1000 * beats))
    assert np.array_equal(stamps["o"], stamps["i"][beats - 1 :: beats] + facts.latency)


@pytest.mark.parametrize("config", ["bf16x32", "bf16x8"])
def test_stalls_change_nothing(simulator: BulkSimulator) -> None:
    kind = simulator.facts.parameters["input_type"]
    vectors = value_vectors(simulator.facts, value_stimulus.groups("wide", kind, 3000, seed=3))
    for seed, stall in enumerate(
        [{"i": 0.9}, {"o": 0.9}, {"i": 0.1, "o": 0.9}, {"i": 0.9, "o": 0.1}, {"i": 0.5, "o": 0.5}]
    ):
        out = simulator.run(vectors.inputs, stall=stall, seed=seed).outputs["o"]
        assert np.array_equal(out.data, vectors.outputs["o"].data)
        assert np.array_equal(out.last, vectors.outputs["o"].last)


def protocol_vectors(emitted: EmittedFiles) -> TestVectors:
    """Return 90 groups of all distributions, mixed."""
    facts = Facts.load(emitted.json)
    kind = facts.parameters["input_type"]
    raw = np.vstack(
        [value_stimulus.groups(name, kind, 6, seed=4) for name in value_stimulus.DISTRIBUTIONS]
    )
    return value_vectors(facts, np.random.default_rng(4).permutation(raw))


@pytest.mark.parametrize("config", ["bf16x32"])
def test_one_file_for_both_simulations(
    emitted: Emit, sim_dir: Path, simulator: BulkSimulator, config: str
) -> None:
    """BulkSimulator and cocotb are built from the bytes that were emitted."""
    files = emitted(UNIT, config)
    sums = {
        hashlib.sha256((folder / files.verilog.name).read_bytes()).hexdigest()
        for folder in (
            files.verilog.parent,
            simulator.build,
            build_testbench(files, build_dir=sim_dir),
        )
    }
    assert len(sums) == 1


@pytest.mark.parametrize("name", SCALE_RULES)
@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_thresholds_of_rules(name: str, kind: str) -> None:
    """Every mantissa counts one more, the same or one less as the golden rule says."""
    facts = INPUT_TYPES[kind]
    fields = torch.arange(1 << facts.mantissa_bits)
    values = 1 + fields.double() / (1 << facts.mantissa_bits)
    blocks = [block for block in BLOCK_FORMATS.values() if block.scale is E8M0]
    elements = {magnitude_element(block) for block in blocks}
    assert len(elements) == 8
    for element in elements:
        rule = scale_rule(name, facts, element)
        wanted = PowerOfTwoScale(element, name).fit(values, torch.ones(())) + element.emax - 127
        reached = torch.zeros_like(fields)
        if rule.threshold is not None:
            reached = (fields >= rule.threshold).long()
        assert torch.equal(wanted, reached - rule.head), element


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"block": block_format("nvfp4"), "lanes": 16}, "minifloat_quantizer"),
        ({"scale_rule": "nearest"}, "floor, ceil"),
        ({"zero_scale": 5}, "0, 126"),
        ({"block": block_format("amxfp4:scale_mode=pot"), "input_type": FP16}, "bf16 or fp32"),
        ({"block": block_format("amxfp4:scale_mode=pot"), "zero_scale": 126}, "zero_scale=0"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        ActivationQuantizer(**given)


ARITH, STREAMS = "m2xfp.rtl.arith.datapath", "m2xfp.rtl.parts.streams"
QUANTIZER, SCALE, STORE = (
    f"m2xfp.rtl.{name}"
    for name in ("units.activation_quantizer", "parts.group_scale", "parts.beat_store")
)

ROUNDER = "m2xfp.rtl.parts.element_rounding"
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
    Mutation("pipeline runs through a stall", QUANTIZER, "~output.i.valid | output.i.ready", "1"),
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
    simulator = BulkSimulator(mutant, build_dir=sim_dir)
    with pytest.raises((AssertionError, SimulationError)):
        regress(simulator, 500, seed=5)


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
    # In what other rules and formats have.
    "smx4-bf16x16": [
        Mutation(
            "bit of a pair of its first",
            QUANTIZER,
            "for lane in members).any()",
            "for lane in members[:1]).any()",
        ),
    ],
    "mxint8-bf16x32": [
        Mutation(
            "negative one short",
            ROUNDER,
            "size ^ sign.replicate(len(size))) + sign",
            "size ^ sign.replicate(len(size)))",
        ),
    ],
    "micromix-mxfp4-bf16x32": [
        Mutation(
            "zero group as small ones", SCALE, "Mux(self.peak.any, scale, self._zero)", "scale | 0"
        ),
        Mutation(
            "threshold one too high", SCALE, "v.mantissa >= threshold", "v.mantissa > threshold"
        ),
    ],
    "amxfp4-pot-bf16x32": [
        Mutation(
            "one scale for both signs",
            QUANTIZER,
            "Mux(negative, sides[1], sides[0])",
            "Mux(negative, sides[0], sides[0])",
        ),
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
    simulator = BulkSimulator(mutant, build_dir=sim_dir)
    with pytest.raises((AssertionError, SimulationError)):
        regress(simulator, 500, seed=6)


@pytest.mark.parametrize(
    "fault",
    usual_first(PROTOCOL_FAULTS, ["reset forgets the beat counter"]),
    ids=lambda fault: fault.name,
)
def test_protocol_notices(fault: Mutation, sim_dir: Path, tmp_path: Path) -> None:
    mutant = emit_mutant(fault, UNIT, "bf16x8", tmp_path)
    with pytest.raises(TestbenchError):
        run_testbench(mutant, protocol_vectors(mutant), build_dir=sim_dir)


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
        run_testbench(wrong, protocol_vectors(wrong), build_dir=sim_dir)
