"""A SystemVerilog package with the fields of a unit's streams and ports as packed structures.

A value of ``s_axis_t`` is the low bits of ``s_axis_tdata``: ``s_axis_t beat; assign s_axis_tdata =
beat;`` widens it with zeros as the unit wants it. Arrays have their first value in the lowest bits;
those of signed values are unsigned here, since a sign would be the whole array's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from m2xfp.facts import Facts, Field
from m2xfp.rtl.verilog.component import VERILOG_KEYWORDS

__all__ = ["package"]


@dataclass(frozen=True)
class _Part:
    """A member of a structure: a value, a structure or an array of either.

    Members
    -------
    name, offset
        Where it begins within the structure around it.
    width
        Bits of it all.
    shape
        Sizes of an array, outermost first.
    members
        Of a structure, lowest bits first; none of a plain value.
    signed
        Of a plain value.
    """

    name: str
    offset: int
    width: int
    shape: tuple[int, ...]
    members: tuple["_Part", ...] = ()
    signed: bool = False

    @property
    def each(self) -> int:
        """Bits of one value of the array."""
        size = 1
        for length in self.shape:
            size *= length
        return self.width // size


def package(facts: Facts) -> str:
    """Return the package ``<top>_pkg``.

    It has a type ``<prefix>_t`` of each stream, ``<port>_t`` of each other port, types of their
    inner structures such as ``<prefix>_operands_t``, the numbers among the parameters as
    ``Param<Name>``, and ``Latency``, ``BeatsPerGroup`` and ``ClocksPerGroup``: the names that
    verible's style has for constants.
    """
    numbers = {
        f"Param{_camel(name)}": int(value)
        for name, value in facts.parameters.items()
        if isinstance(value, int | bool)
    } | {
        "Latency": facts.latency,
        "BeatsPerGroup": facts.beats_per_group,
        "ClocksPerGroup": facts.clocks_per_group,
    }
    lines = [f"  localparam int {name} = {value};" for name, value in numbers.items()]
    words = [(stream.prefix, stream.fields, stream.data_width) for stream in facts.streams]
    words += [(port.name, port.fields, port.width) for port in facts.signals]
    for name, fields, width in words:
        for text in _typedefs(name, _part("", fields, 0, width)):
            lines += ["", *text]
    return (
        f"// {facts.top}:\n"
        "// fields of its streams and ports; first values of arrays are in low bits.\n"
        f"package {facts.top}_pkg;\n" + "\n".join(lines) + "\nendpackage\n"
    )


def _camel(name: str) -> str:
    """Return ``max_k`` as ``MaxK``."""
    return "".join(word.capitalize() for word in name.split("_"))


def _part(name: str, fields: Sequence[Field], start: int, width: int) -> _Part:
    """Return what ``fields`` make of ``width`` bits from bit ``start`` on."""
    first = fields[0] if fields else Field("", start, width)
    if len(fields) == 1 and not first.name:
        inner = first.width
        for size, stride in zip(reversed(first.shape), reversed(first.strides), strict=True):
            if stride != inner:
                raise ValueError(f"field {name}: values {stride} bits apart have {inner}")
            inner *= size
        return _Part(name, start, inner, first.shape, (), first.signed)
    # An array of structures: all fields repeat alike, and one value holds them all.
    if first.shape and len({(x.shape[:1], x.strides[:1]) for x in fields}) == 1:
        size, stride = first.shape[0], first.strides[0]
        one = [replace(x, shape=x.shape[1:], strides=x.strides[1:]) for x in fields]
        if all(x.last_bit < start + stride for x in one):
            value = _part(name, one, start, stride)
            return replace(value, width=stride * size, shape=(size, *value.shape))
    members = [_part(*member) for member in _members(fields)]
    return _Part(name, start, width, (), tuple(_filled(members, start, width)))


def _members(fields: Sequence[Field]) -> Iterator[tuple[str, list[Field], int, int]]:
    """Yield name, fields, first bit and bits of each member, by the first part of their names."""
    by_name: dict[str, list[Field]] = {}
    for field in fields:
        head, _, rest = field.name.partition(".")
        by_name.setdefault(head, []).append(replace(field, name=rest))
    for name, inner in by_name.items():
        start = min(field.offset for field in inner)
        yield name, inner, start, max(field.last_bit for field in inner) + 1 - start


def _filled(members: list[_Part], start: int, width: int) -> Iterator[_Part]:
    """Yield the members, lowest first, with reserved bits between and behind them."""
    at, gaps = start, 0
    for member in [*sorted(members, key=lambda x: x.offset), _Part("", start + width, 0, ())]:
        if member.offset > at:
            yield _Part(f"reserved_{gaps}", at, member.offset - at, ())
            gaps += 1
        if member.width:
            yield member
        at = member.offset + member.width


def _range(part: _Part) -> str:
    return "".join(f"[{size - 1}:0]" for size in part.shape)


def _array(part: _Part) -> str:
    """Return the dimensions of an array of structures, and the space behind them."""
    return f"{_range(part)} " if part.shape else ""


def _typedefs(name: str, part: _Part) -> Iterator[list[str]]:
    """Yield the declarations of ``<name>_t``: of its inner structures, then its own."""
    if not part.members:
        yield [f"  typedef {_plain(part)}{name}_t;"]
        return
    lines = []
    for member in part.members:
        kind = _plain(member)
        if member.members:
            inner = f"{name}_{member.name}"
            yield from _typedefs(inner, replace(member, shape=()))
            kind = f"{inner}_t {_array(member)}"
        lines.append(f"    {kind}{_identifier(member.name)};")
    # SystemVerilog has the highest bits first.
    lines.reverse()
    yield ["  typedef struct packed {", *lines, f"  }} {_array(part)}{name}_t;"]


def _plain(part: _Part) -> str:
    """Return the type of values without members: ``logic [31:0][3:0] ``."""
    sign = " signed" if part.signed and not part.shape else ""
    bits = f"{_range(part)}[{part.each - 1}:0] " if part.shape or part.each > 1 else ""
    return f"logic{sign} {bits}"


def _identifier(name: str) -> str:
    return f"{name}_" if name in VERILOG_KEYWORDS else name
