"""The accelerator's throughput and area: accepted figures, and what they are counted from."""

from pathlib import Path

from m2xfp.results import RESULTS, read_figures
from m2xfp.synth.studies.accelerator import SIMULATED
from m2xfp.synth.studies.accelerator_area import memories_cut
from m2xfp.synth.studies.accelerator_throughput import RUNS, count_layers, counted_row
from m2xfp.synth.studies.paper_accelerator import facts


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
    """The aims, on the paper's layers: 97 % of the peak, and 90 % of the bandwidth for weights.

    Falcon's k is 142 groups, and the last 14 of a row fill no words: it alone stays below.
    """
    below = set()
    for row in read_figures(RESULTS / SIMULATED)["layers"]:
        share = row["of_peak"] if row["tokens"] > 1 else row["weights_of_bandwidth"]
        if share < (0.97 if row["tokens"] > 1 else 0.9):
            below.add((row["model"], row["tokens"]))
    assert below == {("falcon_7b", 1)}


MEMORY = """module small (
  input  wire        clk,
  input  wire        write,
  input  wire [7:0]  write_data,
  output wire [7:0]  read_data
);
  reg [7:0] t0;
  assign read_data = t0;
  reg [7:0] words [63:0];
  always @(posedge clk) begin
    if (write)
      words[0] <= write_data;
  end
endmodule
"""


def test_memories_are_cut_out_and_counted() -> None:
    text, bits = memories_cut(f"module top ();\nendmodule\n\n{MEMORY}")
    assert bits == {"small": 8 * 64}
    assert "module top ();" in text
    assert "words" not in text
    assert "assign read_data = write_data;" in text
