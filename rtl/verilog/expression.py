"""Expressions as yosys' Verilog writer puts them, and when one may stand inside another.

Verilog computes the operands of most operators at the width of the whole expression, so a
subexpression means something else in a wider place if an operator in it can set bits above its own
width: ``~a`` of one bit is two bits of ones in a place of two. ``Expression.extends`` and
``substitute`` hold the rule. Source: IEEE 1800-2017, 11.6. All operands are unsigned.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

__all__ = ["Expression", "parse", "substitute"]

_TOKEN = re.compile(
    r"\s*(\d+'h[0-9a-fx]+|\d+'b[01x]+|[A-Za-z_]\w*(?:\[[\d:]+\])?|<<|>>|[=!<>]=|&&|\|\||[-+*&|^~!<>?:{},])"
)
_CONSTANT = re.compile(r"(\d+)'")
_PART = re.compile(r"(\w+)(?:\[(\d+)(?::(\d+))?\])?")
_REDUCTIONS = ("&", "|", "^", "!")
_COMPARISONS = ("==", "!=", "<", "<=", ">", ">=", "&&", "||")
_BITWISE = ("&", "|", "^")
_ARITHMETIC = ("+", "-", "*")


@dataclass(frozen=True)
class Expression:
    """A leaf or an operator with operands.

    Members
    -------
    operator
        "" for a leaf, "{}" for a concatenation, "~", "reduce &", ..., "&", "+", "==", "<<", "?:".
    operands
        In the order of the text.
    width
        Bits of the value, before its place widens it.
    text
        Text of a leaf.
    """

    operator: str
    operands: tuple["Expression", ...]
    width: int
    text: str = ""

    @property
    def extends(self) -> bool:
        """Whether a wider place cannot change the value, since no operand sees that width.

        Bitwise operators and choices would do too, but linters complain.
        """
        return self.operator in ("", "{}", *_COMPARISONS) or self.operator.startswith("reduce")

    def __str__(self) -> str:
        """Return the Verilog text."""
        if not self.operator:
            return self.text
        if self.operator == "{}":
            runs = [(text, len(list(run))) for text, run in groupby(map(str, self.operands))]
            parts = [
                part
                for text, times in runs
                for part in ([f"{{{times}{{{text}}}}}"] if times > 2 else [text] * times)
            ]
            if len(parts) == 1 and parts[0].startswith("{"):
                return parts[0]
            return "{" + ", ".join(parts) + "}"
        if self.operator == "?:":
            choice, *branches = map(self._inner, self.operands)
            return f"{choice} ? {' : '.join(branches)}"
        if len(self.operands) == 1:
            return self.operator.removeprefix("reduce ") + self._inner(self.operands[0])
        return f" {self.operator} ".join(map(self._inner, self.operands))

    def _inner(self, operand: "Expression") -> str:
        """Return an operand's text, in parentheses where they tell something."""
        bare = operand.operator in ("", "{}") or (
            len(self.operands) > 1 and operand.operator in ("~", "reduce !")
        )
        if bare or (operand.operator == self.operator and self.operator in _BITWISE):
            return str(operand)
        return f"({operand})"


def parse(text: str, widths: Mapping[str, int]) -> Expression | None:
    """Return the expression, or None for a form that this module does not know.

    ``widths`` has all names with their bits.
    """
    tokens = []
    position = 0
    while position < len(text.rstrip()):
        match = _TOKEN.match(text, position)
        if not match:
            return None
        tokens.append(match[1])
        position = match.end()
    try:
        expression = _whole(tokens, widths)
    except (KeyError, IndexError, ValueError):
        return None
    return None if tokens else expression


def _whole(tokens: list[str], widths: Mapping[str, int]) -> Expression:
    """Take an operator with its operands off the front of ``tokens``."""
    if tokens[0] == "~" or tokens[0] in _REDUCTIONS:
        operator = tokens.pop(0)
        operand = _take(tokens, widths)
        if operator == "~":
            return Expression("~", (operand,), operand.width)
        members = operand.operands
        if operator in _BITWISE and members and all(member.width == 1 for member in members):
            return Expression(operator, members, 1)  # |{a, b} of single bits is a | b
        return Expression(f"reduce {operator}", (operand,), 1)
    left = _take(tokens, widths)
    if not tokens:
        return left
    operator = tokens.pop(0)
    right = _take(tokens, widths)
    if operator == "?":
        if tokens.pop(0) != ":":
            raise ValueError(operator)
        other = _take(tokens, widths)
        return Expression("?:", (left, right, other), max(right.width, other.width))
    if operator in _COMPARISONS:
        return Expression(operator, (left, right), 1)
    if operator in _BITWISE or operator in _ARITHMETIC:
        return Expression(operator, (left, right), max(left.width, right.width))
    if operator in ("<<", ">>"):
        return Expression(operator, (left, right), left.width)
    raise ValueError(operator)


def _take(tokens: list[str], widths: Mapping[str, int]) -> Expression:
    """Take a name, part of one, constant or concatenation off the front of ``tokens``."""
    token = tokens.pop(0)
    if token == "{":
        members = [_take(tokens, widths)]
        while (separator := tokens.pop(0)) == ",":
            members.append(_take(tokens, widths))
        if separator != "}":
            raise ValueError(separator)
        return Expression("{}", tuple(members), sum(member.width for member in members))
    if constant := _CONSTANT.match(token):
        return Expression("", (), int(constant[1]), token)
    part = _PART.fullmatch(token)
    if not part:
        raise ValueError(token)
    width = widths[part[1]]
    if part[2]:
        width = int(part[2]) - int(part[3] or part[2]) + 1
    return Expression("", (), width, token)


def substitute(
    expression: Expression, name: str, value: Expression, place: int
) -> Expression | None:
    """Return ``expression`` with ``value`` for the leaf ``name``; None if that changes its meaning.

    ``value`` has the width of ``name``; ``place`` is the width of what the expression is assigned
    to.
    """
    try:
        return _replace(expression, name, value, max(place, expression.width))
    except ValueError:
        return None


def _replace(expression: Expression, name: str, value: Expression, place: int) -> Expression:
    if not expression.operator:
        if expression.text == name:
            if place > value.width and not value.extends:
                raise ValueError(name)
            return value
        if re.match(rf"{name}\b", expression.text):
            raise ValueError(name)  # a part of it; Verilog has no part of an expression
        return expression
    operands = expression.operands
    places = [place] * len(operands)
    if expression.operator in ("{}", "&&", "||") or expression.operator.startswith("reduce"):
        places = [operand.width for operand in operands]
    elif expression.operator in _COMPARISONS:
        places = [max(operand.width for operand in operands)] * 2
    elif expression.operator == "?:":
        places[0] = operands[0].width
    elif expression.operator in ("<<", ">>"):
        places[1] = operands[1].width
    return Expression(
        expression.operator,
        tuple(
            _replace(operand, name, value, width)
            for operand, width in zip(operands, places, strict=True)
        ),
        expression.width,
    )
