"""``m2xfp eval``: the perplexity of a language model in number formats."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2xfp.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from m2xfp.models.arithmetic import Arithmetic
    from m2xfp.models.evaluate import Case
    from m2xfp.models.results import Outcome

__all__ = ["command"]

DTYPES = ("auto", "float32", "bfloat16", "float16")


def _cases(columns: dict[str, tuple[str, ...]], quantized: bool, how: Arithmetic) -> list[Case]:
    """Return one case for each position of the options; a single value stands for all of them."""
    from m2xfp.models.evaluate import FP, Case

    given = {name: values for name, values in columns.items() if values}
    if quantized:
        if given.keys() - {"cache", "operands"}:
            raise InputError("the model is quantized already; give no --weights or --activations")
    elif not given:
        pairs = ("mxfp4", "mxfp4"), ("m2xfp-weight", "m2xfp-act")
        return [FP, *(Case.parse(*pair, arithmetic=how) for pair in pairs)]
    if "operands" in given and "cache" not in given:
        raise InputError("--operands goes with --cache: give the format of keys and values too")
    count = max(map(len, given.values()), default=0)
    for name, values in given.items():
        if len(values) not in (1, count):
            raise InputError(
                f"--{name} is given {len(values)} times and another option {count} times; give "
                "each once, or all of them equally often"
            )
    series = [
        repeat(values[0], count) if len(values) == 1 else iter(values) for values in given.values()
    ]
    rows = list(zip(*series, strict=False)) or ([()] if how.hardware else [])
    asked = [Case.parse(**dict(zip(given, row, strict=True)), arithmetic=how) for row in rows]
    return list(dict.fromkeys(chain([FP], asked)))


def _memory(
    _context: click.Context, _option: click.Parameter, given: tuple[str, ...]
) -> dict[int | str, str]:
    """Split DEVICE=AMOUNT."""
    limits: dict[int | str, str] = {}
    for text in given:
        device, equals, amount = text.partition("=")
        if not equals or not amount or not (device == "cpu" or device.isdigit()):
            raise click.BadParameter(f"{text!r} is not DEVICE=AMOUNT, such as 0=20GiB or cpu=64GiB")
        limits[int(device) if device.isdigit() else device] = amount
    return limits


@contextmanager
def _processes(device: torch.device) -> Iterator[int]:
    """Join the process group that torchrun has started, if it has; yield the rank."""
    from torch import distributed

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0
        return
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield distributed.get_rank()
    finally:
        distributed.destroy_process_group()


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return device


@click.command()
@click.argument("model", required=False, type=click.Path(path_type=Path))
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
@click.option("--head", is_flag=True, help="Quantize the layer that makes the logits too.")
@click.option("--allow-nan", is_flag=True, help="Go on when weights hold NaN or infinity.")
@click.option(
    "--text",
    metavar="FILE",
    help="Text to predict: a file, or wikitext where a local copy exists; by default the bundled "
    "held-out text.",
)
@click.option(
    "--context", type=int, help="Tokens a window (2048, or what the model is made for if less)."
)
@click.option("--windows", type=click.IntRange(1), help="Use so many windows, evenly spread.")
@click.option("--batch", type=click.IntRange(1), help="Windows a pass (bundled model 4, others 1).")
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
    "--max-memory",
    multiple=True,
    callback=_memory,
    metavar="DEVICE=AMOUNT",
    help="With --device-map: memory to use of a device, such as 0=20GiB or cpu=64GiB.",
)
@click.option(
    "--offload",
    type=click.Path(file_okay=False, path_type=Path),
    help="With --device-map: folder for what fits nowhere.",
)
@click.option(
    "--tasks", metavar="A,B,...", help="Also run these tasks of the lm-evaluation-harness."
)
@click.option(
    "--task-folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with further tasks (YAML).",
)
@click.option("--limit", type=click.IntRange(1), help="Documents a task.")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for perplexity.json, perplexity.md and perplexity.png.",
)
@click.option(
    "--save",
    type=click.Path(path_type=Path),
    help="Write the quantized model, packed: a file for the bundled model, a folder for others.",
)
@click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    help="Run the whole study of the bundled model and write its page into this folder.",
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
    head: bool,
    allow_nan: bool,
    text: str | None,
    context: int | None,
    windows: int | None,
    batch: int | None,
    dtype: str,
    device: str,
    device_map: bool,
    max_memory: dict[int | str, str],
    offload: Path | None,
    tasks: str | None,
    task_folder: Path | None,
    limit: int | None,
    output: Path | None,
    save: Path | None,
    results: Path | None,
) -> None:
    r"""Perplexity of MODEL with its linear layers, and its attention, in number formats.

    MODEL is a folder of the Hugging Face layout (Llama, Qwen, Mistral, OPT, Falcon, ...), a file of
    `m2xfp train` or of --save, or left out: the bundled model. FORMAT is a name of `m2xfp formats`,
    with options as in m2xfp-weight:adaptive=false,subgroup=4, or none. Repeated options make a
    sweep: the first of each belong together, then the second. The model without quantization is
    always measured too. Intervals are paired bootstraps over the windows.

    \b
    m2xfp eval                                        mxfp4 and m2xfp on the bundled model
    m2xfp eval --activations mxfp4 --activations m2xfp-act -o build/eval
    m2xfp eval ~/models/Llama-3.2-1B --weights m2xfp-weight --activations m2xfp-act --text wikitext
    m2xfp eval --weights m2xfp-weight --save lm-packed.safetensors
    torchrun --no-python --nproc-per-node 4 m2xfp eval ~/models/Llama-3.1-8B --text wiki.test.raw
    """
    from m2xfp.models.arithmetic import Arithmetic
    from m2xfp.models.checkpoints import dispatch, open_checkpoint, read_text
    from m2xfp.models.evaluate import check_cases, cut_windows, head_layers, spread
    from m2xfp.models.tasks import find_tasks

    target = _device(device)
    if results is not None:
        _study(results, target, windows, batch or 4)
        return
    if (max_memory or offload) and not device_map:
        raise click.UsageError("--max-memory and --offload go with --device-map")
    if accumulator is not None and arithmetic != "hardware":
        raise click.UsageError("--accumulator goes with --arithmetic hardware")
    checkpoint = open_checkpoint(model, dtype)
    columns = {
        "weights": weights,
        "activations": activations,
        "cache": cache,
        "operands": operands,
    }
    how = Arithmetic(arithmetic, accumulator or "fp32")
    cases = _cases(columns, checkpoint.quantized, how)
    if save is not None and (len(cases) != 2 or not (cases[1].weights or cases[1].activations)):
        raise click.UsageError("--save goes with one format of weights or activations, or of both")
    names = tasks.split(",") if tasks else []
    if names and checkpoint.tokenizer is None:
        raise click.UsageError("--tasks needs a Hugging Face model; the bundled one reads bytes")
    manager = find_tasks(names, task_folder) if names else None
    sample = cut_windows(checkpoint.tokenize(read_text(text)), context or checkpoint.context)
    sample = spread(sample, windows or len(sample))
    loaded = [checkpoint.load()]
    skipped = skip if head or checkpoint.quantized else (*skip, *head_layers(loaded[0]))
    if not checkpoint.quantized:
        check_cases(loaded[0], cases, skipped, allow_nan)

    def measure(case: Case, quiet: bool) -> Outcome:
        from tqdm import tqdm

        from m2xfp.models.evaluate import quantized, window_nats
        from m2xfp.models.results import Outcome
        from m2xfp.models.tasks import run_tasks

        whole = loaded.pop() if loaded else checkpoint.load()
        size = batch or (4 if checkpoint.tokenizer is None else 1)
        with quantized(case, whole, skipped, allow_nan) as ready:
            if save is not None and case is cases[-1] and not quiet:
                checkpoint.save(ready, save)
            placed = dispatch(ready, max_memory, offload) if device_map else ready.to(target)
            with tqdm(total=len(sample), desc=case.label, unit="window", disable=quiet) as bar:
                nats = window_nats(placed, sample, size, bar.update)
            found = None
            if names:
                found = run_tasks(placed, checkpoint.tokenizer, names, manager, size, limit)
        return Outcome(case, nats, found)

    with _processes(target) as rank:
        outcomes = [measure(case, quiet=rank > 0) for case in cases]
    if rank == 0:
        facts = {
            "model": checkpoint.name,
            "text": text or "bundled held-out text",
            "context": sample.shape[1],
            "windows": sample.shape[0],
            "dtype": dtype,
            "skipped": list(skipped),
        }
        _report(outcomes, facts, output)


def _report(outcomes: Sequence[Outcome], facts: dict[str, Any], output: Path | None) -> None:
    """Print the table; write it, the figures and the plot into a folder."""
    from m2xfp.files import write_atomic
    from m2xfp.models.results import markdown, plot, to_json

    table = markdown(outcomes)
    click.echo(f"{facts['model']}: {facts['windows']} windows of {facts['context']} tokens\n")
    click.echo(table, nl=False)
    if output is not None:
        write_atomic(output / "perplexity.json", to_json(outcomes, facts))
        write_atomic(output / "perplexity.md", table)
        plot(output / "perplexity.png", outcomes)
        click.echo(f"\nwritten to {output}")


def _study(folder: Path, device: torch.device, count: int | None, batch: int) -> None:
    """Run the study on the held-out text, or on some windows of it; keep losses in build/eval."""
    from tqdm import tqdm

    from m2xfp.models.evaluate import bundled_losses, cut_windows, spread
    from m2xfp.models.lm import HELD_OUT, as_tokens, load_model
    from m2xfp.models.results import write_study

    text = HELD_OUT.read_bytes()
    whole = cut_windows(as_tokens(text), load_model().config.context)
    windows = spread(whole, count or len(whole))

    def losses(case: Case) -> Tensor:
        with tqdm(total=len(windows), desc=case.label, unit="window", leave=False) as bar:
            kept = Path("build/eval")
            return bundled_losses(case, windows, kept, batch, bar.update, device)

    protocol = {
        "model": f"bundled, byte level, in float32 on {device.type}",
        "text": f"held out, {len(text)} bytes",
        "windows": f"{len(windows)} of the {len(whole)}, each {windows.shape[1]} bytes",
    }
    # The page names the folder where it belongs, wherever this run writes it.
    line = f"m2xfp eval --results docs/results --device {device.type} --batch {batch}"
    if count is not None:
        line += f" --windows {count}"
    found = write_study(folder, losses, protocol, line, lambda cases: tqdm(cases, desc="study"))
    for path in found:
        click.echo(path)
