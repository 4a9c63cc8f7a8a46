"""The Verilog writer: makes the text that yosys writes readable, without changing what it means.

Ports stand in the module's head, the wires of an instance are called after it, temporaries fold
into the expressions that use them, a wire is declared where it is assigned and before it is used,
and one block holds all that is clocked. ``plain_names`` decides the names, ``_parse`` takes a
module apart into statements, ``_fold`` joins them, ``_print`` puts them in order.
docs/architecture.md says how the result is proved.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, count
from textwrap import fill, indent

from m2xfp.rtl.verilog.component import EmittedModule
from m2xfp.rtl.verilog.expression import Expression, parse, substitute

__all__ = ["plain_names", "rewrite"]

_MODULE = re.compile(r"^module (\S+?)\(.*?\);\n(.*?)^endmodule\n", re.MULTILINE | re.DOTALL)
_MEMORY_OF_ZEROS = re.compile(
    r"^  initial begin\n(?:    \S+ ?\[\d+\] = \d+'h0+;\n)+  end\n", re.MULTILINE
)
# A line that is indented by two, and the deeper ones and closing words after it.
_ITEM = re.compile(r"^  (?!end|\)| ).*\n(?:(?:   |  end|  \)).*\n)*", re.MULTILINE)
_PORT = re.compile(r"  (input|output) (?:\[(\d+):0\] )?(\w+);\n")
_DECLARATION = re.compile(r"  (wire|reg) (?:\[(\d+):0\] )?(\\\S+ |\w+);\n")
_ASSIGNMENT = re.compile(r"  assign (.+?) = (.+);\n")
_INSTANCE = re.compile(r"  (\w+) (\\\S+ |\w+) \(\n(.*?)  \);\n", re.DOTALL)
_CONNECTION = re.compile(r"    \.(\w+)\((\\\S+ |\w+)\)")
_REGISTER = re.compile(
    r"  always @\(posedge clk\)\n"
    r"    (?:if \((?P<reset>.+)\) \S+ <= (?P<initial>.+);\n    else )?"
    r"(?:if \((?P<enable>.+)\) )?(?P<target>\S+) <= (?P<value>.+);\n"
)
_IDENTIFIER = re.compile(r"(?<![\w'.])[A-Za-z_]\w*")
_NAME = re.compile(r"(\\\S+) |(?<![\w$'.\\])[A-Za-z_]\w*")
_LINE = 100
_FOLDED = 64  # longest expression that folds into another


@dataclass
class _Assignment:
    """``target = value``; ``parsed`` if the value is of a known form."""

    target: str
    value: str
    parsed: Expression | None = None

    @property
    def text(self) -> str:
        return str(self.parsed) if self.parsed else self.value


@dataclass
class _Register:
    """A register takes ``initial`` on ``reset``, else ``value`` on ``enable``; empty if none."""

    reset: _Assignment
    initial: str
    enable: _Assignment
    value: _Assignment


@dataclass
class _Body:
    """What stands in a module: ports, wires and registers by name, and statements by kind."""

    directions: dict[str, str]
    kinds: dict[str, str]
    widths: dict[str, int]
    assignments: list[_Assignment]
    registers: list[_Register]
    others: list[str]  # instances, functions and memories stay as they are

    @property
    def clocked(self) -> list[_Assignment]:
        return [part for r in self.registers for part in (r.reset, r.enable, r.value)]

    def span(self, wire: str) -> str:
        """Return the range in the declaration of ``wire``."""
        return f"[{self.widths[wire] - 1}:0] " if self.widths[wire] > 1 else ""


def rewrite(text: str, modules: dict[str, EmittedModule]) -> str:
    """Return Verilog ``text`` rewritten for people, the top module first.

    Ports are in the order of the signature, clk and rst first. Memories of zeros, Amaranth's
    default, lose their contents, since a chip's memory has none; others are ROMs.
    """
    bodies = _bodies(text)
    names = plain_names(text, modules)
    written = []
    for name, module in reversed(modules.items()):
        body = _parse(name, _renamed(bodies[name], names[name]))
        _fold(body)
        written.append(f"// {module.summary}\n{_print(name, module, body)}")
    return "\n".join(written)


def _bodies(text: str) -> dict[str, str]:
    """Return what stands in each module between its head and its end."""
    return {match[1]: _MEMORY_OF_ZEROS.sub("", match[2]) for match in _MODULE.finditer(text)}


def _parse(name: str, text: str) -> _Body:
    """Take the module ``name`` apart."""
    body = _Body({}, {}, {}, [], [], [])
    items = _ITEM.findall(text)
    assert "".join(items) == text, f"{name}: a statement was not understood"
    statements = []
    for item in items:
        if match := _PORT.fullmatch(item):
            body.directions[match[3]] = match[1]
        elif match := _DECLARATION.fullmatch(item):
            body.kinds[match[3]] = match[1]
            body.widths[match[3]] = int(match[2] or 0) + 1
        else:
            statements.append(item)

    def assignment(target: str, value: str) -> _Assignment:
        return _Assignment(target, value, parse(value, body.widths))

    for item in statements:
        if match := _ASSIGNMENT.fullmatch(item):
            body.assignments.append(assignment(match[1], match[2]))
        elif match := _REGISTER.fullmatch(item):
            part = match.groupdict(default="")
            body.registers.append(
                _Register(
                    assignment("", part["reset"]),
                    part["initial"],
                    assignment("", part["enable"]),
                    assignment(part["target"], part["value"]),
                )
            )
        else:
            body.others.append(item)
    return body


def _print(name: str, module: EmittedModule, body: _Body) -> str:
    """Return the module: head, declarations, functions, assignments, the rest, what is clocked."""
    assignments, early = _ordered(body.assignments)
    used = set(
        _IDENTIFIER.findall(
            " ".join(
                [*body.others, *(f"{a.target} {a.text}" for a in [*assignments, *body.clocked])]
            )
        )
    )
    declared_when_assigned = {a.target for a in assignments} - early - body.directions.keys()
    head = [
        f"  {body.directions[port]:<6} {body.kinds[port]:<4} {body.span(port):<8}{port}"
        for port in ("clk", "rst", *module.ports)
        if port in body.directions
    ]
    lines = [
        f"  {kind} {body.span(wire)}{wire};\n"
        for wire, kind in body.kinds.items()
        if wire in used - declared_when_assigned - body.directions.keys()
    ]
    functions = [item for item in body.others if item.startswith("  function")]
    lines += functions
    for a in assignments:
        declared = a.target in declared_when_assigned
        start = f"wire {body.span(a.target)}" if declared else "assign "
        lines.append(_wrapped(f"{start}{a.target} = {a.text};"))
    lines += [
        f"{line}\n" if len(line) <= _LINE else _wrapped(line.strip(), "    ")
        for item in body.others
        if item not in functions
        for line in item.splitlines()
    ]
    lines += _clocked_block(body.registers)
    return f"module {name} (\n" + ",\n".join(head) + f"\n);\n{''.join(lines)}endmodule\n"


def _wrapped(statement: str, margin: str = "  ") -> str:
    return (
        fill(
            statement,
            _LINE,
            initial_indent=margin,
            subsequent_indent=f"{margin}    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        + "\n"
    )


def _fold(body: _Body) -> None:
    """Put temporaries in the place of their use: negated names, then all that are used once."""
    for negations in (True, False):
        uses: Counter[str] = Counter(chain.from_iterable(map(_IDENTIFIER.findall, body.others)))
        users: dict[str, list[_Assignment]] = {}
        ordered, _ = _ordered(body.assignments)
        for a in [*ordered, *body.clocked]:
            names = _IDENTIFIER.findall(a.text)
            uses.update(names)
            for name in names:
                users.setdefault(name, []).append(a)
        for a in ordered:
            places, value = users.get(a.target, []), a.parsed
            if (
                not re.fullmatch(r"t\d+", a.target)
                or not places
                or uses[a.target] != len(places)
                or value is None
                or value.width != body.widths[a.target]
                or len(str(value)) > _FOLDED
            ):
                continue
            negation = value.operator == "~" and not value.operands[0].operator
            if not (negation if negations else len(places) == 1):
                continue
            distinct = list({id(place): place for place in places}.values())
            folded = [
                place.parsed
                and substitute(place.parsed, a.target, value, _width(place, body.widths))
                for place in distinct
            ]
            if not all(folded):
                continue
            for place, expression in zip(distinct, folded, strict=True):
                place.parsed = expression
            for name in set(_IDENTIFIER.findall(str(value))):
                users[name] = [user for user in users[name] if user is not a] + places
            body.assignments.remove(a)


def _width(assignment: _Assignment, widths: Mapping[str, int]) -> int:
    """Return the bits of an assignment's target; a condition has one."""
    if not assignment.target:
        return 1
    target = parse(assignment.target, widths)
    assert target, assignment.target
    return target.width


def _ordered(assignments: list[_Assignment]) -> tuple[list[_Assignment], set[str]]:
    """Return the assignments with each wire before its uses, and the wires where there is no way.

    Those are in a ring of wires, though not of bits.
    """
    by_target = {a.target: a for a in assignments}
    state: dict[str, bool] = {}  # by target; True when it is placed
    result: list[_Assignment] = []
    ring: set[str] = set()
    for first in by_target:
        stack: list[tuple[str, Iterator[str]]] = []

        def enter(target: str, stack: list[tuple[str, Iterator[str]]] = stack) -> None:
            state[target] = False
            stack.append((target, iter(_IDENTIFIER.findall(by_target[target].text))))

        if first not in state:
            enter(first)
        while stack:
            target, uses = stack[-1]
            used = next(uses, None)
            if used is None:
                state[target] = True
                result.append(by_target[target])
                stack.pop()
            elif used in by_target:
                if used not in state:
                    enter(used)
                elif not state[used]:
                    ring.add(used)
    partial = {a.target for a in assignments if not re.fullmatch(r"\w+", a.target)}
    return result, ring | partial


def _clocked_block(registers: list[_Register]) -> list[str]:
    """Return the clocked block, registers with the same conditions together."""
    groups: dict[tuple[str, str], list[_Register]] = {}
    for register in registers:
        groups.setdefault((register.reset.text, register.enable.text), []).append(register)
    lines: list[str] = []
    for (reset, enable), members in groups.items():
        values = [_wrapped(f"{r.value.target} <= {r.value.text};") for r in members]
        if reset:
            lines += [f"  if ({reset}) begin\n"]
            lines += [indent(_wrapped(f"{r.value.target} <= {r.initial};"), "  ") for r in members]
            lines += [f"  end else if ({enable}) begin\n" if enable else "  end else begin\n"]
        elif enable:
            lines += [f"  if ({enable}) begin\n"]
        else:
            lines += values
            continue
        lines += [*(indent(value, "  ") for value in values), "  end\n"]
    if not lines:
        return []
    return ["  always @(posedge clk) begin\n", *(indent(line, "  ") for line in lines), "  end\n"]


def plain_names(text: str, modules: Mapping[str, EmittedModule]) -> dict[str, dict[str, str]]:
    """Return, by module, the plain name of each wire, register, instance and escaped name.

    No two in a module share one. The wire at an output of an instance is called
    <instance>_<port>. An instance is called u_<name> if a module has a wire of its name, which
    would hide the instance there. Temporaries are called t0, t1, ...; other escaped names lose
    their special characters. Names without any are escaped because they are keywords of
    SystemVerilog; they get a number.
    """
    bodies = _bodies(text)
    outputs = {
        name: {port for direction, _, port in _PORT.findall(body) if direction == "output"}
        for name, body in bodies.items()
    }
    wires = {_bare(raw.strip()) for _, _, raw in _DECLARATION.findall(text)}
    return {
        name: _names(bodies[name], {"clk", "rst", *module.ports}, outputs, wires)
        for name, module in modules.items()
    }


def _names(
    body: str, keep: set[str], outputs: Mapping[str, set[str]], wires_anywhere: set[str]
) -> dict[str, str]:
    """Return the plain names of a module, which keeps the names of its ports."""
    declared = [raw.strip() for _, _, raw in _DECLARATION.findall(body)]
    functions = set(re.findall(r"^  function .*?(\\\S+) ;$", body, re.MULTILINE))
    instances = dict.fromkeys(match[2].strip() for match in _INSTANCE.finditer(body))
    at_instance = {
        wire.strip(): f"{_bare(instance.strip())}_{port}"
        for submodule, instance, connections in _INSTANCE.findall(body)
        for port, wire in _CONNECTION.findall(connections)
        if port in outputs.get(submodule, ()) and wire.strip() not in keep
    }
    names = [*instances, *at_instance, *declared, *re.findall(r"\\\S+(?= )", body)]
    unescaped = set(_IDENTIFIER.findall(re.sub(r"\\\S+ ", " ", body)))
    taken = keep | (unescaped - {*declared, *instances})
    numbers = count()
    plain = {name: name for name in taken}

    def candidates(raw: str) -> Iterator[str]:
        if raw in instances and _bare(raw) in wires_anywhere:
            return iter([f"u_{_bare(raw)}"])
        if raw in functions:
            return (f"choice_{n}" for n in count())
        if raw not in at_instance and re.match(r"\\\$|\\.*\$procmux|_\d+_$", raw):
            return (f"t{n}" for n in numbers)
        base = at_instance.get(raw, _bare(raw))
        # A keyword is escaped although it is plain.
        first = [] if raw == f"\\{base}" else [base]
        return chain(first, (f"{base}_{n}" for n in count(1)))

    for raw in dict.fromkeys(names):
        if raw not in plain:
            plain[raw] = next(name for name in candidates(raw) if name not in taken)
            taken.add(plain[raw])
    return plain


def _renamed(body: str, names: Mapping[str, str]) -> str:
    """Return the text of a module with other names."""
    return _NAME.sub(lambda match: names.get(match[1] or match[0], match[0]), body)


def _bare(raw: str) -> str:
    """Return a name without special characters and without the numbers that kept it apart."""
    return re.sub(r"\W+", "_", re.sub(r"\$\d+", "", raw.removeprefix("\\")))
