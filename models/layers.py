"""What multiplies in a model: its weights by name, how each is summed over, and what is left out.

Every parameter of two or more dimensions that is no embedding and no bias counts as a weight that
multiplies.
Of some it is known along which dimension the product sums, so that groups can run along it:
``nn.Linear`` and its subclasses, the transposed linear layer of GPT-2 (``Conv1D``), the projections
of ``nn.MultiheadAttention``, and the experts of a mixture that stand in one tensor. The others
(convolutions, recurrent and bilinear layers, routers) stay as they are, and are named.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from m2xfp.errors import InputError

__all__ = [
    "Coverage",
    "Layers",
    "Weight",
    "check_weights",
    "find_layers",
    "head_layers",
    "is_plain_linear",
    "is_transposed_linear",
    "multiplied_weights",
]

TYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Types of weights that can be quantized."""


@dataclass(frozen=True)
class Weight:
    """A parameter that multiplies.

    Members
    -------
    layer, parameter
        Name of the module as ``named_modules`` gives it, and of the parameter in it.
    module
        The module.
    dim
        Dimension of the parameter that its product sums over, -1 or -2; None where it is unknown.
    """

    layer: str
    parameter: str
    module: nn.Module
    dim: int | None

    @property
    def name(self) -> str:
        """Name of the parameter in the model."""
        return f"{self.layer}.{self.parameter}".lstrip(".")

    @property
    def value(self) -> Tensor:
        """The parameter, or what a parametrization makes of it."""
        value: Tensor = getattr(self.module, self.parameter)
        return value


@dataclass(frozen=True)
class Layers:
    """The weights of a model that multiply, by what shall become of them.

    Members
    -------
    quantized
        Weights to quantize.
    skipped
        Weights to leave alone because that was asked for.
    unknown
        Weights of which it is not known how they multiply.
    """

    quantized: tuple[Weight, ...]
    skipped: tuple[Weight, ...]
    unknown: tuple[Weight, ...]


@dataclass(frozen=True)
class Coverage:
    """How much of what multiplies is quantized.

    Members
    -------
    values
        Values of all weights that multiply.
    quantized
        Those that are quantized, or whose inputs are.
    skipped, left
        Values by name of weights: left alone as asked for, and for want of a way.
    """

    values: int
    quantized: int
    skipped: dict[str, int]
    left: dict[str, int]

    @property
    def share(self) -> float:
        """Share of all weights that multiply."""
        return self.quantized / self.values if self.values else 0.0

    @property
    def wanted(self) -> float:
        """Share of the weights that were not skipped."""
        due = self.quantized + sum(self.left.values())
        return self.quantized / due if due else 0.0

    @property
    def facts(self) -> dict[str, object]:
        """The figures, for a report."""
        return {
            "weights_that_multiply": self.values,
            "quantized": self.quantized,
            "share": self.share,
            "skipped": self.skipped,
            "left": self.left,
        }

    def __str__(self) -> str:
        """Return the shares and the names in words."""
        text = f"quantized {100 * self.share:.4g} % of the weights that multiply"
        for title, names in (("skipped", self.skipped), ("not quantized", self.left)):
            if names:
                text += f"; {title}: {listed(names)} ({sum(names.values())} values)"
        return text


def listed(names: Iterable[str], most: int = 8) -> str:
    """Return names with commas, the first few if there are many."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a module computes as ``nn.Linear`` does: its subclasses may have their own way."""
    own = "forward" in module.__dict__ or type(module).forward is not nn.Linear.forward
    return isinstance(module, nn.Linear) and not own


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether a module is the linear layer of GPT-2, whose weight is [in, out].

    It is recognised by its name, so that transformers need not be installed.
    """
    kind = type(module)
    home = kind.__module__.partition(".")[0]
    return kind.__name__ == "Conv1D" and home == "transformers" and "forward" not in vars(module)


def multiplied_weights(model: nn.Module) -> Iterator[Weight]:
    """Yield every parameter that multiplies, once, in the order of the modules."""
    seen: set[int] = set()
    for layer, module in model.named_modules():
        looked_up = isinstance(module, (nn.Embedding, nn.EmbeddingBag))
        if looked_up or "Embedding" in type(module).__name__:
            continue
        own = dict(module.named_parameters(recurse=False))
        if nn.utils.parametrize.is_parametrized(module):
            own |= {name: getattr(module, name) for name in module.parametrizations}
        elif type(module).__name__ == "ParametrizationList":
            continue
        for name, value in own.items():
            multiplies = value.ndim >= 2 and not name.endswith("bias")
            if multiplies and value.is_floating_point() and id(value) not in seen:
                seen.add(id(value))
                yield Weight(layer, name, module, _summed(module, name, value))


def _summed(module: nn.Module, name: str, value: Tensor) -> int | None:
    """Return the dimension that products with a parameter sum over, or None."""
    if "forward" in module.__dict__:
        return None  # whatever stands there does not use the class's own
    if isinstance(module, nn.Linear):
        return -1 if name == "weight" else None
    if is_transposed_linear(module):
        return -2
    if isinstance(module, nn.MultiheadAttention):
        plain = module.bias_k is None and not module.add_zero_attn
        return -1 if plain and name.endswith("proj_weight") else None
    if value.ndim == 3 and hasattr(module, "num_experts"):
        return _summed_by_experts(module, name, value)
    return None


def _summed_by_experts(module: nn.Module, name: str, value: Tensor) -> int | None:
    """Return the dimension of experts [expert, .., ..] in one tensor, as transformers holds them.

    Newer classes say how they are laid out. Of the others the width of the model tells, which is
    what all but the last product of an expert sum over, and what the last one gives.
    """
    if "is_transposed" in module.__dict__:
        return -2 if module.is_transposed else -1
    width = getattr(module, "hidden_size", getattr(module, "hidden_dim", None))
    matching = [dim for dim in (-1, -2) if value.shape[dim] == width]
    if len(matching) != 1:
        return None
    return -3 - matching[0] if "down" in name else matching[0]


def find_layers(model: nn.Module, skip: Iterable[str] = ()) -> Layers:
    """Sort the weights of a model by what shall become of them.

    Parameters
    ----------
    model
        Any torch model.
    skip
        Modules to leave alone: names as ``named_modules`` gives them, or patterns such as
        ``*.o_proj``.

    Raises
    ------
    InputError
        There is nothing that can be quantized, or a name or pattern in ``skip`` matches nothing.
    """
    known: list[Weight] = []
    unknown: list[Weight] = []
    for weight in multiplied_weights(model):
        (unknown if weight.dim is None else known).append(weight)
    if not known:
        raise InputError(
            f"{type(model).__name__} has no layer that can be quantized: no linear layer, no "
            "experts, no nn.MultiheadAttention; what is quantized already stays as it is"
        )
    skipped: set[str] = set()
    for pattern in skip:
        matched = {w.layer for w in (*known, *unknown) if fnmatchcase(w.layer, pattern)}
        if not matched:
            layers = listed(dict.fromkeys(weight.layer for weight in known), 12)
            raise InputError(f"skip: no linear layer matches {pattern!r}; there are: {layers}")
        skipped |= matched
    # The output projection of nn.MultiheadAttention is a module of its own, and computed by it.
    inner = {
        f"{name}.out_proj".lstrip("."): name
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention)
    }
    halves = {w.layer for w in unknown if isinstance(w.module, nn.MultiheadAttention)}

    def asked(weight: Weight) -> bool:
        return weight.layer in skipped or inner.get(weight.layer) in skipped

    def possible(weight: Weight) -> bool:
        return inner.get(weight.layer, weight.layer) not in halves

    return Layers(
        tuple(w for w in known if possible(w) and not asked(w)),
        tuple(w for w in (*known, *unknown) if asked(w)),
        tuple(w for w in (*known, *unknown) if not asked(w) and (w.dim is None or not possible(w))),
    )


def check_weights(weights: Iterable[Weight], allow_nan: bool) -> None:
    """Refuse weights that cannot be quantized, by name.

    Raises
    ------
    InputError
        A weight without values (on the meta device) or of another type than float32, bfloat16 and
        float16; or one with a NaN or an infinity, unless ``allow_nan``.
    """
    bad = {}
    for weight in weights:
        value = weight.value
        if value.is_meta:
            raise InputError(
                f"{weight.name} is on the meta device, without values; load the weights first"
            )
        if value.dtype not in TYPES:
            raise InputError(
                f"{weight.name} is {value.dtype}; quantized are float32, bfloat16 and float16: "
                "convert the model first, such as by model.to(torch.bfloat16) (--dtype bfloat16)"
            )
        if not allow_nan and (count := int((~value.isfinite()).sum())):
            bad[weight.name] = count
    if bad:
        told = ", ".join(f"{name} has {count}" for name, count in bad.items())
        raise InputError(
            f"NaN or infinity in weights: {told}; each makes its whole group NaN. Repair the "
            "checkpoint, or go on with allow_nan=True (--allow-nan)"
        )


def head_layers(model: nn.Module) -> list[str]:
    """Return the name of the layer that makes the logits, which is usually not quantized.

    Empty if the model does not say (``get_output_embeddings``), or if the layer is no linear one.
    """
    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    return [name for name, layer in model.named_modules() if layer is head] if head else []
