"""What linters complain of in a netlist, mended: unneeded bits, rings of wires, unused wires."""

from collections.abc import Iterator
from dataclasses import replace

from m2xfp.rtl.verilog.body import Assignment, Body, mask
from m2xfp.rtl.verilog.exact import bits, narrows
from m2xfp.rtl.verilog.expression import Expression, joined, part

__all__ = ["leave_out_unused_bits", "split_rings", "unused", "use_names"]


def leave_out_unused_bits(body: Body) -> None:
    """Compute no upper bits that nothing reads, and make their wires narrower."""
    changed = True
    while changed:
        used = body.used()
        changed = False
        for a in list(body.assignments):
            kept = _read_part(a, used)
            if kept == a.targets or a.source is None or (kept and not narrows(a.source)):
                continue
            changed = True
            if kept:
                a.target = joined(kept)
                body.set_value(a)
            else:
                body.assignments.remove(a)
    body.assignments += [cut for a in [*body.assignments, *body.clocked] for cut in a.cuts]
    _narrow_wires(body)


def _read_part(a: Assignment, used: dict[str, int]) -> tuple[Expression, ...]:
    """Return the targets without the bits that nothing reads, nor any above them in the wire."""
    targets = list(a.targets)
    while targets:
        top = targets[0]
        read = (used.get(top.text, 0) >> top.low).bit_length()
        if read >= top.width:
            break
        if read:
            targets[0] = part(top.text, top.low, read, -1)
            break
        del targets[0]
    return tuple(targets)


def _narrow_wires(body: Body) -> None:
    """Let wires end where their highest assigned or read bit is."""
    bits_of = body.used()
    assigned: set[str] = set()
    for a in body.assignments:
        for target in a.targets:
            assigned.add(target.text)
            bits_of[target.text] = bits_of.get(target.text, 0) | mask(target)
    for wire in sorted(assigned - body.directions.keys()):
        body.widths[wire] = bits_of[wire].bit_length()
    _rename(body)


def _rename(body: Body) -> None:
    """Let each leaf know whether it is all of its wire."""

    def known(leaf: Expression) -> Expression:
        return part(leaf.text, leaf.low, leaf.width, body.widths[leaf.text])

    for a in [*body.assignments, *body.clocked]:
        if a.target:
            a.target = a.target.mapped(known)
        if a.value:
            a.value = a.value.mapped(known)
    for item in body.others:
        item.connections = [
            (port, value.mapped(known), is_output) for port, value, is_output in item.connections
        ]


def use_names(body: Body) -> None:
    """Read a wire by its name where its parts stand side by side.

    If some bits of a wire are bits of other wires, yosys reads those and the others one by one.
    """
    for wire, members in _descriptions(body):
        sources = _upstream(body, wire)
        whole = part(wire, 0, body.widths[wire], body.widths[wire])
        for a in [*body.assignments, *body.clocked]:
            if a.source and not sources & {target.text for target in a.targets}:
                named = _with_name(a.source, members, whole)
                if named != a.source:
                    a.source = named
                    body.set_value(a)
        for item in body.others:
            item.connections = [
                (port, value if is_output else _with_name(value, members, whole), is_output)
                for port, value, is_output in item.connections
            ]


def _descriptions(body: Body) -> Iterator[tuple[str, tuple[Expression, ...]]]:
    """Yield the wires that are made of bits of others, with what yosys reads instead of each."""
    pieces: dict[str, list[tuple[int, Expression]]] = {}
    copied: set[str] = set()
    for a in body.assignments:
        value = a.value
        copy = (
            value is not None
            and value.operator in ("", "{}")
            and all(m.is_name for m in value.operands or (value,))
        )
        copied.update(target.text for target in a.targets if copy)
        at = sum(target.width for target in a.targets)
        for target in a.targets:
            at -= target.width
            piece = bits(value, at, target.width) if value and copy else target
            pieces.setdefault(target.text, []).append((target.low, piece))
    for wire in copied:
        found = sorted(pieces[wire], key=lambda item: -item[0])
        members = joined(tuple(piece for _, piece in found)).operands
        if len(members) > 2 and sum(m.width for m in members) == body.widths[wire]:
            yield wire, members


def _upstream(body: Body, wire: str) -> set[str]:
    """Return the wires that a wire depends on, itself among them."""
    read: dict[str, set[str]] = {}
    for a in body.assignments:
        for target in a.targets:
            read.setdefault(target.text, set()).update(leaf.text for leaf in a.used())
    found, left = {wire}, [wire]
    while left:
        new = read.get(left.pop(), set()) - found
        found |= new
        left += new
    return found


def _with_name(e: Expression, members: tuple[Expression, ...], whole: Expression) -> Expression:
    """Return ``e`` with ``whole`` where it has ``members`` side by side."""
    operands = tuple(_with_name(operand, members, whole) for operand in e.operands)
    if e.operator == "{}":
        size = len(members)
        for first in range(len(operands) - size + 1):
            if operands[first : first + size] == members:
                operands = (*operands[:first], whole, *operands[first + size :])
                break
        if len(operands) == 1:
            return operands[0]
    return e if operands == e.operands else replace(e, operands=operands)


def split_rings(body: Body) -> None:
    """Take wires apart that only as a whole depend on themselves.

    A wire with a statement for each of its parts, one of which reads another part, is no loop, but
    simulators and linters look at whole wires.
    """
    for ring in list(_rings(body)):
        for wire in sorted(ring):  # the same text each time
            sources = _sources(body, wire)
            if len(sources) > 1:
                _join(body, wire, sources, ring)
    _rename(body)


def _rings(body: Body) -> Iterator[set[str]]:
    """Yield the sets of wires that depend on each other (Tarjan's strongly connected parts)."""
    readers: dict[str, set[str]] = {}
    for a in body.assignments:
        used = {leaf.text for leaf in a.used()}
        for target in a.targets:
            readers.setdefault(target.text, set()).update(used)
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    for first in readers:
        if first in order:
            continue
        work: list[tuple[str, Iterator[str]]] = []

        def enter(wire: str, work: list[tuple[str, Iterator[str]]] = work) -> None:
            order[wire] = lowest[wire] = len(order)
            stack.append(wire)
            work.append((wire, iter(sorted(readers[wire]))))

        enter(first)
        while work:
            wire, rest = work[-1]
            following = next(rest, None)
            if following is None:
                work.pop()
                if work:
                    lowest[work[-1][0]] = min(lowest[work[-1][0]], lowest[wire])
                if lowest[wire] == order[wire]:
                    at = stack.index(wire)
                    ring, stack[at:] = set(stack[at:]), []
                    if len(ring) > 1 or wire in readers[wire]:
                        yield ring
            elif following in readers:
                if following not in order:
                    enter(following)
                elif following in stack:
                    lowest[wire] = min(lowest[wire], order[following])


def _sources(body: Body, wire: str) -> list[tuple[Expression, Assignment]]:
    """Return the parts of a wire that are assigned, the lowest first, and where."""
    found = [(t, a) for a in body.assignments for t in a.targets if t.text == wire]
    return sorted(found, key=lambda item: item[0].low)


def _join(
    body: Body, wire: str, sources: list[tuple[Expression, Assignment]], ring: set[str]
) -> None:
    """Give a wire one assignment of all its parts, and let its ring read the parts."""
    values: list[tuple[Expression, Expression]] = []  # part of the wire, what it is
    done: set[int] = set()
    for _, a in sources:
        if id(a) in done:
            continue
        done.add(id(a))
        value = a.value
        if not value or value.operator not in ("", "{}") or any(o.operator for o in value.operands):
            name = body.fresh()
            ring.add(name)  # may read another part of the wire
            width = sum(t.width for t in a.targets if t.text == wire)
            body.widths[name], body.kinds[name] = width, "wire"
            value = part(name, 0, width, width)
            at, targets = width, []
            for target in a.targets:
                if target.text != wire:
                    targets.append(target)
                    continue
                at -= target.width
                piece = part(name, at, target.width, width)
                targets.append(piece)
                values.append((target, piece))
            a.target = joined(tuple(targets))
            continue
        at, rest = value.width, []
        for target in a.targets:
            at -= target.width
            piece = bits(value, at, target.width)
            if target.text == wire:
                values.append((target, piece))
            else:
                rest.append((target, piece))
        body.assignments.remove(a)
        body.assignments += [Assignment(t, p, value=p) for t, p in rest]

    def read(leaf: Expression, depth: int = 0) -> Expression:
        if leaf.text != wire or depth > len(values):
            return leaf
        members = []
        for target, piece in sorted(values, key=lambda item: -item[0].low):
            first = max(leaf.low, target.low)
            last = min(leaf.low + leaf.width, target.low + target.width)
            if first < last:
                members.append(bits(piece, first - target.low, last - first))
        return joined(tuple(members)).mapped(lambda inner: read(inner, depth + 1))

    for a in body.assignments:
        if a.value and ring & {target.text for target in a.targets}:
            a.value = a.value.mapped(read)
    whole = part(wire, 0, body.widths[wire], body.widths[wire])
    value = read(whole)
    assert value.width == whole.width, f"bits of {wire} are not driven"
    body.assignments.append(Assignment(whole, value, value=value))


def unused(body: Body) -> list[str]:
    """Return the wires and parts of wires that nothing reads, the highest bits of each first."""
    used = body.used()
    present = {leaf.text for item in body.others for leaf in item.driven}
    present |= {target.text for a in [*body.assignments, *body.clocked] for target in a.targets}
    present |= used.keys() | body.directions.keys()
    result = []
    for wire in body.kinds:
        if wire not in present:
            continue
        missing = ~used.get(wire, 0) & ((1 << body.widths[wire]) - 1)
        while missing:
            high = missing.bit_length()
            low = (~missing & ((1 << high) - 1)).bit_length()
            result.append(str(part(wire, low, high - low, body.widths[wire])))
            missing &= (1 << low) - 1
    return result
