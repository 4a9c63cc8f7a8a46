"""The accelerator's clocks by a model of its own, against the emitted Verilog clock for clock."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m2xfp.errors import InputError
from m2xfp.facts import EmittedFiles, Facts
from m2xfp.formats import block_format
from m2xfp.rtl.catalog import UNITS
from m2xfp.rtl.parts.descriptor_checker import BF16_VALUES, ENCODE, GEMM, QUANTIZE
from m2xfp.rtl.verilog.emit import emit
from m2xfp.tb.axi import cycles
from m2xfp.tb.axi.cycles import product_clocks
from m2xfp.tb.axi.layers import dense_words, measure_layer
from m2xfp.tb.axi.model import AxiModel
from m2xfp.tb.parts.accelerator_tasks import (
    Task,
    core_of,
    kinds_of,
    place,
    random_tasks,
    read_results,
    task_results,
    written,
)
from m2xfp.tb.parts.accelerator_traffic import PAGE, Memory
from m2xfp.tb.parts.gemm_arrays import GemmStreams
from m2xfp.tb.parts.gemm_regression import random_products

UNIT, CONFIG = "accelerator", "m2xfp-2x2"
BYTES = 1 << 21
SHAPES, SLOW_SHAPES = 36, 300
MEMORIES: list[dict[str, Any]] = [
    {},
    {"latency": 100},
    {"latency": 100, "rate": 16.0},
    {"latency": 37, "rate": 5.5},
    {"latency": 1, "rate": 24.0},
]
BUILDS: list[dict[str, Any]] = [
    {
        "bus": "256",
        "rows": 1,
        "columns": 4,
        "chunk": 16,
        "chains": 3,
        "slots": 8,
        "outstanding": 64,
    },
    {"bus": "512", "rows": 1, "columns": 32, "chunk": 5, "chains": 1, "depth": 1},
    {"bus": "128", "rows": 3, "columns": 3, "chunk": 1, "chains": 2, "slots": 2},
    # The last chunk of a row is longer than the others.
    {"bus": "256", "rows": 1, "columns": 8, "chunk": 40, "slots": 4, "max_k": 4096},
    # Formats without metadata: two planes, both engines quantizers; and shorter groups, no engines.
    {
        "act": block_format("mxfp4"),
        "weight": block_format("mxfp4"),
        "rows": 1,
        "columns": 8,
        "bus": "256",
        "chunk": 16,
    },
    {
        "act": block_format("nvfp4"),
        "weight": block_format("nvfp4"),
        "rows": 1,
        "columns": 8,
        "bus": "256",
        "chunk": 16,
        "quantizer": None,
        "encoder": None,
    },
    {  # results are packed, over both sides of what gathers groups
        "act": block_format("m2xfp-act:group=8"),
        "weight": block_format("m2xfp-weight:group=8"),
        "rows": 1,
        "columns": 8,
        "max_k": 64,
        "chunk": 4,
    },
    {
        "bus": "512",
        "act": block_format("m2xfp-act:group=8"),
        "weight": block_format("m2xfp-weight:group=8"),
        "rows": 1,
        "columns": 8,
        "max_k": 64,
        "chunk": 4,
    },
]
Emit = Callable[[str, str], EmittedFiles]


def build_name(changes: Mapping[str, Any]) -> str:
    """Return the parameters of a build, formats by their names."""
    return " ".join(f"{name}={getattr(value, 'name', value)}" for name, value in changes.items())


def packing(rng: np.random.Generator, facts: Facts, most: int) -> Task:
    """Return values to pack, or a product whose results are packed."""
    while True:
        (task,) = random_tasks(rng, facts, 1, most)
        if task.packed:
            return task


def differing(model: AxiModel, seed: int, count: int, build_dir: Path) -> list[str]:
    """Return the descriptors whose clocks are counted otherwise than they are."""
    rng, facts = np.random.default_rng(seed), model.facts
    streams = GemmStreams(core_of(facts))
    most = facts.parameters["max_k"] // streams.act.group
    packs = any(facts.parameters[engine] is not None for engine in ("quantizer", "encoder"))
    found = []
    for number in range(count):
        memory = MEMORIES[number % len(MEMORIES)]
        model.set_memory(**memory)
        if number % 3 == 0:
            m, n = (int(rng.integers(1, limit)) for limit in (40, 5 * streams.columns))
            k = int(rng.integers(1, most + 1)) * streams.act.group
            words = dense_words(facts.parameters, (m, n, k), int(rng.integers(2)))
        elif number % 3 == 1 or not packs:
            (product,) = random_products(rng, streams, 1, most)
            task = Task(GEMM, int(rng.integers(2)), product)
            words = dict(place(task, facts, Memory(), 0).words)
        else:
            words = dict(place(packing(rng, facts, most), facts, Memory(), 0).words)
        counted = product_clocks(facts.parameters, words, build_dir=build_dir, **memory)
        measured = measure_layer(model, words)
        if counted != measured:
            sizes = [words[name] for name in ("operation", "m", "n", "k", "kind")]
            found.append(f"{sizes} {memory}: {counted} counted, {measured} measured")
    return found


@pytest.fixture
def model(emitted: Emit, sim_dir: Path) -> Iterator[AxiModel]:
    with AxiModel(emitted(UNIT, CONFIG), BYTES, seed=3, build_dir=sim_dir) as made:
        yield made


def test_clocks(model: AxiModel, sim_dir: Path) -> None:
    assert differing(model, 1, SHAPES, sim_dir) == []


def test_clocks_of_the_comparisons_shapes(model: AxiModel, sim_dir: Path) -> None:
    """What `m2xfp accelerator --mode measured` counts: one token, a cache, columns of values."""
    given, memory = model.facts.parameters, {"latency": 100, "rate": 16.0}
    sizes = ((1, 48, 512), (4, 96, 128), (4, 32, 512))
    descriptors = [dense_words(given, size) for size in sizes]
    for operation in (QUANTIZE, ENCODE):
        words = {"operation": operation, "kind": BF16_VALUES, "m": 24, "k": 32, "a_codes": 0}
        words |= {"a_codes_pitch": 64, "out": PAGE, "out_scales": 2 * PAGE, "out_meta": 3 * PAGE}
        descriptors.append(words | {"out_pitch": 16, "out_scales_pitch": 1})
    model.set_memory(**memory)
    for words in descriptors:
        counted = product_clocks(given, words, build_dir=sim_dir, **memory)
        assert measure_layer(model, words) == counted, words


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, *BUILDS], ids=build_name)
def test_clocks_of_other_builds(changes: Mapping[str, Any], tmp_path: Path, sim_dir: Path) -> None:
    files = emit(UNITS[UNIT].instance(CONFIG, changes), tmp_path)
    with AxiModel(files, BYTES, seed=3, build_dir=sim_dir) as made:
        assert differing(made, 2, SLOW_SHAPES, sim_dir) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_papers_size(emitted: Emit, sim_dir: Path) -> None:
    """1 x 32 cells, a bus of 1024 bits: clocks, and the bits of every operation and kind."""
    with AxiModel(emitted(UNIT, "m2xfp-1x32"), 2 * BYTES, seed=3, build_dir=sim_dir) as made:
        assert differing(made, 4, 6, sim_dir) == []
        rng, facts, seen = np.random.default_rng(5), made.facts, set()
        while len(seen) < len(kinds_of(facts)):
            (task,) = random_tasks(rng, facts, 1, 6)
            seen.add((task.operation, task.kind))
            memory = Memory()
            descriptor = place(task, facts, memory, 0)
            for page in range(len(made.memory) // PAGE):
                made.memory[page * PAGE : (page + 1) * PAGE] = memory.read(page * PAGE, PAGE)
            made.write("int_status", 3)
            made.push(descriptor)
            assert made.wait()
            assert made.read("error")[0] == 0
            for start, end in written(task, facts, descriptor):
                memory.write(start, made.memory[start:end])
            found = read_results(task, facts, descriptor, memory)
            assert np.array_equal(found, task_results(task, facts)), task


FAULTS = {
    "one burst less": ("SOURCE", "!= build.outstanding", "!= 1"),
    "words are read twice": ("SOURCE", "return row % height &&", "return false &&"),
    "activations are read again": ("SOURCE", "keeps = r <= h * t", "keeps = false"),
    "an array stage less": (
        "SOURCE",
        "size_t(1 + b.depth + 1 + b.chains)",
        "size_t(b.depth + 1 + b.chains)",
    ),
    "a slot is free at once": ("SOURCE", "begins = chunk_ends;", "begins = false;"),
    "a stage of the encoder less": ("HEADER", "STAGES = 4", "STAGES = 3"),
    "groups are written alone": ("HEADER", "place == gather - 1", "place == 0"),
    "sets are not held back": ("HEADER", "filling && !whole", "filling"),
    "FP32 in one beat": ("HEADER", "halves && !has_half", "false"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_miscounted_clocks_are_noticed(
    fault: str, model: AxiModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    which, old, new = FAULTS[fault]
    source: Path = getattr(cycles, which)
    text = source.read_text()
    assert old in text
    (tmp_path / source.name).write_text(text.replace(old, new))
    monkeypatch.setattr(cycles, which, tmp_path / source.name)
    assert differing(model, 1, SHAPES, tmp_path / "build")


def test_what_it_does_not_count() -> None:
    with pytest.raises(InputError, match="no operation of the accelerator"):
        product_clocks({}, {"operation": 4})
