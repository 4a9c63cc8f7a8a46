"""``m2xfp gemm``: clocks and utilisation of a GEMM core on the layers of language models."""

import re

import click

from m2xfp.commands.options import COUNT, parameter_options_of

__all__ = ["command"]

_UNIT = "gemm_core"


def _sizes(
    _context: click.Context, _option: click.Parameter, given: tuple[str, ...]
) -> list[tuple[int, int]]:
    """Read NxK."""
    found = []
    for text in given:
        if not (sizes := re.fullmatch(r"([0-9]{1,18})x([0-9]{1,18})", text)):
            raise click.BadParameter(f"{text!r} is not NxK, such as 4096x11008")
        found.append((int(sizes[1]), int(sizes[2])))
    return found


@click.command()
@parameter_options_of(_UNIT)
@click.option("--tokens", type=COUNT, default=2048, show_default=True, help="Activation rows.")
@click.option(
    "--layer",
    "sizes",
    multiple=True,
    metavar="NxK",
    callback=_sizes,
    help="A layer of N outputs and K inputs, instead of those of the models; repeatable.",
)
def command(
    config: str | None,
    settings: tuple[str, ...],
    tokens: int,
    sizes: list[tuple[int, int]],
) -> None:
    r"""Print how many clocks a GEMM core needs for the linear layers of language models.

    The core is the unit gemm_core with the parameters given, the one that `m2xfp verilog gemm_core`
    emits for them. Without --config it has the component's defaults, and weight buffers for the
    largest k of the layers unless max_k is set. The count is that of the cycle model, which equals
    the emitted Verilog clock for clock while no stream pauses.

    \b
    m2xfp gemm                                           1 x 32 cells, 2048 tokens
    m2xfp gemm --set rows=4 --set columns=8 --tokens 512
    m2xfp gemm --config m2xfp-2x2 --tokens 64 --layer 512x512
    m2xfp gemm --help-parameters
    """
    from m2xfp.rtl.catalog import find_unit
    from m2xfp.rtl.parameters import parameters_of, parse_settings
    from m2xfp.rtl.parts.gemm_cycles import GemmTiming
    from m2xfp.synth.studies.gemm import LARGEST_K, MODELS, Layer, layer_table

    unit = find_unit(_UNIT)
    changes = parse_settings(unit.component, settings)
    if config is None:
        defaults = {key: known.default for key, known in parameters_of(unit.component).items()}
        layers = [k for _, k in sizes] or [LARGEST_K]
        changes = {**defaults, "max_k": max(defaults["max_k"], *layers), **changes}
    core = unit.instance(config, changes).component
    models = {"given": [Layer("", n, k) for n, k in sizes]} if sizes else MODELS
    click.echo(layer_table(GemmTiming.of(core), tokens, models), nl=False)
