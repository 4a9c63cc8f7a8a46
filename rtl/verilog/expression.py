"""Expressions as yosys' Verilog writer puts them: a tree, its text, and how to read it.

A tree that was read has the widths of its operands as they came; ``m2xfp.rtl.verilog.exact`` makes
every operand as wide as its place, as linters want it.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby

__all__ = ["Expression", "Names", "constant", "joined", "parse", "part", "zeros"]

_TOKEN = re.compile(
    r"\s*(\d+'h[0-9a-fxz]+|\d+'b[01xz]+|\d+'d\d+|\$signed|[A-Za-z_]\w*(?:\[[\d:]+\])?"
    r"|<<|>>>|>>|[=!<>]=|&&|\|\||~\^|[-+*&|^~!<>?:{},()])"
)
_CONSTANT = re.compile(r"(\d+)'([hbd])(\w+)")
_PART = re.compile(r"(\w+)(?:\[(\d+)(?::(\d+))?\])?")
_READ = re.compile(r"(\w+)\[([^\[\]]*[A-Za-z_{].*)\]")
_REDUCTIONS = ("&", "|", "^", "!")
COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")
BITWISE = ("&", "|", "^")
MODULAR = (*BITWISE, "~^", "+", "-", "*")
"""Operators whose low bits depend on the low bits of their operands alone."""

_LONGEST = 64  # bits of a zero that is written in digits
_BASES = {"h": 16, "b": 2, "d": 10}


@dataclass(frozen=True)
class Names:
    """What the names of a module are.

    Members
    -------
    widths
        Bits of wires and registers.
    memories
        Bits of a word.
    choices
        Bits of the result of the functions that yosys writes for a multiplexer with one select bit
        an input.
    """

    widths: Mapping[str, int]
    memories: Mapping[str, int] = field(default_factory=dict)
    choices: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Expression:
    """A leaf or an operator with operands.

    Members
    -------
    operator
        "" for a leaf, "{}" for a concatenation, "~", "-x" (negation), "reduce &", ..., "&", "+",
        "==", "<<", "?:", "signed", "unsigned", "word" of a memory, "+:" for part of a vector,
        "choice" for one of several values by select bits.
    operands
        In the order of the text.
    width
        Bits of the value, before its place widens it.
    text
        Text of a constant; name of a wire or memory.
    low
        Lowest bit of a wire that is meant.
    value
        Of a constant.
    whole
        Whether a leaf is all of a wire.
    undefined
        Whether no bit of a constant is defined.
    of
        Bits of the wire that a leaf is all or part of, 0 where that is not known.
    """

    operator: str
    operands: tuple["Expression", ...]
    width: int
    text: str = ""
    low: int = 0
    value: int | None = None
    whole: bool = False
    undefined: bool = False
    of: int = field(default=0, compare=False)

    @property
    def is_name(self) -> bool:
        """Whether it is a wire or part of one."""
        return not self.operator and self.value is None

    def leaves(self) -> Iterator["Expression"]:
        """Yield the wires and parts of wires in it."""
        if self.is_name:
            yield self
        for operand in self.operands:
            yield from operand.leaves()

    def mapped(self, change: Callable[["Expression"], "Expression"]) -> "Expression":
        """Return it with every wire or part of one changed."""
        if not self.operator:
            return change(self) if self.is_name else self
        operands = tuple(operand.mapped(change) for operand in self.operands)
        if operands == self.operands:
            return self
        if self.operator == "{}":
            return joined(operands)
        return Expression(self.operator, operands, self.width, self.text)

    def __str__(self) -> str:
        """Return the Verilog text."""
        if not self.operator:
            if self.value == 0 and self.width > _LONGEST:
                return f"{{{self.width}{{1'h0}}}}"
            if self.whole or self.value is not None:
                return self.text
            high = self.low + self.width - 1
            return f"{self.text}[{high}:{self.low}]" if self.width > 1 else f"{self.text}[{high}]"
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
        if self.operator in ("signed", "unsigned"):
            return f"${self.operator}({self.operands[0]})"
        if self.operator == "word":
            return f"{self.text}[{self.operands[0]}]"
        if self.operator == "+:":
            return f"{self.operands[0].text}[{self.operands[1]} +: {self.width}]"
        if len(self.operands) == 1:
            operator = "-" if self.operator == "-x" else self.operator.removeprefix("reduce ")
            return operator + self._inner(self.operands[0])
        return f" {self.operator} ".join(map(self._inner, self.operands))

    def _inner(self, operand: "Expression") -> str:
        """Return an operand's text, in parentheses where they tell something."""
        bare = operand.operator in ("", "{}", "signed", "unsigned", "word", "+:") or (
            len(self.operands) > 1 and operand.operator == "~"
        )
        if bare or (operand.operator == self.operator and self.operator in BITWISE):
            return str(operand)
        return f"({operand})"


def constant(value: int, width: int) -> Expression:
    """Return a constant."""
    text = f"{width}'h{value:0{(width + 3) // 4}x}"
    return Expression("", (), width, text, value=value)


def zeros(width: int) -> Expression:
    """Return so many bits of zero."""
    return constant(0, width)


def part(name: str, low: int, width: int, whole: int) -> Expression:
    """Return bits of the wire ``name``, which has ``whole`` of them."""
    return Expression("", (), width, name, low, whole=width == whole, of=max(0, whole))


def joined(members: tuple[Expression, ...]) -> Expression:
    """Return the concatenation of members, the highest bits first, as short as can be."""
    flat = [
        m for member in members for m in (member.operands if member.operator == "{}" else [member])
    ]
    result: list[Expression] = []
    for member in flat:
        last = result[-1] if result else None
        if last and last.value is not None and member.value is not None:
            value = last.value << member.width | member.value
            result[-1] = constant(value, last.width + member.width)
        elif (
            last
            and last.is_name
            and member.is_name
            and last.text == member.text
            and last.low == member.low + member.width
        ):
            result[-1] = Expression("", (), last.width + member.width, last.text, member.low)
        else:
            result.append(member)
    if len(result) == 1:
        return result[0]
    return Expression("{}", tuple(result), sum(member.width for member in result))


def parse(text: str, names: Names) -> Expression | None:
    """Return the expression, or None for a form that this module does not know."""
    if (read := _READ.fullmatch(text.strip())) and read[1] in names.memories:
        address = parse(read[2], names)
        return address and Expression("word", (address,), names.memories[read[1]], read[1])
    tokens = []
    position = 0
    while position < len(text.rstrip()):
        match = _TOKEN.match(text, position)
        if not match:
            return None
        tokens.append(match[1])
        position = match.end()
    try:
        expression = _whole(tokens, names)
    except (KeyError, IndexError, ValueError):
        return None
    return None if tokens else expression


def _whole(tokens: list[str], names: Names) -> Expression:
    """Take an operator with its operands off the front of ``tokens``."""
    if tokens[0] in names.choices:
        return _choice(tokens, names)
    if tokens[0] in ("~", "-", "+") or tokens[0] in _REDUCTIONS:
        operator = tokens.pop(0)
        operand = _take(tokens, names)
        if operator == "+":
            return operand
        if operator in ("~", "-"):
            return Expression("~" if operator == "~" else "-x", (operand,), operand.width)
        members = operand.operands
        if (
            operator in BITWISE
            and operand.operator == "{}"
            and all(member.width == 1 for member in members)
        ):
            return Expression(operator, members, 1)  # |{a, b} of single bits is a | b
        return Expression(f"reduce {operator}", (operand,), 1)
    left = _take(tokens, names)
    if not tokens:
        return left
    operator = tokens.pop(0)
    right = _take(tokens, names)
    if operator == "?":
        if tokens.pop(0) != ":":
            raise ValueError(operator)
        other = _take(tokens, names)
        return Expression("?:", (left, right, other), max(right.width, other.width))
    if operator in (*COMPARISONS, "&&", "||"):
        return Expression(operator, (left, right), 1)
    if operator in MODULAR:
        return Expression(operator, (left, right), max(left.width, right.width))
    if operator in ("<<", ">>", ">>>"):
        return Expression(operator, (left, right), left.width)
    raise ValueError(operator)


def _choice(tokens: list[str], names: Names) -> Expression:
    """Take a call of a function for a multiplexer: what if no select bit is set, values, bits."""
    width = names.choices[tokens.pop(0)]
    operands = []
    for before in "(,,":
        if tokens.pop(0) != before:
            raise ValueError(before)
        operands.append(_take(tokens, names))
    if tokens.pop(0) != ")":
        raise ValueError(")")
    return Expression("choice", tuple(operands), width)


def _take(tokens: list[str], names: Names) -> Expression:
    """Take a name, part of one, constant or concatenation off the front of ``tokens``."""
    token = tokens.pop(0)
    if token == "$signed":
        if tokens.pop(0) != "(":
            raise ValueError(token)
        operand = _take(tokens, names)
        if tokens.pop(0) != ")":
            raise ValueError(token)
        return Expression("signed", (operand,), operand.width)
    if token == "{":
        members = [_take(tokens, names)]
        while (separator := tokens.pop(0)) == ",":
            members.append(_take(tokens, names))
        if separator != "}":
            raise ValueError(separator)
        return Expression("{}", tuple(members), sum(member.width for member in members))
    if match := _CONSTANT.fullmatch(token):
        width, digits = int(match[1]), match[3]
        plain = re.sub("[xz]", "0", digits)
        value = int(plain, _BASES[match[2]])
        text = token if plain == digits else constant(value, width).text
        undefined = not digits.strip("xz")
        return Expression("", (), width, text, value=value, undefined=undefined)
    match = _PART.fullmatch(token)
    if not match:
        raise ValueError(token)
    whole = names.widths[match[1]]
    if not match[2]:
        return part(match[1], 0, whole, whole)
    low = int(match[3] or match[2])
    return part(match[1], low, int(match[2]) - low + 1, whole)
