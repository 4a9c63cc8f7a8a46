"""``m2xfp verilog``: write units as Verilog."""

from pathlib import Path

import click

from m2xfp.commands.options import (
    OUTPUT_FOLDER,
    InputPath,
    Number,
    chosen,
    parameter_options,
)

__all__ = ["command"]


@click.command()
@click.argument("unit", required=False, is_eager=True)
@parameter_options
@click.option(
    "--from",
    "chip",
    type=InputPath(dir_okay=False, path_type=Path),
    help="A TOML file of instances, to emit a chip's worth of them at once.",
)
@click.option(
    "-o",
    "--output",
    type=OUTPUT_FOLDER,
    default=Path("build/verilog"),
    show_default=True,
    help="Folder for the files.",
)
@click.option(
    "--rules",
    is_flag=True,
    help="Write <module>_rules.sv too: the stream rules as assertions, for simulation.",
)
@click.option("--split", is_flag=True, help="A file for each module, instead of one for a unit.")
@click.option(
    "--memories",
    default="behavioural",
    show_default=True,
    metavar="MACRO",
    help="Make memories of this macro: sky130_sram_1kbyte_1rw1r_32x256_8, others of OpenRAM for "
    "sky130, fakeram7_tdp_4096x32, or one of --macros.",
)
@click.option(
    "--macros",
    type=InputPath(dir_okay=False, path_type=Path),
    help="A TOML file that describes memory macros of your own.",
)
@click.option(
    "--with",
    "kinds",
    multiple=True,
    metavar="KIND",
    help="Another file of each module, repeatable: sdc, xdc, lpf, pcf, package, ip-xact, wrapper, "
    "or all of them.",
)
@click.option(
    "--clock-ns",
    type=Number(0, 1e6, min_open=True, max_open=True),
    default=10.0,
    show_default=True,
    help="Period that the constraints ask for.",
)
@click.option(
    "--input-delay",
    type=Number(0, 1, max_open=True),
    default=0.3,
    show_default=True,
    help="Share of the period that is gone before inputs arrive.",
)
@click.option(
    "--output-delay",
    type=Number(0, 1, max_open=True),
    default=0.3,
    show_default=True,
    help="Share of the period that outputs need after they leave.",
)
@click.option(
    "--list", "listing", is_flag=True, help="List units and configurations, write nothing."
)
def command(
    unit: str | None,
    config: str | None,
    settings: tuple[str, ...],
    name: str | None,
    chip: Path | None,
    output: Path,
    rules: bool,
    split: bool,
    memories: str,
    macros: Path | None,
    kinds: tuple[str, ...],
    clock_ns: float,
    input_delay: float,
    output_delay: float,
    listing: bool,
) -> None:
    r"""Write UNIT, or every unit, as Verilog with a JSON description and a FuseSoC core.

    Each instance gives three files named like its module: .v with AXI4-Stream ports, .json with the
    same facts as its header, .core for FuseSoC. The same version writes the same bytes. Any
    parameter can be set; --help-parameters lists those of a unit.

    A TOML file for --from has a table for each module; unit, config and parameters are its keys:

    \b
    [act_quantizer]
    unit = "activation_quantizer"
    lanes = 8
    [array]
    unit = "gemm_core"
    config = "m2xfp-2x2"
    rows = 1
    columns = 32

    --memories makes every memory of a library's macros, whose models are the library's;
    otherwise it is an array that synthesis maps to what it has (docs/integration.md).

    With --rules a testbench that drops or changes a beat before it is taken, or a unit that does,
    ends the simulation at that clock: compile the file beside the unit's, it binds itself to it.

    --with adds what an integrator needs: timing constraints (.sdc; .xdc for Vivado, .lpf and .pcf
    for nextpnr), a SystemVerilog package with the fields of every stream as packed structures
    (_pkg.sv), IP-XACT (.xml), and a wrapper with aclk, aresetn and TKEEP (_axis.v).

    \b
    m2xfp verilog --list
    m2xfp verilog gemm_core --help-parameters
    m2xfp verilog activation_quantizer --config bf16x32 -o rtl/
    m2xfp verilog gemm_core --set rows=1 --set columns=32 --set max_k=4096 --name array
    m2xfp verilog dot_product --config m2xfp-fp32 --with all --clock-ns 2 -o ip/
    m2xfp verilog --from chip.toml -o rtl/
    """
    from m2xfp.errors import InputError, UnknownNameError
    from m2xfp.files import write_atomic
    from m2xfp.progress import track
    from m2xfp.rtl.catalog import UNITS
    from m2xfp.rtl.chip import read_chip
    from m2xfp.rtl.verilog.beside.constraints import TimingBudget
    from m2xfp.rtl.verilog.beside.files import KINDS, check_kinds, write_axi, write_beside
    from m2xfp.rtl.verilog.emit import emit
    from m2xfp.rtl.verilog.macros import find_macro
    from m2xfp.tb.protocol.rules import rules_text

    macro = None if memories == "behavioural" else find_macro(memories, macros)
    if macros and macro is None:
        raise click.UsageError("--macros describes macros; --memories names the one to use")
    budget = TimingBudget(clock_ns, input_delay, output_delay)
    for kind in kinds:
        if kind != "all" and kind not in KINDS:
            raise UnknownNameError("kind of file", kind, ["all", *KINDS])
    wanted = list(KINDS) if "all" in kinds else list(dict.fromkeys(kinds))
    if chip is not None:
        if unit or config or settings or name:
            raise click.UsageError("--from takes units and parameters from its file alone")
        instances = read_chip(chip)
    else:
        instances = chosen(unit, config, settings, name)
    if listing:
        for row in dict.fromkeys(instance.unit.name for instance in instances):
            click.echo(f"{row}: {UNITS[row].purpose}")
            click.echo(f"    {' '.join(x.config for x in instances if x.unit.name == row)}")
        return
    # Of many units those get a file that can have it; one that was named must be able to.
    for facts in (instance.facts for instance in instances) if unit else ():
        if "all" not in kinds:
            check_kinds(facts, wanted)
        if rules and not facts.streams:
            raise InputError(
                f"{facts.top} has no streams, so no rules of streams; leave --rules out"
            )
    for instance in track(instances, desc="Verilog", unit="file"):
        emitted = emit(instance, output, split=split, macro=macro)
        texts = (path.read_text() for path in output.glob(f"{emitted.top}*.v")) if macro else ()
        if unit and macro and not any(f"  {macro.name} macro_" in text for text in texts):
            click.echo(f"{emitted.top} has no memory: nothing is made of {macro.name}")
        if rules:
            write_atomic(output / f"{emitted.top}_rules.sv", rules_text(instance.facts))
        write_beside(instance.facts, output, wanted, budget)
        write_axi(instance, output, wanted)
    click.echo(f"{len(instances)} module{'s'[: len(instances) - 1]} written to {output}")
