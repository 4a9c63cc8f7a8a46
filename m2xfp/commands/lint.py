"""``m2xfp lint``: check emitted Verilog with four linters and yosys."""

from pathlib import Path

import click

from m2xfp.commands.options import OUTPUT_FOLDER, chosen, parameter_options

__all__ = ["command"]


@click.command()
@click.argument("unit", required=False, is_eager=True)
@parameter_options
@click.option(
    "-o",
    "--output",
    type=OUTPUT_FOLDER,
    default=Path("build/verilog"),
    show_default=True,
    help="Folder for the emitted files.",
)
def command(
    unit: str | None,
    config: str | None,
    settings: tuple[str, ...],
    name: str | None,
    output: Path,
) -> None:
    r"""Emit UNIT, or every unit, and check the Verilog with all warnings of five tools.

    Verilator, slang, Icarus and verible read the text without waivers. Yosys: no wire without a
    driver, none with several, no loops, no latches. Findings are printed, and the exit status is
    then 1. slang, Icarus and verible are left out where they are not installed.

    \b
    m2xfp lint
    m2xfp lint activation_quantizer --config bf16x32
    m2xfp lint gemm_core --set rows=1 --set columns=32
    """
    from m2xfp.progress import track
    from m2xfp.rtl.verilog.emit import emit
    from m2xfp.synth.flow.lint import lint_file, linters

    found, missing = linters()
    instances = chosen(unit, config, settings, name)
    findings: list[str] = []
    for instance in track(instances, desc="lint", unit="file"):
        emitted = emit(instance, output)
        findings += lint_file(emitted.verilog, emitted.top)
    for finding in findings:
        click.echo(finding)
    for tool, install in missing.items():
        click.echo(f"left out: {tool}; install it with: {install}")
    click.echo(f"tools: {', '.join(found)}")
    click.echo(f"{len(instances)} files checked, {len(findings)} findings")
    if findings:
        raise SystemExit(1)
