"""What the accelerator reaches of its array's peak and of its memory's bandwidth.

Measured in the emitted Verilog before a memory of limited bandwidth and 100 clocks latency; and
counted, by the cycle model that equals it clock for clock, for the layers of the paper's models.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m2xfp.formats import block_format
from m2xfp.progress import track
from m2xfp.rtl.catalog import Instance, find_unit
from m2xfp.rtl.parameters import parse_settings
from m2xfp.rtl.verilog.emit import emit
from m2xfp.synth.studies.paper_accelerator import Model, facts
from m2xfp.tables import aligned_table
from m2xfp.tb.axi.cycles import Clocks, product_clocks
from m2xfp.tb.axi.layers import dense_words, fill, measure_layer
from m2xfp.tb.axi.model import AxiModel
from m2xfp.tb.cache import BUILD_DIR

__all__ = [
    "LATENCY",
    "RUNS",
    "Run",
    "count_layers",
    "counted_row",
    "measure_throughput",
    "throughput_tables",
]

LATENCY = 100
PAPER_CONFIG = "m2xfp-1x32"
PREFILL_COLUMNS = 512
LAYER_CHUNK = 144
"""Groups of a chunk for the paper's layers: a row of Falcon's 142 in one."""

Run = tuple[str, tuple[str, ...], float, Sequence[tuple[int, int, int]]]
"""A configuration, its settings, the memory's bytes a clock, and layers [m, n, k]."""

SMALL = ("rows=1", "columns=8", "bus=256", "chunk=32", "slots=8", "max_k=1024", "outstanding=64")
# Layers of Llama-3-8B: of many tokens a panel of columns, which all others are like.
PAPER = (f"chunk={LAYER_CHUNK}", "max_k=14336")
PAPER_LAYERS = (
    *((2048, 32, k) for k in (4096, 14336)),
    *((1, n, k) for n, k in ((4096, 4096), (14336, 4096), (4096, 14336))),
)
RUNS: tuple[Run, ...] = (
    ("m2xfp-2x2", SMALL, 32.0, ((1024, 16, 512), (1024, 16, 1024), (1, 512, 512), (1, 512, 1024))),
    (PAPER_CONFIG, PAPER, 128.0, PAPER_LAYERS),
)


def _figures(
    size: tuple[int, int, int], clocks: Clocks, macs: int, rate: float, weights: int
) -> dict[str, Any]:
    """Return what was reached: of the array's peak, and of the memory's bandwidth."""
    m, n, k = size
    return {
        "m": m,
        "n": n,
        "k": k,
        "rate": rate,
        "clocks": clocks.clocks,
        "of_peak": round(m * n * k / (clocks.clocks * macs), 4),
        "weights_of_bandwidth": round(weights / (clocks.clocks * rate), 4),
        "moved_of_bandwidth": round((clocks.read + clocks.written) / (clocks.clocks * rate), 4),
    }


def _instance(run: Run) -> Instance:
    unit = find_unit("accelerator")
    return unit.instance(run[0], parse_settings(unit.component, run[1]))


def _row(run: Run, size: tuple[int, int, int], clocks: Clocks, model: int) -> dict[str, Any]:
    """Return the row of a product that took so many clocks, and by the model so many."""
    known = _instance(run).facts
    given, weight = known.parameters, block_format(known.parameters["weight"])
    name = f"{given['rows']} x {given['columns']}, {given['bus']} bits"
    bytes_ = size[1] * size[2] // weight.group * sum(weight.group_bytes)
    assert known.macs_per_clock is not None
    figures = _figures(size, clocks, known.macs_per_clock, run[2], bytes_)
    return {"build": name, **figures, "model": model}


def _counted(
    parameters: Mapping[str, Any], size: tuple[int, int, int], rate: float, build_dir: Path
) -> Clocks:
    words = dense_words(parameters, size)
    return product_clocks(parameters, words, latency=LATENCY, rate=rate, build_dir=build_dir)


def counted_row(
    run: Run, size: tuple[int, int, int], build_dir: Path = BUILD_DIR
) -> dict[str, Any]:
    """Return the row of a product as the cycle model counts it."""
    clocks = _counted(_instance(run).facts.parameters, size, run[2], build_dir)
    return _row(run, size, clocks, clocks.clocks)


def _simulate(run: Run, build_dir: Path) -> list[dict[str, Any]]:
    """Return the rows of a run, from the emitted Verilog."""
    instance, (_, _, rate, sizes) = _instance(run), run
    given = instance.facts.parameters
    words = [dense_words(given, size) for size in sizes]
    memory = max(each["out"] + each["m"] * each["out_pitch"] for each in words)
    files = emit(instance, build_dir / "accelerator")
    rows = []
    with AxiModel(files, memory, seed=1, build_dir=build_dir) as model:
        fill(model)
        for size, each in track(list(zip(sizes, words, strict=True)), desc=run[0], unit="product"):
            model.set_memory(latency=LATENCY, rate=rate)
            measured = measure_layer(model, each)
            counted = _counted(given, size, rate, build_dir)
            rows.append(_row(run, size, measured, counted.clocks))
    return rows


def count_layers(model: Model, tokens: int, build_dir: Path = BUILD_DIR) -> dict[str, Any]:
    """Return what the layers of a model reach together, by the cycle model.

    Of many tokens the first ``PREFILL_COLUMNS`` columns of each layer: all panels are alike.
    """
    known = find_unit("accelerator").instance(PAPER_CONFIG).facts
    given = {**known.parameters, "max_k": max(k for _, k in model.layers), "chunk": LAYER_CHUNK}
    weight, rate = block_format(given["weight"]), facts().dram_bits_per_clock / 8
    most = PREFILL_COLUMNS if tokens > 1 else max(n for n, _ in model.layers)
    layers = [(min(n, most), k) for n, k in model.layers]
    each = [_counted(given, (tokens, n, k), rate, build_dir) for n, k in layers]
    values = sum(n * k for n, k in layers)
    clocks = sum(one.clocks for one in each)
    assert known.macs_per_clock is not None
    moved = sum(one.read + one.written for one in each)
    weights = values // weight.group * sum(weight.group_bytes)
    return {
        "model": model.name,
        "tokens": tokens,
        "rate": rate,
        "clocks": clocks,
        "of_peak": round(tokens * values / (clocks * known.macs_per_clock), 4),
        "weights_of_bandwidth": round(weights / (clocks * rate), 4),
        "moved_of_bandwidth": round(moved / (clocks * rate), 4),
    }


def measure_throughput(
    runs: Sequence[Run] = RUNS,
    models: Sequence[Model] | None = None,
    build_dir: Path = BUILD_DIR,
) -> dict[str, Any]:
    """Return what products reach in the emitted Verilog, and layers by the cycle model."""
    known = facts()
    chosen = known.models if models is None else models
    simulated = [row for run in runs for row in _simulate(run, build_dir)]
    counted = [
        count_layers(model, tokens, build_dir)
        for model in track(list(chosen), desc="cycle model", unit="model")
        for tokens in (known.tokens, 1)
    ]
    return {"latency": LATENCY, "simulated": simulated, "layers": counted}


def throughput_tables(figures: Mapping[str, Any]) -> dict[str, str]:
    """Return the tables of the simulated mode, by name."""
    shares = ("of_peak", "weights_of_bandwidth", "moved_of_bandwidth")
    heads = ("of peak MACs", "weights: of bandwidth", "all bytes: of bandwidth")
    simulated: list[tuple[str, ...]] = [
        ("build", "m", "n", "k", "bytes a clock", "clocks", "by the model", *heads)
    ]
    for row in figures["simulated"]:
        simulated.append(
            (
                row["build"],
                *(str(row[name]) for name in ("m", "n", "k")),
                f"{row['rate']:g}",
                *(str(row[name]) for name in ("clocks", "model")),
                *(f"{row[name]:.1%}" for name in shares),
            )
        )
    layers: list[tuple[str, ...]] = [("model", "tokens", "clocks", *heads)]
    for row in figures["layers"]:
        layers.append(
            (
                row["model"],
                *(str(row[name]) for name in ("tokens", "clocks")),
                *(f"{row[name]:.1%}" for name in shares),
            )
        )
    return {
        "accelerator-throughput": aligned_table(simulated),
        "accelerator-layers": aligned_table(layers),
    }
