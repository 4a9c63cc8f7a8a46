"""What jobs are about: an emitted unit, as it is or with a fault."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, zip_longest

from m2xfp.facts import Facts
from m2xfp.rtl.catalog import Instance
from m2xfp.rtl.verilog.emit import verilog_text
from m2xfp.synth.formal.netlist import (
    Flat,
    faults,
    flatten,
    from_any_state,
    gate_faults,
    opened,
    simple,
    stalled,
    wires,
)

__all__ = ["Design"]


@dataclass(frozen=True)
class Design:
    """A unit with its Verilog, and the netlists that proofs take.

    Members
    -------
    instance, verilog
        The unit, and its emitted text.
    fault
        What is broken in it; empty if nothing is.
    broken
        The flat netlist with the fault, by module.
    """

    instance: Instance
    verilog: str
    fault: str = ""
    broken: Flat | None = None
    _modules: dict[str, Flat] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, instance: Instance) -> "Design":
        """Return a unit as it is emitted."""
        return cls(instance, verilog_text(instance.component, instance.top))

    @property
    def facts(self) -> Facts:
        """The facts of the unit."""
        return self.instance.facts

    @property
    def modules(self) -> list[str]:
        """Names of the unit's modules, without the unit's own before them."""
        first = f"module {self.facts.top}_"
        lines = [line for line in self.verilog.splitlines() if line.startswith(first)]
        return [line.removeprefix(first).split()[0] for line in lines]

    def module(self, name: str = "") -> Flat:
        """Return one module, by default the top, with all in it as a netlist of words."""
        top = f"{self.facts.top}_{name}" if name else self.facts.top
        if self.broken is not None and self.broken.top == top:
            return self.broken
        if top not in self._modules:
            self._modules[top] = flatten(self.verilog, top)
        return self._modules[top]

    def shell(self, name: str) -> Flat:
        """Return one module without its parts: what they give are inputs (`opened`)."""
        top = f"{self.facts.top}_{name}"
        if self.broken is not None and self.broken.top == top:
            return self.broken
        if (kept := f"{top} alone") not in self._modules:
            self._modules[kept] = opened(self.verilog, top)
        return self._modules[kept]

    @cached_property
    def control(self) -> Flat:
        """Gates without TDATA of the outputs, from any state."""
        without = tuple(stream.ports[0] for stream in self.facts.outputs)
        return from_any_state(simple(self.module(), without=without))

    @cached_property
    def stalls(self) -> Flat:
        """Gates whose data registers load any value when they are enabled, from any state."""
        streams = self.facts.streams
        control = [stream.ports[2 if stream.is_input else 1] for stream in streams]
        data = [port for stream in self.facts.outputs for port in stream.ports[::3]]
        return from_any_state(simple(stalled(self.module(), control, data)))

    def register_faults(self, near: list[str]) -> Iterator["Design"]:
        """Yield the unit with faults in the registers that outputs depend on."""
        for text, broken in faults(self.module(), near):
            yield replace(self, fault=text, broken=broken, _modules={})

    def module_faults(self, name: str, near: list[str]) -> Iterator["Design"]:
        """Yield the unit with faults in the registers that outputs of one module depend on."""
        for text, broken in faults(self.module(name), near):
            yield replace(self, fault=text, broken=broken, _modules=self._modules)

    def gate_faults(self, name: str, near: list[str] | None = None) -> Iterator["Design"]:
        """Yield the unit with faults in the operators of one module."""
        for text, broken in gate_faults(self.module(name), near):
            yield replace(self, fault=text, broken=broken, _modules=self._modules)

    def shell_faults(self, name: str, near: list[str]) -> Iterator["Design"]:
        """Yield the unit with faults in one module without its parts, operators and registers."""
        flat = self.shell(name)
        for pair in zip_longest(gate_faults(flat, near), faults(flat, near)):
            for text, broken in (each for each in pair if each is not None):
                yield replace(self, fault=text, broken=broken, _modules=self._modules)

    def with_wire(self, port: str, other: str) -> "Design":
        """Return the unit with one output that is high only where another port is too."""
        flat = self.module()
        module = deepcopy(flat.module)
        [bit], [by] = flat.ports[port], flat.ports[other]
        new = 1 + max(wires(flat))
        module["ports"][port]["bits"] = [new]
        module["cells"]["fault"] = {
            "type": "$and",
            "parameters": {
                "A_SIGNED": "0",
                "B_SIGNED": "0",
                "A_WIDTH": "1",
                "B_WIDTH": "1",
                "Y_WIDTH": "1",
            },
            "attributes": {},
            "port_directions": {"A": "input", "B": "input", "Y": "output"},
            "connections": {"A": [bit], "B": [by], "Y": [new]},
        }
        broken = Flat(flat.top, module)
        return replace(self, fault=f"{port} waits for {other}", broken=broken, _modules={})

    def probe_faults(self, names: Mapping[str, str]) -> Iterator["Design"]:
        """Yield the unit with faults in the operators and registers that wires inside depend on."""
        flat = self.module()
        inside, near = flat.probed(names), list(names)
        for text, broken in chain(gate_faults(inside, near), faults(inside, near)):
            module = {**broken.module, "ports": flat.module["ports"]}
            yield replace(self, fault=text, broken=Flat(flat.top, module), _modules={})
