"""``m2xfp train``: train the bundled language model again."""

from pathlib import Path

import click

from m2xfp.commands.options import COUNT, OUTPUT_FILE, InputPath, Number
from m2xfp.extras import require

__all__ = ["command"]


@click.command()
@click.option(
    "-o",
    "--output",
    type=OUTPUT_FILE,
    default="build/lm.safetensors",
    show_default=True,
    help="Where the weights go; the state of the run is kept in OUTPUT.state until then.",
)
@click.option(
    "--minutes",
    type=Number(0, min_open=True),
    help="Budget in wall-clock minutes, compilation included.",
)
@click.option("--steps", type=COUNT, help="Budget in steps, for the same weights on every run.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--batch", type=COUNT, default=256, show_default=True, help="Windows a step.")
@click.option(
    "--rate",
    type=Number(0, min_open=True),
    default=8e-3,
    show_default=True,
    help="Peak learning rate.",
)
@click.option(
    "--dropout",
    type=Number(0, 1, max_open=True),
    default=0.1,
    show_default=True,
    help="Share of what a block adds that is dropped.",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Go on with the interrupted run OUTPUT.state.")
@click.option(
    "--corpus",
    type=InputPath(exists=True, dir_okay=False, path_type=Path),
    help="Training text; by default collected from this installation.",
)
@click.option(
    "--save-corpus",
    type=OUTPUT_FILE,
    help="Write the collected training text to a file and stop.",
)
def command(
    output: Path,
    minutes: float | None,
    steps: int | None,
    device: str,
    batch: int,
    rate: float,
    dropout: float,
    seed: int,
    resume: bool,
    corpus: Path | None,
    save_corpus: Path | None,
) -> None:
    r"""Train the bundled language model again, on text that this installation carries.

    The text is the Python standard library, Perl's library and the common licences, without the
    files of the held-out sample. Give a budget with --minutes or --steps; eight minutes on a large
    GPU, shared with another run, are what the committed weights had. An interrupted run continues
    with --resume.

    \b
    m2xfp train --minutes 8 --device cuda -o lm.safetensors
    m2xfp train --save-corpus corpus.txt     collect here, train elsewhere with --corpus
    """
    require("torch", "safetensors")
    from m2xfp.files import write_atomic
    from m2xfp.models.corpus import training_text
    from m2xfp.models.lm import HELD_OUT, ModelConfig, save_model
    from m2xfp.models.train import TrainConfig, train
    from m2xfp.progress import track

    held_out = HELD_OUT.read_bytes()
    if save_corpus is not None:
        click.echo(write_atomic(save_corpus, training_text(held_out)))
        return
    config = TrainConfig(
        minutes=minutes, steps=steps, batch=batch, peak=rate, dropout=dropout, seed=seed
    )
    text = training_text(held_out) if corpus is None else corpus.read_bytes()
    state = output.with_name(output.name + ".state")
    layout = "{desc} {percentage:5.1f} %|{bar}| {elapsed} {postfix}"
    with track(total=100, desc="training", unit="%", layout=layout) as bar:

        def show(progress: float, line: str) -> None:
            bar.note(line)
            bar.update(100 * progress - bar.n)

        model, facts = train(ModelConfig(), config, text, held_out, state, device, resume, show)
    save_model(output, model, facts)
    state.unlink(missing_ok=True)
    for name, value in facts.items():
        click.echo(f"{name:24}{value}")
    click.echo(output)
