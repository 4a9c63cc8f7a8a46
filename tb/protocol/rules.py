"""The stream rules as assertions: a SystemVerilog file that is bound to an emitted unit.

Whoever simulates a unit adds the file to its sources, and the simulation stops at the clock in
which either side of a stream breaks a rule. `m2xfp verilog --rules` writes it; the cocotb
simulations here always have it.
"""

from m2xfp.facts import Facts, Stream

__all__ = ["rules_text"]

_CHECKER = """\
// Stream rules (AMBA AXI4-Stream, 2.2): a beat that is offered stays, unchanged, until it is taken;
// none is offered in the clock after reset.
module {name} #(
  parameter WIDTH = 8,
  parameter SOURCE = 0,
  parameter NAME = "stream"
) (
  input clk,
  input rst,
  input tvalid,
  input tready,
  input tlast,
  input [WIDTH-1:0] tdata
);
  reg waits = 1'b0;
  reg was_reset = 1'b0;
  reg last_before;
  reg [WIDTH-1:0] data_before;
  always @(posedge clk) begin
    if (!rst && waits) begin
      assert (tvalid) else $fatal(1, "%s: valid dropped before it was accepted", NAME);
      assert (tdata == data_before && tlast == last_before)
        else $fatal(1, "%s: the payload changed while it was stalled", NAME);
    end
    if (!rst && was_reset && SOURCE != 0)
      assert (!tvalid) else $fatal(1, "%s: valid right after reset", NAME);
    waits <= !rst && tvalid && !tready;
    was_reset <= rst;
    last_before <= tlast;
    data_before <= tdata;
  end
endmodule
"""


def _checked(stream: Stream, checker: str) -> str:
    """Return the instance that watches one stream."""
    ports = ", ".join(
        f".{port}({stream.prefix}_{port})" for port in ("tvalid", "tready", "tlast", "tdata")
    )
    source = 0 if stream.is_input else 1
    return (
        f"  {checker} #(.WIDTH({8 * stream.bytes}), .SOURCE({source}), "
        f'.NAME("{stream.prefix}")) {stream.prefix}_rules\n'
        f"    (.clk(clk), .rst(rst), {ports});"
    )


def rules_text(facts: Facts) -> str:
    """Return SystemVerilog that checks every stream of a unit, to be compiled beside it.

    A violation ends the simulation with ``$fatal`` and a message that begins with the stream's
    prefix: ``valid dropped before it was accepted``, ``the payload changed while it was stalled``,
    or, of an output, ``valid right after reset``.

    Parameters
    ----------
    facts
        The emitted unit.
    """
    top = facts.top
    checker = f"{top}_stream_rules"
    ports = ["input clk", "input rst"]
    for stream in facts.streams:
        ports += [f"input {stream.prefix}_{port}" for port in ("tvalid", "tready", "tlast")]
        ports.append(f"input [{8 * stream.bytes - 1}:0] {stream.prefix}_tdata")
    instances = "\n".join(_checked(stream, checker) for stream in facts.streams)
    joined = ",\n  ".join(ports)
    return (
        f"// Assertions for simulating {top}; no part of the design.\n"
        f"{_CHECKER.format(name=checker)}\n"
        f"module {top}_rules (\n  {joined}\n);\n{instances}\nendmodule\n\n"
        f"bind {top} {top}_rules rules (.*);\n"
    )
