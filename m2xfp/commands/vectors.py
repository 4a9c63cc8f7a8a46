"""``m2xfp vectors``: a unit's test vectors, with a testbench that runs in any simulator."""

from pathlib import Path

import click

from m2xfp.commands.options import OUTPUT_FOLDER, InputPath, Number, parameter_options
from m2xfp.extras import require

__all__ = ["command"]

_DEPTH = 8
"""Groups that a lane of the operands gets: sums of several groups, and several sums."""


@click.command()
@click.argument("unit", is_eager=True)
@parameter_options
@click.option(
    "--count",
    type=click.IntRange(1, 1 << 20),
    default=256,
    show_default=True,
    help="Groups of random values, at least; a GEMM core gets four products for eight of them.",
)
@click.option(
    "-i",
    "--input",
    "source",
    type=InputPath(exists=True, dir_okay=False, path_type=Path),
    help="Arrays of your own instead, as m2xfp simulate takes them.",
)
@click.option(
    "--seed", type=click.IntRange(0, (1 << 31) - 1), default=0, show_default=True, help="Of both."
)
@click.option(
    "--stall",
    type=Number(0, 1, max_open=True),
    default=0.3,
    show_default=True,
    help="Probability that a stream pauses in a clock.",
)
@click.option(
    "--pause",
    "patterns",
    multiple=True,
    metavar="STREAM=BITS",
    help="When a stream pauses instead, such as m_axis=0110: a digit a clock, again and again.",
)
@click.option(
    "-o",
    "--output",
    type=OUTPUT_FOLDER,
    default=Path("build/vectors"),
    show_default=True,
    help="Folder for the files.",
)
def command(
    unit: str,
    config: str | None,
    settings: tuple[str, ...],
    name: str | None,
    count: int,
    source: Path | None,
    seed: int,
    stall: float,
    patterns: tuple[str, ...],
    output: Path,
) -> None:
    r"""Write UNIT, its test vectors, and a testbench that needs no Python.

    The testbench is plain Verilog: it reads the beats from hexadecimal files, pauses the streams,
    resets the unit in the midst of other traffic, compares every bit with the golden model's, and
    prints PASS or FAIL. Its first lines say how to run it, and the FuseSoC core has a target "sim"
    that does. The pauses are the same in every simulator.

    \b
    m2xfp vectors activation_quantizer --config bf16x32 --count 1000 -o vectors/
    m2xfp vectors dot_product --set lanes=16 --stall 0 -o vectors/
    m2xfp vectors activation_quantizer --input x.npy --pause m_axis=0111 -o vectors/
    """
    require("torch", "safetensors")
    from m2xfp.commands.options import one_instance
    from m2xfp.errors import InputError
    from m2xfp.tb.bench import find_bench, random_operands
    from m2xfp.tb.portable import Pauses
    from m2xfp.tb.portable_core import write_vectors

    given = [pattern.partition("=") for pattern in patterns]
    if bad := [stream for stream, equals, _ in given if not equals]:
        raise InputError(f"--pause {bad[0]}: must be STREAM=BITS, such as m_axis=0110")
    instance = one_instance(unit, config, settings, name)
    facts, bench = instance.facts, find_bench(instance.unit)
    pauses = Pauses(stall, seed, {stream: bits for stream, _, bits in given})
    pauses.check(facts)
    arrays = bench.load(source, facts) if source else None
    if arrays is None:
        arrays = bench.sample(random_operands(-(-count // _DEPTH), _DEPTH, seed), facts)
    vectors = bench.vectors(arrays, facts, seed)
    written = write_vectors(instance, vectors, output, pauses)
    beats = sum(map(len, vectors.outputs.values()))
    click.echo(
        f"{facts.top}: {beats} expected beats, {len(written)} files beside the Verilog in "
        f"{output}; run {written[0].name}"
    )
