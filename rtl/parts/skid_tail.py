"""The end of a pipeline that stands still as a whole: results leave it through a skid buffer."""

from amaranth.hdl import Module, Value, ValueLike
from amaranth.lib import stream, wiring

from m2xfp.rtl.parts.streams import Skid

__all__ = ["add_skid", "feed_skid"]


def add_skid(m: Module, o: stream.Interface) -> Skid:
    """Add a skid buffer for packets like those of the output ``o``, and return it.

    Its ``i.ready`` is a register, and tells all registers of the pipeline to go on.
    """
    m.submodules.skid = skid = Skid(o.payload.shape())
    return skid


def feed_skid(
    m: Module, skid: Skid, o: stream.Interface, result: ValueLike, *, last: Value, valid: Value
) -> None:
    """Put a skid buffer between the last registers of a pipeline and the output.

    Parameters
    ----------
    m, skid
        The module, and the buffer that ``add_skid`` put there.
    o
        The output of the unit.
    result, last, valid
        The registers: the result, and ``last`` and ``valid`` of the packet that it belongs to.
    """
    m.d.comb += [
        skid.i.payload.data.eq(result),
        skid.i.payload.last.eq(last),
        skid.i.valid.eq(valid),
    ]
    wiring.connect(m, skid.o, wiring.flipped(o))
