"""IP-XACT of a unit (IEEE 1685-2014): ports, and streams as bus interfaces with their clock.

The interfaces are of the types that Vivado has, xilinx.com:interface:axis and the signals clock and
reset; the catalogs of Kactus2 have them by the same names.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element, SubElement, indent, register_namespace, tostring

from amaranth.hdl import Shape
from amaranth.lib.wiring import In

from m2xfp.facts import Facts
from m2xfp.rtl.verilog.axi_ports import AxiPorts
from m2xfp.rtl.verilog.component import Component

__all__ = ["NAMESPACE", "axi_ipxact", "ipxact"]

NAMESPACE = "http://www.accellera.org/XMLSchema/IPXACT/1685-2014"
_VENDOR, _LIBRARY = "m2xfp", "units"


@dataclass(frozen=True)
class _Bus:
    """A bus interface of one of Vivado's types.

    Members
    -------
    name
        Of the interface.
    library, bus
        Of the type: ``interface`` or ``signal``, and its name.
    role
        ``master`` or ``slave``.
    ports
        Logical names of the type, and the module's ports.

    Parameters
    ----------
        What Vivado asks of the interface besides.
    """

    name: str
    library: str
    bus: str
    role: str
    ports: tuple[tuple[str, str], ...]
    parameters: Mapping[str, str] = field(default_factory=dict)


def ipxact(facts: Facts) -> str:
    """Return the description of the component, an XML document.

    Vendor and library are ``m2xfp`` and ``units``, the name is the module's, the version the
    generator's. Parameters are those that are bound in the text, so none can be set.
    """
    logical = ("TDATA", "TVALID", "TREADY", "TLAST")
    streams = [
        _Bus(
            stream.prefix,
            *("interface", "axis", "slave" if stream.is_input else "master"),
            tuple(zip(logical, stream.ports, strict=True)),
        )
        for stream in facts.streams
    ]
    buses = [*streams, *_clocked(facts, streams)] if streams else []
    return _document(facts, facts.top, buses, facts.ports())


def axi_ipxact(unit: Component, facts: Facts) -> str:
    """Return the description of the module ``<top>_axi`` of a unit with AXI4 buses."""
    shell = AxiPorts(unit)
    ports = [("clk", "input", 1), ("rst", "input", 1)]
    for name, member in shell.signature.members.items():
        direction = "input" if member.flow == In else "output"
        ports.append((name, direction, Shape.cast(member.shape).width))
    buses = []
    for name, role in shell.buses.items():
        maps = tuple(
            (port.removeprefix(f"{name}_").upper(), port)
            for port, _, _ in ports
            if port.startswith(f"{name}_")
        )
        buses.append(_Bus(name, "interface", "aximm", role, maps))
    return _document(facts, f"{facts.top}_axi", [*buses, *_clocked(facts, buses)], ports)


def _clocked(facts: Facts, buses: Sequence[_Bus]) -> list[_Bus]:
    """Return clock and reset of buses."""
    names = ":".join(bus.name for bus in buses)
    clock = {"ASSOCIATED_BUSIF": names, "ASSOCIATED_RESET": facts.reset}
    reset = {"POLARITY": "ACTIVE_HIGH"}
    return [
        _Bus(facts.clock, "signal", "clock", "slave", (("CLK", facts.clock),), clock),
        _Bus(facts.reset, "signal", "reset", "slave", (("RST", facts.reset),), reset),
    ]


def _document(
    facts: Facts, module: str, buses: Sequence[_Bus], ports: Iterable[tuple[str, str, int]]
) -> str:
    """Return the description of a module in the file of a unit."""
    register_namespace("ipxact", NAMESPACE)
    root = Element(_tag("component"))
    for name, text in (
        ("vendor", _VENDOR),
        ("library", _LIBRARY),
        ("name", module),
        ("version", facts.version),
    ):
        _add(root, name, text)
    if buses:
        interfaces = _add(root, "busInterfaces")
        for bus in buses:
            _interface(interfaces, bus)
    _model(root, module, ports)
    files = _add(_add(root, "fileSets"), "fileSet")
    _add(files, "name", "rtl")
    file = _add(files, "file")
    _add(file, "name", f"{facts.top}.v")
    _add(file, "fileType", "verilogSource")
    _add(root, "description", facts.purpose)
    if facts.parameters:
        parameters = _add(root, "parameters")
        for name, value in facts.parameters.items():
            _parameter(parameters, name, "none" if value is None else str(value))
    indent(root, "  ")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{tostring(root, encoding="unicode")}\n'


def _tag(name: str) -> str:
    return f"{{{NAMESPACE}}}{name}"


def _add(parent: Element, tag: str, text: str | None = None, /, **attributes: str) -> Element:
    child = SubElement(parent, _tag(tag), attributes)
    child.text = text
    return child


def _parameter(parent: Element, name: str, value: str) -> None:
    parameter = _add(parent, "parameter", parameterId=name, resolve="immediate", type="string")
    _add(parameter, "name", name)
    _add(parameter, "value", f'"{value}"')


def _interface(parent: Element, bus: _Bus) -> None:
    found = _add(parent, "busInterface")
    _add(found, "name", bus.name)
    place = {"vendor": "xilinx.com", "library": bus.library, "version": "1.0"}
    _add(found, "busType", **place, name=bus.bus)
    abstraction = _add(_add(found, "abstractionTypes"), "abstractionType")
    _add(abstraction, "abstractionRef", **place, name=f"{bus.bus}_rtl")
    maps = _add(abstraction, "portMaps")
    for logical, physical in bus.ports:
        port = _add(maps, "portMap")
        _add(_add(port, "logicalPort"), "name", logical)
        _add(_add(port, "physicalPort"), "name", physical)
    _add(found, bus.role)
    inner = _add(found, "parameters") if bus.parameters else found
    for name, value in bus.parameters.items():
        parameter = _add(inner, "parameter", parameterId=f"{bus.name}_{name}", type="string")
        _add(parameter, "name", name)
        _add(parameter, "value", f'"{value}"')


def _model(root: Element, module: str, ports_of: Iterable[tuple[str, str, int]]) -> None:
    """Add the view, what it instantiates, and the ports."""
    model = _add(root, "model")
    view = _add(_add(model, "views"), "view")
    _add(view, "name", "verilog")
    _add(view, "componentInstantiationRef", "verilog_module")
    instantiation = _add(_add(model, "instantiations"), "componentInstantiation")
    _add(instantiation, "name", "verilog_module")
    _add(instantiation, "language", "verilog")
    _add(instantiation, "moduleName", module)
    _add(_add(instantiation, "fileSetRef"), "localName", "rtl")
    ports = _add(model, "ports")
    for name, direction, width in ports_of:
        port = _add(ports, "port")
        _add(port, "name", name)
        wire = _add(port, "wire")
        _add(wire, "direction", direction.removesuffix("put"))
        if width > 1:
            vector = _add(_add(wire, "vectors"), "vector")
            _add(vector, "left", str(width - 1))
            _add(vector, "right", "0")
