"""Perplexity of language models: windows, losses, confidence intervals."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name PyTorch's documentation uses

from m2xfp.errors import InputError

__all__ = ["Interval", "bootstrap", "cut_windows", "perplexity", "window_nats"]


def cut_windows(tokens: Tensor, context: int) -> Tensor:
    """Cut tokens [length] into windows [n, context], int64; the rest at the end is left out.

    This is the usual protocol: the windows do not overlap, and the first token of each is given
    and not predicted.

    Raises
    ------
    InputError
        If the text is shorter than one window.
    """
    count = len(tokens) // context
    if count < 1:
        raise InputError(
            f"the text has {len(tokens)} tokens, one window needs {context}; give a longer text or "
            "a smaller context"
        )
    return tokens[: count * context].view(count, context).long()


@torch.no_grad()
def window_nats(
    model: nn.Module,
    windows: Tensor,
    batch: int = 16,
    report: Callable[[int], object] = lambda count: None,
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
        Called with the number of windows after each pass.

    Returns
    -------
    float64 [n]; token losses are float32 and added in float64.
    """
    device = next(model.parameters()).device
    means = []
    for part in windows.split(batch):
        tokens = part.to(device)
        output = model(tokens)
        logits = getattr(output, "logits", output)[:, :-1]
        losses = F.cross_entropy(
            logits.float().transpose(1, 2), tokens[:, 1:].to(logits.device), reduction="none"
        )
        means.append(losses.double().mean(-1).cpu())
        report(len(part))
    return torch.cat(means)


def perplexity(nats: Tensor) -> float:
    """Return exp of the mean loss over all windows."""
    return math.exp(nats.mean().item())


@dataclass(frozen=True)
class Interval:
    """A figure with its confidence interval."""

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
    losses = (nats if reference is None else nats - reference).numpy()
    generator = np.random.default_rng(0)
    draws = generator.integers(len(losses), size=(samples, len(losses)), dtype=np.int32)
    means = losses[draws].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(math.exp(losses.mean()), math.exp(low), math.exp(high))
