"""Plain data from outside: JSON read and held against a type, with an answer to every mistake.

What a file says is believed only after it has been checked: a number where a number belongs, every
member there and none besides.
"""

import json
import math
import re
import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from m2xfp.errors import InputError

__all__ = ["check_module_name", "parse_json", "read_json", "typed", "whole_number"]

_Kind = TypeVar("_Kind")


def check_module_name(name: str) -> None:
    """Raise InputError for a name that is more than a name to Verilog, C++, Tcl or yosys."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise InputError(
            f"name={name!r}: modules and ports are called by letters, digits and underscores, a "
            "letter or an underscore first"
        )


def whole_number(text: str) -> int:
    """Return the number that a text's decimal digits say; InputError for any other text.

    Digits of other scripts are none, nor are more than 18: Python does not read thousands of them.
    """
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise InputError("give a whole number of at most 18 digits")
    return int(text)


def parse_json(text: str | bytes, source: str) -> Any:
    """Return what a JSON text says; InputError if it is none, or nested beyond all reason."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source} is not JSON ({error})") from error


def read_json(path: Path, source: str = "") -> Any:
    """Return what a JSON file says; InputError if it cannot be read or is none."""
    source = source or str(path)
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"{source} cannot be read: {error}") from error
    return parse_json(data, source)


def typed(kind: type[_Kind], value: Any, name: str) -> _Kind:
    """Return JSON data as a value of a type.

    Parameters
    ----------
    kind
        A dataclass, ``int``, ``float``, ``str``, ``bool``, ``tuple[...]``, ``list[...]``,
        ``dict[str, ...]``, a union with None, ``Any``, or made of these. Numbers are finite.
    value
        What ``json`` has read, or TOML.
    name
        What the value is, for messages.

    Raises
    ------
    InputError
        The value is of another type, or a member is missing or unknown.
    """
    found: _Kind = _typed(kind, value, name)
    return found


def _typed(kind: Any, value: Any, name: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and types.NoneType in arguments:
            return None
        (kind,) = (argument for argument in arguments if argument is not types.NoneType)
        return _typed(kind, value, name)
    if is_dataclass(kind):
        return _members(kind, value, name)
    if origin is dict:
        _require(isinstance(value, dict), "an object", value, name)
        return {key: _typed(arguments[1], part, f"{name}.{key}") for key, part in value.items()}
    if origin in (tuple, list):
        _require(isinstance(value, (list, tuple)), "a list", value, name)
        if origin is tuple and Ellipsis not in arguments:
            _require(len(value) == len(arguments), f"{len(arguments)} values", value, name)
            kinds = arguments
        else:
            kinds = (arguments[0],) * len(value)
        pairs = enumerate(zip(kinds, value, strict=True))
        return origin(_typed(each, part, f"{name}[{i}]") for i, (each, part) in pairs)
    if kind is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        _require(number and abs(value) < math.inf, "a finite number", value, name)
        return value
    right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    _require(
        right, {int: "a whole number", str: "a text", bool: "true or false"}[kind], value, name
    )
    return value


def _members(kind: Any, value: Any, name: str) -> Any:
    _require(isinstance(value, dict), "an object", value, name)
    kinds = typing.get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}
    for key in value:
        _require(key in known, f"without {str(key)[:60]!r}", value, name)
    for key, field in known.items():
        needed = field.default is MISSING and field.default_factory is MISSING
        _require(key in value or not needed, f"with {key!r}", value, name)
    return kind(**{key: _typed(kinds[key], part, f"{name}.{key}") for key, part in value.items()})


def _require(right: bool, what: str, value: Any, name: str) -> None:
    if not right:
        shown = repr(value)
        raise InputError(
            f"{name} is {shown if len(shown) <= 60 else shown[:57] + '...'}; it must be {what}"
        )
