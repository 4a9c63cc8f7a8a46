"""What is quantized in one evaluation, and sweeps of such cases."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from torch import nn

from m2xfp.errors import InputError
from m2xfp.golden.formats.format import Format, get_format
from m2xfp.models.arithmetic import FLOAT, Arithmetic
from m2xfp.models.attention import QuantAttention
from m2xfp.models.inputs import input_quantizer, weight_format
from m2xfp.models.quantized import check_layers
from m2xfp.models.recipes.recipe import Recipe

__all__ = ["FP", "Case", "check_attention", "check_cases", "parse_format", "sweep_cases"]


def parse_format(text: str) -> Format | None:
    """Return the format that a command line names, see ``get_format``; ``none`` is None."""
    return None if text == "none" else get_format(text)


def _label(fmt: Format | None) -> str:
    if fmt is None:
        return "none"
    options = ",".join(f"{name}={str(value).lower()}" for name, value in fmt.options)
    return f"{fmt.name}:{options}" if options else fmt.name


@dataclass(frozen=True)
class Case:
    """What is quantized in one evaluation.

    Members
    -------
    weights, activations
        Formats of the linear layers, or None.
    cache
        Format of keys and values, or None for attention as it is.
    operands
        Format of queries and probabilities, where ``cache`` is given.
    arithmetic
        How quantized layers and attention multiply.
    recipe
        Steps that prepare the model, where there are any; its formats do not count here.
    """

    weights: Format | None = None
    activations: Format | None = None
    cache: Format | None = None
    operands: Format | None = None
    arithmetic: Arithmetic = FLOAT
    recipe: Recipe | None = None

    def __post_init__(self) -> None:
        """Refuse formats that search where values are quantized on the fly, or do not multiply."""
        input_quantizer(self.activations)
        if self.weights is not None or self.activations is not None:
            self.arithmetic.check(self.activations, self.weights)
        if self.cache is not None:
            self.attention()
        elif self.recipe is not None and self.recipe.renormalize:
            raise InputError(
                "renormalize is a step of quantized attention; give --cache, or leave it out"
            )

    @classmethod
    def parse(
        cls,
        weights: str = "none",
        activations: str = "none",
        cache: str = "none",
        operands: str = "m2xfp-act",
        arithmetic: Arithmetic = FLOAT,
    ) -> "Case":
        """Build from names as ``parse_format`` takes them.

        Weights have two levels of scales where the format can and does not say, as
        ``weight_format`` has it.
        """
        held = parse_format(cache)
        return cls(
            None if weights == "none" else weight_format(weights),
            parse_format(activations),
            held,
            None if held is None else parse_format(operands),
            arithmetic,
        )

    def attention(self) -> QuantAttention:
        """Return the context that quantizes the attention."""
        if self.cache is None or self.operands is None:
            raise InputError("attention needs a format for the cache and one for the operands")
        rotate = None if self.recipe is None else self.recipe.rotate
        seed = rotate.seed if rotate is not None and rotate.cache else None
        whole = self.recipe is not None and self.recipe.renormalize
        return QuantAttention(self.cache, self.operands, self.arithmetic, seed, whole)

    def as_recipe(self) -> Recipe:
        """Return the recipe of the case with its formats; InputError if it has no steps."""
        if self.recipe is None:
            raise InputError("the case has no steps, so there is no recipe of it")
        names = ("weights", "activations", "cache", "operands")
        told = {name: self.facts[name] for name in names}
        formats: dict[str, Any] = {n: None if f == "none" else f for n, f in told.items()}
        return replace(self.recipe, **formats)

    @property
    def quantizes(self) -> bool:
        """Whether anything is quantized at all."""
        return self != FP

    @property
    def facts(self) -> dict[str, str]:
        """The formats by name, as ``parse_format`` takes them, and the hardware's arithmetic."""
        facts = {
            "weights": _label(self.weights),
            "activations": _label(self.activations),
            "cache": _label(self.cache),
            "operands": _label(self.operands),
        }
        if self.arithmetic.hardware:
            facts |= {"arithmetic": "hardware", "accumulator": self.arithmetic.accumulator}
        if self.recipe is not None:
            facts |= {"steps": self.recipe.label}
        return facts

    @property
    def label(self) -> str:
        """One line for tables and plots."""
        if not self.quantizes:
            return "not quantized"
        parts = {"W": self.weights, "A": self.activations, "KV": self.cache, "QP": self.operands}
        texts = [f"{short} {_label(fmt)}" for short, fmt in parts.items() if fmt]
        if self.arithmetic.hardware:
            texts.append(f"hardware {self.arithmetic.accumulator}")
        if self.recipe is not None:
            texts.append(f"after {self.recipe.label}")
        return " ".join(texts)

    @property
    def bits_per_value(self) -> Fraction | None:
        """Mean bits a value of the formats of weights and activations; None without any."""
        bits = [fmt.block.bits_per_value for fmt in (self.weights, self.activations) if fmt]
        return sum(bits, Fraction()) / len(bits) if bits else None


FP = Case()
"""The model as it is: what the others are compared with."""


def sweep_cases(
    columns: Mapping[str, Sequence[str]],
    quantized: bool,
    how: Arithmetic = FLOAT,
    recipe: Recipe | None = None,
) -> list[Case]:
    """Return the unquantized case, and one for each position of the columns.

    Parameters
    ----------
    columns
        Formats of ``weights``, ``activations``, ``cache`` and ``operands``, none of one that is
        not given; a single format stands for all positions. MXFP4 and M2XFP where all are empty.
    quantized
        Whether the model is quantized already, so that only its attention can be.
    how
        Arithmetic of the products, of every case but the first.
    recipe
        Steps that prepare every case but the first.

    Raises
    ------
    InputError
        Formats that do not go together.
    """
    if recipe is not None:
        if quantized:
            raise InputError("the model is quantized already; steps prepare one that is not")
        cases = sweep_cases(columns, quantized, how)
        return [case if case == FP else replace(case, recipe=recipe) for case in cases]
    given = {name: values for name, values in columns.items() if values}
    if quantized:
        if given.keys() - {"cache", "operands"}:
            raise InputError("the model is quantized already; give no --weights or --activations")
    elif not given:
        pairs = ("mxfp4", "mxfp4"), ("m2xfp-weight", "m2xfp-act")
        return [FP, *(Case.parse(*pair, arithmetic=how) for pair in pairs)]
    if "operands" in given and "cache" not in given:
        raise InputError("--operands goes with --cache: give the format of keys and values too")
    count = max(map(len, given.values()), default=0)
    for name, values in given.items():
        if len(values) not in (1, count):
            raise InputError(
                f"--{name} is given {len(values)} times and another option {count} times; give "
                "each once, or all of them equally often"
            )
    whole = {
        name: values if len(values) == count else [*values] * count
        for name, values in given.items()
    }
    asked = [
        Case.parse(**{name: values[index] for name, values in whole.items()}, arithmetic=how)
        for index in range(count or how.hardware)
    ]
    return list(dict.fromkeys([FP, *asked]))


def check_cases(
    model: nn.Module, cases: Iterable[Case], skip: Iterable[str] = (), allow_nan: bool = False
) -> None:
    """Raise what ``quantize_model`` would raise for any of the cases, before long work starts."""
    cases = list(cases)
    if any(case.weights or case.activations for case in cases):
        any_weights = any(case.weights for case in cases)
        for how in {case.arithmetic for case in cases if case.weights or case.activations}:
            check_layers(model, skip, allow_nan or not any_weights, how)


def check_attention(model: nn.Module, cases: Iterable[Case]) -> None:
    """Refuse to quantize an attention that does not go through PyTorch's function, as far as known.

    Raises
    ------
    InputError
        A case has a cache format, and the model says that it computes its attention otherwise.
    """
    config = getattr(model, "config", None)
    if any(case.cache for case in cases) and getattr(config, "_attn_implementation", "") == "eager":
        raise InputError(
            f"{type(model).__name__} does not compute its attention with "
            "scaled_dot_product_attention, so keys and values cannot be quantized; leave --cache "
            "out"
        )
