"""``m2xfp fpga``: boards, bitstreams, their check and their figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2xfp.commands.fpga_run import command as run
from m2xfp.commands.options import COUNT, OUTPUT_FOLDER, parameter_help
from m2xfp.extras import require
from m2xfp.results import RESULTS

__all__ = ["command"]

if TYPE_CHECKING:
    from m2xfp.fpga.flow.boards import Board
    from m2xfp.fpga.host.device import Device
    from m2xfp.rtl.catalog import Instance


def _design_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what is built, and where."""
    for option in (
        click.option(
            "--help-parameters",
            is_flag=True,
            help="Print the parameters of the units with types, allowed values and defaults, and "
            "stop.",
        ),
        click.option(
            "-o",
            "--output",
            "folder",
            type=OUTPUT_FOLDER,
            help="Folder for everything that is built (default: build/fpga/BOARD/UNITS).",
        ),
        click.option(
            "--baud",
            type=COUNT,
            help="Rate of the serial link; the board's default if left out.",
        ),
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="PARAMETER=VALUE",
            help="Give a parameter of the unit another value; with several units "
            "UNIT.PARAMETER=VALUE. Repeatable.",
        ),
        click.option(
            "--config",
            "configs",
            multiple=True,
            metavar="NAME",
            help="Build the unit with this configuration of the catalog instead of its board's; "
            "with several units UNIT.NAME.",
        ),
        click.option(
            "--unit",
            "units",
            multiple=True,
            metavar="NAME",
            help="Unit to build in, by its name on boards or in the catalog; repeat for several. "
            "The board's default if left out.",
        ),
    ):
        function = option(function)
    return function


def require_board_tools(board: Board) -> None:
    """Raise MissingToolError unless all that a build for the board calls is installed."""
    from m2xfp.fpga.flow.families import FAMILIES
    from m2xfp.fpga.flow.tools import find_tool
    from m2xfp.synth.flow.yosys import yosys_command

    require("filelock", "amaranth_boards")
    yosys_command()
    for tool in (FAMILIES[board.family].nextpnr, FAMILIES[board.family].packer):
        find_tool(tool)


def _instances(
    board: str,
    units: tuple[str, ...],
    configs: tuple[str, ...],
    settings: tuple[str, ...],
    help_parameters: bool,
) -> list[Instance]:
    """Return the units of a command line, or the board's default ones; or tell of them and stop."""
    from m2xfp.fpga.flow.boards import find_board
    from m2xfp.fpga.gateware.units import board_instances, find_board_unit

    chosen = units or find_board(board).units
    if help_parameters:
        for name in chosen:
            click.echo(parameter_help(find_board_unit(name).name))
        click.get_current_context().exit()
    require_board_tools(find_board(board))
    return board_instances(chosen, configs, settings)


@click.group("fpga")
def command() -> None:
    """Build for boards, check bitstreams, and run arrays on a board."""


@command.command("boards")
def boards() -> None:
    """List the boards, what their devices hold and what is built for them by default."""
    from m2xfp.fpga.flow.boards import BOARDS
    from m2xfp.fpga.flow.families import FAMILIES
    from m2xfp.fpga.gateware.units import board_units

    for board in BOARDS.values():
        cells = FAMILIES[board.family].cells
        capacity = ", ".join(
            f"{board.capacity[kinds[0]]} {name}"
            for name, kinds in cells.items()
            if kinds[0] in board.capacity
        )
        click.echo(
            f"{board.name:<14}{board.title}, {board.clock_hz / 1e6:g} MHz, {board.baud} baud"
        )
        click.echo(f"{'':<14}{capacity}; default: {', '.join(board.units)}")
    for name, unit in board_units().items():
        assert unit.board is not None
        click.echo(f"{name:<14}{unit.name} {unit.board.config}: {unit.purpose}")


@command.command("build")
@click.argument("board")
@_design_options
def build_command(
    board: str,
    units: tuple[str, ...],
    configs: tuple[str, ...],
    settings: tuple[str, ...],
    baud: int | None,
    folder: Path | None,
    help_parameters: bool,
) -> None:
    r"""Build the bitstream for BOARD, with a report of cells and timing beside it.

    A design that does not fit or does not meet the board's clock is an error with the figures. The
    same tools write the same bytes; a finished build is not run again.

    \b
    m2xfp fpga build icebreaker
    m2xfp fpga build icebreaker --unit quantizer --set lanes=16
    m2xfp fpga build ulx3s-85f --unit dot --unit accelerator --set dot.depth=1
    """
    from m2xfp.fpga.flow.bitstream import build
    from m2xfp.fpga.flow.boards import find_board

    chosen = _instances(board, units, configs, settings, help_parameters)
    report, folder = build(board, chosen, baud=baud, folder=folder)
    for name, count in report.cells.items():
        click.echo(f"{name:<12}{count.used:>7} of {count.available}")
    click.echo(
        f"{'clock':<12}{report.fmax_mhz:7.2f} MHz reached, {report.constraint_mhz:.2f} MHz needed"
    )
    click.echo(f"{folder / report.bitstream}")
    click.echo(f"load it: {find_board(board).loader} {folder / report.bitstream}")


@command.command("check")
@click.argument("board")
@_design_options
@click.option(
    "--groups",
    type=click.IntRange(12, 1 << 30),
    default=240,
    show_default=True,
    help="About how many groups each unit computes.",
)
@click.option(
    "--faults",
    type=click.IntRange(0, 1 << 30),
    default=0,
    show_default=True,
    help="How many wrong LUTs to try, each of which should be noticed.",
)
@click.option(
    "--bits", is_flag=True, help="Invert one bit of a LUT's table each, instead of whole LUTs."
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Of the values and the faults.",
)
@click.option(
    "--layer",
    metavar="NAME",
    help="Also compute this linear layer of the bundled model, for a token of held-out text, on "
    "the board's accelerator.",
)
@click.option(
    "--outputs",
    type=COUNT,
    help="Only the first so many outputs of the layer.",
)
def check_command(
    board: str,
    units: tuple[str, ...],
    configs: tuple[str, ...],
    settings: tuple[str, ...],
    baud: int | None,
    folder: Path | None,
    help_parameters: bool,
    groups: int,
    faults: int,
    bits: bool,
    seed: int,
    layer: str | None,
    outputs: int | None,
) -> None:
    r"""Check the bitstream of BOARD without a board: bytes in, bytes out, against the golden model.

    For iCE40 the bitstream itself is unpacked into LUTs, flip-flops and memories and simulated; for
    ECP5 the netlist that was placed and routed. The host library drives its serial line as on a
    board. With --faults, LUTs are inverted one at a time, and each should change an answer.

    \b
    m2xfp fpga check icebreaker
    m2xfp fpga check icebreaker --faults 315
    m2xfp fpga check ulx3s-85f --unit accelerator --layer layers.0.self_attn.k_proj
    """
    require("torch", "safetensors")
    from m2xfp.errors import InputError
    from m2xfp.fpga.check.bitstream_check import check_bitstream
    from m2xfp.tb.verilator import find_verilator

    find_verilator()
    if outputs is not None and layer is None:
        raise InputError(f"--outputs {outputs}: name the --layer that has them")
    chosen = _instances(board, units, configs, settings, help_parameters)
    check = check_bitstream(
        board,
        chosen,
        baud=baud,
        folder=folder,
        groups=groups,
        faults=faults,
        seed=seed,
        whole=not bits,
        beside=_layer_check(layer, outputs) if layer else None,
    )
    click.echo(check.summary())
    for survivor in check.faults.survivors if check.faults else ():
        click.echo(f"  {survivor.reason}: {survivor.fault} ({survivor.cell})")


def _layer_check(name: str, outputs: int | None) -> Callable[[Device], str]:
    """Return what computes a layer of the bundled model on a board's accelerator."""
    from m2xfp.accelerator import Device as Accelerator
    from m2xfp.accelerator.layer import run_layer
    from m2xfp.errors import InputError
    from m2xfp.fpga.check.traffic import CheckError
    from m2xfp.fpga.host.serial_transport import SerialTransport
    from m2xfp.synth.studies.linear_layers import layer_reading

    def check(n: int, _: int) -> None:
        if outputs is not None and outputs > n:
            raise InputError(f"--outputs {outputs}: {name} has {n}")

    module, read = layer_reading(name, 1, check)

    def run(board: Device) -> str:
        found = run_layer(
            Accelerator(SerialTransport(board)), read, module.weight.detach(), outputs
        )
        if not found.equal:
            raise CheckError(f"{name}: {found}")
        return f"{name}: {found}"

    return run


@command.command("table")
@click.argument("boards", nargs=-1, metavar="[BOARD]...")
@click.option(
    "--results",
    type=OUTPUT_FOLDER,
    default=RESULTS,
    show_default=True,
    help="Folder for fpga.json.",
)
def table(boards: tuple[str, ...], results: Path) -> None:
    """Build each BOARD, or every board, with its default units; write the figures (slow).

    A board that holds the accelerator is built with that as well.
    What `m2xfp fpga check` has shown of these builds is kept beside them.
    """
    from m2xfp.fpga.flow.boards import BOARDS, find_board
    from m2xfp.fpga.flow.report import write_results

    chosen = [find_board(name) for name in boards or BOARDS]
    for board in chosen:
        require_board_tools(board)
    path = write_results(results, [board.name for board in chosen])
    click.echo(f"written: {path}; draw the pages anew: m2xfp report --pages")


command.add_command(run)
