"""The ``m2xfp`` command; a subcommand is a module in ``m2xfp/commands``, loaded when called."""

import importlib
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn, TextIO, TypeVar, cast

import click

from m2xfp import __version__
from m2xfp.environment import asked_path
from m2xfp.errors import M2xfpError, explain, memory_lack
from m2xfp.extras import missing_package
from m2xfp.interrupts import leave, orderly_end
from m2xfp.progress import bars_of_libraries

__all__ = ["cli", "main"]

T = TypeVar("T")

# name -> one-line help. The module m2xfp.commands.<name> holds a click command called `command`.
# The table stands here so that `m2xfp --help` needs neither torch nor Amaranth.
COMMANDS = {
    "accelerator": "Speed and energy of the paper's comparison of accelerators.",
    "bench": "Speed and memory of the golden model against a memory copy.",
    "check": "What every build of a unit must pass: lint, regression, streams, Icarus.",
    "convert": "A checkpoint folder in another layout or format.",
    "demo": "The main job: real activations through the golden model and the emitted Verilog.",
    "docs": "The documentation site.",
    "driver": "The accelerator's driver in C, with an example on the simulated device.",
    "eval": "Perplexity of a language model in number formats.",
    "explore": "Sweep a unit's parameters: area, energy and accuracy, on Dask.",
    "formats": "The table of number formats, with bits per value.",
    "fpga": "Boards: designs, bitstreams and running arrays on one.",
    "gemm": "Clocks of a GEMM core on the layers of language models.",
    "generate": "The bundled language model generates text on the accelerator's Verilog.",
    "lint": "Linters and yosys checks of all emitted Verilog.",
    "coverage": "What a unit's regression covers, and what nothing can.",
    "mutate": "Faults in a netlist, and whether the unit's regression notices them.",
    "prove": "Proofs about emitted units, each shown to fail with a fault.",
    "registers": "Map, C header, page and IP-XACT of the accelerator's registers.",
    "report": "Tables and plots of the accepted figures, and those in the pages.",
    "simulate": "Run a tensor through the emitted Verilog of a unit.",
    "status": "What has been done for each unit, and its stage of verification.",
    "study": "Measure again what the pages show, by name.",
    "synth": "Area, timing and power of units on a standard-cell library.",
    "train": "Train the bundled language model again.",
    "vectors": "A unit's test vectors, with a testbench that runs in any simulator.",
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
        loaded.name = cmd_name
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
    asked_path()  # a name that there is not is refused before any work


_with_marks(cli)


class _Output:
    """The standard output, whose reader may leave early, as `head` does.

    Nobody wants to read what comes then: it goes nowhere, and the command goes on to its own end.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, to nowhere if nobody reads."""
        return self._unless_left(lambda: self._stream.write(text), len(text))

    def flush(self) -> None:
        """Flush, to nowhere if nobody reads."""
        self._unless_left(self._stream.flush, None)

    def _unless_left(self, act: Callable[[], T], otherwise: T) -> T:
        try:
            return act()
        except BrokenPipeError:
            self.leave()
            return otherwise

    def leave(self) -> None:
        """Let all that is still to be written go nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _run() -> int:
    """Run the command line and return its exit status."""
    try:
        status = cli.main(standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except M2xfpError as error:
        message = str(error)
    except (click.Abort, KeyboardInterrupt):  # at a prompt, or after a signal
        return 130
    except ModuleNotFoundError as error:
        missing = missing_package(error.name or "")
        if missing is None:
            raise
        message = str(missing)
    except OSError as error:
        if error.errno is None:
            raise
        message = explain(error)
    except (MemoryError, RuntimeError, ImportError) as error:
        lack = memory_lack(error)
        if lack is None:
            raise
        message = lack
    click.echo(f"Error: {message}", err=True)
    return 2


def _run_to_output() -> int:
    """Run the command line with a standard output whose reader may leave; return the status."""
    stdout = sys.stdout
    if stdout is None:  # closed by the caller
        return _run()
    output = _Output(stdout)
    sys.stdout = cast(TextIO, output)
    try:
        status = _run()
        output.flush()
    except OSError as error:  # a full disk behind the standard output
        click.echo(f"Error: standard output: {explain(error)}", err=True)
        output.leave()
        status = 2
    finally:
        sys.stdout = stdout
    return status


def main() -> NoReturn:
    """Run the command line; user errors print one message and exit with status 2.

    So does what the system refuses, such as writing to a full disk, and a package that is not
    installed. Anything else is a defect and keeps its traceback. SIGINT and SIGTERM end it in
    order, with status 130 and 143.
    """
    bars_of_libraries()
    received: list[int] = []
    try:
        with orderly_end() as received:
            status = _run_to_output()
    except BaseException:
        if not received:
            raise
    if received:  # whatever has become of the exception on its way
        with suppress(OSError):
            click.echo("Interrupted.", err=True)
        leave(received[0])
    sys.exit(status)
