"""``m2xfp simulate``: run arrays through the emitted Verilog of a unit."""

from contextlib import ExitStack
from pathlib import Path

import click

from m2xfp.commands.options import (
    OUTPUT_FILE,
    OUTPUT_FOLDER,
    InputPath,
    Number,
    one_instance,
    parameter_options,
)
from m2xfp.extras import require

__all__ = ["command"]


@click.command()
@click.argument("unit", is_eager=True)
@parameter_options
@click.option(
    "--input",
    "source",
    required=True,
    type=InputPath(path_type=Path),
    help="What goes in (.npy or .npz).",
)
@click.option(
    "--output",
    "target",
    required=True,
    type=OUTPUT_FILE,
    help="What came out (.npz).",
)
@click.option(
    "--waves",
    type=OUTPUT_FILE,
    help="Also write all signals to this FST file (for GTKWave, Surfer).",
)
@click.option(
    "--stall",
    type=Number(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="Probability that a stream pauses in a clock. The result does not depend on it.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Seed of the pauses and of the registers before reset.",
)
@click.option(
    "--build-dir",
    type=OUTPUT_FOLDER,
    default=Path("build/sim"),
    show_default=True,
    help="Folder where built simulation models are kept.",
)
def command(
    unit: str,
    config: str | None,
    settings: tuple[str, ...],
    name: str | None,
    source: Path,
    target: Path,
    waves: Path | None,
    stall: float,
    seed: int,
    build_dir: Path,
) -> None:
    r"""Run arrays through the emitted Verilog of UNIT, under Verilator.

    activation_quantizer, weight_encoder: the input is a .npy file [n, group], one group a row:
    uint16 or uint32 raw patterns of the configuration's input type, or float16 for fp16, float32
    for fp32, and for bf16 bfloat16 (of ml_dtypes), or float32 if every value is a bfloat16. The
    output holds codes, scales and meta, all uint8.

    The others take an .npz file. dot_product, pe_tile: pairs of packed groups, a_codes, a_scales,
    a_meta, w_codes, w_scales, w_meta (uint8) and first (bool, clears the accumulator); group_dot
    the same without first. fp32_accumulator, exact_accumulator: what group_dot gives, product and
    exponent (int64), nan and first (bool). gemm_core: matrices in the same planes as pairs.
    activation_decoder: codes [n, subgroup] and meta (uint8). docs/simulation.md has every field.

    The first run of a configuration compiles its simulation model; later runs find it.

    \b
    m2xfp simulate activation_quantizer --config bf16x32 --input x.npy --output y.npz
    m2xfp simulate activation_quantizer --config fp16x8 --input x.npy --output y.npz \
        --stall 0.3 --seed 1 --waves y.fst
    m2xfp simulate dot_product --config m2xfp-exact --input pairs.npz --output acc.npz
    """
    import numpy as np

    from m2xfp.errors import InputError
    from m2xfp.files import atomic_path
    from m2xfp.rtl.verilog.emit import emit
    from m2xfp.tb.bench import find_bench
    from m2xfp.tb.bulk.simulator import BulkSimulator
    from m2xfp.tb.verilator import find_verilator

    require("filelock")
    find_verilator()
    instance = one_instance(unit, config, settings, name)
    bench, facts = find_bench(instance.unit), instance.facts
    if not source.is_file():
        what = "this is a folder" if source.is_dir() else "there is no such file"
        raise InputError(f"--input {source}: {what}")
    if len({path.resolve() for path in (source, target, waves) if path}) < 2 + bool(waves):
        raise InputError("--input, --output and --waves must be different files")
    arrays = bench.load(source, facts)
    inputs = bench.encode(arrays, facts)

    emitted = emit(instance, build_dir / "verilog")
    simulator = BulkSimulator(emitted, trace=waves is not None, build_dir=build_dir)
    with ExitStack() as files:
        output = files.enter_context(atomic_path(target))
        trace = files.enter_context(atomic_path(waves)) if waves else None
        run = simulator.run(inputs, stall=stall, seed=seed, waves=trace, progress=True)
        results = bench.decode(run.outputs, arrays, facts)
        with output.open("wb") as file:
            np.savez(file, allow_pickle=False, **results)
    rows = len(next(iter(results.values())))
    click.echo(f"{emitted.top}: {rows} rows in {run.cycles} clocks, written to {target}")
