"""``m2xfp fpga run``: run arrays through a unit on a board."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from m2xfp.commands.options import COUNT, OUTPUT_FILE, InputPath, Number
from m2xfp.extras import require

if TYPE_CHECKING:
    from m2xfp.fpga.host.device import Device
    from m2xfp.fpga.host.remote_unit import RemoteUnit
    from m2xfp.tb.bench import Arrays

__all__ = ["command"]


@click.command("run")
@click.argument("source", metavar="FILE", type=InputPath(path_type=Path))
@click.option("--port", required=True, help="Serial port of the board, like /dev/ttyUSB1.")
@click.option(
    "-o",
    "--output",
    "target",
    required=True,
    type=OUTPUT_FILE,
    help="What came out (.npz).",
)
@click.option(
    "--unit",
    metavar="NAME",
    help="Unit, by its name on boards or in the catalog; if left out, the one that takes FILE.",
)
@click.option(
    "--baud",
    type=COUNT,
    default=1_000_000,
    show_default=True,
    help="Rate that the design was built for.",
)
@click.option(
    "--timeout",
    type=Number(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Seconds of silence after which an answer is not waited for.",
)
@click.option(
    "--retries",
    type=click.IntRange(0, 1 << 30),
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

    Files are those of `m2xfp simulate` for the unit and its parameters, which the device tells, and
    so are the results, bit for bit: an answer that does not come back intact is asked for again,
    and if it never does the command fails.

    quantizer, encoder: a .npy file [n, 32], one group a row: uint16 bfloat16 patterns, bfloat16
    (of ml_dtypes), or float32 if every value is a bfloat16. The output holds codes (n, 16), scales
    (n,) and meta (n,), uint8.

    dot: a .npz file of pairs of packed groups, a_codes and w_codes (n, 16), a_scales, a_meta,
    w_scales, w_meta (n,), uint8, and first (n,), bool: a dot product begins here. The output holds
    acc (n,), uint32: the FP32 pattern of the running sum after each pair.

    accelerator: a .npz file of two operands, a_codes (m, k/2), a_scales, a_meta (m, k/32), and
    w_codes, w_scales, w_meta with n rows. The output holds out (m, n), uint32: FP32 patterns.

    \b
    m2xfp fpga run --port /dev/ttyUSB1 x.npy -o y.npz
    m2xfp fpga run --port /dev/ttyUSB1 --self-test pairs.npz -o acc.npz
    """
    require("serial", "torch", "safetensors")
    import numpy as np

    from m2xfp.errors import InputError
    from m2xfp.files import atomic_path
    from m2xfp.fpga.host.device import Device

    if not source.is_file():
        what = "this is a folder" if source.is_dir() else "there is no such file"
        raise InputError(f"{source}: {what}")
    if source.resolve() == target.resolve():
        raise InputError(f"--output {target}: must not be the input")
    with Device(port, baud=baud, timeout=timeout, retries=retries) as device:
        click.echo(f"{port}: build {device.identity.build}, units {', '.join(device.units)}")
        chosen, arrays = _loaded(source, device, unit)
        if self_test:
            passed = device.self_test(progress=True)
            click.echo(f"self-test passed: {passed.echoed} bytes echoed, groups {passed.groups}")
        results = chosen.run(arrays, progress=True)
    with atomic_path(target) as path, path.open("wb") as file:
        np.savez(file, allow_pickle=False, **results)
    click.echo(f"{chosen.name}: {chosen.count(arrays)} groups, written to {target}")


def _loaded(source: Path, device: Device, name: str | None) -> tuple[RemoteUnit, Arrays]:
    """Return the unit that is named, or else the one that takes the file, and the arrays in it."""
    from m2xfp.errors import InputError

    if name is not None:
        unit = device.unit(name)
        return unit, unit.bench.load(source, unit.facts)
    taken, refused = [], []
    for unit in device.units.values():
        try:
            taken.append((unit, unit.bench.load(source, unit.facts)))
        except InputError as error:
            refused.append(f"{unit.name}: {error}")
    if not taken:
        raise InputError(f"no unit of the device takes {source}; {'; '.join(refused)}")
    if len(taken) > 1:
        names = " and ".join(unit.name for unit, _ in taken)
        raise InputError(f"{source}: the units {names} take such a file; choose one with --unit")
    return taken[0]
