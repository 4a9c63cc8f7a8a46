"""``m2xfp demo``: the main job, from real activations to proven Verilog."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2xfp.commands.options import OUTPUT_FOLDER
from m2xfp.extras import require
from m2xfp.tables import aligned_table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from m2xfp.facts import EmittedFiles
    from m2xfp.synth.studies.linear_layers import LinearRun

__all__ = ["Comparison", "command", "compare"]

UNIT = "activation_quantizer"
ENCODER, ENCODER_CONFIG = "weight_encoder", "bf16-kv"
TARGETS = {UNIT: "m2xfp-act", ENCODER: "m2xfp-weight"}  # what a unit's groups are
FORMATS = ("mxfp4", "m2xfp-act")
TYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}

# The layer that goes through the GEMM core's Verilog, and bytes of text: a second of simulation.
LAYER = "layers.0.mlp.gate_proj"
LAYER_TOKENS = 64


@dataclass(frozen=True)
class Comparison:
    """Golden model against Verilog on the same groups.

    Members
    -------
    unit, config
        What was compared.
    groups, clocks
        Groups compared, and clocks that the Verilog took.
    mismatches
        Groups that differ in any bit.
    first
        Index of the first of them, or None.
    verilog
        The emitted file.
    """

    unit: str
    config: str
    groups: int
    clocks: int
    mismatches: int
    first: int | None
    verilog: Path


def compare(emitted: EmittedFiles, raw: NDArray[Any], build: Path) -> Comparison:
    """Quantize groups in golden and in the emitted Verilog, and compare every bit.

    Parameters
    ----------
    emitted
        A configuration of the activation quantizer or of the weight encoder.
    raw
        uint16 or uint32 [n, 32]: patterns of the configuration's input type.
    build
        Folder of built simulation models.
    """
    import numpy as np

    from m2xfp.golden.bits import quantize_bits
    from m2xfp.tb.bench import bench_of
    from m2xfp.tb.bulk.simulator import BulkSimulator

    simulator = BulkSimulator(emitted, build_dir=build)
    facts, arrays = simulator.facts, {"x": raw}
    bench = bench_of(facts)
    run = simulator.run(bench.encode(arrays, facts), progress=True)
    planes = bench.decode(run.outputs, arrays, facts)
    found = _rows([planes["codes"], planes["scales"], planes["meta"]])
    expected = _rows(list(quantize_bits(TARGETS[facts.unit], facts.parameters["input_type"], raw)))
    differ = np.ones(len(raw), dtype=bool)
    if len(found) == len(expected):
        differ = (found != expected).any(axis=1)
    wrong = np.flatnonzero(differ)
    first = int(wrong[0]) if len(wrong) else None
    return Comparison(
        facts.unit, facts.config, len(raw), run.cycles, len(wrong), first, emitted.verilog
    )


def _comparison_line(result: Comparison, tensors: str) -> str:
    """Say what a comparison gave."""
    first = "" if result.first is None else f", first: group {result.first}"
    return (
        f"{result.unit} {result.config}: {result.groups} groups from {tensors} of the model, "
        f"{result.groups * 32} values, compared bit for bit in {result.clocks} clocks: "
        f"{result.mismatches} mismatches{first}"
    )


def _linear_line(run: LinearRun) -> str:
    """Say what a linear layer through the Verilog of the GEMM core gave."""
    groups = run.m * run.n // 32
    return (
        f"gemm_core {run.config}: {run.layer}, [{run.m}, {run.k}] x [{run.n}, {run.k}], from bf16 "
        f"to bf16 and to packed groups again: {run.m * run.n} results and {groups} groups compared "
        f"bit for bit in {run.clocks} clocks, {run.utilisation:.1%} of peak: {run.mismatches} and "
        f"{run.groups_mismatched} mismatches"
    )


def _rows(planes: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Join planes [n] and [n, bytes] into rows [n, 18]."""
    import numpy as np

    return np.concatenate([plane.reshape(len(plane), -1) for plane in planes], axis=1)


def _losses(windows: Tensor, activations: str, cache: Path) -> Tensor:
    """Return the losses [n] of windows with layer inputs in a format, with a progress bar."""
    from m2xfp.models.evaluate import Case, bundled_losses
    from m2xfp.progress import track

    with track(total=len(windows), desc=f"perplexity, {activations}", unit="window") as bar:
        case = Case.parse(activations=activations)
        return bundled_losses(case, windows, cache, report=bar.update)


def _perplexity_lines(windows: Tensor, cache: Path) -> list[str]:
    """Return the table of perplexities, and of their ratios to that of fp32."""
    from m2xfp.models.evaluate import bootstrap

    plain = _losses(windows, "none", cache)
    rows = [["activations", "perplexity", "over fp32", "95 % interval"]]
    rows.append(["fp32", f"{bootstrap(plain).value:.4f}", "", ""])
    for name in FORMATS:
        nats = _losses(windows, name, cache)
        ratio = bootstrap(nats, plain)
        rows.append(
            [
                name,
                f"{bootstrap(nats).value:.4f}",
                f"{100 * (ratio.value - 1):+.2f} %",
                f"{100 * (ratio.low - 1):+.2f} .. {100 * (ratio.high - 1):+.2f} %",
            ]
        )
    return aligned_table(rows).splitlines()


def _area_lines(configs: list[str], build: Path) -> list[str]:
    """Return the area table, or why there is none: a missing library is no failure of the proof."""
    from m2xfp.errors import MissingToolError
    from m2xfp.rtl.catalog import find_unit
    from m2xfp.synth.flow.pdk import DEFAULT_PDK, find_pdk
    from m2xfp.synth.flow.yosys import FlowOptions
    from m2xfp.synth.report.figures import flow_facts, markdown_table, measure_all

    options = FlowOptions()
    try:
        pdk = find_pdk(DEFAULT_PDK)
        instances = [find_unit(UNIT).instance(config) for config in configs]
        rows = measure_all(instances, pdk, options, build=build)
    except MissingToolError as error:
        return [f"not measured: {error}"]
    return markdown_table(rows, flow_facts(pdk, options)).splitlines()


@click.command()
@click.option(
    "--config",
    "configs",
    multiple=True,
    default=["bf16x32"],
    show_default=True,
    metavar="NAME",
    help="Configuration of the activation quantizer; repeat for several. The model runs in its "
    "input type.",
)
@click.option(
    "--windows",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="Windows of 512 bytes whose activations are compared.",
)
@click.option(
    "--perplexity-windows",
    type=click.IntRange(2),
    default=8,
    show_default=True,
    help="Windows of 512 bytes that the perplexities are measured on.",
)
@click.option(
    "--build-dir",
    type=OUTPUT_FOLDER,
    default=Path("build"),
    show_default=True,
    help="Folder for the Verilog and for what later runs find again.",
)
def command(
    configs: tuple[str, ...], windows: int, perplexity_windows: int, build_dir: Path
) -> None:
    r"""Real activations through the golden model and the emitted Verilog, every bit compared.

    The bundled language model reads held-out text. What its linear layers read is quantized to
    M2XFP twice: by the golden model in PyTorch, and by the Verilog of the activation quantizer
    under Verilator. Its weights are encoded twice in the same way, by the exact search and by the
    Verilog of the weight encoder. A whole linear layer follows, through the Verilog of the GEMM
    core: quantized, multiplied, quantized again. Then: what MXFP4 and M2XFP do to these tensors
    (SQNR) and to the model (perplexity), and the area of the unit. Exit status 1 if a single bit
    differs.

    \b
    m2xfp demo
    m2xfp demo --config fp32x8 --config fp16x32 --windows 8
    """
    from m2xfp.tb.verilator import find_verilator

    require("torch", "safetensors", "filelock")
    find_verilator()
    import sys

    import numpy as np
    import torch

    from m2xfp.errors import UnknownNameError
    from m2xfp.golden import get_format
    from m2xfp.golden.bits import to_bits
    from m2xfp.models.activations import layer_inputs
    from m2xfp.models.evaluate import cut_windows, spread
    from m2xfp.models.lm import HELD_OUT, as_tokens, load_model
    from m2xfp.models.quality import input_sqnr
    from m2xfp.models.quantized import linear_layers
    from m2xfp.rtl.catalog import find_unit
    from m2xfp.rtl.verilog.emit import emit
    from m2xfp.synth.studies.linear_layers import run_linear

    known = {
        name: keywords["input_type"].name
        for name, keywords in find_unit(UNIT).configs.items()
        if "block" not in keywords
    }
    for config in configs:
        if config not in known:
            raise UnknownNameError(f"M2XFP configuration of {UNIT}", config, known)
    model = load_model()
    weights = [layer.weight.detach() for layer in linear_layers(model).values()]
    text = cut_windows(as_tokens(HELD_OUT.read_bytes()), model.config.context)
    # Evenly spread, so that several files and authors are in it.
    compared = spread(text, windows)

    results, inputs = [], {}
    for config in configs:
        model = model.to(getattr(torch, TYPES[known[config]]))
        inputs = layer_inputs(model, compared)
        raw = np.concatenate([to_bits(x).reshape(-1, 32) for x in inputs.values()])
        emitted = emit(find_unit(UNIT).instance(config), build_dir / "verilog")
        results.append(compare(emitted, raw, build_dir / "sim"))
    del model

    for result in results:
        click.echo(_comparison_line(result, f"{len(inputs)} activation tensors"))
    encoded = compare(
        emit(find_unit(ENCODER).instance(ENCODER_CONFIG), build_dir / "verilog"),
        np.concatenate([to_bits(w.bfloat16()).reshape(-1, 32) for w in weights]),
        build_dir / "sim",
    )
    click.echo(_comparison_line(encoded, f"{len(weights)} weight matrices"))
    if any(result.mismatches for result in (*results, encoded)):
        sys.exit(1)
    linear = run_linear(build_dir / "sim", layer=LAYER, tokens=LAYER_TOKENS)
    click.echo(_linear_line(linear))
    if not linear.equal:
        sys.exit(1)

    click.echo(f"\nSQNR in dB of the activations in {known[configs[-1]]}")
    quality = input_sqnr(inputs, [get_format(name) for name in FORMATS])
    rows = [[kind, *(f"{value:.2f}" for value in values)] for kind, values in quality.items()]
    click.echo(aligned_table([["", *FORMATS], *rows]), nl=False)

    sample = spread(text, perplexity_windows)
    click.echo(f"\nPerplexity a byte on {sample.numel()} bytes of held-out text")
    click.echo("\n".join(_perplexity_lines(sample, build_dir / "demo")))

    click.echo("\nArea")
    click.echo("\n".join(_area_lines(list(configs), build_dir / "synth")))
    click.echo(f"\nVerilog: {', '.join(str(result.verilog) for result in results)}")
