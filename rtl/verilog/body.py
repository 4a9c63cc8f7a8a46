"""A module as yosys writes it, taken apart into statements."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, count

from m2xfp.rtl.verilog.exact import condition, exact
from m2xfp.rtl.verilog.expression import Expression, Names, parse, part

__all__ = ["IDENTIFIER", "Assignment", "Body", "Instance", "Register", "mask", "parse_body"]

IDENTIFIER = re.compile(r"(?<![\w'.])[A-Za-z_]\w*")
DECLARATION = re.compile(r"  (wire|reg) (?:\[(\d+):0\] )?(\\\S+ |\w+);\n")
INSTANCE = re.compile(r"  (\w+) (\\\S+ |\w+) \(\n(.*?)  \);\n", re.DOTALL)
PORT = re.compile(r"  (input|output) (?:\[(\d+):0\] )?(\w+);\n")
# A line that is indented by two, and the deeper ones and closing words after it.
_ITEM = re.compile(r"^  (?!end|\)| ).*\n(?:(?:   |  end|  \)).*\n)*", re.MULTILINE)
_ASSIGNMENT = re.compile(r"  assign (.+?) = (.+);\n")
_CONNECTION = re.compile(r"    \.(\w+)\((.*)\),?\n")
_FUNCTION = re.compile(r"  function (?:\[(\d+):0\] )?(\S+) ?;\n.*casez \(s\)", re.DOTALL)
_MEMORY = re.compile(r"(  reg (?:\[(\d+):0\] )?(\w+) )\[(\d+):0\];\n")
_WIRE = re.compile(r"(?<![\w'.$])([A-Za-z_]\w*)(\[\d+(?::\d+)?\])?")
_UNKNOWN = re.compile(r"(?<=\d'[hb])[0-9a-fxz]*x[0-9a-fxz]*")
_REGISTER = re.compile(
    r"  always @\(posedge clk\)\n"
    r"    (?:if \((?P<reset>.+)\) \S+ <= (?P<initial>.+);\n    else )?"
    r"(?:if \((?P<enable>.+)\) )?(?P<target>\S+) <= (?P<value>.+);\n"
)
# One whose enable goes before its reset.
_ENABLED = re.compile(
    r"  always @\(posedge clk\)\n"
    r"    if \((?P<enable>.+)\)\n"
    r"      if \((?P<reset>.+)\) \S+ <= (?P<initial>.+);\n"
    r"      else (?P<target>\S+) <= (?P<value>.+);\n"
)
_STORED = re.compile(r"^ *(\w+)(?:\[[\d:]+\])? <= (.*)$")


@dataclass
class Assignment:
    """``target = value``.

    Members
    -------
    target
        A wire, part of one, or a concatenation of such; None for a condition.
    source
        The value as yosys wrote it, None if its form is not known; then ``text`` is its text.
    value
        The value with exact widths.
    cuts
        Wires that ``value`` needs for parts of expressions.
    """

    target: Expression | None
    source: Expression | None
    text: str = ""
    value: Expression | None = None
    cuts: list["Assignment"] = field(default_factory=list)

    @property
    def written(self) -> str:
        """The value's text."""
        return str(self.value) if self.value else self.text

    @property
    def targets(self) -> tuple[Expression, ...]:
        """The wires or parts of wires that take the value, the highest bits first."""
        if self.target is None:
            return ()
        return self.target.operands or (self.target,)

    def used(self) -> Iterator[Expression]:
        """Yield wires and parts of wires that the value is made of."""
        if self.value:
            yield from self.value.leaves()


@dataclass
class Register:
    """A register takes ``initial`` on ``reset``, else ``value`` on ``enable``; None if none."""

    reset: Assignment | None
    initial: str
    enable: Assignment | None
    value: Assignment


@dataclass
class Instance:
    """A module in a module, or what belongs to a memory.

    Members
    -------
    text
        Of a memory; of an instance, what stands before its connections.
    connections
        Of an instance: port, what is there, and whether the port is an output.
    read
        Wires that a memory reads.
    """

    text: str
    connections: list[tuple[str, Expression, bool]] = field(default_factory=list)
    read: list[Expression] = field(default_factory=list)

    @property
    def used(self) -> Iterator[Expression]:
        """The wires and parts of wires that are read."""
        inputs = (value.leaves() for _, value, is_output in self.connections if not is_output)
        return chain(self.read, *inputs)

    @property
    def driven(self) -> Iterator[Expression]:
        """The wires and parts of wires at outputs."""
        outputs = (value.leaves() for _, value, is_output in self.connections if is_output)
        return chain.from_iterable(outputs)


@dataclass
class Body:
    """What stands in a module: ports, wires and registers by name, and statements by kind.

    Members
    -------
    directions, kinds
        Of ports; "wire" or "reg".
    names
        Their bits, and memories and functions.
    others
        Instances and memories, which stay as they are.
    """

    directions: dict[str, str]
    kinds: dict[str, str]
    names: Names
    widths: dict[str, int]
    assignments: list[Assignment] = field(default_factory=list)
    registers: list[Register] = field(default_factory=list)
    others: list[Instance] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)

    @property
    def clocked(self) -> list[Assignment]:
        """Values and conditions of the registers."""
        parts = (part for r in self.registers for part in (r.reset, r.enable, r.value))
        return [part for part in parts if part]

    @cached_property
    def _numbers(self) -> Iterator[int]:
        return count()

    def fresh(self) -> str:
        """Return a name for another temporary."""
        name = next(name for n in self._numbers if (name := f"t{n}") not in self.taken)
        self.taken.add(name)
        return name

    def span(self, wire: str) -> str:
        """Return the range in the declaration of ``wire``."""
        return f"[{self.widths[wire] - 1}:0] " if self.widths[wire] > 1 else ""

    def set_value(self, a: Assignment) -> None:
        """Find the exact value of an assignment to its target."""
        a.cuts = []
        if a.source is None:
            return

        def cut(e: Expression) -> Expression:
            name = self.fresh()
            wire = part(name, 0, e.width, e.width)
            self.widths[name], self.kinds[name] = e.width, "wire"
            a.cuts.append(Assignment(wire, e, value=e))
            return wire

        if a.target is None:
            a.value = condition(a.source, cut)
        else:
            a.value = exact(a.source, a.target.width, cut)

    def used(self) -> dict[str, int]:
        """Return the bits of each wire that something reads, as a mask; outputs have readers."""
        result = {
            port: (1 << self.widths[port]) - 1
            for port, direction in self.directions.items()
            if direction == "output"
        }
        statements = [a for b in chain(self.assignments, self.clocked) for a in (b, *b.cuts)]
        for a in statements:
            if a.value is None:
                names = set(IDENTIFIER.findall(a.text)) & self.widths.keys()
                result |= {name: (1 << self.widths[name]) - 1 for name in names}
        leaves = chain.from_iterable(a.used() for a in statements)
        for leaf in chain(leaves, *(item.used for item in self.others)):
            result[leaf.text] = result.get(leaf.text, 0) | mask(leaf)
        return result


def mask(leaf: Expression) -> int:
    """Return the bits of its wire that a leaf is, as a mask."""
    return ((1 << leaf.width) - 1) << leaf.low


def parse_body(name: str, text: str, outputs: Mapping[str, set[str]]) -> Body:
    """Take the module ``name`` apart; ``outputs`` are those of all modules."""
    items = _ITEM.findall(text)
    assert "".join(items) == text, f"{name}: a statement was not understood"
    widths: dict[str, int] = {}
    memories: dict[str, int] = {}
    choices: dict[str, int] = {}
    body = Body({}, {}, Names(widths, memories, choices), widths)
    body.taken.update(IDENTIFIER.findall(text))
    statements = []
    for item in items:
        if match := PORT.fullmatch(item):
            body.directions[match[3]] = match[1]
        elif match := DECLARATION.fullmatch(item):
            body.kinds[match[3]] = match[1]
            widths[match[3]] = int(match[2] or 0) + 1
        elif match := _FUNCTION.match(item):
            choices[match[2]] = int(match[1] or 0) + 1
        else:
            if match := _MEMORY.fullmatch(item):
                memories[match[3]] = int(match[2] or 0) + 1
            statements.append(item)
    for item in statements:
        if match := _ASSIGNMENT.fullmatch(item):
            body.assignments.append(_assignment(body, match[1], match[2]))
        elif match := _REGISTER.fullmatch(item) or _ENABLED.fullmatch(item):
            body.registers.append(_register(body, match))
        else:
            body.others.append(_other(item, body.names, outputs))
    return body


def _assignment(body: Body, target: str, value: str) -> Assignment:
    place = parse(target, body.names) if target else None
    assert place or not target, target
    result = Assignment(place, parse(value, body.names), value)
    known = result.source or not body.names.choices.keys() & set(IDENTIFIER.findall(value))
    assert known, f"{value} was not understood"
    body.set_value(result)
    return result


def _register(body: Body, match: re.Match[str]) -> Register:
    text = match.groupdict(default="")
    value, initial = text["value"], _UNKNOWN.sub(_zeros, text["initial"])
    reset: Assignment | None = _assignment(body, "", text["reset"]) if text["reset"] else None
    enable = _assignment(body, "", text["enable"]) if text["enable"] else None
    taken = _assignment(body, text["target"], value)
    if match.re is _ENABLED and reset and reset.value:
        # The reset needs the enable too, so it is a choice of the value.
        first = parse(initial, body.names)
        assert first, match[0]
        assert taken.source, match[0]
        taken.source = Expression("?:", (reset.value, first, taken.source), taken.source.width)
        body.set_value(taken)
        reset, initial = None, ""
    first = parse(initial, body.names) if initial else None
    return Register(reset, str(first) if first else initial, enable, taken)


def _zeros(match: re.Match[str]) -> str:
    return re.sub("[xz]", "0", match[0])


def _other(item: str, names: Names, outputs: Mapping[str, set[str]]) -> Instance:
    """Return an instance or what belongs to a memory; what is not known becomes zero."""
    item = _UNKNOWN.sub(_zeros, item)
    if match := INSTANCE.fullmatch(item):
        result = Instance(f"  {match[1]} {match[2]} (\n")
        for port, text in _CONNECTION.findall(match[3]):
            value = parse(text, names)
            assert value, f"{match[2]}: {text} was not understood"
            result.connections.append((port, value, port in outputs.get(match[1], ())))
        return result
    # The lowest index of a memory first, as style rules want it.
    result = Instance(_MEMORY.sub(r"\1[0:\4];\n", item))
    for line in item.splitlines():
        stored = _STORED.match(line)
        if stored and stored[1] in names.widths:
            line = stored[2]
        for match in _WIRE.finditer(line):
            if match[1] in names.widths and (leaf := parse(match[0], names)):
                result.read.append(leaf)
    return result
