"""Parameters of components: read from text, checked, written as text, listed and drawn at random.

A component's parameters are the keyword arguments of its constructor: name, type and default stand
in the signature, what each means in the docstring's section Parameters, and what is allowed in the
annotation (``Annotated[int, Between(1, 3)]``) where that can be said of the parameter alone. What
depends on others is the constructor's to refuse, with an InputError.
"""

import functools
import inspect
import random
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ParamSpec

from m2xfp.errors import InputError, UnknownNameError, told
from m2xfp.formats import (
    BLOCK_FORMATS,
    INPUT_TYPES,
    WINDOWS,
    BlockFormat,
    InputType,
    Window,
    block_format,
    input_type,
    window,
)
from m2xfp.pairs import PAIR_SETS, pair_set
from m2xfp.plain import whole_number

__all__ = [
    "Among",
    "Between",
    "Formats",
    "Names",
    "PairTexts",
    "Parameter",
    "bind",
    "checked",
    "parameters_of",
    "parse_settings",
    "plain",
]


_Given = ParamSpec("_Given")


@dataclass(frozen=True)
class Between:
    """Whole numbers from ``low`` to ``high``, of which ``usual`` are drawn at random."""

    low: int
    high: int | None = None
    usual: tuple[int, ...] = ()

    def check(self, name: str, value: Any) -> None:
        """Raise InputError for a number outside."""
        if value < self.low or (self.high is not None and value > self.high):
            raise InputError(f"{name}={value}: must be {self}")

    def __str__(self) -> str:
        """Return the range in words."""
        return f"at least {self.low}" if self.high is None else f"{self.low} to {self.high}"

    @property
    def samples(self) -> tuple[int, ...]:
        """Numbers to draw from."""
        return self.usual or tuple(range(self.low, (self.high or self.low + 3) + 1))


@dataclass(frozen=True)
class Among:
    """One of a few whole numbers."""

    samples: tuple[int, ...]

    def check(self, name: str, value: Any) -> None:
        """Raise InputError for any other number."""
        if value not in self.samples:
            raise InputError(f"{name}={value}: must be {self}")

    def __str__(self) -> str:
        """Return the choice in words."""
        return f"one of {', '.join(map(str, self.samples))}"


@dataclass(frozen=True)
class Names:
    """A choice of texts."""

    names: tuple[str, ...]

    def check(self, name: str, value: Any) -> None:
        """Raise InputError for any other text."""
        if value not in self.names:
            raise InputError(f"{name}={told(value)}; choose one of: {', '.join(self.names)}")

    def __str__(self) -> str:
        """Return the choice in words."""
        return ", ".join(self.names)

    @property
    def samples(self) -> tuple[str, ...]:
        """Texts to draw from."""
        return self.names


@dataclass(frozen=True)
class Formats:
    """A choice of formats; ``options`` says which of their options may change, and to what."""

    names: tuple[str, ...]
    options: tuple[str, ...] = ()

    def check(self, name: str, value: Any) -> None:
        """Leave the decision to the component: formats beyond the named ones may do as well."""

    def __str__(self) -> str:
        """Return the choice in words."""
        options = f"; options: {', '.join(self.options)}" if self.options else ""
        return ", ".join(self.names) + options

    @property
    def samples(self) -> tuple[str, ...]:
        """Texts to draw from."""
        return self.names


@dataclass(frozen=True)
class PairTexts:
    """A set of format pairs, see ``m2xfp.pairs``."""

    def check(self, name: str, value: Any) -> None:
        """Raise InputError for a text that is none."""
        try:
            pair_set(value)
        except (InputError, UnknownNameError) as error:
            raise InputError(f"{name}={told(value)}: {error}") from error

    def __str__(self) -> str:
        """Return the choice in words."""
        return ", ".join(PAIR_SETS) + ", or ACT:WEIGHT+ACT:WEIGHT..."

    @property
    def samples(self) -> tuple[str, ...]:
        """Texts to draw from."""
        return (*PAIR_SETS, "mxfp4:mxfp4+mxfp8-e4m3:mxfp4", "mxint8:mxint8+mxfp4:mxfp4")


@dataclass(frozen=True)
class _Kind:
    """How values of a type are read and what to say of them.

    Members
    -------
    title
        What a value is called.
    parse
        Reads one.
    samples
        Texts to draw from: all names, or a few values.
    notation
        How a value without a name is written.
    """

    title: str
    parse: Callable[[str], Any]
    samples: tuple[str, ...] = ()
    notation: str = ""


def _flag(text: str) -> bool:
    if text not in {"true", "false"}:
        raise InputError("give true or false")
    return text == "true"


_KINDS: dict[type, _Kind] = {
    bool: _Kind("true or false", _flag, ("true", "false")),
    int: _Kind("whole number", whole_number),
    str: _Kind("text", str),
    BlockFormat: _Kind("format", block_format, tuple(BLOCK_FORMATS)),
    InputType: _Kind("input type", input_type, tuple(INPUT_TYPES)),
    Window: _Kind("window", window, tuple(WINDOWS), "LOWEST..HIGHEST/BITS"),
}


def plain(value: Any) -> Any:
    """Return a parameter's value as JSON holds it; what has a name stands by it."""
    return value.name if isinstance(value, (BlockFormat, InputType, Window)) else value


@dataclass(frozen=True)
class Parameter:
    """One parameter of a component.

    Members
    -------
    name, default
        As in the signature.
    type
        ``int``, ``bool``, ``str``, ``BlockFormat``, ``InputType`` or ``Window``.
    optional
        Whether None, written ``none``, is a value.
    limit
        What is allowed, as far as it can be said of the parameter alone; None if it is the type's.
    text
        What the component's docstring says of it.
    """

    name: str
    type: type
    default: Any
    optional: bool
    limit: Between | Among | Names | Formats | PairTexts | None
    text: str

    def parse(self, text: str) -> Any:
        """Return the value that ``text`` stands for; InputError names the remedy."""
        if self.optional and text == "none":
            return None
        try:
            value = _KINDS[self.type].parse(text)
        except UnknownNameError as error:
            raise InputError(f"{self.name}={text}: {error}") from error
        except InputError as error:
            raise InputError(f"{self.name}={text}: {error}; allowed: {self.allowed}") from error
        return self.check(value)

    def check(self, value: Any) -> Any:
        """Return ``value`` if it is of the type and within the limit, otherwise InputError."""
        if value is None and self.optional:
            return value
        if not isinstance(value, self.type) or (self.type is int and isinstance(value, bool)):
            raise InputError(
                f"{self.name}={told(plain(value))}: must be a {_KINDS[self.type].title}; "
                f"allowed: {self.allowed}"
            )
        if self.limit is not None:
            self.limit.check(self.name, value)
        return value

    @property
    def allowed(self) -> str:
        """What is allowed, in words."""
        kind = _KINDS[self.type]
        if self.limit is not None:
            words = f"whole number, {self.limit}" if self.type is int else str(self.limit)
        else:
            words = ", ".join(kind.samples) or kind.title
            words += f", or written {kind.notation}" if kind.notation else ""
        return f"{words}, or none" if self.optional else words

    def write(self, value: Any) -> str:
        """Return ``value`` as text that ``parse`` reads back."""
        if value is None:
            return "none"
        return str(value).lower() if isinstance(value, bool) else str(plain(value))

    def draw(self, rng: random.Random) -> Any:
        """Return a random value; whether it goes with the others is for the component to say."""
        samples: Iterable[Any] = (
            self.limit.samples if self.limit is not None else _KINDS[self.type].samples
        )
        texts = [str(sample) for sample in samples] + ["none"] * self.optional
        return self.parse(rng.choice(texts))


def parameters_of(component: Callable[..., Any]) -> dict[str, Parameter]:
    """Return the parameters of a component's class, in the order of its signature."""
    texts = _texts(inspect.getdoc(component) or "")
    signature = inspect.signature(component, eval_str=True)
    return {
        name: _parameter(name, given, texts.get(name, ""))
        for name, given in signature.parameters.items()
    }


def _parameter(name: str, given: inspect.Parameter, text: str) -> Parameter:
    kind, limit = given.annotation, None
    if typing.get_origin(kind) is Annotated:
        kind, limit = typing.get_args(kind)
    optional = False
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        optional = True
        (kind,) = (part for part in typing.get_args(kind) if part is not types.NoneType)
        if typing.get_origin(kind) is Annotated:
            kind, limit = typing.get_args(kind)
    if kind not in _KINDS or given.default is inspect.Parameter.empty:
        raise TypeError(
            f"parameter {name}: parameters of units have a default and are one of "
            f"{', '.join(kind.__name__ for kind in _KINDS)}"
        )
    return Parameter(name, kind, given.default, optional, limit, text)


def _texts(docstring: str) -> dict[str, str]:
    """Return what the docstring's section Parameters says, by name."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\S[^\n]*\n-+$|\Z)", docstring, re.M | re.S)
    found: dict[str, str] = {}
    if section:
        for names, text in re.findall(r"^(\S[^\n]*)\n((?:[ \t]+[^\n]*\n?|\n)*)", section[1], re.M):
            words = " ".join(text.split())
            found |= dict.fromkeys((name.strip() for name in names.split(",")), words)
    return found


def bind(component: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all parameters of ``component``: the given values, checked, and the other defaults.

    Raises
    ------
    UnknownNameError
        A parameter that the component does not have.
    InputError
        A value of another type, or outside the limit.
    """
    known = parameters_of(component)
    for name in given:
        if name not in known:
            raise UnknownNameError("parameter", name, known)
    return {
        name: parameter.check(given[name]) if name in given else parameter.default
        for name, parameter in known.items()
    }


def checked(constructor: Callable[_Given, None]) -> Callable[_Given, None]:
    """Make a constructor refuse, with InputError, what its own annotations do not allow.

    So a limit is written once, and holds for the command line and for Python alike.
    """

    @functools.cache
    def known() -> dict[str, Parameter]:
        given = inspect.signature(constructor, eval_str=True).parameters.items()
        return {name: _parameter(name, one, "") for name, one in given if name != "self"}

    @functools.wraps(constructor)
    def refusing(*args: _Given.args, **kwargs: _Given.kwargs) -> None:
        for name, value in kwargs.items():
            if name in known():
                known()[name].check(value)
        constructor(*args, **kwargs)

    return refusing


def parse_settings(component: Callable[..., Any], texts: Iterable[str]) -> dict[str, Any]:
    """Read ``NAME=VALUE`` texts, as ``--set`` takes them; a later one replaces an earlier one."""
    known = parameters_of(component)
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not value:
            raise InputError(f"--set {text}: give NAME=VALUE; names: {', '.join(known)}")
        if name not in known:
            raise UnknownNameError("parameter", name, known)
        found[name] = known[name].parse(value)
    return found
