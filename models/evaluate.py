"""Perplexity of language models in one or many formats: windows, losses, confidence intervals.

With a process group (``torch.distributed``) the passes are shared among the processes. Every
process gets all losses, and they are those of a single process, since the passes stay the same.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F  # noqa: N812 - the name PyTorch's documentation uses

from m2xfp.errors import InputError
from m2xfp.files import read_sealed, sources_digest, write_sealed
from m2xfp.golden.formats.format import Format, get_format
from m2xfp.models.arithmetic import FLOAT, Arithmetic
from m2xfp.models.attention import QuantAttention
from m2xfp.models.inputs import input_quantizer, weight_format
from m2xfp.models.lm import WEIGHTS, load_model
from m2xfp.models.quantized import check_layers, quantize_model, set_arithmetic
from m2xfp.models.recipes.apply import apply_recipe
from m2xfp.models.recipes.recipe import Recipe
from m2xfp.models.split import is_split

__all__ = [
    "FP",
    "Case",
    "Interval",
    "bootstrap",
    "bundled_losses",
    "check_attention",
    "check_cases",
    "head_layers",
    "parse_format",
    "perplexity",
    "quantized",
    "sweep_cases",
    "window_nats",
]


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
        return QuantAttention(self.cache, self.operands, self.arithmetic, seed)

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


def head_layers(model: nn.Module) -> list[str]:
    """Return the name of the layer that makes the logits, which is usually not quantized.

    Empty if the model does not say (``get_output_embeddings``), or if the layer is no linear one.
    """
    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    return [name for name, layer in model.named_modules() if layer is head] if head else []


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


@torch.no_grad()
def window_nats(
    model: nn.Module,
    windows: Tensor,
    batch: int = 16,
    report: Callable[[int], object] = lambda count: None,
    predicted: int | None = None,
) -> Tensor:
    """Return the mean negative log-likelihood of each window, in nats a token.

    Parameters
    ----------
    model
        Maps tokens [n, length] to logits [n, length, vocabulary], or to an object with ``logits``.
    windows
        int64 [n, context].
    batch
        Windows a pass.
    report
        Called with the number of windows after each pass of this process.
    predicted
        Tokens at the end of each window that count; None for all but the first.

    Returns
    -------
    float64 [n], on the CPU; token losses are float32 and added in float64. In a process group each
    process computes its share of the passes and gets all results; with a model that is split over
    them they compute every pass together.
    """
    joined = distributed.is_available() and distributed.is_initialized()
    shared = joined and not is_split(model)
    rank, size = (distributed.get_rank(), distributed.get_world_size()) if shared else (0, 1)
    device = _input_device(model)
    nats = torch.zeros(len(windows), dtype=torch.float64)
    passes = range(0, len(windows), batch)
    for start in passes[rank::size]:
        tokens = windows[start : start + batch].to(device)
        output = model(tokens)
        logits = getattr(output, "logits", output)[:, :-1]
        targets = tokens[:, 1:].to(logits.device)
        for row in range(len(tokens)):  # one by one: float32 logits of all can exceed the memory
            token_losses = F.cross_entropy(logits[row].float(), targets[row], reduction="none")
            counted = token_losses if predicted is None else token_losses[-predicted:]
            nats[start + row] = counted.double().mean().cpu()
        report(len(tokens))
    if shared:
        # Each entry comes from one process and is zero elsewhere, so the sum is exact.
        carrier = nats.to(device) if distributed.get_backend() == "nccl" else nats
        distributed.all_reduce(carrier)
        nats = carrier.cpu()
    return nats


def _input_device(model: nn.Module) -> torch.device:
    """Return where tokens go; Accelerate's hooks move them on for a model that it has spread."""
    device = next(model.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device


@contextmanager
def quantized(
    case: Case,
    model: nn.Module,
    skip: Iterable[str] = (),
    allow_nan: bool = False,
    calibration: Tensor | None = None,
) -> Iterator[nn.Module]:
    """Quantize a model in place, and its attention for the time of the context.

    Parameters
    ----------
    case
        What to quantize.
    model, skip, allow_nan
        As for ``quantize_model``.
    calibration
        Windows of tokens for the steps of a recipe.

    Raises
    ------
    InputError
        As for ``quantize_model``, and for ``apply_recipe``; or attention shall be quantized, and
        the model did not compute it with ``scaled_dot_product_attention``.
    """
    if case.recipe is not None:
        if calibration is None:
            raise InputError("a recipe needs windows of a calibration text")
        around = case.attention if case.cache is not None else nullcontext
        formats = case.weights, case.activations
        model = apply_recipe(
            model, case.recipe, calibration, *formats, skip, case.arithmetic, around
        )
    elif case.weights is not None or case.activations is not None:
        model = quantize_model(
            model, case.weights, case.activations, skip, allow_nan, arithmetic=case.arithmetic
        )
    elif case.arithmetic.hardware:  # of a model that is quantized already
        set_arithmetic(model, case.arithmetic)
    if case.cache is None:
        yield model
        return
    with case.attention() as attention:
        yield model
    if not attention.calls:
        raise InputError(
            "this model does not compute its attention with scaled_dot_product_attention, so keys "
            "and values were not quantized; leave the cache format out"
        )


def bundled_losses(
    case: Case,
    windows: Tensor,
    cache: Path,
    batch: int = 4,
    report: Callable[[int], object] = lambda count: None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the losses of the bundled model, kept in ``cache`` by everything that decides them.

    Parameters
    ----------
    case, windows, batch, report
        As for ``quantized`` and ``window_nats``; ``report`` is called for kept losses too.
    cache
        Folder. A file's name holds a hash of the weights, the windows, the case, the golden model's
        sources, the version of torch and the kind of device.
    device
        Where to compute; matrix products differ in their last bits between kinds of devices.
    """
    facts = [case.facts, torch.__version__, torch.device(device).type]
    key = sha256(json.dumps(facts).encode() + windows.numpy().tobytes())
    key.update(sources_digest("m2xfp.formats", "m2xfp.golden", "m2xfp.models"))
    key.update(sha256(WEIGHTS.read_bytes()).digest())
    kept = cache / f"losses-{key.hexdigest()[:24]}.json"
    if (found := read_sealed(kept)) is not None:
        report(len(windows))
        return torch.tensor(json.loads(found), dtype=torch.float64)
    with quantized(case, load_model(device=device)) as model:
        nats = window_nats(model, windows, batch, report)
    write_sealed(kept, json.dumps(nats.tolist()))
    return nats


def perplexity(nats: Tensor) -> float:
    """Return exp of the mean loss over all windows."""
    return math.exp(nats.mean().item())


@dataclass(frozen=True)
class Interval:
    """A figure with its confidence interval.

    Members
    -------
    value, low, high
        The figure and the ends of the interval.
    """

    value: float
    low: float
    high: float


def bootstrap(
    nats: Tensor, reference: Tensor | None = None, samples: int = 10_000, level: float = 0.95
) -> Interval:
    """Return the perplexity, or its ratio to that of a reference, with a confidence interval.

    Windows are drawn again with replacement; with a reference the same windows are drawn from
    both, so that what both find difficult cancels. The percentile interval of ``samples`` draws
    from a fixed seed.

    Parameters
    ----------
    nats, reference
        Losses of the same windows, float64 [n].
    samples, level
        Draws, and the share of them inside the interval.
    """
    values = (nats if reference is None else nats - reference).numpy()
    generator = np.random.default_rng(0)
    count, part = len(values), 100  # draws a step, to bound the memory
    means = np.concatenate(
        [
            values[generator.integers(count, size=(min(part, samples - done), count))].mean(axis=1)
            for done in range(0, samples, part)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(math.exp(values.mean()), math.exp(low), math.exp(high))
