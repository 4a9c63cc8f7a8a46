"""AXI4-Stream shell: the ports of a unit under the names that chips expect."""

from dataclasses import dataclass

from amaranth.hdl import Module, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m2xfp.rtl.component import Component

__all__ = ["AxiStream", "StreamPort", "stream_ports"]


@dataclass(frozen=True)
class StreamPort:
    """One stream of a unit as AXI4-Stream.

    Members
    -------
    member
        Name of the component's port: ``i``, ``o``, ...
    prefix
        Prefix of the Verilog ports: ``s_axis`` for ``i``, ``m_axis`` for ``o``, and
        ``s_axis_<member>`` or ``m_axis_<member>`` for others.
    role
        ``sink`` if the unit receives, ``source`` if it sends.
    data_width
        Bits of payload, without ``last``.
    tdata_width
        Bits of TDATA: payload, zero-extended to whole bytes.
    """

    member: str
    prefix: str
    role: str
    data_width: int

    @property
    def tdata_width(self) -> int:
        """Bits of TDATA."""
        return -(-self.data_width // 8) * 8


def stream_ports(unit: wiring.Component) -> list[StreamPort]:
    """Return the streams of ``unit``, in the order of its signature.

    Their payload must be a ``packet``: a structure whose last bit is the field ``last``.
    """
    ports = []
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
        ports.append(
            StreamPort(
                name,
                side if name in ("i", "o") else f"{side}_{name}",
                "sink" if sink else "source",
                payload.size - 1,
            )
        )
    return ports


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
        self._ports = stream_ports(unit)
        streams = {port.member for port in self._ports}
        members: dict[str, wiring.Member] = {}
        for port in self._ports:
            forward, backward = (In, Out) if port.role == "sink" else (Out, In)
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
        for port in self._ports:
            inner = getattr(self.unit, port.member)
            payload = Value.cast(inner.payload)
            tdata, tvalid, tready, tlast = (
                getattr(self, f"{port.prefix}_{field}")
                for field in ("tdata", "tvalid", "tready", "tlast")
            )
            if port.role == "sink":
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
        streams = {port.member for port in self._ports}
        for name, member in self.unit.signature.members.items():
            if name in streams:
                continue
            inner, outer = getattr(self.unit, name), getattr(self, name)
            m.d.comb += inner.eq(outer) if member.flow == In else outer.eq(inner)
        return m
