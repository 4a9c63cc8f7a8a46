"""The host's end of a chip's pins: what it sends with a clock that is off, and what it takes."""

from pathlib import Path

import pytest

from m2xfp.fpga.check.pins import Pins, compile_netlist

DIVISOR = 12

# Lane 0 sends two bytes, 0xA6, after a falling edge; lane 1 does the same with one bit or byte that
# begins at another clock.
CHIP = """
module chip (input clk, input rx, input [15:0] batch, output [1:0] tx, output [1:0] led,
  output [1:0] hit);
reg [11:0] at = 0;
reg high = 1;
assign led = 0, hit = 0;
function bit_at(input integer clock);
  bit_at = clock < 0 || clock >= 2 * 10 * 12 ? 1'b1
    : 1'(12'b1_10100110_0_1_1 >> (2 + clock % 120 / 12));
endfunction
integer now;
always @* now = 20 * 12 - integer'(at);
assign tx[0] = at == 0 ? 1'b1 : bit_at(now);
assign tx[1] = at == 0 ? 1'b1 : bit_at(LATE);
always @(posedge clk) begin
  high <= rx;
  if (at != 0) at <= at - 1;
  else if (high && !rx) at <= 20 * 12;
end
endmodule
"""


@pytest.mark.parametrize(
    ("late", "broken"),
    [
        ("now", False),
        ("now == 24 ? now - 1 : now", True),  # a bit ends a clock late
        ("now == 23 ? now + 1 : now", True),  # or early
        ("now == 119 ? now + 1 : now", True),  # the next byte begins within the stop bit
    ],
)
def test_bits_have_their_length(late: str, broken: bool, tmp_path: Path) -> None:
    (verilog := tmp_path / "chip.v").write_text(CHIP.replace("LATE", late))
    with Pins(compile_netlist(verilog, tmp_path), DIVISOR, 400, lanes=2) as pins:
        assert pins.exchange(b"\xff") == b"\xa6\xa6"
        assert not pins.broken(0)
        assert pins.broken(1) == broken


# Sends back for how many clocks its input was low.
PULSE = """
module chip (input clk, input rx, input [15:0] batch, output tx, output led, output hit);
reg [15:0] low = 0;
reg [11:0] at = 0;
reg [9:0] frame = 10'h3ff;
reg sent = 0;
assign led = 0, hit = 0, tx = at == 0 ? 1'b1 : 1'(frame >> (10 - (at + 11) / 12));
always @(posedge clk) begin
  if (!rx) begin low <= low + 1; sent <= 0; end
  else if (low != 0 && !sent && at == 0) begin
    frame <= {1'b1, low[7:0], 1'b0};
    at <= 120; sent <= 1; low <= 0;
  end
  if (at != 0) at <= at - 1;
end
endmodule
"""


def test_the_hosts_clock_is_right_slow_and_fast_in_turn(tmp_path: Path) -> None:
    """A byte of zeros is low for nine bits: 108 clocks, 2 % more, 2 % less."""
    (verilog := tmp_path / "chip.v").write_text(PULSE)
    with Pins(compile_netlist(verilog, tmp_path), DIVISOR, 400) as pins:
        lengths = [pins.exchange(b"\x00")[0] for _ in range(6)]
    assert all(108 * 1.02 - 1 <= length <= 108 * 1.02 + 1 for length in lengths[0::3])
    assert all(108 * 0.98 - 1 <= length <= 108 * 0.98 + 1 for length in lengths[1::3])
    assert lengths[2::3] == [108, 108]
