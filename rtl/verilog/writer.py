"""The Verilog writer: makes the text that yosys writes readable, without changing what it means.

Ports stand in the module's head, the wires of an instance are called after it, temporaries fold
into the expressions that use them, a wire is declared where it is assigned and before it is used,
and one block holds all that is clocked. Every operand is as wide as its place, no wire depends on
itself, and what nothing reads stands in one list, so that linters need no waivers. ``names``
decides the names, ``body`` takes a module apart into statements, ``exact`` and ``tidy`` do what
linters want, ``_fold`` joins statements, ``_print`` puts them in order. docs/architecture.md says
how the result is proved.
"""

import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from textwrap import fill

from m2xfp.rtl.verilog.body import IDENTIFIER, Assignment, Body, Instance, Register, parse_body
from m2xfp.rtl.verilog.component import EmittedModule
from m2xfp.rtl.verilog.exact import substitute
from m2xfp.rtl.verilog.macros import Macro
from m2xfp.rtl.verilog.names import bodies, outputs, plain_names, renamed
from m2xfp.rtl.verilog.tidy import leave_out_unused_bits, split_rings, unused, use_names

__all__ = ["rewrite"]

_LINE = 100
_FOLDED = 64  # longest expression that folds into another


def rewrite(text: str, modules: dict[str, EmittedModule], macro: Macro | None = None) -> str:
    """Return Verilog ``text`` rewritten for people, the top module first.

    Ports are in the order of the signature, clk and rst first. Memories are made of ``macro``.
    """
    parts, names = bodies(text), plain_names(text, modules)
    results = outputs(parts)
    if macro:
        results[macro.name] = {
            name for name, port in macro.ports.items() if port.role == "read_data"
        }
    written = []
    for name, module in reversed(modules.items()):
        body = parse_body(name, renamed(parts[name], names[name]), results)
        use_names(body)
        leave_out_unused_bits(body)
        split_rings(body)
        _fold(body)
        written.append(f"// {module.summary}\n{_print(name, module, body)}")
    return "\n".join(written)


def _print(name: str, module: EmittedModule, body: Body) -> str:
    """Return the module: head, declarations, assignments, the rest, what is clocked."""
    assignments, early = _ordered(body.assignments)
    texts = [f"{a.target or ''} {a.written}" for a in [*assignments, *body.clocked]]
    texts += [line for item in body.others for line in _lines(item)]
    used = set(IDENTIFIER.findall(" ".join(texts)))
    declared_when_assigned = {str(a.target) for a in assignments} - early - body.directions.keys()
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
    memories = [item for item in body.others if item.text.startswith("  reg")]
    lines += chain.from_iterable(map(_lines, memories))
    for a in assignments:
        target = str(a.target)
        start = f"wire {body.span(target)}" if target in declared_when_assigned else "assign "
        lines.append(_wrapped(f"{start}{target} = {a.written};"))
    rest = [item for item in body.others if item not in memories]
    lines += chain.from_iterable(map(_lines, rest))
    lines += _unused_wires(body)
    lines += _clocked_block(body.registers)
    return f"module {name} (\n" + ",\n".join(head) + f"\n);\n{''.join(lines)}endmodule\n"


def _lines(item: Instance) -> list[str]:
    """Return the text of an instance or what belongs to a memory."""
    if not item.connections:
        return item.text.splitlines(keepends=True)
    last = len(item.connections) - 1
    connections = [
        _wrapped(f".{port}({value})" + "," * (n < last), "    ")
        for n, (port, value, _) in enumerate(item.connections)
    ]
    return [item.text, *connections, "  );\n"]


def _unused_wires(body: Body) -> list[str]:
    """Return a use of what nothing reads, which tells linters that it is meant."""
    wires = unused(body)
    if not wires:
        return []
    name = next(
        name
        for name in chain(["unused"], (f"unused_{n}" for n in range(1, len(body.taken) + 2)))
        if name not in body.taken
    )
    return [
        f"  (* unused *) wire {name};\n",
        _wrapped(f"assign {name} = &{{1'h0, {', '.join(wires)}}};"),
    ]


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


def _fold(body: Body) -> None:
    """Put temporaries in the place of their use: negated names, then all that are used once."""
    for negations in (True, False):
        uses: Counter[str] = Counter()
        for item in body.others:
            uses.update(leaf.text for leaf in item.used)
        users: dict[str, list[Assignment]] = {}
        ordered, _ = _ordered(body.assignments)
        for a in [*ordered, *body.clocked]:
            names = IDENTIFIER.findall(a.written)
            uses.update(names)
            for name in names:
                users.setdefault(name, []).append(a)
        for a in ordered:
            target = str(a.target)
            places, value = users.get(target, []), a.value
            if (
                not re.fullmatch(r"t\d+", target)
                or not places
                or uses[target] != len(places)
                or value is None
                or value.width != body.widths[target]
                or len(str(value)) > _FOLDED
            ):
                continue
            negation = value.operator == "~" and not value.operands[0].operator
            if not (negation if negations else len(places) == 1):
                continue
            distinct = list({id(place): place for place in places}.values())
            folded = [place.value and substitute(place.value, target, value) for place in distinct]
            if not all(folded):
                continue
            for place, expression in zip(distinct, folded, strict=True):
                place.value = expression
            for name in sorted(set(IDENTIFIER.findall(str(value)))):
                users[name] = [user for user in users[name] if user is not a] + places
            body.assignments.remove(a)


def _ordered(assignments: list[Assignment]) -> tuple[list[Assignment], set[str]]:
    """Return the assignments with each wire before its uses, and the wires where there is no way.

    Those are in a ring of wires, though not of bits.
    """
    by_target = {str(a.target): a for a in assignments}
    state: dict[str, bool] = {}  # by target; True when it is placed
    result: list[Assignment] = []
    ring: set[str] = set()
    for first in by_target:
        stack: list[tuple[str, Iterator[str]]] = []

        def enter(target: str, stack: list[tuple[str, Iterator[str]]] = stack) -> None:
            state[target] = False
            stack.append((target, iter(IDENTIFIER.findall(by_target[target].written))))

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
    partial = {str(a.target) for a in assignments if not (a.target and a.target.whole)}
    return result, ring | partial


def _clocked_block(registers: list[Register]) -> list[str]:
    """Return the clocked block, registers with the same conditions together."""
    groups: dict[tuple[str, str], list[Register]] = {}
    for register in registers:
        conditions = (part.written if part else "" for part in (register.reset, register.enable))
        reset, enable = conditions
        groups.setdefault((reset, enable), []).append(register)
    lines: list[str] = []
    for (reset, enable), members in groups.items():
        margin = "      " if reset or enable else "    "
        values = [_wrapped(f"{r.value.target} <= {r.value.written};", margin) for r in members]
        if reset:
            lines += [f"    if ({reset}) begin\n"]
            lines += [f"{margin}{r.value.target} <= {r.initial};\n" for r in members]
            lines += [f"    end else if ({enable}) begin\n" if enable else "    end else begin\n"]
        elif enable:
            lines += [f"    if ({enable}) begin\n"]
        lines += [*values, "    end\n"] if reset or enable else values
    if not lines:
        return []
    return ["  always @(posedge clk) begin\n", *lines, "  end\n"]
