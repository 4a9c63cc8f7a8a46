"""The channels of AXI4 and AXI4-Lite as streams, and what bursts may be.

A channel is a stream whose data are the fields of the channel; ``last`` is RLAST or WLAST, 1 on the
address channels and not looked at on others. Fields that never change (ID, lock, cache, protection)
are added where the ports get their AXI names (`m2xfp.rtl.verilog.axi_ports`). Source: AMBA AXI
protocol specification, IHI 0022.
"""

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import data

from m2xfp.rtl.arith.datapath import named

__all__ = [
    "INCR",
    "OKAY",
    "PAGE",
    "SLVERR",
    "address_layout",
    "burst_beats",
    "lite_address_layout",
    "lite_read_layout",
    "lite_write_layout",
    "read_layout",
    "response_layout",
    "touched_beats",
    "write_layout",
]

PAGE = 4096
"""No burst crosses a multiple of this."""

INCR = 1
OKAY, SLVERR = 0, 2

response_layout = data.StructLayout({"resp": 2})
lite_write_layout = data.StructLayout({"data": 32, "strb": 4})
lite_read_layout = data.StructLayout({"data": 32, "resp": 2})


def address_layout(address_bits: int) -> data.StructLayout:
    """Return the fields of AR and AW."""
    return data.StructLayout({"addr": address_bits, "len": 8, "size": 3, "burst": 2})


def read_layout(bus_bytes: int) -> data.StructLayout:
    """Return the fields of R."""
    return data.StructLayout({"data": 8 * bus_bytes, "resp": 2})


def write_layout(bus_bytes: int) -> data.StructLayout:
    """Return the fields of W."""
    return data.StructLayout({"data": 8 * bus_bytes, "strb": bus_bytes})


def lite_address_layout(address_bits: int) -> data.StructLayout:
    """Return the fields of AR and AW of AXI4-Lite."""
    return data.StructLayout({"addr": address_bits})


def touched_beats(address: Value, length: Value, bus_bytes: int) -> Value:
    """Return how many words of the bus some bytes from ``address`` on lie in."""
    lanes = (bus_bytes - 1).bit_length()
    return (address[:lanes] + length + (bus_bytes - 1)) >> lanes


def burst_beats(m: Module, address: Value, left: Signal, bus_bytes: int) -> Signal:
    """Return the beats of the next burst: those that are left, up to the end of the page."""
    lanes, page = (bus_bytes - 1).bit_length(), (PAGE - 1).bit_length()
    room = named(m, "page_room", (PAGE // bus_bytes - address[lanes:page])[: page - lanes + 1])
    # The smaller one of the two is no longer than either.
    return named(m, "beats", Mux(left < room, left, room)[: min(len(left), len(room))])
