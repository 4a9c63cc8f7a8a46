"""A wrapper with the names that Arm's bus and Vivado expect: aclk, aresetn, TKEEP.

``aresetn`` is active low and synchronous, as the unit's reset is. TKEEP is all ones at outputs, for
every byte of a beat counts; at inputs it is taken and ignored for the same reason. Attributes tell
Vivado's packager which ports make an interface and which clock it has.
"""

from collections.abc import Iterator

from m2xfp.errors import InputError
from m2xfp.facts import Facts, Stream
from m2xfp.rtl.verilog.beside.folding import folded

__all__ = ["wrapper"]

_AXIS = "xilinx.com:interface:axis:1.0"


def wrapper(facts: Facts) -> str:
    """Return the module ``<top>_axis``; InputError for a unit without streams."""
    if not facts.streams:
        raise InputError(
            f"{facts.top} has no streams, so no wrapper; its ports stand by themselves"
        )
    ports = [*_clock(facts), *(line for stream in facts.streams for line in _ports(stream))]
    ports += [
        f"  {port.direction:<6} wire {_span(port.width):<8}{port.name}" for port in facts.signals
    ]
    inner = [f".{facts.clock}(aclk)", f".{facts.reset}(~aresetn)"]
    inner += [f".{port}({port})" for stream in facts.streams for port in stream.ports]
    inner += [f".{port.name}({port.name})" for port in facts.signals]
    keeps = [
        f"  assign {stream.prefix}_tkeep = {{{stream.bytes}{{1'b1}}}};\n"
        for stream in facts.outputs
    ]
    taken = ", ".join(f"{stream.prefix}_tkeep" for stream in facts.inputs)
    joined = ",\n".join(ports)
    connected = ",\n    ".join(inner)
    return folded(
        f"// {facts.top} with aclk, aresetn and TKEEP; every byte of a beat counts.\n"
        f"module {facts.top}_axis (\n{joined}\n);\n"
        f"  {facts.top} unit (\n    {connected}\n  );\n"
        f"{''.join(keeps)}"
        "  (* unused *) wire unused;\n"
        f"  assign unused = &{{1'b0, {taken}}};\n"
        "endmodule\n"
    )


def _span(width: int) -> str:
    return f"[{width - 1}:0] " if width > 1 else ""


def _clock(facts: Facts) -> Iterator[str]:
    buses = ":".join(stream.prefix for stream in facts.streams)
    yield (
        '  (* X_INTERFACE_INFO = "xilinx.com:signal:clock:1.0 aclk CLK" *)\n'
        f'  (* X_INTERFACE_PARAMETER = "ASSOCIATED_BUSIF {buses}, ASSOCIATED_RESET aresetn" *)\n'
        "  input  wire         aclk"
    )
    yield (
        '  (* X_INTERFACE_INFO = "xilinx.com:signal:reset:1.0 aresetn RST" *)\n'
        '  (* X_INTERFACE_PARAMETER = "POLARITY ACTIVE_LOW" *)\n'
        "  input  wire         aresetn"
    )


def _ports(stream: Stream) -> Iterator[str]:
    forward, backward = ("input", "output") if stream.is_input else ("output", "input")
    for name, direction, width in (
        ("tdata", forward, stream.tdata_width),
        ("tkeep", forward, stream.bytes),
        ("tvalid", forward, 1),
        ("tready", backward, 1),
        ("tlast", forward, 1),
    ):
        yield (
            f'  (* X_INTERFACE_INFO = "{_AXIS} {stream.prefix} {name.upper()}" *)\n'
            f"  {direction:<6} wire {_span(width):<8}{stream.prefix}_{name}"
        )
