"""Exact widths: every operand as wide as its place, without a change of what is computed.

Verilog computes the operands of most operators at the width of the whole expression (IEEE
1800-2017, 11.6), extends what is narrower and cuts what is wider. Linters warn of each such place,
for one that was meant looks like one that was not. Here the extension is written: ``{4'h0, a} +
b``. Where every operand is exact, an expression can stand in the place of a wire of its width.
"""

from collections.abc import Callable, Iterator

from m2xfp.rtl.verilog.expression import (
    COMPARISONS,
    MODULAR,
    Expression,
    constant,
    joined,
    part,
    zeros,
)

__all__ = ["Cut", "bits", "condition", "exact", "narrows", "substitute"]

Cut = Callable[[Expression], Expression]
"""Gives the wire that an expression is assigned to: Verilog has no part of an expression."""


def exact(e: Expression, width: int, cut: Cut, *, signed: bool | None = None) -> Expression:
    """Return ``e``, as yosys wrote it, with what it is worth in a place of ``width`` bits.

    ``signed`` says whether the place is signed; None asks the expression itself.
    """
    if signed is None:
        signed = _is_signed(e)
    op = e.operator
    if op in MODULAR or op in ("~", "-x"):
        operands = tuple(exact(o, width, cut, signed=signed) for o in e.operands)
        if op == "*" and signed:
            # Synthesis needs to see the signs, or multiplies the extensions too.
            factors = tuple(Expression("signed", (o,), width) for o in operands)
            return Expression("unsigned", (Expression("*", factors, width),), width)
        return Expression(op, operands, width)
    if op == "?:":
        choice, *branches = e.operands
        known = [branch for branch in branches if not branch.undefined]
        if len(known) < 2:
            return exact((known or branches)[0], width, cut, signed=signed)
        values = (exact(branch, width, cut, signed=signed) for branch in known)
        return Expression(op, (condition(choice, cut), *values), width)
    if op == "<<":
        left, amount = e.operands
        value = exact(left, width, cut, signed=signed)
        return Expression(op, (value, exact(amount, amount.width, cut)), width)
    if op in (">>", ">>>"):
        return _shifted_right(e, width, cut, signed=signed)
    if op == "choice":
        return exact(_one_hot(e), width, cut)
    if op == "signed":
        (operand,) = e.operands
        return _fit(exact(operand, operand.width, cut), width, cut, signed=signed)
    return _fit(_self_determined(e, cut), width, cut)


def condition(e: Expression, cut: Cut) -> Expression:
    """Return one bit that tells whether ``e`` is not zero."""
    value = exact(e, e.width, cut)
    return value if value.width == 1 else Expression("reduce |", (value,), 1)


def narrows(e: Expression) -> bool:
    """Whether ``e`` in a narrower place is computed in fewer bits, without another wire."""
    if e.operator in (">>", ">>>"):
        return False
    if e.operator in MODULAR or e.operator in ("", "{}", "~", "-x", "<<", "signed"):
        return True
    if e.operator == "?:":
        return all(map(narrows, e.operands[1:]))
    return e.operator == "choice"


def _is_signed(e: Expression) -> bool:
    if e.operator in ("<<", ">>", ">>>"):
        return _is_signed(e.operands[0])
    if e.operator in MODULAR or e.operator in ("~", "-x"):
        return all(map(_is_signed, e.operands))
    if e.operator == "?:":
        return all(map(_is_signed, e.operands[1:]))
    return e.operator == "signed"


def _self_determined(e: Expression, cut: Cut) -> Expression:
    """Return an expression whose operands do not see the width of its place."""
    op = e.operator
    if not op:
        return e
    if op == "{}":
        return joined(tuple(exact(o, o.width, cut) for o in e.operands))
    if op == "word":
        (address,) = e.operands
        return Expression(op, (exact(address, address.width, cut),), e.width, e.text)
    if op in ("&&", "||"):
        return Expression(op[0], tuple(condition(o, cut) for o in e.operands), 1)
    if op in COMPARISONS:
        return _comparison(e, cut)
    (operand,) = e.operands
    value = exact(operand, operand.width, cut)
    if op == "reduce !":
        if value.width == 1:
            return Expression("~", (value,), 1)
        return Expression("==", (value, zeros(value.width)), 1)
    return value if value.width == 1 else Expression(op, (value,), 1)


def _comparison(e: Expression, cut: Cut) -> Expression:
    signed = all(map(_is_signed, e.operands))
    left, right = e.operands
    width = max(left.width, right.width)
    for one, other in ((left, right), (right, left)):
        # A constant that fits is as wide as what it is compared with.
        if one.value is not None and not one.value >> other.width:
            width = other.width
    if not signed and (always := _always(e.operator, right.value, width)) is not None:
        return constant(always, 1)
    values = tuple(exact(o, width, cut, signed=signed) for o in e.operands)
    if signed and e.operator not in ("==", "!="):
        values = tuple(Expression("signed", (value,), width) for value in values)
    return Expression(e.operator, values, 1)


def _always(operator: str, limit: int | None, width: int) -> int | None:
    """Return what a comparison with the largest or smallest value of its width gives."""
    last = (1 << width) - 1
    if limit == last and operator in ("<=", ">"):
        return int(operator == "<=")
    if limit == 0 and operator in (">=", "<"):
        return int(operator == ">=")
    return None


def _shifted_right(e: Expression, width: int, cut: Cut, *, signed: bool) -> Expression:
    left, amount = e.operands
    by = exact(amount, amount.width, cut)
    if not signed:
        vector = exact(left, left.width, cut)
        inside = _highest(by) + width <= left.width
        if width < left.width and vector.is_name and not vector.low and inside:
            # As many bits as the whole wire needs, of which ``left`` may be the lower part.
            places = max(left.width, left.of)
            index = _fit(by, max(1, (places - 1).bit_length()), cut)
            return Expression("+:", (vector, index), width)
        return _fit(Expression(">>", (vector, by), left.width), width, cut)
    inner = max(width, left.width)
    vector = exact(left, inner, cut, signed=True)
    if e.operator == ">>>":
        vector = Expression("signed", (vector,), inner)
    value = Expression(e.operator, (vector, by), inner)
    if e.operator == ">>>":
        value = Expression("unsigned", (value,), inner)
    return _fit(value, width, cut)


def _highest(e: Expression) -> int:
    """Return the largest value of a wire, constant or concatenation of them."""
    if e.operator == "{}":
        value = 0
        for member in e.operands:
            value = value << member.width | _highest(member)
        return value
    return (1 << e.width) - 1 if e.value is None else e.value


def _one_hot(e: Expression) -> Expression:
    """Return a choice as gates: every value with its select bit, of which one is set at most."""
    otherwise, values, selects = e.operands
    terms = []
    for n in range(selects.width):
        select = bits(selects, n, 1)
        value = bits(values, n * e.width, e.width)
        if value.value == 0:
            continue
        mask = joined((select,) * e.width)
        if value.value is not None and value.value + 1 == 1 << e.width:
            terms.append(mask)
        else:
            terms.append(Expression("&", (mask, value), e.width))
    either = terms[0] if terms else zeros(e.width)
    if len(terms) > 1:
        either = Expression("|", tuple(terms), e.width)
    if otherwise.value == 0:
        return either
    chosen = Expression("|", tuple(bits(selects, n, 1) for n in range(selects.width)), 1)
    return Expression("?:", (chosen, either, otherwise), e.width)


def _fit(value: Expression, width: int, cut: Cut, *, signed: bool = False) -> Expression:
    """Return an exact value in a place of other width."""
    missing = width - value.width
    if not missing:
        return value
    if not _has_bits(value) and (signed or missing < 0):
        value = cut(value)
    if missing < 0:
        return bits(value, 0, width)
    if not signed:
        return joined((zeros(missing), value))
    return joined((bits(value, value.width - 1, 1),) * missing + (value,))


def _has_bits(e: Expression) -> bool:
    return not e.operator or (e.operator == "{}" and all(map(_has_bits, e.operands)))


def bits(e: Expression, low: int, width: int) -> Expression:
    """Return bits of a wire, a constant, or a concatenation of such."""
    if width == e.width:
        return e
    if e.operator == "{}":
        members = []
        at = e.width
        for member in e.operands:
            at -= member.width
            first, last = max(low, at), min(low + width, at + member.width)
            if first < last:
                members.append(bits(member, first - at, last - first))
        return joined(tuple(members))
    if e.value is not None:
        value = constant(e.value >> low & ((1 << width) - 1), width)
        return value
    assert e.is_name, f"no bits of {e}"
    return part(e.text, e.low + low, width, -1)


def substitute(e: Expression, name: str, value: Expression) -> Expression | None:
    """Return exact ``e`` with ``value`` for the wire ``name``, None where only part of it is used.

    ``value`` is exact, and as wide as ``name``.
    """
    if any(leaf.text == name and not leaf.whole for leaf in e.leaves()):
        return None
    if any(o.operator == "+:" and o.operands[0].text == name for o in _all(e)):
        return None
    return e.mapped(lambda leaf: value if leaf.text == name else leaf)


def _all(e: Expression) -> Iterator[Expression]:
    yield e
    for operand in e.operands:
        yield from _all(operand)
