"""The accelerator's throughput and area: accepted figures, and what they are counted from."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from m2xfp.cli import cli
from m2xfp.errors import InputError
from m2xfp.facts import EmittedFiles
from m2xfp.results import RESULTS, read_figures
from m2xfp.synth.studies.accelerator import SIMULATED
from m2xfp.synth.studies.accelerator_area import Cut, memories_cut
from m2xfp.synth.studies.accelerator_throughput import RUNS, count_layers, counted_row
from m2xfp.synth.studies.paper_accelerator import facts

Emit = Callable[[str, str], EmittedFiles]


def test_accepted_clocks_are_the_cycle_models(sim_dir: Path) -> None:
    """What was simulated is what the model counts, and what the model counts is accepted."""
    accepted = read_figures(RESULTS / SIMULATED)
    rows = iter(accepted["simulated"])
    for run in RUNS:
        for size in run[3]:
            row = next(rows)
            assert row["clocks"] == row["model"]
            assert row == counted_row(run, size, sim_dir)
    assert next(rows, None) is None
    (opt,) = (model for model in facts().models if model.name == "opt6b7")
    assert count_layers(opt, 1, sim_dir) in accepted["layers"]


def test_what_the_accelerator_reaches() -> None:
    """The aims: 97 % of the peak, and 90 % of the bandwidth for weights.

    In the emitted Verilog, and on all of the paper's layers.
    """
    accepted = read_figures(RESULTS / SIMULATED)
    for row in accepted["simulated"]:
        assert row["of_peak"] >= 0.97 if row["m"] > 1 else row["weights_of_bandwidth"] >= 0.9, row
    for row in accepted["layers"]:
        many = row["tokens"] > 1
        assert row["of_peak"] >= 0.97 if many else row["weights_of_bandwidth"] >= 0.9, row


def test_a_configuration_is_for_the_area_alone() -> None:
    with pytest.raises(InputError, match="--config m2xfp-2x2: only mode area takes it, not paper"):
        CliRunner().invoke(cli, ["accelerator", "--config", "m2xfp-2x2"], catch_exceptions=False)


def test_memories_are_cut_out_and_counted(emitted: Emit) -> None:
    """Of an emitted unit: banks of two rows of five beats, and the tables beside them."""
    whole = emitted("channel_permuter", "fp32x4").verilog.read_text()
    assert "words[" in whole
    text, cut = memories_cut(whole)
    # 10 words of 32 bits: a word, two addresses and two enables end in flip-flops.
    assert Cut(320, 32 + 2 * 4 + 2) in cut.values()
    assert "words[" not in text
    assert text.count("  (* keep *) reg ") == len(cut)
