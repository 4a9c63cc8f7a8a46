"""``m2xfp fpga run``: run arrays through a unit on a board."""

from pathlib import Path

import click

__all__ = ["command"]


@click.command("run")
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--port", required=True, help="Serial port of the board, like /dev/ttyUSB1.")
@click.option(
    "-o",
    "--output",
    "target",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="What came out (.npz).",
)
@click.option(
    "--unit",
    type=click.Choice(["quantizer", "encoder", "dot"]),
    help="Unit; if left out, quantizer for a .npy file and dot for a .npz file.",
)
@click.option(
    "--baud",
    type=click.IntRange(min=1),
    default=1_000_000,
    show_default=True,
    help="Rate that the design was built for.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Seconds of silence after which an answer is not waited for.",
)
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="How often a request is repeated.",
)
@click.option("--self-test", is_flag=True, help="First hold the board against the golden model.")
def command(
    source: Path,
    port: str,
    target: Path,
    unit: str | None,
    baud: int,
    timeout: float,
    retries: int,
    self_test: bool,
) -> None:
    r"""Run the arrays in FILE through a unit on a board, over its serial port.

    quantizer, encoder: a .npy file [n, 32], one group a row: uint16 bfloat16 patterns, or float32
    if every value is a bfloat16. The output holds codes (n, 16), scales (n,) and meta (n,), uint8.

    dot: a .npz file of pairs of packed groups, a_codes and w_codes (n, 16), a_scales, a_meta,
    w_scales, w_meta (n,), uint8, and first (n,), bool: a dot product begins here. The output holds
    acc (n,), uint32: the FP32 pattern of the running sum after each pair.

    Files are those of `m2xfp simulate`, and so are the results, bit for bit: an answer that does
    not come back intact is asked for again, and if it never does the command fails.

    \b
    m2xfp fpga run --port /dev/ttyUSB1 x.npy -o y.npz
    m2xfp fpga run --port /dev/ttyUSB1 --self-test pairs.npz -o acc.npz
    """
    import numpy as np

    from m2xfp.errors import InputError
    from m2xfp.files import atomic_path
    from m2xfp.fpga.gateware.design import find_board_unit
    from m2xfp.fpga.host.device import Device
    from m2xfp.golden.bits import from_bits
    from m2xfp.rtl.catalog import find_unit
    from m2xfp.tb.bench import bench_of
    from m2xfp.tb.parts.groups import group_arrays

    if unit is None:
        kinds = {".npy": "quantizer", ".npz": "dot"}
        if source.suffix not in kinds:
            raise InputError(
                f"{source}: the suffix must be .npy or .npz to choose a unit; or give --unit"
            )
        unit = kinds[source.suffix]
    if not source.is_file():
        raise InputError(f"{source}: there is no such file")
    if source.resolve() == target.resolve():
        raise InputError(f"--output {target}: must not be the input")
    row = find_board_unit(unit)
    facts = find_unit(row.unit).instance(row.config).facts
    arrays = bench_of(facts).load(source, facts)

    with Device(port, baud=baud, timeout=timeout, retries=retries) as device:
        click.echo(
            f"{port}: build {device.identity.build}, units {', '.join(device.identity.names)}"
        )
        if self_test:
            passed = device.self_test(progress=True)
            click.echo(f"self-test passed: {passed.echoed} bytes echoed, groups {passed.groups}")
        if unit == "dot":
            names = ("a_codes", "a_scales", "a_meta", "w_codes", "w_scales", "w_meta")
            fields = [arrays[name].reshape(len(arrays["first"]), -1) for name in names]
            pairs = np.concatenate(fields, axis=1)
            results = {"acc": device.accumulate(pairs, arrays["first"], progress=True)}
        else:
            run = device.quantize if unit == "quantizer" else device.quantize_weights
            packed = run(from_bits("bf16", arrays["x"]), progress=True)
            groups = packed.groups().numpy().reshape(len(arrays["x"]), -1)
            results = group_arrays(groups, packed.format.block)
    with atomic_path(target) as path, path.open("wb") as file:
        np.savez(file, allow_pickle=False, **results)
    click.echo(f"{unit}: {len(next(iter(results.values())))} groups, written to {target}")
