"""``m2xfp lint``: check emitted Verilog with Verilator and yosys."""

from pathlib import Path

import click

from m2xfp.commands.options import chosen, parameter_options

__all__ = ["command", "lint_file"]


@click.command()
@click.argument("unit", required=False, is_eager=True)
@parameter_options
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
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
    r"""Emit UNIT, or every unit, and check the Verilog.

    Verilator with all warnings on: whatever is not on the short list of harmless forms
    (tb/lint.vlt) is a finding. Yosys: no wire without a driver, none with several, no loops, no
    latches. Findings are printed, and the exit status is then 1.

    \b
    m2xfp lint
    m2xfp lint activation_quantizer --config bf16x32
    m2xfp lint gemm_core --set rows=1 --set columns=32
    """
    from tqdm import tqdm

    from m2xfp.rtl.verilog.emit import emit

    instances = chosen(unit, config, settings, name)
    findings: list[str] = []
    for instance in tqdm(instances, desc="lint", unit="file", disable=None):
        emitted = emit(instance, output)
        findings += lint_file(emitted.verilog, emitted.top)
    for finding in findings:
        click.echo(finding)
    click.echo(f"{len(instances)} files checked, {len(findings)} with findings")
    if findings:
        raise SystemExit(1)


def lint_file(verilog: Path, top: str) -> list[str]:
    """Check one file with both tools.

    Returns
    -------
    What each tool that was not content had to say; empty if both were.

    Raises
    ------
    MissingToolError
        If Verilator or yosys is missing.
    """
    return [
        f"{verilog}, {tool}:\n{text}"
        for tool, text in (
            ("Verilator", _verilator(verilog, top)),
            ("yosys", _yosys(verilog, top)),
        )
        if text
    ]


def _verilator(verilog: Path, top: str) -> str:
    """Return Verilator's warnings and errors, or an empty text."""
    from m2xfp.tb import verilator

    waivers = Path(verilator.__file__).with_name("lint.vlt")
    options = ["--lint-only", "-Wall", "--top-module", top]
    done = verilator.find_verilator().run(
        [*options, str(waivers), str(verilog.resolve())], verilog.parent
    )
    return done.stdout if done.returncode else ""


def _yosys(verilog: Path, top: str) -> str:
    """Return yosys' complaints, or an empty text."""
    import subprocess
    import tempfile

    from m2xfp.synth.flow.yosys import yosys_command

    script = "\n".join(
        [
            f"read_verilog -noautowire {verilog.name}",
            f"hierarchy -check -top {top}",
            "proc",
            # proc leaves latches as cells of their own: a design without them has none to select.
            "select -assert-none t:$dlatch t:$adlatch t:$dlatchsr t:$sr",
            "check -assert",
            "",
        ]
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / verilog.name).write_bytes(verilog.read_bytes())
        (folder / "lint.ys").write_text(script)
        done = subprocess.run(
            [*yosys_command()[0], "lint.ys"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    if not done.returncode:
        return ""
    lines = [line for line in done.stdout.splitlines() if "Warning" in line or "ERROR" in line]
    return "\n".join(lines) or done.stdout
