"""Recipes: the steps that prepare a model for its formats, as plain data, and as JSON.

A recipe names steps in their order, the calibration text, every seed and the formats, so that the
same recipe gives the same bits on the same machine.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from m2xfp.errors import InputError, UnknownNameError, told
from m2xfp.plain import read_json, typed

__all__ = [
    "STEPS",
    "Awq",
    "Calibration",
    "Gptq",
    "Recipe",
    "Renormalize",
    "Rotate",
    "Smooth",
    "Step",
    "parse_steps",
    "read_recipe",
]

_VERSION = 1


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InputError(f"{name}={told(value)}; pass {low:g} to {high:g}")


def _seed(value: int) -> None:
    if not 0 <= value < 1 << 63:
        raise InputError(f"seed={told(value)}; pass a whole number from 0 on, below 2^63")


@dataclass(frozen=True)
class Rotate:
    """Hadamard rotation.

    Members
    -------
    mode
        ``fused``: into the weights, and in front of layers where needed; ``online``: in front of
        every layer.
    seed
        Of the random signs.
    cache
        Rotate queries and keys too, where the cache is quantized.
    """

    mode: str = "fused"
    seed: int = 0
    cache: bool = True

    def __post_init__(self) -> None:
        """Refuse a mode that does not exist."""
        if self.mode not in ("fused", "online"):
            raise InputError(f"rotate: mode={told(self.mode)}; choose fused or online")
        _seed(self.seed)


@dataclass(frozen=True)
class Awq:
    """Scales of channels by their mean magnitude to a power that is searched, layer by layer.

    Members
    -------
    grid
        Powers that are tried: 0, 1 / grid, ..., 1.
    octave
        Factors on all channels together that are tried with them: 2^(k / octave) below 2. Shared
        scales are powers of two, so it matters where between two of these the largest values lie.
    rows
        Inputs of a layer that the search looks at, evenly spread.
    """

    grid: int = 10
    octave: int = 8
    rows: int = 512

    def __post_init__(self) -> None:
        """Refuse grids and rows that are none."""
        _between("awq: grid", self.grid, 1, 1000)
        _between("awq: octave", self.octave, 1, 1000)
        _between("awq: rows", self.rows, 1, 1 << 20)


@dataclass(frozen=True)
class Smooth:
    """Scales of channels by the largest magnitudes of inputs and weights (SmoothQuant).

    Members
    -------
    strength
        Its alpha: 0 leaves the inputs as they are, 1 makes their channels equally large.
    rows
        Inputs of a layer that are looked at, evenly spread.
    """

    strength: float = 0.5
    rows: int = 512

    def __post_init__(self) -> None:
        """Refuse strengths and rows that are none."""
        _between("smooth: strength", self.strength, 0, 1)
        _between("smooth: rows", self.rows, 1, 1 << 20)


@dataclass(frozen=True)
class Renormalize:
    """Results of quantized attention divided by the sum of the quantized probabilities."""


@dataclass(frozen=True)
class Gptq:
    """Quantization in which later columns make up for the errors of earlier ones.

    Members
    -------
    damping
        Share of the mean diagonal of the Hessian that is added to its diagonal.
    order
        Groups in the order of falling load, not from left to right.
    shrink
        Factors on the weights that the search of a group's scale sees, each tried.
    original
        Aim at the outputs of the model as it was; else at those of the layer for the inputs that
        it gets.
    """

    damping: float = 0.05
    order: bool = True
    shrink: tuple[float, ...] = (1.0, 0.9, 0.8)
    original: bool = False

    def __post_init__(self) -> None:
        """Refuse factors that are none."""
        _between("gptq: damping", self.damping, 0, 10)
        if not 1 <= len(self.shrink) <= 64:
            raise InputError("gptq: shrink has 1 to 64 factors")
        for factor in self.shrink:
            _between("gptq: shrink", factor, 1 / 16, 16)


Step = Rotate | Awq | Smooth | Renormalize | Gptq
STEPS: dict[str, type[Step]] = {
    "rotate": Rotate,
    "awq": Awq,
    "smooth": Smooth,
    "renormalize": Renormalize,
    "gptq": Gptq,
}
"""Steps by the names that recipes have for them."""


def _name(step: Step) -> str:
    return next(name for name, kind in STEPS.items() if type(step) is kind)


@dataclass(frozen=True)
class Calibration:
    """Which text the steps look at.

    Members
    -------
    text
        A file, or None for the text that every installation carries, without the held-out one.
    windows, context
        Pieces of the text, and their tokens; they do not overlap.
    seed
        Of the choice of pieces.
    sha256
        Of the text, where it is known: another text is refused.
    """

    text: str | None = None
    windows: int = 32
    context: int = 512
    seed: int = 0
    sha256: str | None = None

    def __post_init__(self) -> None:
        """Refuse sizes that are none."""
        _between("calibration: windows", self.windows, 1, 1 << 20)
        _between("calibration: context", self.context, 2, 1 << 20)
        _seed(self.seed)


@dataclass(frozen=True)
class Recipe:
    """Steps with their calibration.

    Members
    -------
    steps
        In order; ``gptq``, which quantizes, is the last one.
    calibration
        The text.
    weights, activations, cache, operands
        Formats by name that the recipe was made for, None for those that it leaves open.
    """

    steps: tuple[Step, ...]
    calibration: Calibration = Calibration()
    weights: str | None = None
    activations: str | None = None
    cache: str | None = None
    operands: str | None = None

    def __post_init__(self) -> None:
        """Refuse orders of steps that make no sense."""
        names = [_name(step) for step in self.steps]
        if not names:
            raise InputError(f"steps: give at least one of {', '.join(STEPS)}")
        for name in ("rotate", "renormalize", "gptq"):
            if names.count(name) > 1:
                raise InputError(f"steps: {name} is given {names.count(name)} times; give it once")
        if "gptq" in names[:-1]:
            raise InputError("steps: gptq quantizes the weights, so it is the last step")

    @property
    def rotate(self) -> Rotate | None:
        """The rotation, where there is one."""
        return next((step for step in self.steps if isinstance(step, Rotate)), None)

    @property
    def renormalize(self) -> bool:
        """Whether quantized attention divides by the sum of its probabilities."""
        return any(isinstance(step, Renormalize) for step in self.steps)

    @property
    def formats(self) -> dict[str, tuple[str, ...]]:
        """The formats that it was made for, each as the columns of a sweep have it."""
        given = {name: getattr(self, name) for name in _FORMATS}
        return {name: (value,) for name, value in given.items() if value is not None}

    @property
    def label(self) -> str:
        """The steps as ``parse_steps`` takes them, those of their settings that are not usual."""
        texts = []
        for step in self.steps:
            text, usual = _name(step), type(step)()
            for one in fields(step):
                value = getattr(step, one.name)
                if value != getattr(usual, one.name):
                    text += f":{one.name}={_shown(value)}"
            texts.append(text)
        return ",".join(texts)

    @property
    def facts(self) -> dict[str, Any]:
        """The recipe as JSON has it."""
        steps = [{"step": _name(step), **asdict(step)} for step in self.steps]
        formats = {name: getattr(self, name) for name in _FORMATS}
        return {
            "recipe": _VERSION,
            **formats,
            "steps": steps,
            "calibration": asdict(self.calibration),
        }

    def as_json(self) -> str:
        """Return the text of a recipe file."""
        return json.dumps(self.facts, indent=1) + "\n"


_FORMATS = ("weights", "activations", "cache", "operands")


@dataclass(frozen=True)
class _File:
    """A recipe in a file."""

    recipe: int
    steps: tuple[dict[str, Any], ...]
    calibration: Calibration = Calibration()
    weights: str | None = None
    activations: str | None = None
    cache: str | None = None
    operands: str | None = None


def _step(name: object, settings: Mapping[str, Any], place: str) -> Step:
    """Return a step by its name and settings."""
    if not isinstance(name, str) or name not in STEPS:
        raise UnknownNameError("step", told(name), STEPS)
    found: Step = typed(STEPS[name], dict(settings), place)
    return found


def recipe_of(facts: Any, source: str) -> Recipe:
    """Return a recipe from what JSON has; InputError names what is wrong with it."""
    told_by = typed(_File, facts, source)
    if told_by.recipe != _VERSION:
        raise InputError(f"{source}.recipe is {told_by.recipe}; this version reads {_VERSION}")
    steps = []
    for index, given in enumerate(told_by.steps):
        place = f"{source}.steps[{index}]"
        if "step" not in given:
            raise InputError(f"{place} has no 'step', the name of one of: {', '.join(STEPS)}")
        settings = {name: value for name, value in given.items() if name != "step"}
        steps.append(_step(given["step"], settings, place))
    formats = {name: getattr(told_by, name) for name in _FORMATS}
    return Recipe(tuple(steps), told_by.calibration, **formats)


def read_recipe(path: Path) -> Recipe:
    """Return the recipe of a file.

    Raises
    ------
    InputError
        It cannot be read, or is no recipe: the message names the member.
    """
    return recipe_of(read_json(path), path.name)


def parse_steps(text: str) -> tuple[Step, ...]:
    """Return steps from a command line: ``rotate,awq,gptq`` or ``rotate:mode=online:seed=3``.

    Raises
    ------
    InputError
        A step or a setting that does not exist.
    """
    steps = []
    for part in text.split(","):
        name, *settings = part.split(":")
        given: dict[str, Any] = {}
        for setting in settings:
            key, equals, value = setting.partition("=")
            if not equals or not value:
                raise InputError(f"steps: {setting!r} in {part!r} is not SETTING=VALUE")
            given[key] = _value(key, value)
        steps.append(_step(name, given, f"steps: {name}"))
    return tuple(steps)


def _value(key: str, text: str) -> Any:
    words: dict[str, Any] = {"true": True, "false": False}
    if text in words:
        return words[text]
    if key == "shrink":
        return [_number(part) for part in text.split("/")]
    return _number(text)


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "/".join(f"{part:g}" for part in value)
    return str(value).lower() if isinstance(value, bool) else str(value)
