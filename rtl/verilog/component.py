"""The base of all units: a component that becomes one module of readable Verilog.

Amaranth joins a design into one netlist of single bits and cuts it into modules again, which loses
port names and repeats each instance's text. ``Component`` keeps the boundary: under a
``VerilogPlatform`` it stands as an instance in its parent, with the ports of its signature, and its
body is emitted once for all instances that are alike. Everywhere else (simulation, other platforms)
it is a plain Amaranth component.
"""

import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from amaranth.back import rtlil
from amaranth.hdl import ClockSignal, Instance, Module, ResetSignal, Value
from amaranth.hdl._ir import PortDirection  # there is no public name for it in 0.5
from amaranth.lib import wiring

from m2xfp.rtl.verilog.macros import Macro

__all__ = [
    "VERILOG_KEYWORDS",
    "Component",
    "EmittedModule",
    "VerilogPlatform",
    "flat_ports",
    "snake_case",
]

VERILOG_KEYWORDS = frozenset(
    """
    alias always and assert assign assume automatic before begin bind bins bit break buf
    bufif0 bufif1 byte case casex casez cell chandle checker class clocking cmos config const
    constraint context continue cover covergroup coverpoint cross deassign default defparam
    design disable dist do edge else end endcase endchecker endclass endclocking endconfig
    endfunction endgenerate endgroup endinterface endmodule endpackage endprimitive endprogram
    endproperty endsequence endspecify endtable endtask enum event expect export extends
    extern final first_match for force foreach forever fork function generate genvar global
    highz0 highz1 if iff ifnone illegal_bins implements implies import incdir include initial
    inout input inside instance int integer interface intersect join large let liblist library
    local localparam logic longint macromodule matches medium modport module nand negedge
    nettype new nexttime nmos nor noshowcancelled not notif0 notif1 null or output package
    packed parameter pmos posedge primitive priority program property protected pull0 pull1
    pulldown pullup pulsestyle_ondetect pulsestyle_onevent pure rand randc randcase
    randsequence rcmos real realtime ref reg reject_on release repeat restrict return rnmos
    rpmos rtran rtranif0 rtranif1 s_always s_eventually s_nexttime s_until s_until_with
    scalared sequence shortint shortreal showcancelled signed small soft solve specify
    specparam static string strong strong0 strong1 struct super supply0 supply1 sync_accept_on
    sync_reject_on table tagged task this throughout time timeprecision timeunit tran tranif0
    tranif1 tri tri0 tri1 triand trior trireg type typedef union unique unique0 unsigned until
    until_with untyped use uwire var vectored virtual void wait wait_order wand weak weak0
    weak1 while wildcard wire with within wor xnor xor
    """.split()  # noqa: SIM905
)
"""Reserved words of Verilog-2005 and SystemVerilog-2017. Source: IEEE 1800-2017, annex B."""


class Component(wiring.Component):
    """A wiring component that describes itself in ``build`` instead of ``elaborate``."""

    # Amaranth warns of components that are never elaborated; ours are also asked for their facts.
    _MustUse__silence = True

    @property
    def summary(self) -> str:
        """What the component does, in one line: the first of its docstring."""
        return (type(self).__doc__ or "").strip().splitlines()[0]

    @abstractmethod
    def build(self) -> Module:
        """Return the component's logic."""

    def build_of(self, macro: Macro) -> Module:
        """Return the logic where memories are made of a macro; a memory has another one."""
        return self.build()

    def elaborate(self, platform: Any) -> Module | Instance:
        """Return the logic, or an instance of it if Verilog is being written."""
        if isinstance(platform, VerilogPlatform):
            return platform.instance(self)
        return self.build()


def snake_case(name: str) -> str:
    """Return ``CamelCase`` as ``camel_case``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def flat_ports(component: wiring.Component) -> Iterator[tuple[str, Any, Value]]:
    """Yield (name, flow, value) for each port of the signature that has any bits."""
    for path, member, value in component.signature.flatten(component):
        value = Value.cast(value)
        if len(value):
            yield "__".join(map(str, path)), member.flow, value


@dataclass(frozen=True)
class EmittedModule:
    """One module on its way to Verilog.

    Members
    -------
    rtlil
        Its text in yosys' intermediate language.
    ports
        Names of its ports in the order of the signature, clock and reset apart.
    summary
        What it does, in one line.
    """

    rtlil: str
    ports: tuple[str, ...]
    summary: str


class VerilogPlatform:
    """Collects the modules of a design, each distinct one once.

    Parameters
    ----------
    prefix
        Name of the top module; all others are called ``<prefix>_<class>``, so that several emitted
        designs live in one chip.
    macro
        Memories are made of it; None for memories that synthesis is to find.

    Members
    -------
    modules
        By name, innermost first.
    """

    def __init__(self, prefix: str, macro: Macro | None = None) -> None:
        self._prefix, self.macro = prefix, macro
        self._name_of: dict[str, str] = {}
        self._count: Counter[str] = Counter()
        self.modules: dict[str, EmittedModule] = {}

    def emit(self, component: Component, name: str) -> None:
        """Add ``component`` as the module ``name``."""
        self._add(component, name, self._rtlil(component, name))

    def instance(self, component: Component) -> Instance:
        """Return an instance of ``component``, whose module is added if there is none alike."""
        placeholder = "module_without_name"
        text = self._rtlil(component, placeholder)
        if len(re.findall(r"\\rst\b", text)) == 1:  # a reset that nothing reads
            text = re.sub(r"^ +wire (width 1 )?input \d+ +\\rst\n", "", text, flags=re.MULTILINE)
        if text not in self._name_of:
            name = f"{self._prefix}_{snake_case(type(component).__name__)}"
            self._count[name] += 1
            if self._count[name] > 1:
                name += f"_{self._count[name]}"
            self._name_of[text] = name
            self._add(component, name, text.replace(placeholder, name))
        ports: dict[str, Any] = {
            f"{'i' if flow == wiring.In else 'o'}_{name}": value
            for name, flow, value in flat_ports(component)
        }
        for domain, signal in (("clk", ClockSignal()), ("rst", ResetSignal())):
            if re.search(rf"^ +wire (width 1 )?input \d+ +\\{domain}$", text, re.MULTILINE):
                ports[f"i_{domain}"] = signal
        return Instance(self._name_of[text], **ports)

    def _add(self, component: Component, name: str, rtlil_text: str) -> None:
        summary = component.summary
        ports = tuple(port for port, _, _ in flat_ports(component))
        self.modules[name] = EmittedModule(rtlil_text, ports, summary)

    def _rtlil(self, component: Component, name: str) -> str:
        ports = {
            port: (value, PortDirection.Input if flow == wiring.In else PortDirection.Output)
            for port, flow, value in flat_ports(component)
        }
        logic = component.build_of(self.macro) if self.macro else component.build()
        text = rtlil.convert(logic, name, self, ports=ports, emit_src=False)
        return re.sub(r"^ *attribute \\(generator|top|amaranth\.\w+) .*\n", "", text, flags=re.M)
