"""AXI4-Stream shell: the ports of a unit under the names that chips expect."""

from dataclasses import replace

from amaranth.hdl import Module, Shape, ShapeLike, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m2xfp.facts import Field, Port, Stream
from m2xfp.rtl.verilog.component import Component

__all__ = ["AxiStream", "fields_of", "signals_of", "streams_of"]


def fields_of(shape: ShapeLike) -> tuple[Field, ...]:
    """Return the fields of a word of ``shape``, lowest bits first.

    Fields of structures have their path as name; arrays become dimensions of what they hold, so an
    array of structures gives one field for each member of the structure.
    """
    if isinstance(shape, data.StructLayout | data.UnionLayout):
        return tuple(
            replace(
                inner,
                name=f"{name}.{inner.name}" if inner.name else str(name),
                offset=field.offset + inner.offset,
            )
            for name, field in shape
            for inner in fields_of(field.shape)
        )
    if isinstance(shape, data.ArrayLayout):
        step = Shape.cast(shape.elem_shape).width
        return tuple(
            replace(inner, shape=(shape.length, *inner.shape), strides=(step, *inner.strides))
            for inner in fields_of(shape.elem_shape)
        )
    plain = Shape.cast(shape)
    return (Field("", 0, plain.width, plain.signed),) if plain.width else ()


def streams_of(unit: wiring.Component) -> tuple[Stream, ...]:
    """Return the streams of ``unit`` as AXI4-Stream, in the order of its signature.

    ``i`` is ``s_axis``, ``o`` is ``m_axis``, others have their name behind that. Their payload must
    be a ``packet``: a structure of ``data`` and, as its last bit, ``last``.
    """
    streams = []
    for name, member in unit.signature.members.items():
        if not (member.is_signature and isinstance(member.signature, (stream.Signature,))):
            if member.is_signature and isinstance(
                member.signature.flip(), stream.Signature
            ):  # pragma: no cover - flipped signatures compare by their flip
                raise TypeError(f"port {name}: declare the stream with In or Out, not flipped")
            continue
        sink = member.flow == In
        side = "s_axis" if sink else "m_axis"
        payload = data.Layout.cast(member.signature.members["payload"].shape)
        streams.append(
            Stream(
                name,
                side if name in ("i", "o") else f"{side}_{name}",
                "sink" if sink else "source",
                payload.size - 1,
                fields_of(payload["data"].shape),
            )
        )
    return tuple(streams)


def signals_of(unit: wiring.Component) -> tuple[Port, ...]:
    """Return the ports of ``unit`` that belong to no stream."""
    streams = {stream.name for stream in streams_of(unit)}
    return tuple(
        Port(
            name,
            "input" if member.flow == In else "output",
            Shape.cast(member.shape).width,
            fields_of(member.shape),
        )
        for name, member in unit.signature.members.items()
        if name not in streams
    )


class AxiStream(Component):
    """Give a unit AXI4-Stream ports: TDATA, TVALID, TREADY, TLAST for each of its streams.

    Pure wiring, no latency of its own. TDATA is padded with zeros to whole bytes. Ports that are no
    streams keep their names.

    Parameters
    ----------
    unit
        The unit to wrap.
    """

    def __init__(self, unit: Component) -> None:
        self.unit = unit
        self._streams = streams_of(unit)
        streams = {stream.name for stream in self._streams}
        members: dict[str, wiring.Member] = {}
        for port in self._streams:
            forward, backward = (In, Out) if port.is_input else (Out, In)
            members[f"{port.prefix}_tdata"] = forward(port.tdata_width)
            members[f"{port.prefix}_tvalid"] = forward(1)
            members[f"{port.prefix}_tready"] = backward(1)
            members[f"{port.prefix}_tlast"] = forward(1)
        members |= {
            name: member for name, member in unit.signature.members.items() if name not in streams
        }
        super().__init__(members)

    @property
    def summary(self) -> str:
        """What the unit does."""
        return self.unit.summary

    def build(self) -> Module:
        """Build the shell."""
        m = Module()
        m.submodules.unit = self.unit
        for port in self._streams:
            inner = getattr(self.unit, port.name)
            payload = Value.cast(inner.payload)
            tdata, tvalid, tready, tlast = (
                getattr(self, f"{port.prefix}_{field}")
                for field in ("tdata", "tvalid", "tready", "tlast")
            )
            if port.is_input:
                m.d.comb += [
                    payload[:-1].eq(tdata[: port.data_width]),
                    payload[-1].eq(tlast),
                    inner.valid.eq(tvalid),
                    tready.eq(inner.ready),
                ]
            else:
                m.d.comb += [
                    tdata.eq(payload[:-1]),
                    tlast.eq(payload[-1]),
                    tvalid.eq(inner.valid),
                    inner.ready.eq(tready),
                ]
        streams = {port.name for port in self._streams}
        for name, member in self.unit.signature.members.items():
            if name in streams:
                continue
            inner, outer = getattr(self.unit, name), getattr(self, name)
            m.d.comb += inner.eq(outer) if member.flow == In else outer.eq(inner)
        return m
