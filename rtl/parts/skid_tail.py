"""The end of a pipeline that stands still as a whole: results leave it through a skid buffer."""

from amaranth.hdl import Module, Value, ValueLike
from amaranth.lib import stream, wiring

from m2xfp.rtl.parts.registers import delayed
from m2xfp.rtl.parts.streams import Skid

__all__ = ["add_skid", "feed_skid"]


def add_skid(m: Module, o: stream.Interface) -> Skid:
    """Put a skid buffer in front of the output ``o`` of a unit, and return it.

    Its ``i.ready`` is a register, and tells all registers of the pipeline to go on.
    """
    m.submodules.skid = skid = Skid(o.payload.shape())
    wiring.connect(m, skid.o, wiring.flipped(o))
    return skid


def feed_skid(
    m: Module, skid: Skid, result: ValueLike, *, last: Value, valid: Value, latency: int
) -> None:
    """Give a skid buffer the last register of a pipeline.

    Parameters
    ----------
    m, skid
        The module, and the buffer that ``add_skid`` put there.
    result
        The register.
    last, valid
        Of the packet that the result belongs to, as it was ``latency`` steps before.
    latency
        Steps that ``last`` and ``valid`` are still to be delayed by.
    """
    step = skid.i.ready
    m.d.comb += [
        skid.i.payload.data.eq(result),
        skid.i.payload.last.eq(delayed(m, step, "last", last, latency)),
        skid.i.valid.eq(delayed(m, step, "valid", valid, latency, reset=True)),
    ]
