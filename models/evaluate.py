"""Perplexity of language models in one or many formats: windows, losses, confidence intervals.

With a process group (``torch.distributed``) the passes are shared among the processes. Every
process gets all losses, and they are those of a single process, since the passes stay the same.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F  # noqa: N812 - the name PyTorch's documentation uses

from m2xfp.errors import InputError
from m2xfp.files import read_sealed, sources_digest, write_sealed
from m2xfp.models.cases import Case
from m2xfp.models.lm import WEIGHTS, load_model
from m2xfp.models.quantized import quantize_model, set_arithmetic
from m2xfp.models.recipes.apply import apply_recipe
from m2xfp.models.split import is_split

__all__ = ["Interval", "bootstrap", "bundled_losses", "perplexity", "quantized", "window_nats"]


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
