"""Makes the Verilog that yosys writes readable, without changing what it means.

Ports stand in the module's head, the wires of an instance are called after it, temporaries fold
into the expressions that use them, a wire is declared where it is assigned and before it is used,
and one block holds all that is clocked.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, count
from textwrap import fill, indent

from m2xfp.rtl.verilog.component import EmittedModule
from m2xfp.rtl.verilog.expression import Expression, parse, substitute

__all__ = ["tidy"]

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


def tidy(text: str, modules: dict[str, EmittedModule]) -> str:
    """Return Verilog ``text`` rewritten for people, the top module first.

    Ports are in the order of the signature, clk and rst first. Temporaries that remain are called
    t0, t1, ...; other escaped names lose their special characters. Memories of zeros,
    Amaranth's default, lose their contents, since a chip's memory has none; others are ROMs.
    """
    bodies = {match[1]: match[2] for match in _MODULE.finditer(text)}
    outputs = {
        name: {port for direction, _, port in _PORT.findall(body) if direction == "output"}
        for name, body in bodies.items()
    }
    declared = {_bare(raw.strip()) for _, _, raw in _DECLARATION.findall(text)}
    return "\n".join(
        f"// {module.summary}\n{_tidy_module(name, bodies[name], module, outputs, declared)}"
        for name, module in reversed(modules.items())
    )


def _tidy_module(
    name: str,
    body: str,
    module: EmittedModule,
    outputs: Mapping[str, set[str]],
    declared: set[str],
) -> str:
    body = _plain_names(
        _MEMORY_OF_ZEROS.sub("", body), {"clk", "rst", *module.ports}, outputs, declared
    )
    widths: dict[str, int] = {}
    directions: dict[str, str] = {}
    kinds: dict[str, str] = {}
    assignments: list[_Assignment] = []
    registers: list[_Register] = []
    others: list[str] = []
    items = _ITEM.findall(body)
    for item in items:
        if match := _PORT.fullmatch(item):
            directions[match[3]] = match[1]
        elif match := _DECLARATION.fullmatch(item):
            kinds[match[3]] = match[1]
            widths[match[3]] = int(match[2] or 0) + 1
    for item in items:
        if match := _ASSIGNMENT.fullmatch(item):
            assignments.append(_Assignment(match[1], match[2], parse(match[2], widths)))
        elif match := _REGISTER.fullmatch(item):
            texts = match.groupdict(default="")
            reset, enable, value = (
                _Assignment(target, texts[part], parse(texts[part], widths))
                for target, part in (("", "reset"), ("", "enable"), (texts["target"], "value"))
            )
            registers.append(_Register(reset, texts["initial"], enable, value))
        elif not (_PORT.fullmatch(item) or _DECLARATION.fullmatch(item)):
            others.append(item)
    assert "".join(items) == body, f"{name}: a statement was not understood"
    clocked = [part for r in registers for part in (r.reset, r.enable, r.value)]
    _fold(assignments, clocked, others, widths)
    assignments, early = _ordered(assignments)
    used = set(
        _IDENTIFIER.findall(
            " ".join([*others, *(f"{a.target} {a.text}" for a in [*assignments, *clocked])])
        )
    )
    whole = {a.target for a in assignments} - early - directions.keys()

    def span(wire: str) -> str:
        return f"[{widths[wire] - 1}:0] " if widths[wire] > 1 else ""

    head = [
        f"  {directions[port]:<6} {kinds[port]:<4} {span(port):<8}{port}"
        for port in ("clk", "rst", *module.ports)
        if port in directions
    ]
    lines = [
        f"  {kinds[wire]} {span(wire)}{wire};\n"
        for wire in kinds
        if wire in used and wire not in whole and wire not in directions
    ]
    functions = [item for item in others if item.startswith("  function")]
    lines += functions
    for a in assignments:
        start = f"wire {span(a.target)}{a.target}" if a.target in whole else f"assign {a.target}"
        lines.append(_wrapped(f"{start} = {a.text};"))
    lines += [
        f"{line}\n" if len(line) <= _LINE else _wrapped(line.strip(), "    ")
        for item in others
        if item not in functions
        for line in item.splitlines()
    ]
    lines += _clocked_block(registers)
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


def _fold(
    assignments: list[_Assignment],
    clocked: list[_Assignment],
    others: list[str],
    widths: Mapping[str, int],
) -> None:
    """Put temporaries in the place of their use: negated names, then all that are used once."""
    for negations in (True, False):
        uses: Counter[str] = Counter(chain.from_iterable(map(_IDENTIFIER.findall, others)))
        users: dict[str, list[_Assignment]] = {}
        ordered, _ = _ordered(assignments)
        for a in [*ordered, *clocked]:
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
                or value.width != widths[a.target]
                or len(str(value)) > _FOLDED
            ):
                continue
            negation = value.operator == "~" and not value.operands[0].operator
            if not (negation if negations else len(places) == 1):
                continue
            distinct = list({id(place): place for place in places}.values())
            folded = [
                place.parsed and substitute(place.parsed, a.target, value, _width(place, widths))
                for place in distinct
            ]
            if not all(folded):
                continue
            for place, expression in zip(distinct, folded, strict=True):
                place.parsed = expression
            for name in set(_IDENTIFIER.findall(str(value))):
                users[name] = [user for user in users[name] if user is not a] + places
            assignments.remove(a)


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


def _plain_names(
    body: str, keep: set[str], outputs: Mapping[str, set[str]], declared_anywhere: set[str]
) -> str:
    """Give each wire, register and escaped name of a module a plain name that no other has.

    The wire at an output of an instance is called <instance>_<port>. An instance is called
    u_<name> if a module has a wire of its name, which would hide the instance there. Names without
    special characters are escaped because they are keywords of SystemVerilog; they get a number.
    """
    declared = [raw.strip() for _, _, raw in map(re.Match.groups, _DECLARATION.finditer(body))]
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
    plain: dict[str, str] = {name: name for name in keep}

    def candidates(raw: str) -> Iterator[str]:
        if raw in instances and _bare(raw) in declared_anywhere:
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

    def replace(match: re.Match[str]) -> str:
        return plain.get(match[1] or match[0], match[0])

    return re.sub(r"(\\\S+) |(?<![\w$'.\\])[A-Za-z_]\w*", replace, body)


def _bare(raw: str) -> str:
    """Return a name without special characters and without the numbers that kept it apart."""
    return re.sub(r"\W+", "_", re.sub(r"\$\d+", "", raw.removeprefix("\\")))
