"""``m2xfp study``: measurements whose figures the pages show, each by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2xfp.commands.options import (
    COUNT,
    OUTPUT_FOLDER,
    InputPath,
    Number,
    one_instance,
    parameter_options_of,
)
from m2xfp.extras import require

if TYPE_CHECKING:
    from torch import Tensor

    from m2xfp.models.cases import Case
    from m2xfp.rtl.catalog import Instance
    from m2xfp.synth.flow.pdk import Pdk

__all__ = ["command"]

_Function = Callable[..., Any]

_CORE, _MIXED = "gemm_core", "mixed_gemm"

_OUTPUT = click.option(
    "-o",
    "--output",
    type=OUTPUT_FOLDER,
    help="Write the figures into this folder; docs/results accepts them.",
)


def _library_options(function: _Function) -> _Function:
    """Add ``--pdk`` and ``--liberty`` to a command."""
    function = click.option(
        "--liberty",
        multiple=True,
        type=InputPath(exists=True, dir_okay=False, path_type=Path),
        help="A library by its Liberty file; repeat for one in several files.",
    )(function)
    return click.option(
        "--pdk", metavar="NAME", help="A library of `m2xfp synth --list` (default: osu018)."
    )(function)


def _library(pdk: str | None, liberty: tuple[Path, ...]) -> Pdk:
    from m2xfp.synth.flow.pdk import DEFAULT_PDK, find_pdk, pdk_from_liberty

    if pdk and liberty:
        raise click.UsageError("--pdk and --liberty exclude each other; give one of them")
    return pdk_from_liberty(liberty) if liberty else find_pdk(pdk or DEFAULT_PDK)


def _finish(
    output: Path | None, name: str, figures: Mapping[str, Any], tables: Iterable[str]
) -> None:
    """Print tables, and write the figures if asked."""
    from m2xfp.results import write_figures

    click.echo("\n".join(tables), nl=False)
    if output is not None:
        click.echo(f"\nfigures: {write_figures(output / name, figures)}")


@click.group("study")
def command() -> None:
    r"""Measure again what the pages show: figures as JSON, and a table on the screen.

    `m2xfp report --pages` takes accepted figures into the pages.
    """


@command.command("array", short_help="What metadata costs in an array of cells; buffers.")
@_library_options
@_OUTPUT
def array(pdk: str | None, liberty: tuple[Path, ...], output: Path | None) -> None:
    """Map an array of cells in M2XFP and in MXFP4; add its buffers by a model."""
    from m2xfp.synth.flow.yosys import yosys_command
    from m2xfp.synth.studies.array import array_table, measure_array

    yosys_command()
    library = _library(pdk, liberty)
    figures = measure_array(library)
    _finish(output, f"array-{library.name}.json", figures, [array_table(figures)])


@command.command("memories", short_help="A unit without its memories, and these by a model.")
@click.argument("unit", metavar="UNIT", is_eager=True)
@parameter_options_of(None)
@_library_options
def memories(
    unit: str,
    config: str | None,
    settings: tuple[str, ...],
    pdk: str | None,
    liberty: tuple[Path, ...],
) -> None:
    r"""Map UNIT without its memories, module by module, and tell their area by a model.

    `m2xfp synth` makes registers of memories. This is for those too large for that: what surrounds
    them is mapped, and their area is that of a published memory, bit for bit.

    \b
    m2xfp study memories channel_permuter --config bf16x16 --pdk asap7
    """
    from m2xfp.synth.flow.yosys import yosys_command
    from m2xfp.synth.studies.accelerator_area import area_table, measure_units

    yosys_command()
    library = _library(pdk, liberty)
    instance = one_instance(unit, config, settings)
    click.echo(area_table(measure_units([instance], library)), nl=False)


@command.command("paths", short_help="How much of a netlist's area and path is luck.")
@click.argument("unit", metavar="UNIT")
@click.option("--config", "configs", multiple=True, metavar="NAME", help="Configuration; repeat.")
@_library_options
@click.option("--seeds", type=COUNT, default=8, show_default=True, help="Netlists a script.")
@click.option("--clock-ns", type=Number(), default=1.0, show_default=True, help="For `speed`.")
@_OUTPUT
def paths(
    unit: str,
    configs: tuple[str, ...],
    pdk: str | None,
    liberty: tuple[Path, ...],
    seeds: int,
    clock_ns: float,
    output: Path | None,
) -> None:
    r"""Map UNIT several times by each abc script, inputs in another order; tell best and spread.

    Netlists of one script differ in nothing but the order of inputs and outputs, so the spread of
    their paths is what a difference of two designs says nothing within.

    \b
    m2xfp study paths fp32_accumulator --pdk sky130_fd_sc_hd
    m2xfp study paths dot_product --config mxfp4-fp32 --seeds 4 --clock-ns 6
    """
    from m2xfp.synth.flow.timing import find_sta
    from m2xfp.synth.flow.yosys import yosys_command
    from m2xfp.synth.studies.paths import measure_paths, path_table

    yosys_command()
    find_sta()
    library = _library(pdk, liberty)
    instances = [one_instance(unit, config, ()) for config in configs or (None,)]
    figures = measure_paths(instances, library, range(seeds), clock_ns)
    _finish(output, f"paths-{library.name}.json", figures, [path_table(figures)])


@command.command("fractions", short_help="Fraction bits of the weight encoder.")
@_library_options
@click.option("--lowest", default=5, show_default=True, type=click.IntRange(5, 32))
@click.option("--highest", default=14, show_default=True, type=click.IntRange(5, 32))
@click.option(
    "--groups",
    default=10_000,
    show_default=True,
    type=COUNT,
    help="Groups of each distribution.",
)
@click.option("--power/--no-power", default=True, show_default=True, help="Measure energy.")
@_OUTPUT
def fractions(
    pdk: str | None,
    liberty: tuple[Path, ...],
    lowest: int,
    highest: int,
    groups: int,
    power: bool,
    output: Path | None,
) -> None:
    r"""Measure what fraction bits F cost the weight encoder: area, energy, error.

    The encoder compares squared errors in fixed point. With F from 10 on its bfloat16 search equals
    the exact one; fewer bits make it smaller and now and then choose second best. Each F is mapped
    onto a cell library and run at gate level, and its search is held against the exact one on known
    distributions and on the bundled model's weights.

    \b
    m2xfp study fractions
    m2xfp study fractions --lowest 8 --highest 10 --no-power -o build
    """
    require("torch", "safetensors")
    from m2xfp.synth.flow.timing import find_sta
    from m2xfp.synth.flow.yosys import yosys_command
    from m2xfp.synth.studies import fractions as study

    if lowest > highest:
        raise click.UsageError(f"--lowest {lowest} is above --highest {highest}")
    yosys_command()
    find_sta()
    library, bits = _library(pdk, liberty), range(lowest, highest + 1)
    figures = study.measure_fractions(library, bits, groups, power=power)
    found = study.fraction_tables(figures).values()
    _finish(output, study.FILE, figures, found)


def _core(config: str | None, settings: tuple[str, ...]) -> Instance:
    """Return the GEMM core that was asked for; from bf16 to bf16 with 2 x 2 cells by default."""
    from m2xfp.synth.studies.linear_layers import default_core

    return one_instance(_CORE, config or default_core().config, settings)


@command.command("gemm-layer", short_help="A linear layer in the GEMM core's Verilog.")
@click.option(
    "--layer", default="layers.0.mlp.gate_proj", show_default=True, help="Layer of the model."
)
@click.option("--tokens", type=COUNT, default=64, show_default=True, help="Bytes of text.")
@parameter_options_of(_CORE)
def gemm_layer(layer: str, tokens: int, config: str | None, settings: tuple[str, ...]) -> None:
    r"""Run a linear layer of the bundled model, on held-out text, through a GEMM core's Verilog.

    The core is gemm_core with any parameters, by default its configuration m2xfp-bf16-2x2. Results
    are quantized to packed groups again, as the next layer would read them, and everything is
    compared with the golden model. Exit status 1 if a bit differs.

    
    m2xfp study gemm-layer
    m2xfp study gemm-layer --set rows=1 --set columns=32 --set activations=none --set results=fp32
    """
    require("torch", "safetensors", "filelock")
    from m2xfp.synth.studies.linear_layers import run_linear

    core = _core(config, settings)
    run = run_linear(Path("build/sim"), layer=layer, tokens=tokens, core=core)
    click.echo(str(run))
    if not run.equal:
        raise SystemExit(1)


@command.command("dot-layer", short_help="A linear layer in a dot product's Verilog.")
@click.argument("kind", metavar="KIND", type=click.Choice(["asymmetric", "mixed"]))
@click.option("--layer", help="Layer of the model; one with inputs of its own.")
@click.option("--tokens", type=COUNT, default=8, show_default=True, help="Bytes of text.")
@click.option("--config", metavar="NAME", help="Configuration of the unit.")
def dot_layer(kind: str, layer: str | None, tokens: int, config: str | None) -> None:
    r"""Run a linear layer of the bundled model, on held-out text, through a dot product's Verilog.

    KIND is asymmetric, with AMXFP4 activations in asymmetric_dot_product, or mixed, with MicroMix's
    split of the channels into MXFP4, MXFP6 and MXFP8 in switching_dot_product. All results are
    compared with the golden model. Exit status 1 if a bit differs.

    
    m2xfp study dot-layer asymmetric
    m2xfp study dot-layer mixed --config micromix-8 --tokens 4
    """
    require("torch", "safetensors", "filelock")
    from m2xfp.synth.studies.dot_layers import run_dot_layer

    run = run_dot_layer(kind, Path("build/sim"), layer=layer, tokens=tokens, config=config)
    click.echo(str(run))
    if not run.equal:
        raise SystemExit(1)


@command.command("gemm-perplexity", short_help="A language model in the GEMM core's Verilog.")
@click.option(
    "--windows",
    type=COUNT,
    default=2,
    show_default=True,
    help="Windows of 128 bytes of held-out text; one takes some 20 s.",
)
@parameter_options_of(_CORE)
def gemm_perplexity(windows: int, config: str | None, settings: tuple[str, ...]) -> None:
    """Run the bundled model with every linear layer in the GEMM core's Verilog, and in golden.

    Exit status 1 if the two perplexities differ in a bit of a window.
    """
    require("torch", "safetensors", "filelock")
    from m2xfp.synth.studies.gemm_perplexity import compare_perplexity

    run = compare_perplexity(windows, Path("build/sim"), _core(config, settings))
    click.echo(str(run))
    if not run.equal:
        raise SystemExit(1)


@command.command("mixed-layer", short_help="A linear layer in MXFP4, MXFP6 and MXFP8, in Verilog.")
@click.option(
    "--mixed",
    "rule",
    default="micromix:strength=2,tile=64",
    show_default=True,
    metavar="RULE",
    help="Rule that splits the channels, as for `m2xfp eval --mixed`.",
)
@click.option(
    "--splits",
    type=InputPath(exists=True, dir_okay=False, path_type=Path),
    help="Splits of `m2xfp eval --save-splits`, in place of --mixed.",
)
@click.option(
    "--layer", default="layers.0.mlp.gate_proj", show_default=True, help="Layer of the model."
)
@click.option("--tokens", type=COUNT, default=64, show_default=True, help="Bytes of text.")
@parameter_options_of(_MIXED)
def mixed_layer(
    rule: str,
    splits: Path | None,
    layer: str,
    tokens: int,
    config: str | None,
    settings: tuple[str, ...],
) -> None:
    r"""Run a linear layer of the bundled model, split into segments, through the Verilog.

    What the layer reads of held-out text is put into the split's order by the Verilog of
    channel_permuter, quantized by that of activation_quantizer in each segment's format, and
    multiplied by that of mixed_gemm, by default its configuration micromix-2x2 with tiles of 32
    channels. Everything is compared with the golden model. Exit status 1 if a bit differs.

    \b
    m2xfp study mixed-layer
    m2xfp study mixed-layer --mixed mxquant:tile=64,activations=mxfp8-e4m3
    """
    require("torch", "safetensors", "filelock")
    from m2xfp.synth.studies.mixed_layers import core_of, run_mixed

    core = one_instance(_MIXED, config, settings) if config or settings else core_of()
    run = run_mixed(
        Path("build/sim"), rule=rule, splits=splits, layer=layer, tokens=tokens, core=core
    )
    click.echo(str(run))
    if not run.equal:
        raise SystemExit(1)


@command.command("libraries", short_help="Where libraries differ from the formats.")
@_OUTPUT
def libraries(output: Path | None) -> None:
    """List where ml_dtypes, torch and torchao, as installed here, differ from the definitions."""
    require("torch")
    from dataclasses import asdict

    from m2xfp.models.libraries import findings, library_table

    found = findings()
    figures = {"findings": [asdict(finding) for finding in found]}
    _finish(output, "libraries.json", figures, [library_table(found)])


@command.command("perplexity", short_help="The bundled model in all formats.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--windows", type=COUNT, help="Use so many windows, evenly spread.")
@click.option("--batch", type=COUNT, default=4, show_default=True, help="Windows a pass.")
@_OUTPUT
def perplexity(device: str, windows: int | None, batch: int, output: Path | None) -> None:
    """Evaluate the bundled model in all formats, rules and subgroup sizes that the pages compare.

    A minute on a large GPU, hours on two CPU cores. Losses are kept in build/eval, so an
    interrupted run goes on where it was.
    """
    require("torch", "safetensors")
    from m2xfp.models.devices import find_device
    from m2xfp.models.evaluate import bundled_losses
    from m2xfp.models.lm import HELD_OUT, as_tokens, load_model
    from m2xfp.models.perplexity_study import FILE, study_figures, study_tables
    from m2xfp.models.windows import cut_windows, spread
    from m2xfp.progress import track

    target, text = find_device(device), HELD_OUT.read_bytes()
    whole = cut_windows(as_tokens(text), load_model().config.context)
    chosen = spread(whole, windows or len(whole))

    def losses(case: Case) -> Tensor:
        with track(total=len(chosen), desc=case.label, unit="window", leave=False) as bar:
            return bundled_losses(case, chosen, Path("build/eval"), batch, bar.update, target)

    protocol = {
        "model": f"bundled, byte level, in float32 on {target.type}",
        "text": f"held out, {len(text)} bytes",
        "windows": f"{len(chosen)} of the {len(whole)}, each {chosen.shape[1]} bytes",
    }
    figures = study_figures(losses, protocol, lambda cases: track(cases, desc="study"))
    _finish(output, FILE, figures, study_tables(figures).values())


@command.command("model", short_help="A model in the formats of the page of evaluations.")
@click.argument("model", required=False, type=InputPath(path_type=Path))
@click.option("--hardware", is_flag=True, help="In the arithmetic of the chip.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--context", type=click.IntRange(2, 1 << 30), help="Tokens a window.")
@click.option("--windows", type=COUNT, help="Use so many windows, evenly spread.")
@click.option("--batch", type=COUNT, default=4, show_default=True, help="Windows a pass.")
@_OUTPUT
def model_table(
    model: Path | None,
    hardware: bool,
    device: str,
    context: int | None,
    windows: int | None,
    batch: int,
    output: Path | None,
) -> None:
    r"""Evaluate MODEL (as for `m2xfp eval`) in the formats that the page of evaluations compares.

    Minutes on a large GPU, hours on two CPU cores.

    \b
    m2xfp study model smollm2 --context 1024 -o docs/results
    m2xfp study model smollm2 --context 1024 --hardware -o docs/results
    """
    require("torch", "safetensors")
    from m2xfp.models.checkpoints import open_checkpoint
    from m2xfp.models.devices import find_device
    from m2xfp.models.model_study import model_figures
    from m2xfp.models.results import markdown

    checkpoint, target = open_checkpoint(model), find_device(device)
    found = model_figures(checkpoint, target, hardware, context, windows, batch, _tell)
    name = _name_of(model) + "-hardware" * hardware
    _finish(output, f"perplexity-{name}.json", found, [markdown(found["results"])])


def _name_of(model: Path | None) -> str:
    """Return what files with figures of a model are called by."""
    return "bundled" if model is None else str(model).replace("/", "-")


def _tell(case: Case, nats: Tensor) -> None:
    """Say what was measured."""
    from m2xfp.models.evaluate import perplexity

    click.echo(f"{case.label}: {perplexity(nats):.4f}", err=True)


@command.command("recipes", short_help="A model after rotation, channel scales, GPTQ.")
@click.argument("model", required=False, type=InputPath(path_type=Path))
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--context", type=click.IntRange(2, 1 << 30), help="Tokens a window.")
@click.option("--windows", type=COUNT, help="Use so many windows, evenly spread.")
@click.option("--batch", type=COUNT, default=4, show_default=True, help="Windows a pass.")
@click.option(
    "--calibration-windows",
    type=COUNT,
    default=128,
    show_default=True,
    help="Windows of 512 tokens that the steps look at.",
)
@_OUTPUT
def recipes(
    model: Path | None,
    device: str,
    context: int | None,
    windows: int | None,
    batch: int,
    calibration_windows: int,
    output: Path | None,
) -> None:
    r"""Evaluate MODEL (as for `m2xfp eval`) in NVFP4 and M2XFP after the steps of recipes.

    Minutes on a large GPU, hours on two CPU cores.

    \b
    m2xfp study recipes -o docs/results
    m2xfp study recipes smollm2 --context 1024 -o docs/results
    """
    require("torch", "safetensors")
    from m2xfp.models.checkpoints import open_checkpoint
    from m2xfp.models.devices import find_device
    from m2xfp.models.recipe_study import recipe_figures
    from m2xfp.models.recipes.recipe import Calibration
    from m2xfp.models.results import markdown

    checkpoint, target = open_checkpoint(model), find_device(device)
    calibration = Calibration(windows=calibration_windows)
    found = recipe_figures(checkpoint, target, calibration, context, windows, batch, _tell)
    _finish(
        output, f"perplexity-recipes-{_name_of(model)}.json", found, [markdown(found["results"])]
    )


@command.command("family", short_help="What the systems that ours is from name, with commands.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option(
    "--windows", type=COUNT, default=16, show_default=True, help="Windows, evenly spread."
)
@click.option("--batch", type=COUNT, default=4, show_default=True, help="Windows a pass.")
@_OUTPUT
def family(device: str, windows: int, batch: int, output: Path | None) -> None:
    r"""Evaluate what MX-QLLM, MicroMix, MXQuant and M2XFP name, on the bundled model.

    Each row of the table has the command of `m2xfp eval` that gives its figures. Minutes on two CPU
    cores.

    \b
    m2xfp study family -o docs/results
    """
    require("torch", "safetensors")
    from m2xfp.models.checkpoints import open_checkpoint
    from m2xfp.models.devices import find_device
    from m2xfp.models.family_study import FILE, family_figures, family_tables

    checkpoint, target = open_checkpoint(None), find_device(device)
    found = family_figures(checkpoint, target, windows, batch, report=_tell)
    _finish(output, FILE, found, family_tables(found).values())


@command.command("sqnr", short_help="Every format on known distributions.")
@click.option("--groups", default=4000, show_default=True, type=COUNT, help="Sample.")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0, 2**63 - 1), help="Sample."
)
@_OUTPUT
def sqnr(groups: int, seed: int, output: Path | None) -> None:
    """Measure every format on normal, Laplace, t (3 d.o.f.) and lognormal samples."""
    require("torch")
    from m2xfp.models.quality import measure_sqnr, sqnr_table

    figures = measure_sqnr(groups, seed)
    _finish(output, "sqnr.json", figures, [sqnr_table(figures)])
