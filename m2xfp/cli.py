"""The ``m2xfp`` command; a subcommand is a module in ``m2xfp/commands``, loaded when called."""

import importlib
import sys
from typing import NoReturn

import click

from m2xfp import __version__
from m2xfp.errors import M2xfpError

__all__ = ["cli", "main"]

# name -> one-line help. The module m2xfp.commands.<name> holds a click command called `command`.
# The table stands here so that `m2xfp --help` needs neither torch nor Amaranth.
COMMANDS = {
    "bench": "Speed and memory of the golden model against a memory copy.",
    "demo": "The main job: real activations through the golden model and the emitted Verilog.",
    "eval": "Perplexity of a language model in number formats.",
    "explore": "Sweep a unit's parameters: area, energy and accuracy, on Dask.",
    "formats": "The table of number formats, with bits per value.",
    "fpga": "Boards: designs, bitstreams and running arrays on one.",
    "gemm": "Clocks of a GEMM core on the layers of language models.",
    "lint": "Verilator and yosys checks of all emitted Verilog.",
    "mutate": "Faults in a netlist, and whether the unit's regression notices them.",
    "report": "Tables and plots of the accepted figures, and those in the pages.",
    "simulate": "Run a tensor through the emitted Verilog of a unit.",
    "study": "Measure again what the pages show, by name.",
    "synth": "Area, timing and power of units on a standard-cell library.",
    "train": "Train the bundled language model again.",
    "verilog": "Emit Verilog, a JSON description and a FuseSoC core for units.",
}


def _with_marks(command: click.Command) -> click.Command:
    """Return ``command``, help texts with click's mark of paragraphs that keep their lines.

    The mark is a backspace character. Docstrings are raw, so there it is a backslash and a b.
    """
    command.help = (command.help or "").replace("\\b\n", "\b\n")
    for inner in getattr(command, "commands", {}).values():
        _with_marks(inner)
    return command


class LazyGroup(click.Group):
    """A click group that imports a subcommand's module only when that subcommand is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all subcommands."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one subcommand."""
        if cmd_name not in COMMANDS:
            return None
        loaded: click.Command = importlib.import_module(f"m2xfp.commands.{cmd_name}").command
        return _with_marks(loaded)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name the existing subcommands when an unknown one is asked for."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            ctx.fail(f"unknown command {args[0]!r}; there are: {', '.join(sorted(COMMANDS))}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands from the table, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name]) for name in sorted(COMMANDS)])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="m2xfp")
def cli() -> None:
    r"""Generate, simulate and measure microscaling arithmetic units.

    \b
    m2xfp verilog                       every unit, every configuration, into build/verilog
    m2xfp simulate activation_quantizer --config bf16x32 --input x.npy --output y.npz
    m2xfp synth activation_quantizer    area on the osu018 library
    """


_with_marks(cli)


def main() -> NoReturn:
    """Run the command line; user errors print one message and exit with status 2."""
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except M2xfpError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        sys.exit(130)
    sys.exit(0)
