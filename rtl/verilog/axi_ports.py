"""AXI4 shell: the channels of a unit under the names of the AMBA specification.

A unit's channels are streams, so that whatever drives streams drives it (`m2xfp.rtl.verilog.axi`).
A chip wires AXI4 by other names. The module ``<top>_axi`` has those, and nothing but wires.
"""

from amaranth.hdl import Const, Module, Shape, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from m2xfp.rtl.verilog.component import Component

__all__ = ["AxiPorts", "has_axi_ports"]

# Fields that no unit changes: normal, non-cacheable, bufferable accesses to data, without an ID.
_FIXED = {"id": (1, 0), "lock": (1, 0), "cache": (4, 3), "prot": (3, 0), "qos": (4, 0)}
_CHANNELS = ("aw", "w", "b", "ar", "r")


def has_axi_ports(unit: Component) -> bool:
    """Whether some of a unit's streams are channels of AXI4: it has ``axi_buses``."""
    return bool(getattr(unit, "axi_buses", None))


class AxiPorts(Component):
    """Give a unit AXI4 and AXI4-Lite ports by the names of the specification.

    Pure wiring. Buses are ``s_axi_<bus>`` where the unit answers, AXI4-Lite, and ``m_axi_<bus>``
    where it asks, AXI4.

    Parameters
    ----------
    unit
        A unit with ``axi_buses``: the names of its buses, and whether it is master of each. The
        streams of a bus are called ``<bus>_<channel>``.
    """

    def __init__(self, unit: Component) -> None:
        self.unit = unit
        self._buses: dict[str, bool] = unit.axi_buses
        members: dict[str, wiring.Member] = {}
        for bus, channel, prefix in self._channels():
            flow, shape = self._stream(bus, channel)
            forward, backward = (In, Out) if flow == In else (Out, In)
            for name, field in shape["data"].shape:
                members[f"{prefix}{name}"] = forward(Shape.cast(field.shape).width)
            if self._has_last(bus, channel):
                members[f"{prefix}last"] = forward(1)
            for name, (width, _) in self._fixed(bus, channel).items():
                members[f"{prefix}{name}"] = forward(width)
            members[f"{prefix}valid"] = forward(1)
            members[f"{prefix}ready"] = backward(1)
        streams = {f"{bus}_{channel}" for bus, channel, _ in self._channels()}
        members |= {
            name: member for name, member in unit.signature.members.items() if name not in streams
        }
        super().__init__(members)

    @property
    def summary(self) -> str:
        """What the unit does."""
        return f"{self.unit.summary[:-1]}: the same with AXI4 ports."

    @property
    def buses(self) -> dict[str, str]:
        """The buses by the beginning of their ports' names, and what the unit is of each."""
        return {
            f"{'m' if master else 's'}_axi_{bus}": "master" if master else "slave"
            for bus, master in self._buses.items()
        }

    def _channels(self) -> list[tuple[str, str, str]]:
        """Return bus, channel and prefix of the ports for each channel."""
        return [
            (bus, channel, f"{'m' if master else 's'}_axi_{bus}_{channel}")
            for bus, master in self._buses.items()
            for channel in _CHANNELS
            if f"{bus}_{channel}" in self.unit.signature.members
        ]

    def _stream(self, bus: str, channel: str) -> tuple[wiring.Flow, wiring.Signature]:
        member = self.unit.signature.members[f"{bus}_{channel}"]
        return member.flow, member.signature.members["payload"].shape

    def _has_last(self, bus: str, channel: str) -> bool:
        return self._buses[bus] and channel in ("w", "r")

    def _fixed(self, bus: str, channel: str) -> dict[str, tuple[int, int]]:
        """Return width and value of the fields that are added to a channel."""
        if channel in ("aw", "ar"):
            return _FIXED if self._buses[bus] else {"prot": _FIXED["prot"]}
        return {"id": _FIXED["id"]} if self._buses[bus] and channel in ("b", "r") else {}

    def build(self) -> Module:
        """Build the shell."""
        m = Module()
        m.submodules.unit = self.unit
        for bus, channel, prefix in self._channels():
            stream = getattr(self.unit, f"{bus}_{channel}")
            flow, shape = self._stream(bus, channel)

            def port(name: str, prefix: str = prefix) -> Value:
                return Value.cast(getattr(self, f"{prefix}{name}"))

            pairs = [
                (Value.cast(stream.payload.data[name]), port(name))
                for name, _ in shape["data"].shape
            ]
            if self._has_last(bus, channel):
                pairs.append((stream.payload.last, port("last")))
            if flow == In:
                m.d.comb += [inner.eq(outer) for inner, outer in pairs]
                m.d.comb += [stream.valid.eq(port("valid")), port("ready").eq(stream.ready)]
            else:
                m.d.comb += [outer.eq(inner) for inner, outer in pairs]
                m.d.comb += [port("valid").eq(stream.valid), stream.ready.eq(port("ready"))]
                for name, (width, value) in self._fixed(bus, channel).items():
                    m.d.comb += port(name).eq(Const(value, width))
        streams = {f"{bus}_{channel}" for bus, channel, _ in self._channels()}
        for name, member in self.unit.signature.members.items():
            if name not in streams:
                inner, outer = getattr(self.unit, name), getattr(self, name)
                m.d.comb += inner.eq(outer) if member.flow == In else outer.eq(inner)
        return m
