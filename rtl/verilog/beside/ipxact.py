"""IP-XACT of a unit (IEEE 1685-2014): ports, and streams as bus interfaces with their clock.

The interfaces are of the types that Vivado has, xilinx.com:interface:axis and the signals clock and
reset; the catalogs of Kactus2 have them by the same names.
"""

from collections.abc import Iterable
from xml.etree.ElementTree import Element, SubElement, indent, register_namespace, tostring

from m2xfp.facts import Facts, Stream

__all__ = ["NAMESPACE", "ipxact"]

NAMESPACE = "http://www.accellera.org/XMLSchema/IPXACT/1685-2014"
_VENDOR, _LIBRARY = "m2xfp", "units"


def ipxact(facts: Facts) -> str:
    """Return the description of the component, an XML document.

    Vendor and library are ``m2xfp`` and ``units``, the name is the module's, the version the
    generator's. Parameters are those that are bound in the text, so none can be set.
    """
    register_namespace("ipxact", NAMESPACE)
    root = Element(_tag("component"))
    for name, text in (
        ("vendor", _VENDOR),
        ("library", _LIBRARY),
        ("name", facts.top),
        ("version", facts.version),
    ):
        _add(root, name, text)
    if facts.streams:
        interfaces = _add(root, "busInterfaces")
        for stream in facts.streams:
            _stream(interfaces, stream)
        buses = ":".join(stream.prefix for stream in facts.streams)
        associated = {"ASSOCIATED_BUSIF": buses, "ASSOCIATED_RESET": facts.reset}
        _signal(interfaces, facts.clock, "clock", "CLK", associated)
        _signal(interfaces, facts.reset, "reset", "RST", {"POLARITY": "ACTIVE_HIGH"})
    _model(root, facts)
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


def _interface(
    parent: Element, name: str, vlnv: tuple[str, str], ports: Iterable[tuple[str, str]]
) -> Element:
    """Add a bus interface of one of Vivado's types; ``ports`` are logical and physical names."""
    library, bus = vlnv
    found = _add(parent, "busInterface")
    _add(found, "name", name)
    place = {"vendor": "xilinx.com", "library": library, "version": "1.0"}
    _add(found, "busType", **place, name=bus)
    abstraction = _add(_add(found, "abstractionTypes"), "abstractionType")
    _add(abstraction, "abstractionRef", **place, name=f"{bus}_rtl")
    maps = _add(abstraction, "portMaps")
    for logical, physical in ports:
        port = _add(maps, "portMap")
        _add(_add(port, "logicalPort"), "name", logical)
        _add(_add(port, "physicalPort"), "name", physical)
    return found


def _stream(parent: Element, stream: Stream) -> None:
    names = ("TDATA", "TVALID", "TREADY", "TLAST")
    ports = zip(names, stream.ports, strict=True)
    found = _interface(parent, stream.prefix, ("interface", "axis"), ports)
    _add(found, "slave" if stream.is_input else "master")


def _signal(parent: Element, port: str, bus: str, logical: str, parameters: dict[str, str]) -> None:
    found = _interface(parent, port, ("signal", bus), [(logical, port)])
    _add(found, "slave")
    inner = _add(found, "parameters")
    for name, value in parameters.items():
        parameter = _add(inner, "parameter", parameterId=f"{port}_{name}", type="string")
        _add(parameter, "name", name)
        _add(parameter, "value", f'"{value}"')


def _model(root: Element, facts: Facts) -> None:
    """Add the view, what it instantiates, and the ports."""
    model = _add(root, "model")
    view = _add(_add(model, "views"), "view")
    _add(view, "name", "verilog")
    _add(view, "componentInstantiationRef", "verilog_module")
    instantiation = _add(_add(model, "instantiations"), "componentInstantiation")
    _add(instantiation, "name", "verilog_module")
    _add(instantiation, "language", "verilog")
    _add(instantiation, "moduleName", facts.top)
    _add(_add(instantiation, "fileSetRef"), "localName", "rtl")
    ports = _add(model, "ports")
    for name, direction, width in facts.ports():
        port = _add(ports, "port")
        _add(port, "name", name)
        wire = _add(port, "wire")
        _add(wire, "direction", direction.removesuffix("put"))
        if width > 1:
            vector = _add(_add(wire, "vectors"), "vector")
            _add(vector, "left", str(width - 1))
            _add(vector, "right", "0")
