"""``m2xfp check``: what every build of a unit must pass."""

from pathlib import Path

import click

from m2xfp.commands.options import chosen, figure_options, one_instance, parameter_options
from m2xfp.extras import require

__all__ = ["command"]


@click.command()
@click.argument("units", nargs=-1, is_eager=True)
@parameter_options
@click.option(
    "--every", is_flag=True, help="Every configuration of the units, not the default ones alone."
)
@click.option(
    "--only",
    "names",
    multiple=True,
    metavar="CHECK",
    help="Make this check alone: lint, regression, streams, second or core; again for several.",
)
@figure_options("build/check")
def command(
    units: tuple[str, ...],
    config: str | None,
    settings: tuple[str, ...],
    name: str | None,
    every: bool,
    names: tuple[str, ...],
    build_dir: Path,
    accepted: bool,
    results: Path,
) -> None:
    r"""Check UNITS, or every unit, with any parameters, before you take them into a chip.

    Each is emitted and must pass five checks: lint by five tools; its regression, beat for
    beat against the golden model, under Verilator; the tests of its streams under cocotb; a part
    of the regression in Icarus ("second"), with unknown values; and its FuseSoC core, whose
    targets are lint and the portable vectors in both simulators. A fault is printed, and makes
    the status 1. `m2xfp prove`, `m2xfp mutate` and `m2xfp coverage` go further.

    \b
    m2xfp check dot_product --set lanes=16
    m2xfp check gemm_core --set rows=1 --set columns=8 --set max_k=256
    m2xfp check --every --only lint                 every configuration in five linters
    m2xfp check --accept                            the rows of docs/status.md
    """
    require("torch", "safetensors", "cocotb", "filelock", "pyosys")
    from m2xfp.errors import InputError, UnknownNameError
    from m2xfp.progress import track
    from m2xfp.rtl.catalog import UNITS
    from m2xfp.synth.checks.measure import CHECKS, check_instance, left_out
    from m2xfp.synth.checks.record import accept, row_of
    from m2xfp.tb.four_state import find_icarus

    find_icarus()
    if len(units) != 1 and (config is not None or settings or name is not None):
        raise InputError("--config, --set and --name: name the one UNIT whose parameters these are")
    if every and (config is not None or settings or name is not None):
        raise InputError("--every: goes without --config, --set and --name")
    if accepted and settings:
        raise InputError("--accept: goes without --set; figures are of named configurations")
    for unknown in (each for each in names if each not in CHECKS):
        raise UnknownNameError("check", unknown, CHECKS)
    missing = left_out()
    for lacking in (missing[each] for each in names if each in missing):
        raise lacking
    made = tuple(each for each in names or CHECKS if each not in missing)
    instances = [
        each
        for unit in units or UNITS
        for each in (
            chosen(unit, None, ()) if every else [one_instance(unit, config, settings, name)]
        )
    ]
    failed = 0
    for instance in track(instances, desc="check", unit="unit"):
        found = []
        for each in check_instance(instance, build_dir, made):
            check = CHECKS[each.name]
            verdict = f"FAILS: {each.fault}" if each.fault else f"{each.count} {check.measure}"
            click.echo(f"{instance.top}, {check.title}: {verdict}")
            failed += bool(each.fault)
            found.append(each)
        if accepted and not any(each.fault for each in found):
            click.echo(f"accepted: {accept(results, [row_of(instance, found)])}")
    for left, error in missing.items() if not names else ():
        click.echo(f"left out: {left}; {error}")
    click.echo(f"{len(instances)} checked, {failed} faults")
    if failed:
        raise SystemExit(1)
