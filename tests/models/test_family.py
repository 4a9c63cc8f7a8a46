"""The table of what other systems name: its rows are commands, and its figures theirs."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from m2xfp.cli import cli
from m2xfp.commands.eval import command as eval_command
from m2xfp.models.cases import Case
from m2xfp.models.checkpoints import open_checkpoint
from m2xfp.models.family_study import CALIBRATION_WINDOWS, ROWS, Row, family_figures, family_tables
from m2xfp.models.mixed import Rule


def words(row: Row, windows: int) -> list[str]:
    program, name, *given = shlex.split(row.command(windows))
    assert (program, name) == ("m2xfp", "eval")
    return given


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.system}: {row.name}")
def test_commands(row: Row) -> None:
    """Each is one that the command line takes, of formats and rules that there are."""
    found = eval_command.make_context("eval", words(row, 3)).params
    assert found["windows"] == 3
    assert found["weights"] == ((row.weights,) if row.weights else ())
    assert found["mixed"] == ((row.mixed,) if row.mixed else ())
    assert (found["rotate"] == "hadamard") == row.rotated
    if row.mixed:
        Rule.parse(row.mixed)
    else:
        assert Case.parse(row.weights, row.activations).bits_per_value


def test_rows_are_told_apart() -> None:
    assert len({row.command(1) for row in ROWS}) == len(ROWS)
    assert len({(row.system, row.name) for row in ROWS}) == len(ROWS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "row",
    [
        next(row for row in ROWS if row.mixed),
        next(row for row in ROWS if row.rotated),
        next(row for row in ROWS if row.cache),
        next(row for row in ROWS if row.weights != row.activations),
    ],
    ids=lambda row: row.name,
)
def test_figures_are_those_of_the_command(row: Row, tmp_path: Path) -> None:
    found = family_figures(open_checkpoint(None), torch.device("cpu"), 2, rows=[row])
    done = CliRunner().invoke(cli, ["eval", *words(row, 2), "-o", str(tmp_path)])
    assert done.exit_code == 0, done.output
    ours, theirs = found["results"][1], json.loads((tmp_path / "perplexity.json").read_text())
    [_, record] = theirs["results"]
    for name in ("perplexity", "over_unquantized", "bits_per_value"):
        assert ours[name] == record[name], name
    assert f"`{row.command(2)}`" in family_tables(found)["family"]


def test_the_calibration_is_that_of_the_command() -> None:
    from m2xfp.commands import mixed_options

    assert mixed_options._WINDOWS == CALIBRATION_WINDOWS
    assert replace(ROWS[0], rotated=True).command(1) == (
        "m2xfp eval --windows 1 --rotate hadamard --weights mxfp4:scale_mode=pot,ties=away "
        "--activations mxfp4:scale_mode=pot,ties=away"
    )
