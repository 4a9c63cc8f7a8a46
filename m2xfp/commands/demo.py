"""``m2xfp demo``: the main job, from real activations to proven Verilog."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2xfp.commands.options import COUNT, OUTPUT_FOLDER
from m2xfp.extras import require
from m2xfp.tables import aligned_table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from m2xfp.facts import EmittedFiles

__all__ = ["Comparison", "command", "compare"]

UNIT = "activation_quantizer"
ENCODER, ENCODER_CONFIG = "weight_encoder", "bf16-kv"
TARGETS = {UNIT: "m2xfp-act", ENCODER: "m2xfp-weight"}  # what a unit's groups are
FORMATS = ("mxfp4", "m2xfp-act")
TYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}

# The layer that goes through the GEMM core's Verilog, and bytes of text: a second of simulation.
LAYER = "layers.0.mlp.gate_proj"
LAYER_TOKENS = 64
# What the language model goes on with on the accelerator's Verilog: a few seconds of simulation.
PROMPT, GENERATED = b"The hardware", 4
# Bytes of text whose results the dot products compute one by one.
DOT_TOKENS = 4
# Bytes of text whose results the mixed GEMM computes.
MIXED_TOKENS = 16
SHOWN_TOKENS = 128  # of a tensor in the page


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


def _generate(build: Path) -> dict[str, Any]:
    """Let the model write text on the emitted accelerator; return what came, and what differs."""
    from m2xfp.accelerator.generation import (
        Text,
        differences,
        generate_golden,
        generate_simulated,
    )
    from m2xfp.models.lm import load_model
    from m2xfp.rtl.catalog import find_unit
    from m2xfp.rtl.verilog.emit import emit

    text, unit = Text(PROMPT, GENERATED), find_unit("accelerator")
    files = emit(unit.instance(next(iter(unit.configs))), build / "verilog")
    found = generate_simulated(files, load_model(), text, build / "sim")
    return {
        "unit": files.top,
        "text": (text.prompt + found.text).decode("utf-8", "replace"),
        "tokens": len(found.steps),
        "logits": found.logits,
        "cache_bytes": found.cache_bytes,
        "clocks": found.counts["cycles"],
        "busy": found.counts["work"] / found.counts["cycles"],
        "different": differences(found, generate_golden(load_model(), text)),
    }


def _generated_line(made: dict[str, Any]) -> str:
    """Say what the model wrote, and how it compares."""
    return (
        f"{made['unit']}: {made['text']!r}: {made['tokens']} tokens, {made['logits']} logits, "
        f"{made['cache_bytes']} bytes of cache in {made['clocks']} clocks, array busy in "
        f"{made['busy']:.1%}: {'; '.join(made['different']) or '0 mismatches'}"
    )


def _rows(planes: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Join planes [n] and [n, bytes] into rows [n, 18]."""
    import numpy as np

    return np.concatenate([plane.reshape(len(plane), -1) for plane in planes], axis=1)


def _losses(windows: Tensor, activations: str, cache: Path) -> Tensor:
    """Return the losses [n] of windows with layer inputs in a format, with a progress bar."""
    from m2xfp.models.cases import Case
    from m2xfp.models.evaluate import bundled_losses
    from m2xfp.progress import track

    with track(total=len(windows), desc=f"perplexity, {activations}", unit="window") as bar:
        case = Case.parse(activations=activations)
        return bundled_losses(case, windows, cache, report=bar.update)


def _perplexities(windows: Tensor, cache: Path) -> list[dict[str, Any]]:
    """Return the perplexity of the model as it is and in each format, and by how many % it is more.

    Everything has the ends of its 95 % interval.
    """
    from m2xfp.models.evaluate import bootstrap

    def percent(ratio: float) -> float:
        return 100 * (ratio - 1)

    plain = _losses(windows, "none", cache)
    rows: list[dict[str, Any]] = [{"activations": "fp32", **asdict(bootstrap(plain))}]
    for name in FORMATS:
        nats = _losses(windows, name, cache)
        over = {part: percent(x) for part, x in asdict(bootstrap(nats, plain)).items()}
        rows.append({"activations": name, **asdict(bootstrap(nats)), "over": over})
    return rows


def _perplexity_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Return the table of perplexities, and of their ratios to that of fp32."""
    table = [["activations", "perplexity", "over fp32", "95 % interval"]]
    for row in rows:
        over = row.get("over")
        texts = (
            [f"{over['value']:+.2f} %", f"{over['low']:+.2f} .. {over['high']:+.2f} %"]
            if over
            else ["", ""]
        )
        table.append([row["activations"], f"{row['value']:.4f}", *texts])
    return aligned_table(table).splitlines()


def _area(configs: list[str], build: Path) -> tuple[list[str], dict[str, Any]]:
    """Return the area table and its figures, or why there are none.

    A missing library is no failure of the proof.
    """
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
        flow = flow_facts(pdk, options)
    except MissingToolError as error:
        return [f"not measured: {error}"], {"missing": f"not measured: {error}"}
    figures = {
        "title": flow["pdk_title"],
        "yosys": flow["yosys"],
        "rows": [asdict(row) for row in rows],
    }
    return markdown_table(rows, flow).splitlines(), figures


def _typical_group(name: str, x: Tensor) -> dict[str, Any]:
    """Return the group of a tensor with the median share of MXFP4's error, value by value."""
    import torch

    from m2xfp.golden import get_format

    groups = x.reshape(-1, 32)
    packed = {name: get_format(name).quantize(groups) for name in FORMATS}
    found = {name: each.dequantize() for name, each in packed.items()}
    errors = [(found[name] - groups.float()).double().square().sum(1) for name in FORMATS]
    share = torch.where(errors[0] > 0, errors[1] / errors[0], 1.0)
    at = int(share.argsort(stable=True)[len(share) // 2])
    own = packed["m2xfp-act"]
    assert own.meta is not None
    return {
        "tensor": name,
        "index": at,
        "ratio": float(share[at]),
        "values": groups[at].float().tolist(),
        **{name: values[at].tolist() for name, values in found.items()},
        "codes": bytes(own.codes[at].flatten().tolist()).hex(),
        "scale": int(own.scales[at]),
        "meta": int(own.meta[at]),
    }


def _pictures(x: Tensor) -> dict[str, NDArray[np.uint8]]:
    """Return a tensor, and the errors of the formats on one scale, as pictures by caption."""
    import numpy as np

    from m2xfp.commands.demo_page import shades, tones
    from m2xfp.golden import get_format

    values = x.float().numpy()
    errors = {name: get_format(name).quantize(x).dequantize().numpy() - values for name in FORMATS}
    limit = max(float(np.quantile(np.abs(error), 0.99)) for error in errors.values())
    pictures = {"values": tones(values, float(np.quantile(np.abs(values), 0.99)) or 1.0)}
    titles = {"mxfp4": "error in MXFP4", "m2xfp-act": "error in M2XFP"}
    return pictures | {titles[name]: shades(error, limit or 1.0) for name, error in errors.items()}


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
    type=COUNT,
    default=2,
    show_default=True,
    help="Windows of 512 bytes whose activations are compared.",
)
@click.option(
    "--perplexity-windows",
    type=click.IntRange(2, 1 << 30),
    default=8,
    show_default=True,
    help="Windows of 512 bytes that the perplexities are measured on.",
)
@click.option(
    "--report",
    "report",
    type=OUTPUT_FOLDER,
    metavar="DIR",
    help="Also write demo.html there: one page with pictures of what ran.",
)
@click.option(
    "--build-dir",
    type=OUTPUT_FOLDER,
    default=Path("build"),
    show_default=True,
    help="Folder for the Verilog and for what later runs find again.",
)
def command(
    configs: tuple[str, ...],
    windows: int,
    perplexity_windows: int,
    report: Path | None,
    build_dir: Path,
) -> None:
    r"""Real activations through the golden model and the emitted Verilog, every bit compared.

    The bundled language model reads held-out text. What its linear layers read is quantized to
    M2XFP twice: by the golden model in PyTorch, and by the Verilog of the activation quantizer
    under Verilator. Its weights are encoded twice in the same way, by the exact search and by the
    Verilog of the weight encoder. A whole linear layer follows, through the Verilog of the GEMM
    core: quantized, multiplied, quantized again; in segments of mixed formats, through that of the
    mixed GEMM; one with a scale for each sign and one in mixed formats, through dot products; and
    the model writes a few bytes of text on the Verilog of the accelerator. Then: what MXFP4 and
    M2XFP do to these tensors (SQNR) and to the model (perplexity), and the area of the unit. Exit
    status 1 if a single bit differs.

    \b
    m2xfp demo
    m2xfp demo --report build/page
    m2xfp demo --config fp32x8 --config fp16x32 --windows 8
    """
    from m2xfp.tb.verilator import find_verilator

    require("torch", "safetensors", "filelock")
    find_verilator()
    import sys

    import numpy as np
    import torch

    from m2xfp import __version__
    from m2xfp.commands.demo_page import demo_page
    from m2xfp.errors import UnknownNameError
    from m2xfp.files import write_atomic
    from m2xfp.golden import get_format
    from m2xfp.golden.bits import to_bits
    from m2xfp.models.activations import layer_inputs
    from m2xfp.models.lm import HELD_OUT, as_tokens, load_model
    from m2xfp.models.quality import input_sqnr
    from m2xfp.models.quantized import linear_layers
    from m2xfp.models.windows import cut_windows, spread
    from m2xfp.rtl.catalog import find_unit
    from m2xfp.rtl.verilog.emit import emit
    from m2xfp.synth.studies.dot_layers import LAYERS, run_dot_layer
    from m2xfp.synth.studies.linear_layers import run_linear
    from m2xfp.synth.studies.mixed_layers import run_mixed

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
    click.echo(str(linear))
    if not linear.equal:
        sys.exit(1)
    mixed = run_mixed(build_dir / "sim", layer=LAYER, tokens=MIXED_TOKENS)
    click.echo(str(mixed))
    if not mixed.equal:
        sys.exit(1)
    dots = [run_dot_layer(kind, build_dir / "sim", tokens=DOT_TOKENS) for kind in LAYERS]
    click.echo("\n".join(map(str, dots)))
    if not all(run.equal for run in dots):
        sys.exit(1)
    generated = _generate(build_dir)
    click.echo(_generated_line(generated))
    if generated["different"]:
        sys.exit(1)

    click.echo(f"\nSQNR in dB of the activations in {known[configs[-1]]}")
    quality = input_sqnr(inputs, [get_format(name) for name in FORMATS])
    rows = [[kind, *(f"{value:.2f}" for value in values)] for kind, values in quality.items()]
    click.echo(aligned_table([["", *FORMATS], *rows]), nl=False)

    sample = spread(text, perplexity_windows)
    click.echo(f"\nPerplexity a byte on {sample.numel()} bytes of held-out text")
    perplexities = _perplexities(sample, build_dir / "demo")
    click.echo("\n".join(_perplexity_lines(perplexities)))

    click.echo("\nArea")
    lines, area = _area(list(configs), build_dir / "synth")
    click.echo("\n".join(lines))
    verilog = [str(result.verilog) for result in (*results, encoded)]
    if report is None:
        click.echo(
            f"\nTo look at: {verilog[0]}, the Verilog that was compared; "
            "m2xfp demo --report DIR draws a page of this run"
        )
        return
    shown = inputs[LAYER][:SHOWN_TOKENS]
    figures = {
        "version": __version__,
        "input_type": known[configs[-1]],
        "comparisons": [
            {name: value for name, value in asdict(result).items() if name != "verilog"}
            for result in (*results, encoded)
        ],
        "linear": asdict(linear),
        "mixed": asdict(mixed),
        "dots": [asdict(run) for run in dots],
        "generated": generated,
        "group": _typical_group(LAYER, inputs[LAYER]),
        "shown": list(shown.shape),
        "sqnr": {kind: dict(zip(FORMATS, values, strict=True)) for kind, values in quality.items()},
        "perplexity": perplexities,
        "bytes": sample.numel(),
        "area": area,
        "verilog": verilog,
    }
    page = write_atomic(report / "demo.html", demo_page(figures, _pictures(shown)))
    click.echo(f"\nTo look at: {page}, pictures of this run; the Verilog is {verilog[0]}")
