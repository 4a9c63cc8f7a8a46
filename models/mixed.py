"""Models whose linear layers are quantized in up to three segments: MicroMix and MXQuant.

The channels of every layer are ordered and split by what a calibration text shows of them
(`m2xfp.golden.formats.mixed`). A plan is a rule with the splits that it gave, and a JSON file.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name PyTorch's documentation uses

from m2xfp.errors import InputError, UnknownNameError, told
from m2xfp.formats import block_format
from m2xfp.golden.formats.mixed import (
    SEGMENTS,
    TILE,
    Calibration,
    Split,
    micromix_split_of,
    mixed_matmul,
    mxquant_splits_of,
)
from m2xfp.models.arithmetic import FLOAT, Arithmetic
from m2xfp.models.cases import Case
from m2xfp.models.evaluate import quantized
from m2xfp.models.layers import Coverage, check_weights, find_layers, listed
from m2xfp.models.quantized import linear_layers, replace_module
from m2xfp.plain import read_json, typed

__all__ = [
    "MixedCase",
    "MixedLinear",
    "Plan",
    "Rule",
    "calibrate",
    "check_channels",
    "coverage_of",
    "load_plan",
    "prepared",
]


@dataclass(frozen=True)
class Rule:
    """How channels are split, and in what weights and activations are kept.

    Members
    -------
    name
        ``micromix`` or ``mxquant``.
    strength
        MicroMix: factor of the thresholds, lambda.
    share
        MXQuant: share of all channels in MXFP6.
    tile
        Channels that a segment has a multiple of.
    weights, activations
        One format for all segments of that side, or None.
    """

    name: str
    strength: float = 1.0
    share: float = 0.05
    tile: int = TILE
    weights: str | None = None
    activations: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Rule":
        """Read ``NAME:option=value,...``; InputError names what is allowed."""
        name, colon, rest = text.partition(":")
        if name not in _OPTIONS:
            raise UnknownNameError("rule of mixed formats", name, _OPTIONS)
        given: dict[str, Any] = {}
        for part in rest.split(",") if colon else ():
            option, _, value = part.partition("=")
            if option not in _OPTIONS[name] or not value:
                raise InputError(
                    f"mixed {told(text)}: {part!r}; {name} takes {', '.join(_OPTIONS[name])}, as "
                    "OPTION=VALUE"
                )
            given[option] = _value(option, value, text)
        return cls(name, **given)

    def __str__(self) -> str:
        """Return the text that ``parse`` reads, without what is as usual."""
        usual = Rule(self.name)
        parts = [
            f"{option}={getattr(self, option)}"
            for option in _OPTIONS[self.name]
            if getattr(self, option) != getattr(usual, option)
        ]
        return f"{self.name}:{','.join(parts)}" if parts else self.name


_OPTIONS = {
    "micromix": ("strength", "tile", "weights", "activations"),
    "mxquant": ("share", "tile", "weights", "activations"),
}
_TILES = (32, 64, 128)


def _value(option: str, text: str, whole: str) -> float | int | str:
    """Return the value of an option; InputError with what is allowed."""
    if option in ("weights", "activations"):
        if text not in SEGMENTS:
            raise InputError(f"mixed {told(whole)}: {option}={text}; give {', '.join(SEGMENTS)}")
        return text
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if option == "tile":
        if number not in _TILES:
            raise InputError(
                f"mixed {told(whole)}: tile={text}; give {', '.join(map(str, _TILES))}"
            )
        return int(number)
    if not (0 < number < 1e6 if option == "strength" else 0 <= number <= 1):
        limits = "a number above 0" if option == "strength" else "a number from 0 to 1"
        raise InputError(f"mixed {told(whole)}: {option}={text}; give {limits}")
    return number


@dataclass(frozen=True)
class Plan:
    """A rule with the splits of a model's layers, by name.

    Members
    -------
    rule
        The rule.
    splits
        A split for each layer.
    calibration
        What they were calibrated on, for the record.
    """

    rule: Rule
    splits: dict[str, Split] = field(hash=False)
    calibration: dict[str, Any] = field(default_factory=dict, hash=False)

    def as_json(self) -> str:
        """Return the plan as text."""
        layers = {
            name: {"sizes": list(split.sizes), "order": split.order.tolist()}
            for name, split in self.splits.items()
        }
        return json.dumps(
            {"rule": str(self.rule), "calibration": self.calibration, "layers": layers}
        )

    def bits(self, side: str | None, layers: dict[str, nn.Linear]) -> Fraction:
        """Return the mean bits a value of weights or activations, each layer by its products."""
        total, count = Fraction(), 0
        for name, split in self.splits.items():
            names = SEGMENTS if side is None else (side,) * 3
            products = layers[name].out_features
            for segment, size in zip(names, split.sizes, strict=True):
                total += block_format(segment).bits_per_value * size * products
                count += size * products
        return total / count


@dataclass(frozen=True)
class _File:
    """A plan in a file; each layer is looked at by `_split`."""

    rule: str
    layers: dict[str, dict[str, Any]]
    calibration: dict[str, Any] = field(default_factory=dict)


def load_plan(path: Path) -> Plan:
    """Read a plan that ``Plan.as_json`` wrote; InputError for any other file."""
    try:
        told_by = typed(_File, read_json(path), "the file")
        rule = Rule.parse(told_by.rule)
        splits = {name: _split(layer, rule, name) for name, layer in told_by.layers.items()}
    except (InputError, UnknownNameError) as error:
        raise InputError(f"splits {path}: no file of --save-splits ({error})") from error
    return Plan(rule, splits, told_by.calibration)


def _split(layer: dict[str, Any], rule: Rule, name: str) -> Split:
    """Return the split of a layer in a file; InputError for what is none."""
    if layer.keys() != {"order", "sizes"}:
        raise InputError(f"{name} has {', '.join(map(repr, layer))}, not 'order' and 'sizes'")
    sizes = typed(tuple[int, int, int], layer["sizes"], f"{name}.sizes")
    order = layer["order"]  # of thousands of numbers, so all are looked at together
    numbers = isinstance(order, list) and all(type(each) is int for each in order)
    if not numbers or sorted(order) != list(range(len(order))):
        raise InputError(f"the order of {name} is no permutation")
    return Split(torch.tensor(order, dtype=torch.int64), sizes, rule.tile)


def check_channels(model: nn.Module, skip: Iterable[str], tile: int) -> dict[str, nn.Linear]:
    """Return the layers that are split; InputError if the channels of one are no whole tiles."""
    layers = linear_layers(model, skip)
    odd = [
        f"{name} ({layer.in_features})"
        for name, layer in layers.items()
        if layer.in_features % tile
    ]
    if odd:
        raise InputError(
            f"mixed: the channels of {listed(odd)} are no multiple of {tile}; leave these layers "
            "out (--skip), or take another tile (mxquant:tile=64)"
        )
    if not layers:
        raise InputError("mixed: the model has no linear layer to split")
    return layers


@torch.no_grad()
def calibrate(
    model: nn.Module, layers: dict[str, nn.Linear], rule: Rule, windows: Tensor, batch: int = 1
) -> Plan:
    """Return the splits that a rule gives for what layers read of windows [n, context]."""
    seen = {name: Calibration(rule.strength, rule.tile) for name in layers}
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, one=seen[name]: one.add(args[0]))
        for name, layer in layers.items()
    ]
    device = next(model.parameters()).device
    try:
        for part in windows.split(batch):
            model(part.to(device))
    finally:
        for hook in hooks:
            hook.remove()
    if missed := [name for name, one in seen.items() if not one.rows]:
        raise InputError(
            f"mixed: {listed(missed)} read nothing of the text; leave them out (--skip)"
        )
    if rule.name == "mxquant":
        found = mxquant_splits_of(list(seen.values()), rule.share)
        return Plan(rule, dict(zip(seen, found, strict=True)))
    splits = {}
    for name, one in seen.items():
        try:
            splits[name] = micromix_split_of(one)
        except InputError as error:
            raise InputError(f"layer {name}: {error}") from error
    return Plan(rule, splits)


class MixedLinear(nn.Module):
    """A linear layer whose weights and inputs are quantized in segments.

    Parameters
    ----------
    layer
        The layer.
    split
        Order and segments of its channels.
    rule
        What sides are kept in one format.
    arithmetic
        In the model's type on quantized values, or as `mixed_matmul` has it.
    """

    values: Tensor

    def __init__(
        self, layer: nn.Linear, split: Split, rule: Rule, arithmetic: Arithmetic = FLOAT
    ) -> None:
        super().__init__()
        self.split, self.rule, self.arithmetic = split, rule, arithmetic
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight = layer.weight.detach()
        self._packed = split.quantize(weight, rule.weights)
        self.register_buffer("values", self._packed.dequantize(weight.dtype).to(weight.device))
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return the product with quantized x."""
        packed = self.split.quantize(x, self.rule.activations)
        if not self.arithmetic.hardware:
            return F.linear(packed.dequantize(x.dtype), self.values, self.bias)
        found = mixed_matmul(packed, self._packed).to(x.dtype)
        return found if self.bias is None else found + self.bias

    def extra_repr(self) -> str:
        """Return sizes."""
        return f"{self.in_features}, {self.out_features}, segments={self.split.sizes}"


@dataclass(frozen=True)
class MixedCase(Case):
    """A case by a plan; nothing but linear layers is quantized.

    Members
    -------
    plan
        The plan.
    bits
        Mean bits a value of weights and of activations.
    """

    plan: Plan | None = None
    bits: tuple[Fraction, Fraction] = (Fraction(), Fraction())

    @classmethod
    def of(cls, plan: Plan, layers: dict[str, nn.Linear], arithmetic: Arithmetic) -> "MixedCase":
        """Return the case of a plan for some layers; InputError if it is not for them."""
        if plan.splits.keys() != layers.keys():
            odd = plan.splits.keys() ^ layers.keys()
            raise InputError(f"splits: the layers are others than the model's: {listed(odd)}")
        for name, split in plan.splits.items():
            if split.order.numel() != layers[name].in_features:
                raise InputError(
                    f"splits: {name} has {layers[name].in_features} channels, the plan "
                    f"{split.order.numel()}"
                )
        if arithmetic.hardware and arithmetic.accumulator != "fp32":
            raise InputError("mixed formats accumulate in fp32; leave --accumulator out")
        sides = (plan.rule.weights, plan.rule.activations)
        weights, activations = (plan.bits(side, layers) for side in sides)
        return cls(arithmetic=arithmetic, plan=plan, bits=(weights, activations))

    @property
    def facts(self) -> dict[str, str]:
        """The rule in place of both formats."""
        assert self.plan is not None
        rule = str(self.plan.rule)
        return super().facts | {"weights": rule, "activations": rule, "label": self.label}

    @property
    def label(self) -> str:
        """One line for tables and plots."""
        assert self.plan is not None
        hardware = " hardware fp32" if self.arithmetic.hardware else ""
        return f"{self.plan.rule}{hardware}"

    @property
    def bits_per_value(self) -> Fraction:
        """Mean bits a value of weights and activations."""
        return sum(self.bits, Fraction()) / 2


@contextmanager
def prepared(
    case: Case,
    model: nn.Module,
    skip: Iterable[str] = (),
    allow_nan: bool = False,
    calibration: Tensor | None = None,
) -> Iterator[nn.Module]:
    """Quantize a model in place as a case has it, mixed or not, for the time of the context.

    ``calibration`` are windows of tokens for the steps of a case that has some.
    """
    if not isinstance(case, MixedCase):
        with quantized(case, model, skip, allow_nan, calibration) as ready:
            yield ready
        return
    assert case.plan is not None
    check_weights(find_layers(model, skip).quantized, allow_nan)
    for name, layer in linear_layers(model, skip).items():
        new = MixedLinear(layer, case.plan.splits[name], case.plan.rule, case.arithmetic)
        model = replace_module(model, layer, new)
    yield model


def coverage_of(model: nn.Module, skip: Iterable[str] = ()) -> Coverage:
    """Return how much of a model, before it is quantized, mixed formats cover."""
    found = find_layers(model, skip)
    mixed = {id(layer.weight) for layer in linear_layers(model, skip).values()}
    left = {w.name: w.value.numel() for w in found.unknown}
    left |= {w.name: w.value.numel() for w in found.quantized if id(w.value) not in mixed}
    skipped = {w.name: w.value.numel() for w in found.skipped}
    own = sum(w.value.numel() for w in found.quantized if id(w.value) in mixed)
    return Coverage(own + sum(left.values()) + sum(skipped.values()), own, skipped, left)
