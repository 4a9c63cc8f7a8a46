"""The command line as a whole: every help text."""

import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from m2xfp.cli import COMMANDS, cli


def subcommands(group: click.Group, *path: str) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        yield (*path, name)
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from subcommands(command, *path, name)


@pytest.mark.parametrize("path", [(), *subcommands(cli)], ids=" ".join)
def test_help_is_readable(path: tuple[str, ...]) -> None:
    """It says something, and examples keep their lines: no mark of them is left over."""
    result = CliRunner().invoke(cli, [*path, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage: " in result.output
    assert "\\b" not in result.output
    assert "\b" not in result.output


def test_every_command_is_listed() -> None:
    assert set(COMMANDS) == set(cli.list_commands(click.Context(cli)))


def test_it_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "m2xfp", "verilog", "--list"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "dot_product" in done.stdout
    wrong = subprocess.run([*command[:3], "nothing"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "unknown command 'nothing'" in wrong.stderr
